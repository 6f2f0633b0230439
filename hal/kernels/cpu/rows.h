// Attention of few query rows (decode): keys are read where they lie, token by token, all KV heads of a piece for a
// tile of tokens before the next tile, which is prefetched meanwhile. Included inside HAL_NS.

constexpr int64_t TN = 64;  // tokens of a tile

// Sums of 16 (W) vectors each: out[i] = sum of x[i].
#if defined(__AVX512F__)
INLINE __m512 add4(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 x = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 y = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    return _mm512_add_ps((__m512)_mm512_unpacklo_pd((__m512d)x, (__m512d)y),
                         (__m512)_mm512_unpackhi_pd((__m512d)x, (__m512d)y));
}
INLINE __m512 add_lanes(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 x = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    __m512 y = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
}
#endif
constexpr int64_t KEYS = W == 16 ? 16 : 4;  // keys whose scores are made at a time

// q [R][ldq] float32 against KEYS keys -> s[r * TN + i].
template <class T, int R>
INLINE void scores_of(const float* q, int64_t ldq, const char* const* keys, const char* const* ahead, int64_t dim,
                      float* s) {
    typedef typename T::type E;
#if defined(__AVX512F__)
    __m512 part[R][4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
#else
    for (int g = 0; g < KEYS / 4; g++) {
#endif
        vf x[R][4];
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 4; i++) x[r][i] = zero();
        int64_t d = 0;
        for (; d + W <= dim; d += W) {
            vf k[4];
            if (d * sizeof(E) % 64 == 0)
                for (int i = 0; i < 4; i++) fetch(ahead[g * 4 + i] + d * sizeof(E));
            for (int i = 0; i < 4; i++) k[i] = load<T>(reinterpret_cast<const E*>(keys[g * 4 + i]) + d);
            for (int r = 0; r < R; r++) {
                vf y = loadf(q + r * ldq + d);
                for (int i = 0; i < 4; i++) x[r][i] += y * k[i];
            }
        }
        if (d < dim)
            for (int i = 0; i < 4; i++) {
                vf k = load_some<T>(reinterpret_cast<const E*>(keys[g * 4 + i]) + d, int(dim - d));
                for (int r = 0; r < R; r++) x[r][i] += loadf(q + r * ldq + d) * k;
            }
#if defined(__AVX512F__)
        for (int r = 0; r < R; r++)
            part[r][g] = add4((__m512)x[r][0], (__m512)x[r][1], (__m512)x[r][2], (__m512)x[r][3]);
    }
    for (int r = 0; r < R; r++)
        _mm512_storeu_ps(s + r * TN, add_lanes(part[r][0], part[r][1], part[r][2], part[r][3]));
#elif defined(__AVX2__)
        for (int r = 0; r < R; r++) {
            __m256 a = _mm256_hadd_ps((__m256)x[r][0], (__m256)x[r][1]);
            __m256 b = _mm256_hadd_ps((__m256)x[r][2], (__m256)x[r][3]);
            a = _mm256_hadd_ps(a, b);
            _mm_storeu_ps(s + r * TN + g * 4, _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)));
        }
    }
#else
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 4; i++) s[r * TN + g * 4 + i] = hsum(x[r][i]);
    }
#endif
}

