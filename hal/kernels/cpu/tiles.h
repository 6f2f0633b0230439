// Attention by tiles: keys and values packed, scores and sums as small matrix products. Included inside HAL_NS.

#if defined(__AMX_BF16__)
constexpr int64_t RB = 16;  // rows whose scores are held at a time
#else
constexpr int64_t RB = 12;
#endif

template <class C> static void stage_row(int64_t dtype, const char* from, int64_t width, int64_t padded,
                                         typename C::type* to, float* work) {
    if (sizeof(typename C::type) == 4) {
        floats(dtype, from, width, reinterpret_cast<float*>(to));
    } else if (dtype == HAL_BF16) {
        memcpy(to, from, width * 2);
    } else {
        floats(dtype, from, width, work);
        rounded(HAL_BF16, work, width, reinterpret_cast<char*>(to));
    }
    memset(to + width, 0, (padded - width) * sizeof(typename C::type));
}

// Rows of keys -> [width][BN] (Pairs: [width / 2][BN][2]).
template <class C> static void pack_keys(const char* const* rows, int64_t width, typename C::type* to) {
    const int64_t words = width * sizeof(typename C::type) / 4;
    for (int64_t n = 0; n < BN; n += W)
        for (int64_t d = 0; d < words; d += W)
            transpose(reinterpret_cast<const uint32_t* const*>(rows + n), d,
                      reinterpret_cast<uint32_t*>(to) + d * BN + n, BN);
}
// Rows of values -> [BN / 2][width][2] (Pairs) or one after another (Fp32).
template <class C> static void pack_values(const char* const* rows, int64_t n, int64_t width, typename C::type* to) {
#if defined(__AVX512BF16__)
    if (sizeof(typename C::type) == 2) {
        for (int64_t i = 0; i < n; i += 2) {
            const __m256i* a = reinterpret_cast<const __m256i*>(rows[i]);
            const __m256i* b = reinterpret_cast<const __m256i*>(rows[i + 1]);
            __m512i* o = reinterpret_cast<__m512i*>(to + i * width);
            for (int64_t d = 0; d < width / 16; d++)
                _mm512_storeu_si512(o + d, _mm512_or_si512(
                    _mm512_cvtepu16_epi32(_mm256_loadu_si256(a + d)),
                    _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(b + d)), 16)));
        }
        return;
    }
#endif
    for (int64_t i = 0; i < n; i++) memcpy(to + i * width, rows[i], width * sizeof(typename C::type));
}

// bytes[token][BN]: which of keys first..first + n each token sees; used[key]: whether any does.
static void look(const Job& j, const Item& it, int64_t first, int64_t n, uint8_t* bytes, uint8_t* used) {
    const HalCall& c = *j.call;
    const Seq& s = j.seqs[it.seq];
    memset(used, 0, BN);
    for (int64_t t = it.t0; t < it.t1; t++) {
        uint8_t* seen = bytes + (t - it.t0) * BN;
        int64_t p = t + s.len_k - s.len_q, lo, hi;
        hal_limits(&c, p, s.len_k, &lo, &hi);
        const char* tree = nullptr;
        if (c.tree_mask.data)
            tree = c.tree_mask.data + (j.packed ? (s.first + t) * c.tree_mask.stride[0]
                                                : it.seq * c.tree_mask.stride[0] + t * c.tree_mask.stride[1]);
        for (int64_t i = 0; i < BN; i++) {
            int64_t key = (first + i) * c.cp_world + c.cp_rank, own = key - (s.len_k - s.len_q);
            bool in = key >= lo && key < hi;
            if (tree && own >= 0) in = key < s.len_k && tree[own * c.tree_mask.stride[j.packed ? 1 : 2]];
            for (int64_t r = 0; c.mm_prefix_ranges.data && !in && r < c.mm_prefix_ranges.size[1]; r++) {
                const int32_t* pair = reinterpret_cast<const int32_t*>(c.mm_prefix_ranges.data) +
                                      it.seq * c.mm_prefix_ranges.stride[0] + r * c.mm_prefix_ranges.stride[1];
                int64_t start = pair[0], end = pair[c.mm_prefix_ranges.stride[2]];
                in = start >= 0 && p >= start && p < end && key >= start && key < end && key < s.len_k;
            }
            seen[i] = in && i < n;
            used[i] |= seen[i];
        }
    }
}

