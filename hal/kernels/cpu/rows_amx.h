// Few rows (decode) on AMX tiles, bfloat16 by bfloat16. Included inside HAL_NS, after rows.h.
//
// Nothing is packed: 16 tokens x 32 columns of the cache are one tile as they lie there.
// - Scores: keys are the left operand, queries the right one, so scores come by token and are turned here.
// - Values: 32 bits of a value's row are columns d and d + 1, which the right operand counts as two of its rows. A weight
//   (w, 0) in the left operand picks the even columns, (0, w) the odd ones: two rows of sums for one of weights. Until
//   settle() a row of sums holds its even columns, then its odd ones.

#if defined(__AMX_BF16__)
struct Amx {
    typedef uint16_t type;
    enum { pad = 32, widest = 256 };
    // HAL_FEW_ROWS rows, two each, fill a tile of 16. A single row is faster by itself.
    static bool serves(int64_t dim, int64_t rows) { return dim % 32 == 0 && dim <= widest && rows > 1; }

    // Queries are held by pairs of columns: [width / 2][slots] of pairs.
    INLINE int64_t slots(int64_t m) { return m <= 4 ? 4 : 8; }
    static void arrange(const uint16_t* rows, int64_t m, int64_t width, uint16_t* to) {
        const int64_t n = slots(m);
        memset(to, 0, width * n * 2);
        for (int64_t r = 0; r < m; r++)
            for (int64_t p = 0; p < width / 2; p++) memcpy(to + (p * n + r) * 2, rows + r * width + p * 2, 4);
    }

    // Tiles 0 and 1: sums, 2: weights, 3 and 4: keys or values, 5 and 6: scores, 7: queries.
    static void begin(int64_t m) {
        TileConfig t = {};
        t.palette = 1;
        for (int i = 0; i < 8; i++) {
            t.rows[i] = uint8_t(i < 3 ? 2 * m : 16);
            t.columns[i] = uint16_t(i < 5 ? 64 : 4 * slots(m));
        }
        __asm__ volatile("ldtilecfg %0" ::"m"(t));
    }
    static void end() { _tile_release(); }

    // 16 rows of 64 bytes a part, `step` apart; what follows them in `ahead` is fetched part by part.
    struct Block {
        const char* data;
        int64_t step;
        const char* next;         // where what is fetched lies in one piece, else null
        const char* const* ahead;

        Block() = default;
        // Rows past n are zeros. stage: where rows go that do not lie evenly.
        Block(const char* const* rows, const char* const* then, int64_t n, int64_t bytes, char* stage)
            : data(rows[0]), step(rows[1] - rows[0]), next(then[0]), ahead(then) {
            if (n < 16 || !evenly(rows, step)) {
                for (int64_t i = 0; i < 16; i++) {
                    if (i < n)
                        memcpy(stage + i * bytes, rows[i], bytes);
                    else
                        memset(stage + i * bytes, 0, bytes);
                }
                data = stage;
                step = bytes;
            }
            if (!evenly(then, bytes)) next = nullptr;
        }
        INLINE bool evenly(const char* const* rows, int64_t by) {
            const __m512i step = _mm512_set1_epi64(by);
            __m512i a = _mm512_sub_epi64(_mm512_loadu_si512(rows + 1), _mm512_loadu_si512(rows));
            __m512i b = _mm512_sub_epi64(_mm512_loadu_si512(rows + 8), _mm512_loadu_si512(rows + 7));
            return !(_mm512_cmpneq_epi64_mask(a, step) | _mm512_cmpneq_epi64_mask(b, step));
        }
        // A part's share of what lies ahead: 16 lines, in the order of memory.
        inline __attribute__((always_inline)) void fetch_for(int64_t part) const {
            if (next) {
#pragma GCC unroll 16
                for (int64_t i = 0; i < 16; i++) fetch(next + part * 1024 + i * 64);
            } else {
                for (int64_t i = 0; i < 16; i++) fetch(ahead[i] + part * 64);
            }
        }
    };