// sums [R][lds] += weights [R][TN] times n rows of values.
template <class T, int R, int V>
INLINE void add_values(const float* weights, const char* const* values, const char* const* ahead, int64_t n, int64_t at,
                       int64_t dim, float* sums, int64_t lds) {
    typedef typename T::type E;
    vf x[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) x[r][v] = loadf(sums + r * lds + at + v * W);
    const bool whole = at + V * W <= dim;
    for (int64_t i = 0; i < n; i++) {
        const E* p = reinterpret_cast<const E*>(values[i]) + at;
        for (int64_t byte = 0; byte < V * W * int64_t(sizeof(E)); byte += 64) fetch(ahead[i] + at * sizeof(E) + byte);
        vf y[V];
        if (whole)
            for (int v = 0; v < V; v++) y[v] = load<T>(p + v * W);
        else
            for (int v = 0; v < V; v++) y[v] = load_up_to<T>(p + v * W, dim - at - v * W);
        for (int r = 0; r < R; r++) {
            vf w = set1(weights[r * TN + i]);
            for (int v = 0; v < V; v++) x[r][v] += w * y[v];
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) storef(sums + r * lds + at + v * W, x[r][v]);
}

// Rows in blocks of P::most, the rest one by one count. What lies ahead is fetched beside the first block alone.
template <class P, int R> struct Rows {
    static void scores(const typename P::type* q, int64_t ldq, const char* const* keys, const char* const* ahead,
                       int64_t m, int64_t n, int64_t dim, float* s) {
        for (; m >= R; m -= R, q += R * ldq, s += R * TN, ahead = keys)
            P::template scores<R>(q, ldq, keys, ahead, n, dim, s);
        if (m) Rows<P, R - 1>::scores(q, ldq, keys, ahead, m, n, dim, s);
    }
    static void values(const typename P::type* w, const char* const* rows, const char* const* ahead, int64_t m,
                       int64_t n, int64_t dim, float* sums, int64_t lds) {
        for (; m >= R; m -= R, w += R * TN, sums += R * lds, ahead = rows)
            P::template values<R>(w, rows, ahead, n, dim, sums, lds);
        if (m) Rows<P, R - 1>::values(w, rows, ahead, m, n, dim, sums, lds);
    }
};
template <class P> struct Rows<P, 0> {
    static void scores(const typename P::type*, int64_t, const char* const*, const char* const*, int64_t, int64_t,
                       int64_t, float*) {}
    static void values(const typename P::type*, const char* const*, const char* const*, int64_t, int64_t, int64_t,
                       float*, int64_t) {}
};

// What few_rows asks of the numbers P of one kernel, for those that take rows in blocks: q is held row by row.
template <class P> struct InBlocks {
    static void begin(int64_t) {}
    static void end() {}
    INLINE int64_t slots(int64_t m) { return m; }
    template <class E> static void arrange(const E* rows, int64_t m, int64_t width, E* to) {
        memcpy(to, rows, m * width * sizeof(E));
    }
    template <class E>
    static void all_scores(const E* q, int64_t ldq, const char* const* keys, const char* const* ahead, int64_t m,
                           int64_t n, int64_t dim, float* s) {
        Rows<P, P::most>::scores(q, ldq, keys, ahead, m, n, dim, s);
    }
    template <class E>
    static void all_values(const E* w, const char* const* rows, const char* const* ahead, int64_t m, int64_t n,
                           int64_t dim, float* sums, int64_t lds) {
        Rows<P, P::most>::values(w, rows, ahead, m, n, dim, sums, lds);
    }
};

// The numbers of one kernel for few rows: what q and the weights are held as, and the two products.
template <class T> struct Plain : InBlocks<Plain<T>> {
    typedef float type;
    enum { pad = 16, most = W == 16 ? 4 : 2, V = W == 16 ? 4 : 2 };
    template <int R>
    static void scores(const float* q, int64_t ldq, const char* const* keys, const char* const* ahead, int64_t n,
                       int64_t dim, float* s) {
        for (int64_t i = 0; i < n; i += KEYS) scores_of<T, R>(q, ldq, keys + i, ahead + i, dim, s + i);
    }
    template <int R>
    static void values(const float* w, const char* const* rows, const char* const* ahead, int64_t n, int64_t dim,
                       float* sums, int64_t lds) {
        int64_t at = 0;
        for (; at + V * W <= dim; at += V * W) add_values<T, R, V>(w, rows, ahead, n, at, dim, sums, lds);
        for (; at < dim; at += W) add_values<T, R, 1>(w, rows, ahead, n, at, dim, sums, lds);
    }
    static void settle(float*, int64_t) {}
};

#if defined(__AVX512BF16__)
// bfloat16 keys, values, queries and weights. Sums of values stand in the order of `unpack` until settle().
struct Dot : InBlocks<Dot> {
    typedef uint16_t type;
    enum { pad = 32, most = 4 };
    INLINE __m512bh last(const uint16_t* p, int64_t n) {
        return (__m512bh)_mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << n) - 1), p);
    }
    template <int R>
    INLINE void scores(const uint16_t* q, int64_t ldq, const char* const* keys, const char* const* ahead, int64_t n,
                       int64_t dim, float* s) {
        for (int64_t i = 0; i < n; i += 16) {
            __m512 part[R][4];
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) {
                const uint16_t* k[4];
                __m512 x[R][4];
                for (int b = 0; b < 4; b++) k[b] = reinterpret_cast<const uint16_t*>(keys[i + g * 4 + b]);
                for (int r = 0; r < R; r++)
                    for (int b = 0; b < 4; b++) x[r][b] = _mm512_setzero_ps();
                int64_t d = 0;
                for (; d + 32 <= dim; d += 32) {
                    __m512bh y[4];
                    for (int b = 0; b < 4; b++) fetch(ahead[i + g * 4 + b] + d * 2);
                    for (int b = 0; b < 4; b++) y[b] = load_raw<__m512bh>(k[b] + d);
                    for (int r = 0; r < R; r++) {
                        __m512bh z = load_raw<__m512bh>(q + r * ldq + d);
                        for (int b = 0; b < 4; b++) x[r][b] = _mm512_dpbf16_ps(x[r][b], z, y[b]);
                    }
                }
                if (d < dim)
                    for (int b = 0; b < 4; b++) {
                        __m512bh y = last(k[b] + d, dim - d);
                        for (int r = 0; r < R; r++)
                            x[r][b] = _mm512_dpbf16_ps(x[r][b], load_raw<__m512bh>(q + r * ldq + d), y);
                    }
                for (int r = 0; r < R; r++) part[r][g] = add4(x[r][0], x[r][1], x[r][2], x[r][3]);
            }
            for (int r = 0; r < R; r++)
                _mm512_storeu_ps(s + r * TN + i, add_lanes(part[r][0], part[r][1], part[r][2], part[r][3]));
        }
    }
    // C chunks of 32 columns.
    template <int R, int C>
    INLINE void chunk(const uint16_t* w, const char* const* rows, const char* const* ahead, int64_t n, int64_t at,
                      int64_t dim, float* sums, int64_t lds) {
        __m512 x[R][C][2];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++)
                for (int b = 0; b < 2; b++) x[r][c][b] = _mm512_loadu_ps(sums + r * lds + at + c * 32 + b * 16);
        const bool whole = at + C * 32 <= dim;
        for (int64_t i = 0; i < n; i += 2) {
            const uint16_t* p = reinterpret_cast<const uint16_t*>(rows[i]) + at;
            const uint16_t* o = reinterpret_cast<const uint16_t*>(rows[i + 1]) + at;
            __m512i low[C], high[C];
            for (int c = 0; c < C; c++) {
                fetch(ahead[i] + at * 2 + c * 64);
                fetch(ahead[i + 1] + at * 2 + c * 64);
            }
            for (int c = 0; c < C; c++) {
                __m512i a = whole ? _mm512_loadu_si512(p + c * 32) : (__m512i)last(p + c * 32, dim - at - c * 32);
                __m512i b = whole ? _mm512_loadu_si512(o + c * 32) : (__m512i)last(o + c * 32, dim - at - c * 32);
                low[c] = _mm512_unpacklo_epi16(a, b);
                high[c] = _mm512_unpackhi_epi16(a, b);
            }
            for (int r = 0; r < R; r++) {
                int pair;
                __builtin_memcpy(&pair, w + r * TN + i, 4);
                __m512bh y = (__m512bh)_mm512_set1_epi32(pair);
                for (int c = 0; c < C; c++) {
                    x[r][c][0] = _mm512_dpbf16_ps(x[r][c][0], y, (__m512bh)low[c]);
                    x[r][c][1] = _mm512_dpbf16_ps(x[r][c][1], y, (__m512bh)high[c]);
                }
            }
        }
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++)
                for (int b = 0; b < 2; b++) _mm512_storeu_ps(sums + r * lds + at + c * 32 + b * 16, x[r][c][b]);
    }
    template <int R>
    INLINE void values(const uint16_t* w, const char* const* rows, const char* const* ahead, int64_t n, int64_t dim,
                       float* sums, int64_t lds) {
        int64_t at = 0;
        for (; at + 64 <= dim; at += 64) chunk<R, 2>(w, rows, ahead, n, at, dim, sums, lds);
        for (; at < dim; at += 32) chunk<R, 1>(w, rows, ahead, n, at, dim, sums, lds);
    }
    static void settle(float* sums, int64_t dim) {
        const __m512i one = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i two = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        for (int64_t d = 0; d < dim; d += 32) {
            __m512 a = _mm512_loadu_ps(sums + d), b = _mm512_loadu_ps(sums + d + 16);
            _mm512_storeu_ps(sums + d, _mm512_permutex2var_ps(a, one, b));
            _mm512_storeu_ps(sums + d + 16, _mm512_permutex2var_ps(a, two, b));
        }
    }
};
#endif