template <class C> static int tiles(const Job& j, const Item& it) {
    typedef typename C::type E;
    const HalCall& c = *j.call;
    const Seq& s = j.seqs[it.seq];
    const int64_t tokens = it.t1 - it.t0, m = tokens * j.group, rows = round_up(m, 16) + 16;
    const int64_t dk = round_up(j.dim, C::pad), dv = round_up(j.dim_v, C::pad);
    const bool latent = c.qv.data, sparse = c.sparse_indices.data;
    const int64_t same = sizeof(E) == 2 ? HAL_BF16 : HAL_F32;
    const int64_t wide = dk > dv ? dk : dv;

    E *a, *av, *kt, *vt, *stage_k, *stage_v, *values, *weights, *nothing;
    float *sums, *top, *total, *scores, *work;
    int64_t *low, *high;
    uint8_t *bytes, *used;
    int32_t* picked;
    const int64_t topk = sparse ? c.sparse_indices.size[1] : 0;
    for (Carver carve{nullptr};; carve = Carver{scratch.data}) {
        a = carve.take<E>(rows * dk);
        av = carve.take<E>(latent ? rows * dv : 0);
        kt = carve.take<E>(BN * dk);
        vt = carve.take<E>(latent ? BN * dv : 0);
        stage_k = carve.take<E>(BN * dk);
        stage_v = carve.take<E>(BN * dv);
        values = carve.take<E>(BN * dv);
        weights = carve.take<E>(16 * BN);
        nothing = carve.take<E>(wide);
        sums = carve.take<float>(rows * dv);
        top = carve.take<float>(rows);
        total = carve.take<float>(rows * W);
        scores = carve.take<float>(2 * 16 * BN);
        work = carve.take<float>(wide * 2 + 64);
        low = carve.take<int64_t>(tokens);
        high = carve.take<int64_t>(tokens);
        bytes = carve.take<uint8_t>(j.complex_mask ? tokens * BN : 0);
        used = carve.take<uint8_t>(BN);
        picked = carve.take<int32_t>(topk);
        if (carve.base) break;
        if (!scratch.need(carve.used)) return HAL_NO_MEMORY;
    }
#if defined(__AMX_BF16__)
    if (sizeof(E) == 2) amx_begin();
#endif
    memset(nothing, 0, wide * sizeof(E));
    const int64_t h = it.h0;
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t g = 0; g < j.group; g++) {
            int64_t r = t * j.group + g;
            load_query<C>(j, c.q, s, it.seq, it.t0 + t, h * j.group + g, j.dim, dk, true, work, a + r * dk);
            if (latent)
                load_query<C>(j, c.qv, s, it.seq, it.t0 + t, h * j.group + g, j.dim_v, dv, false, work, av + r * dv);
        }
        if (!sparse) hal_span(&c, &s, it.seq, it.t0 + t, &low[t], &high[t]);
    }
    memset(a + m * dk, 0, (rows - m) * dk * sizeof(E));
    if (latent) memset(av + m * dv, 0, (rows - m) * dv * sizeof(E));
    memset(sums, 0, rows * dv * sizeof(float));
    memset(total, 0, rows * W * sizeof(float));
    for (int64_t r = 0; r < rows; r++) top[r] = -INFINITY;

    // real key = stored * k_descale, and the latent one * v_descale: one factor for the sum of both products.
    float kd = number(c.k_descale, it.seq, h), vd = number(c.v_descale, it.seq, h), ratio = 1.0f;
    if (latent && kd != vd && vd != 0) {
        ratio = kd / vd;
        kd = vd;
    }
    const Scale how(c, number(c.q_descale, it.seq, h) * kd);

    int64_t j0 = it.j0, j1 = it.j1;
    if (sparse) {
        const int32_t* index = reinterpret_cast<const int32_t*>(c.sparse_indices.data) +
                               (s.first + it.t0) * c.sparse_indices.stride[0];
        int64_t count = 0;
        for (int64_t i = it.j0; i < it.j1; i++) {
            int32_t slot = index[i * c.sparse_indices.stride[1]];
            if (slot >= 0) picked[count++] = slot;
        }
        j0 = 0;
        j1 = count;
        low[0] = 0;
        high[0] = count;
    }
    const Keys keys(j, s);
    const bool straight_k = c.k.dtype == same && j.dim == dk, straight_v = c.v.dtype == same && j.dim_v == dv;
    const char *kp[2][BN], *vp[2][BN];
    auto find = [&](int64_t at, int64_t n, int now) {
        if (sparse)
            keys.slots(picked + at, n, h, kp[now], vp[now]);
        else
            keys.find(at, n, h, kp[now], vp[now]);
    };
    if (j0 < j1) find(j0, j1 - j0 < BN ? j1 - j0 : BN, 0);
    int now = 0;
    for (int64_t at = j0; at < j1; at += BN, now ^= 1) {
        const int64_t n = j1 - at < BN ? j1 - at : BN, next = at + BN;
        const int64_t ahead = next >= j1 ? 0 : j1 - next < BN ? j1 - next : BN;
        if (ahead) find(next, ahead, now ^ 1);
        if (j.complex_mask) look(j, it, at, n, bytes, used);
        const char** k = kp[now];
        const char** v = vp[now];
        for (int64_t i = 0; i < ahead; i++) {
            prefetch_row(kp[now ^ 1][i], j.dim * size_of(c.k));
            prefetch_row(vp[now ^ 1][i], j.dim_v * size_of(c.v));
        }
        for (int64_t i = 0; i < BN; i++) {
            if (i >= n || (j.complex_mask && !used[i])) {
                k[i] = v[i] = reinterpret_cast<const char*>(nothing);
                continue;
            }
            if (!straight_k) {
                stage_row<C>(c.k.dtype, k[i], j.dim, dk, stage_k + i * dk, work);
                k[i] = reinterpret_cast<const char*>(stage_k + i * dk);
            }
            if (!straight_v) {
                stage_row<C>(c.v.dtype, v[i], j.dim_v, dv, stage_v + i * dv, work);
                v[i] = reinterpret_cast<const char*>(stage_v + i * dv);
            }
        }
        pack_keys<C>(k, dk, kt);
        if (latent) pack_keys<C>(v, dv, vt);
        const int64_t depth = round_up(n, sizeof(E) == 2 ? 32 : 1), columns = round_up(n, W);
        pack_values<C>(v, depth, dv, values);

        // Blocks of rows that see something of this tile. Low and high never fall along a sequence, but that rows
        // which see nothing have any: so each row's are looked at.
        auto sees = [&](int64_t r0) {
            if (j.complex_mask || sparse) return true;
            for (int64_t t = r0 / j.group; t < tokens && t * j.group < r0 + RB; t++)
                if (low[t] < high[t] && at < high[t] && at + n > low[t]) return true;
            return false;
        };
        auto following = [&](int64_t r0) {
            while (r0 < m && !sees(r0)) r0 += RB;
            return r0;
        };
        auto score = [&](int64_t r0, float* into) {
            const int64_t count = m - r0 < RB ? m - r0 : RB;
            multiply<C>(a + r0 * dk, dk, kt, BN, into, BN, count, BN, dk, false);
            if (!latent) return;
            if (ratio != 1.0f)
                for (int64_t i = 0; i < count * BN; i += W) storef(into + i, loadf(into + i) * ratio);
            multiply<C>(av + r0 * dv, dv, vt, BN, into, BN, count, BN, dv, true);
        };
        // The scores of the next block are under way while this one's weights are made.
        float* here = scores;
        float* there = scores + 16 * BN;
        int64_t r0 = following(0);
        if (r0 < m) score(r0, here);
        while (r0 < m) {
            const int64_t count = m - r0 < RB ? m - r0 : RB, then = following(r0 + RB);
            if (then < m) score(then, there);
            for (int64_t r = 0; r < count; r++) {
                const int64_t t = (r0 + r) / j.group;
                int64_t from = sparse ? 0 : low[t] - at, to = (sparse ? high[0] : high[t]) - at;
                if (to > n) to = n;
                soften(here + r * BN, weights + r * BN, columns, from, to,
                       j.complex_mask ? bytes + t * BN : nullptr, how, &top[r0 + r], total + (r0 + r) * W,
                       sums + (r0 + r) * dv, dv);
                if (columns < depth) memset(weights + r * BN + columns, 0, (depth - columns) * sizeof(E));
            }
            multiply<C>(weights, BN, values, dv, sums + r0 * dv, dv, count, dv, depth, true);
            r0 = then;
            float* other = here;
            here = there;
            there = other;
        }
    }
#if defined(__AMX_BF16__)
    if (sizeof(E) == 2) amx_end();
#endif
    for (int64_t r = 0; r < m; r++)
        hand_over(j, it, r, sums + r * dv, top[r], hsum(loadf(total + r * W)));
    leave(j, it, sums);
    return HAL_OK;
}