    static void all_scores(const uint16_t* q, int64_t, const char* const* keys, const char* const* ahead, int64_t m,
                           int64_t n, int64_t dim, float* s) {
        alignas(64) char stage[2][16 * 2 * widest];
        alignas(64) float by_token[2][16 * 8];
        const int64_t wide = slots(m), parts = dim / 32;
        for (int64_t i = 0; i < n; i += 32) {
            const bool two = i + 16 < n;
            const Block a(keys + i, ahead + i, 16, dim * 2, stage[0]);
            const Block b = two ? Block(keys + i + 16, ahead + i + 16, 16, dim * 2, stage[1]) : a;
            written();
            _tile_zero(5);
            _tile_zero(6);
            for (int64_t c = 0; c < parts; c++) {
                _tile_loadd(7, q + c * 32 * wide, wide * 4);
                _tile_loadd(3, a.data + c * 64, a.step);
                _tile_dpbf16ps(5, 3, 7);
                a.fetch_for(c);
                if (!two) continue;
                _tile_loadd(4, b.data + c * 64, b.step);
                _tile_dpbf16ps(6, 4, 7);
                b.fetch_for(c);
            }
            _tile_stored(5, by_token[0], wide * 4);
            if (two) _tile_stored(6, by_token[1], wide * 4);
            for (int64_t t = 0; t <= int64_t(two); t++) {
                if (wide == 4)
                    turn<1>(by_token[t], m, s + i + t * 16);
                else
                    turn<2>(by_token[t], m, s + i + t * 16);
            }
        }
    }
    // [16 tokens][4 G queries] -> m rows of 16.
    template <int G> INLINE void turn(const float* from, int64_t m, float* s) {
        const __m512i quads = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#pragma GCC unroll 2
        for (int g = 0; g < G; g++) {
            __m512 x[4];  // four tokens of four queries, then by query
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const float* p = from + i * 16 * G + g * 4;
                if (G == 1) {
                    x[i] = _mm512_loadu_ps(p);
                } else {
                    x[i] = _mm512_castps128_ps512(_mm_loadu_ps(p));
                    x[i] = _mm512_insertf32x4(x[i], _mm_loadu_ps(p + 8), 1);
                    x[i] = _mm512_insertf32x4(x[i], _mm_loadu_ps(p + 16), 2);
                    x[i] = _mm512_insertf32x4(x[i], _mm_loadu_ps(p + 24), 3);
                }
                x[i] = _mm512_permutexvar_ps(quads, x[i]);
            }
            const __m512 a = _mm512_shuffle_f32x4(x[0], x[1], 0x44), b = _mm512_shuffle_f32x4(x[2], x[3], 0x44);
            const __m512 c = _mm512_shuffle_f32x4(x[0], x[1], 0xee), d = _mm512_shuffle_f32x4(x[2], x[3], 0xee);
            float* to = s + g * 4 * TN;
            _mm512_storeu_ps(to, _mm512_shuffle_f32x4(a, b, 0x88));
            if (g * 4 + 1 < m) _mm512_storeu_ps(to + TN, _mm512_shuffle_f32x4(a, b, 0xdd));
            if (g * 4 + 2 < m) _mm512_storeu_ps(to + 2 * TN, _mm512_shuffle_f32x4(c, d, 0x88));
            if (g * 4 + 3 < m) _mm512_storeu_ps(to + 3 * TN, _mm512_shuffle_f32x4(c, d, 0xdd));
        }
    }

    // Rows of sums are `lds` floats apart, half of them for even columns.
    static void all_values(const uint16_t* w, const char* const* rows, const char* const* ahead, int64_t m, int64_t n,
                           int64_t dim, float* sums, int64_t lds) {
        alignas(64) char stage[TN * 2 * widest];
        alignas(64) uint32_t left[TN / 16][16][16];
        Block v[TN / 16];
        const int64_t blocks = (n + 15) / 16;
        for (int64_t b = 0; b < blocks; b++) {
            v[b] = Block(rows + b * 16, ahead + b * 16, n - b * 16, dim * 2, stage + b * 32 * dim);
            for (int64_t r = 0; r < m; r++) {
                const __m512i x = _mm512_cvtepu16_epi32(
                    _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + r * TN + b * 16)));
                _mm512_store_si512(left[b][2 * r], x);
                _mm512_store_si512(left[b][2 * r + 1], _mm512_slli_epi32(x, 16));
            }
        }
        written();
        for (int64_t part = 0; part < dim / 32; part += 2) {
            const bool two = part + 1 < dim / 32;
            float* to = sums + part * 16;
            _tile_loadd(0, to, lds * 2);
            if (two) _tile_loadd(1, to + 16, lds * 2);
            for (int64_t b = 0; b < blocks; b++) {
                _tile_loadd(2, left[b], 64);
                _tile_loadd(3, v[b].data + part * 64, v[b].step);
                _tile_dpbf16ps(0, 2, 3);
                v[b].fetch_for(part);
                if (!two) continue;
                _tile_loadd(4, v[b].data + part * 64 + 64, v[b].step);
                _tile_dpbf16ps(1, 2, 4);
                v[b].fetch_for(part + 1);
            }
            _tile_stored(0, to, lds * 2);
            if (two) _tile_stored(1, to + 16, lds * 2);
        }
    }
    // Even columns, then odd ones -> in order.
    static void settle(float* sums, int64_t dim) {
        float row[widest];
        memcpy(row, sums, dim * sizeof(float));
        const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        for (int64_t d = 0; d < dim / 2; d += 16) {
            const __m512 a = _mm512_loadu_ps(row + d), b = _mm512_loadu_ps(row + dim / 2 + d);
            _mm512_storeu_ps(sums + 2 * d, _mm512_permutex2var_ps(a, low, b));
            _mm512_storeu_ps(sums + 2 * d + 16, _mm512_permutex2var_ps(a, high, b));
        }
    }
};
#endif
