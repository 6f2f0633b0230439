// Attention by tiles: keys and values packed, scores and sums as small matrix products. Included inside HAL_NS.
//
// Keys are packed in chunks that stay in the L2 cache. For each block of RB rows (tokens x heads of a group), its sums
// in the L1 cache meanwhile, the tiles of BN keys of the chunk are walked.

#if defined(__AMX_BF16__)
constexpr int64_t RB = 32;  // rows of a block
#else
constexpr int64_t RB = 24;
#endif

// bytes[token][BN]: which of keys first..first + n (rounded up to 32) each token sees; used[key]: whether any does.
template <int64_t BN>
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
        for (int64_t i = 0; i < round_up(n, 32); i++) {
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

constexpr int64_t CHUNK_BYTES = 256 << 10;  // of packed keys and values, where a tile does not take more
// Rows are fetched so many keys before they are packed, so the first of a chunk are not: with a whole tile it was half of
// them. Those of a latent cache are read without: fetching took longer (7 % with 128 heads).
constexpr int64_t AHEAD = 32;

template <class C> struct Tiles {
    typedef typename C::type E;
    typedef typename std::conditional<C::parts == 1, E, float>::type V;  // what values are packed from
    typedef typename std::conditional<sizeof(V) == 2, Pairs, Fp32>::type Values;
    enum { per = 4 / sizeof(E), P = C::parts };  // numbers a word
#if defined(__AMX_BF16__)
    static constexpr int64_t BN = P == 1 ? 256 : 64;  // keys of a tile
#else
    static constexpr int64_t BN = 64;
#endif

    const Job& j;
    const Item& it;
    const HalCall& c = *j.call;
    const Seq& s = j.seqs[it.seq];
    const Keys keys{j, s};
    const bool latent = c.qv.data, sparse = c.sparse_indices.data;
    const int64_t h = it.h0, tokens = it.t1 - it.t0, m = tokens * j.group, rows = round_up(m, RB);
    const int64_t dk = round_up(j.dim, C::pad), dv = round_up(j.dim_v, C::pad), wide = dk > dv ? dk : dv;
    const int64_t dq = dk + (latent ? dv : 0);  // of a row of queries: q, and qv beside it
    const bool straight_k = P == 1 && c.k.dtype == (sizeof(E) == 2 ? HAL_BF16 : HAL_F32) && j.dim == dk;
    const bool straight_v = c.v.dtype == (sizeof(V) == 2 ? HAL_BF16 : HAL_F32) && j.dim_v == dv;
    float ratio = 1.0f;  // of the two halves of a latent score
    int64_t j0 = it.j0, j1 = it.j1;
    // Words of a packed tile of keys, and of values. Planes lie one after another.
    const int64_t k_plane = BN * dq / per, v_plane = BN * dv / per, k_tile = P * k_plane, v_tile = P * v_plane;
#if defined(__AMX_BF16__)  // 16 x 16 words lie in one piece
    const int64_t k_ld = 16, k_step = 16 * dq / per, v_ld = 16, v_step = 16 * BN / per;
#else
    const int64_t k_ld = BN, k_step = 16, v_ld = dv, v_step = 16;
#endif
    const int64_t chunk = chunk_keys();
    int64_t at = 0, n = 0;  // the chunk's first key, and how many

    E *a, *weights, *stage_k, *stage_l;
    V* stage_v;
    float *sums, *top, *total, *scores, *nothing, *line, *work;
    int64_t *low, *high;  // keys that a token may see
    int32_t *from, *to;   // and a row
    int32_t* picked;
    word *packed_k, *packed_v;
    uint8_t *bytes, *used;  // under a complex mask: see look(), for every tile of the chunk

    Tiles(const Job& job, const Item& item) : j(job), it(item) {}

    int64_t chunk_keys() const {  // whole tiles, at least one
        int64_t keys = CHUNK_BYTES / int64_t(sizeof(E) * P * (dq + dv)) / BN * BN;
        const int64_t need = round_up(it.j1 - it.j0, BN);
        if (keys > need) keys = need;
        return keys > BN ? keys : BN;
    }

    bool carve() {
        for (Carver x{nullptr};; x = Carver{scratch.data}) {
            a = x.take<E>(P * rows * dq);
            weights = x.take<E>(P * RB * BN);
            packed_k = x.take<word>(chunk / BN * k_tile);
            packed_v = x.take<word>(chunk / BN * v_tile);
            bytes = x.take<uint8_t>(j.complex_mask ? tokens * chunk : 0);
            used = x.take<uint8_t>(BN);
            stage_k = x.take<E>(P * 16 * dk);
            stage_l = x.take<E>(P > 1 && latent ? P * 16 * dv : 0);
            stage_v = x.take<V>(32 * dv);
            scores = x.take<float>(RB * BN);
            sums = x.take<float>(rows * dv);
            top = x.take<float>(rows);
            total = x.take<float>(rows * W);
            nothing = x.take<float>(wide);
            line = x.take<float>(wide);
            work = x.take<float>(wide * 2 + 64);
            low = x.take<int64_t>(tokens);
            high = x.take<int64_t>(tokens);
            from = x.take<int32_t>(rows);
            to = x.take<int32_t>(rows);
            picked = x.take<int32_t>(sparse ? c.sparse_indices.size[1] : 0);
            if (x.base) break;
            if (!scratch.need(x.used)) return false;
        }
        memset(weights, 0, P * RB * BN * sizeof(E));
        memset(nothing, 0, wide * sizeof(float));
        memset(sums, 0, rows * dv * sizeof(float));
        memset(total, 0, rows * W * sizeof(float));
        for (int64_t r = 0; r < rows; r++) top[r] = -INFINITY;
        return true;
    }

    void one_query(const HalTensor& x, int64_t t, int64_t head, int64_t width, int64_t padded, bool turn, E* to) {
        if constexpr (P == 1) {
            load_query<C>(j, x, s, it.seq, t, head, width, padded, turn, work, to);
        } else {
            load_query<Fp32>(j, x, s, it.seq, t, head, width, padded, turn, work, line);
            split_row<C>(line, padded, to, rows * dq);
        }
    }

    void queries() {
        const int64_t head = head_stride(j, c.q) * size_of(c.q);
        for (int64_t t = 0; t < tokens; t++) {
            const char* later = t + 8 < tokens ? query(j, c.q, s, it.seq, it.t0 + t + 8) + h * j.group * head : nullptr;
            for (int64_t g = 0; g < j.group; g++) {
                if (later) prefetch_row(later + g * head, j.dim * size_of(c.q));
                E* to = a + (t * j.group + g) * dq;
                one_query(c.q, it.t0 + t, h * j.group + g, j.dim, dk, true, to);
                if (latent) one_query(c.qv, it.t0 + t, h * j.group + g, j.dim_v, dv, false, to + dk);
            }
            if (!sparse) hal_span(&c, &s, it.seq, it.t0 + t, &low[t], &high[t]);
        }
        for (int p = 0; p < P; p++) memset(a + (p * rows + m) * dq, 0, (rows - m) * dq * sizeof(E));
        if (!sparse) {
            for (int64_t r = 0; r < m; r++) from[r] = int32_t(low[r / j.group]), to[r] = int32_t(high[r / j.group]);
            return;
        }
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
        for (int64_t r = 0; r < m; r++) from[r] = 0, to[r] = int32_t(count);
    }

    // --- packing ---

    void find(int64_t first, int64_t count, const char** k, const char** v) const {
        if (sparse)
            keys.slots(picked + first, count, h, k, v);
        else
            keys.find(first, count, h, k, v);
    }

    // 16 keys from `first` of a tile of `count`.
    void pack(const char* const* kp, const char** vp, int64_t first, int64_t count, word* to_k, word* to_v) {
        const word *k[16], *l[16];
        const char* zeros = reinterpret_cast<const char*>(nothing);
        for (int64_t i = 0; i < 16; i++) {
            const int64_t key = first + i;
            const bool none = key >= count || (j.complex_mask && !used[key]);
            if (none || straight_k) {
                k[i] = reinterpret_cast<const word*>(none ? zeros : kp[key]);
            } else {
                stage<C>(c.k.dtype, kp[key], j.dim, dk, line, stage_k + i * dk, 16 * dk);
                k[i] = reinterpret_cast<const word*>(stage_k + i * dk);
            }
            if (none) {
                vp[key] = zeros;
            } else if (!straight_v) {
                V* to = stage_v + key % 32 * dv;
                stage<Values>(c.v.dtype, vp[key], j.dim_v, dv, line, to, 0);
                vp[key] = reinterpret_cast<const char*>(to);
            }
            l[i] = reinterpret_cast<const word*>(vp[key]);
            if constexpr (P > 1)
                if (latent && !none) {
                    split_row<C>(reinterpret_cast<const float*>(vp[key]), dv, stage_l + i * dv, 16 * dv);
                    l[i] = reinterpret_cast<const word*>(stage_l + i * dv);
                }
        }
        for (int p = 0; p < P; p++) {
            word* to = to_k + p * k_plane + first / 16 * k_step;
            pack_keys(k, dk / per, to, k_ld);
            if (latent) pack_keys(l, dv / per, to + dk / per * k_ld, k_ld);
            for (int64_t i = 0; p + 1 < P && i < 16; i++) {  // a row of zeros serves every plane
                if (reinterpret_cast<const float*>(k[i]) != nothing) k[i] += 16 * dk / per;
                if (reinterpret_cast<const float*>(l[i]) != nothing) l[i] += 16 * dv / per;
            }
        }
        if constexpr (per == 1) {
            for (int64_t i = first; i < first + 16; i++) memcpy(to_v + i * dv, vp[i], dv * sizeof(float));
        } else if (first % 32) {
            pack_values<P>(vp + first - 16, dv, to_v + (first - 16) / 2 * v_ld, v_ld, v_step, v_plane);
        }
    }

    void pack_chunk() {
        const char *kp[2][BN], *vp[2][BN];
        find(at, keys_of(0), kp[0], vp[0]);
        for (int64_t t = 0; t * BN < n; t++) {
            const int64_t count = keys_of(t), more = (t + 1) * BN < n ? keys_of(t + 1) : 0;
            const char **k = kp[t % 2], **v = vp[t % 2], **next_k = kp[(t + 1) % 2], **next_v = vp[(t + 1) % 2];
            if (more) find(at + (t + 1) * BN, more, next_k, next_v);
            if (j.complex_mask) look<BN>(j, it, at + t * BN, count, bytes + t * tokens * BN, used);
            for (int64_t first = 0; first < round_up(count, 32); first += 16) {
                for (int64_t i = first + AHEAD; !latent && i < first + AHEAD + 16; i++) {  // then the next tile's
                    const bool here = i < BN;
                    const int64_t key = here ? i : i - BN;
                    if (key >= (here ? count : more)) break;
                    prefetch_row((here ? k : next_k)[key], j.dim * size_of(c.k));
                    prefetch_row((here ? v : next_v)[key], j.dim_v * size_of(c.v));
                }
                pack(k, v, first, count, packed_k + t * k_tile, packed_v + t * v_tile);
            }
        }
    }

    // --- blocks of rows and tiles ---

    int64_t keys_of(int64_t tile) const { return n - tile * BN < BN ? n - tile * BN : BN; }

    // Some columns of a tile for a block of rows: `start` a multiple of 32, `width` of what products want.
    struct Part {
        int64_t tile, start, width;
    };

    // What somebody in a block sees of a tile; width 0 where nobody sees any. Low and high never fall along a sequence,
    // but that rows which see nothing have any: each token's are looked at.
    Part part_of(int64_t r0, int64_t tile) const {
        const int64_t first = at + tile * BN, count = keys_of(tile);
        int64_t least = count, most = 0;
        if (j.complex_mask || sparse) {
            least = 0;
            most = count;
        } else {
            for (int64_t i = r0 / j.group; i < tokens && i * j.group < r0 + RB; i++) {
                if (low[i] >= high[i] || low[i] >= first + count || high[i] <= first) continue;
                if (low[i] - first < least) least = low[i] - first;
                if (high[i] - first > most) most = high[i] - first;
            }
            if (most > count) most = count;
        }
        const int64_t start = least > 0 ? least / 32 * 32 : 0;
        return {tile, start, most ? round_up(most - start, sizeof(E) == 2 ? 32 : W) : 0};
    }

    // Scores of `count` rows.
    void score(int64_t r0, const Part& x, int64_t count) {
        const Left<C> left = {a + r0 * dq, dq, rows * dq};
        const Right<C> right = {packed_k + x.tile * k_tile + x.start / 16 * k_step, k_ld, k_step, k_plane};
        float* s = scores + x.start;
        if (!latent || ratio == 1.0f) return product<C, true>(left, right, s, BN, count, x.width, dq, false);
        product<C, true>(left, right, s, BN, count, x.width, dk, false);
        for (int64_t r = 0; r < count; r++)
            for (int64_t i = 0; i < x.width; i += W) storef(s + r * BN + i, loadf(s + r * BN + i) * ratio);
        product<C, true>({left.at + dk, left.ld, left.plane}, {right.at + dk / per * k_ld, k_ld, k_step, k_plane}, s,
                         BN, count, x.width, dv, true);
    }

    // The weights of row r, the block's row i, from its scores.
    INLINE_OF void row(int64_t r, int64_t i, const Part& x, const Scale& how) {
        const int64_t begin = at + x.tile * BN + x.start, count = keys_of(x.tile) - x.start, width = x.width;
        const int64_t first = from[r] - begin, last = to[r] - begin < count ? to[r] - begin : count;
        const uint8_t* seen = j.complex_mask ? bytes + (x.tile * tokens + r / j.group) * BN + x.start : nullptr;
        const float* s = scores + i * BN + x.start;
        E* w = weights + i * BN + x.start;
        auto store = [&](const vf* y, int vectors) { keep<C, BN>(y, vectors, w, RB * BN); };
        const bool exact = sizeof(E) == 4 || P > 1;
        if (first <= 0 && last >= BN && width == BN && !seen && how.cap == 0)
            weigh<BN, true>(s, width, first, last, seen, how, exact, &top[r], total + r * W, sums + r * dv, dv, store);
        else
            weigh<BN, false>(s, width, first, last, seen, how, exact, &top[r], total + r * W, sums + r * dv, dv, store);
    }

    void walk(const Scale& how) {
        for (int64_t r0 = 0; r0 < m; r0 += RB) {
            const int64_t count = m - r0 < RB ? m - r0 : RB;
            for (int64_t tile = 0; tile * BN < n; tile++) {
                const Part x = part_of(r0, tile);
                if (!x.width) continue;
                score(r0, x, count);
                for (int64_t i = 0; i < count; i++) row(r0 + i, i, x, how);
                product<C, false>({weights + x.start, BN, RB * BN},
                                  {packed_v + tile * v_tile + x.start / per * v_ld, v_ld, v_step, v_plane},
                                  sums + r0 * dv, dv, count, dv, x.width, true);
            }
        }
    }

    int run() {
        if (!carve()) return HAL_NO_MEMORY;
        queries();
        // real key = stored * k_descale, and the latent one * v_descale: one factor for the sum of both products.
        float kd = number(c.k_descale, it.seq, h), vd = number(c.v_descale, it.seq, h);
        if (latent && kd != vd && vd != 0) {
            ratio = kd / vd;
            kd = vd;
        }
#if defined(__AMX_BF16__)
        amx_begin();
#endif
        const Scale how(c, number(c.q_descale, it.seq, h) * kd);
        for (at = j0; at < j1; at += chunk) {
            n = j1 - at < chunk ? j1 - at : chunk;
            pack_chunk();
            walk(how);
        }
#if defined(__AMX_BF16__)
        amx_end();
#endif
        for (int64_t r = 0; r < m; r++)
            hand_over(j, it, r, sums + r * dv, top[r], hsum(loadf(total + r * W)));
        leave(j, it, sums);
        return HAL_OK;
    }
};

template <class C> static int tiles(const Job& j, const Item& it) { return Tiles<C>(j, it).run(); }