template <class P> static int few_rows(const Job& j, const Item& it, const Item* then) {
    typedef typename P::type E;
    typedef typename std::conditional<sizeof(E) == 2, Pairs, Fp32>::type C;
    const HalCall& c = *j.call;
    const Seq& s = j.seqs[it.seq];
    const int64_t tokens = it.t1 - it.t0, m = tokens * j.group, heads = it.h1 - it.h0;
    const int64_t dk = round_up(j.dim, P::pad), dv = round_up(j.dim_v, P::pad);

    const int64_t slots = P::slots(m);

    E *q, *weights, *rows;
    float *sums, *top, *total, *scores, *work;
    for (Carver carve{nullptr};; carve = Carver{scratch.data}) {
        q = carve.take<E>(heads * slots * dk);
        rows = carve.take<E>(m * dk);
        weights = carve.take<E>(HAL_FEW_ROWS * TN);
        sums = carve.take<float>(heads * m * dv);
        top = carve.take<float>(heads * m);
        total = carve.take<float>(heads * m * W);
        scores = carve.take<float>(HAL_FEW_ROWS * TN);
        work = carve.take<float>((dk > dv ? dk : dv) * 2 + 64);
        if (carve.base) break;
        if (!scratch.need(carve.used)) return HAL_NO_MEMORY;
    }
    int64_t low[HAL_FEW_ROWS], high[HAL_FEW_ROWS];
    for (int64_t t = 0; t < tokens; t++) hal_span(&c, &s, it.seq, it.t0 + t, &low[t], &high[t]);
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t r = 0; r < m; r++)
            load_query<C>(j, c.q, s, it.seq, it.t0 + r / j.group, (it.h0 + h) * j.group + r % j.group, j.dim, dk, true,
                          work, rows + r * dk);
        P::arrange(rows, m, dk, q + h * slots * dk);
    }
    P::begin(m);
    memset(sums, 0, heads * m * dv * sizeof(float));
    memset(total, 0, heads * m * W * sizeof(float));
    for (int64_t r = 0; r < heads * m; r++) top[r] = -INFINITY;

    const Keys keys(j, s);
    const int64_t k_step = c.k.stride[c.k.dim - 2] * size_of(c.k), v_step = c.v.stride[c.v.dim - 2] * size_of(c.v);
    const int64_t k_bytes = j.dim * size_of(c.k), v_bytes = j.dim_v * size_of(c.v);
    const bool dense = k_step == k_bytes && v_step == v_bytes;  // heads of a token lie side by side
    const float qd_one = c.q_descale.data ? 0.0f : 1.0f;
    // Tokens of a tile: about 128 KiB of all heads, so that it and the next one leave room in an L2 cache of 512 KiB.
    // Of all, not of this piece's: how many those are depends on the threads, and a tile's end shows in the bits.
    int64_t tile = (int64_t(1) << 17) / (j.kv_heads * (k_bytes + v_bytes)) / 16 * 16;
    tile = tile < 16 ? 16 : tile > TN ? TN : tile;
    const char *kp[2][TN], *vp[2][TN], *kh[TN], *vh[TN], *ka[TN], *va[TN];
    // Tiles end at multiples of 16 tokens of the cache, so that 16 of them lie in one page. Among packed keys they count
    // from the sequence's own first one.
    const int64_t lead = c.page_table.data ? s.start : 0;
    auto end_of = [&](int64_t at) {
        const int64_t end = (lead + at) / 16 * 16 + tile - lead;
        return end < it.j1 ? end : it.j1;
    };
    if (it.j0 < it.j1) keys.find(it.j0, end_of(it.j0) - it.j0, it.h0, kp[0], vp[0]);
    int now = 0;
    for (int64_t at = it.j0, next; at < it.j1; at = next, now ^= 1) {
        next = end_of(at);
        const int64_t n = next - at;
        // The next tile: of this piece, or the first one of the piece that this thread will likely turn to then.
        int64_t more = end_of(next) - next;
        if (more > 0) {
            keys.find(next, more, it.h0, kp[now ^ 1], vp[now ^ 1]);
        } else if (then && then->rows && then->h1 - then->h0 == heads) {
            more = then->j1 - then->j0 < tile ? then->j1 - then->j0 : tile;
            Keys(j, j.seqs[then->seq]).find(then->j0, more, then->h0, kp[now ^ 1], vp[now ^ 1]);
        }
        const int64_t whole = round_up(n, KEYS), even = round_up(n, 2);
        int64_t token = 0, part = 0;  // of the next tile: what is fetched beside the row in hand
        for (int64_t h = 0; h < heads; h++) {
            for (int64_t i = 0; i < n; i++) {
                kh[i] = ka[i] = kp[now][i] + h * k_step;
                vh[i] = va[i] = vp[now][i] + h * v_step;
            }
            for (int64_t i = n; i < whole; i++) {
                kh[i] = ka[i] = kh[0];
                vh[i] = va[i] = vh[0];
            }
            if (dense) {  // in the order of memory
                for (int64_t i = 0; i < n && token < more; i++) {
                    ka[i] = kp[now ^ 1][token] + part * k_step;
                    va[i] = vp[now ^ 1][token] + part * v_step;
                    if (++part == heads) part = 0, token++;
                }
            } else {
                for (int64_t i = 0; i < n && i < more; i++) {
                    ka[i] = kp[now ^ 1][i] + h * k_step;
                    va[i] = vp[now ^ 1][i] + h * v_step;
                }
            }
            const Scale how(c, (qd_one == 1.0f ? 1.0f : number(c.q_descale, it.seq, it.h0 + h)) *
                               number(c.k_descale, it.seq, it.h0 + h));
            P::all_scores(q + h * slots * dk, dk, kh, ka, m, whole, j.dim, scores);
            for (int64_t r = 0; r < m; r++) {
                const int64_t t = r / j.group;
                int64_t to = high[t] - at;
                if (to > n) to = n;
                soften<TN>(scores + r * TN, weights + r * TN, round_up(n, W), low[t] - at, to, nullptr, how,
                       &top[h * m + r], total + (h * m + r) * W, sums + (h * m + r) * dv, dv);
            }
            P::all_values(weights, vh, va, m, sizeof(E) == 2 ? even : n, j.dim_v, sums + h * m * dv, dv);
        }
    }
    P::end();
    for (int64_t r = 0; r < heads * m; r++) {
        P::settle(sums + r * dv, dv);
        hand_over(j, it, r, sums + r * dv, top[r], hsum(loadf(total + r * W)));
    }
    leave(j, it, sums);
    return HAL_OK;
}
