// c[m][n] (+)= a[m][k] b[k][n] for small blocks, in two kinds of numbers. Included inside HAL_NS.
//
// Fp32: a and b are float32. Pairs: a and b are bfloat16, b as pairs along k ([k/2][n][2]), a row-major; sums are
// float32 in both. n is a multiple of W (Pairs: of 32), k of 1 (Pairs: of 32), rows of c are ldc floats apart.

struct Fp32 {
    typedef float type;
    enum { pad = 16 };  // what widths are rounded up to
};
struct Pairs {
    typedef uint16_t type;
    enum { pad = 32 };
};

#if defined(__AVX512F__)
enum { MR = 6, NV = 4 };
#elif defined(__AVX2__)
enum { MR = 6, NV = 2 };
#else
enum { MR = 4, NV = 2 };
#endif

template <int R, int V>
INLINE void block_fp32(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t k,
                       bool add) {
    vf x[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) x[r][v] = add ? loadf(c + r * ldc + v * W) : zero();
    for (int64_t i = 0; i < k; i++) {
        vf y[V];
        for (int v = 0; v < V; v++) y[v] = loadf(b + i * ldb + v * W);
        for (int r = 0; r < R; r++) {
            vf s = set1(a[r * lda + i]);
            for (int v = 0; v < V; v++) x[r][v] += s * y[v];
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) storef(c + r * ldc + v * W, x[r][v]);
}

#if defined(__AVX512BF16__)
template <int R, int V>
INLINE void block_pairs(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, float* c, int64_t ldc,
                        int64_t k, bool add) {
    __m512 x[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) x[r][v] = add ? _mm512_loadu_ps(c + r * ldc + v * 16) : _mm512_setzero_ps();
    for (int64_t i = 0; i < k / 2; i++) {
        __m512bh y[V];
        for (int v = 0; v < V; v++) y[v] = load_raw<__m512bh>(b + (i * ldb + v * 16) * 2);
        for (int r = 0; r < R; r++) {
            int pair;
            __builtin_memcpy(&pair, a + r * lda + i * 2, 4);
            __m512bh s = (__m512bh)_mm512_set1_epi32(pair);
            for (int v = 0; v < V; v++) x[r][v] = _mm512_dpbf16_ps(x[r][v], s, y[v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) _mm512_storeu_ps(c + r * ldc + v * 16, x[r][v]);
}
#endif

// One row count and vector count at a time, so that all sums stay in registers.
template <class C, int R, int V> struct Block;
template <int R, int V> struct Block<Fp32, R, V> {
    static void run(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t k,
                    bool add) { block_fp32<R, V>(a, lda, b, ldb, c, ldc, k, add); }
};
#if defined(__AVX512BF16__)
template <int R, int V> struct Block<Pairs, R, V> {
    static void run(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, float* c, int64_t ldc, int64_t k,
                    bool add) { block_pairs<R, V>(a, lda, b, ldb, c, ldc, k, add); }
};
#endif

template <class C, int R>
static void row_block(const typename C::type* a, int64_t lda, const typename C::type* b, int64_t ldb, float* c,
                      int64_t ldc, int64_t n, int64_t k, bool add) {
    const int64_t per = sizeof(typename C::type) == 2 ? 2 : 1;  // elements of b a lane
    int64_t j = 0;
    for (; j + NV * W <= n; j += NV * W) Block<C, R, NV>::run(a, lda, b + j * per, ldb, c + j, ldc, k, add);
    for (; j < n; j += W) Block<C, R, 1>::run(a, lda, b + j * per, ldb, c + j, ldc, k, add);
}

#if defined(__AMX_BF16__)
// Tiles 0..3: sums, 4: a, 5..7: b.
struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t columns[16];
    uint8_t rows[16];
};
INLINE void amx_begin() {
    TileConfig t = {};
    t.palette = 1;
    for (int i = 0; i < 8; i++) {
        t.columns[i] = 64;
        t.rows[i] = 16;
    }
    // GCC 12 does not see that the intrinsic reads what it points at.
    __asm__ volatile("ldtilecfg %0" ::"m"(t));
}
INLINE void amx_end() { _tile_release(); }

// 16 rows; rows of a past m hold anything finite and give rows of c that nobody reads.
static void amx_rows(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, float* c, int64_t ldc, int64_t n,
                     int64_t k, bool add) {
    int64_t j = 0;
    for (; j + 64 <= n; j += 64) {
        if (add) {
            _tile_loadd(0, c + j, ldc * 4);
            _tile_loadd(1, c + j + 16, ldc * 4);
            _tile_loadd(2, c + j + 32, ldc * 4);
            _tile_loadd(3, c + j + 48, ldc * 4);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t i = 0; i < k; i += 32) {
            const uint16_t* y = b + (i / 2 * ldb + j) * 2;
            _tile_loadd(4, a + i, lda * 2);
            _tile_loadd(5, y, ldb * 4);
            _tile_dpbf16ps(0, 4, 5);
            _tile_loadd(6, y + 32, ldb * 4);
            _tile_dpbf16ps(1, 4, 6);
            _tile_loadd(7, y + 64, ldb * 4);
            _tile_dpbf16ps(2, 4, 7);
            _tile_loadd(5, y + 96, ldb * 4);
            _tile_dpbf16ps(3, 4, 5);
        }
        _tile_stored(0, c + j, ldc * 4);
        _tile_stored(1, c + j + 16, ldc * 4);
        _tile_stored(2, c + j + 32, ldc * 4);
        _tile_stored(3, c + j + 48, ldc * 4);
    }
    for (; j < n; j += 16) {
        if (add)
            _tile_loadd(0, c + j, ldc * 4);
        else
            _tile_zero(0);
        for (int64_t i = 0; i < k; i += 32) {
            _tile_loadd(4, a + i, lda * 2);
            _tile_loadd(5, b + (i / 2 * ldb + j) * 2, ldb * 4);
            _tile_dpbf16ps(0, 4, 5);
        }
        _tile_stored(0, c + j, ldc * 4);
    }
}
#endif

// m rows of a; a and c have room for m rounded up to 16 rows (ROWS).
template <class C>
static void multiply(const typename C::type* a, int64_t lda, const typename C::type* b, int64_t ldb, float* c,
                     int64_t ldc, int64_t m, int64_t n, int64_t k, bool add) {
    int64_t i = 0;
    for (; i + MR <= m; i += MR) row_block<C, MR>(a + i * lda, lda, b, ldb, c + i * ldc, ldc, n, k, add);
    const typename C::type* rest = a + i * lda;
    float* to = c + i * ldc;
    switch (m - i) {
#if defined(__AVX2__)
        case 5: return row_block<C, 5>(rest, lda, b, ldb, to, ldc, n, k, add);
        case 4: return row_block<C, 4>(rest, lda, b, ldb, to, ldc, n, k, add);
#endif
        case 3: return row_block<C, 3>(rest, lda, b, ldb, to, ldc, n, k, add);
        case 2: return row_block<C, 2>(rest, lda, b, ldb, to, ldc, n, k, add);
        case 1: return row_block<C, 1>(rest, lda, b, ldb, to, ldc, n, k, add);
        default: return;
    }
}
#if defined(__AMX_BF16__)
template <>
void multiply<Pairs>(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, float* c, int64_t ldc, int64_t m,
                     int64_t n, int64_t k, bool add) {
    for (int64_t i = 0; i < m; i += 16) amx_rows(a + i * lda, lda, b, ldb, c + i * ldc, ldc, n, k, add);
}
#endif

// --- packing ---

// 32-bit words: to[c][r] = from[r][c] for a block of W x W (AVX-512: 16 x 16); rows of `to` are ldt words apart.
INLINE void transpose(const uint32_t* const* from, int64_t at, uint32_t* to, int64_t ldt) {
#if defined(__AVX512F__)
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from[i] + at);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // r[4 g + j], 128-bit lane l: column 4 l + j of rows 4 g .. 4 g + 3
    for (int j = 0; j < 4; j++) {
        __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        __m512i c = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd), d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        _mm512_storeu_si512(to + (0 + j) * ldt, _mm512_shuffle_i32x4(a, b, 0x88));
        _mm512_storeu_si512(to + (8 + j) * ldt, _mm512_shuffle_i32x4(a, b, 0xdd));
        _mm512_storeu_si512(to + (4 + j) * ldt, _mm512_shuffle_i32x4(c, d, 0x88));
        _mm512_storeu_si512(to + (12 + j) * ldt, _mm512_shuffle_i32x4(c, d, 0xdd));
    }
#elif defined(__AVX2__)
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps((const float*)(from[i] + at));
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps((float*)(to + i * ldt), _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps((float*)(to + (i + 4) * ldt), _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
#else
    for (int i = 0; i < W; i++)
        for (int j = 0; j < W; j++) to[j * ldt + i] = from[i][at + j];
#endif
}
