// Small matrix products c[m][n] (+)= a[m][k] b[k][n], float32 sums, in two kinds of numbers. Included inside HAL_NS.
//
// Both kinds hold a and b as 32-bit words along k: a[m][words], b[words][n], so that one word of b lies in each lane.
// - Fp32: a word is a float32.
// - Parts<P>: a word is two bfloat16 of neighbouring k, and a number is the sum of P bfloat16 numbers, each in a plane
//   of its own: 1 holds a bfloat16 exactly, 2 a float16, 3 a float32 (8 bits of the significand each). Of the 9 products
//   of 3 planes those of planes i + j < 3 are made, the others are below a float32's last bit; of 2 planes all 4 for
//   scores, where one that cancels would show the smallest, and 3 for values. P > 1 needs AMX.
// n is a multiple of W (Parts: of 32), rows of c are ldc floats apart. m is rounded up to the kernel's rows: a and c
// have room for that, rows of a past m hold anything finite and give rows of c that nobody reads.

typedef uint32_t word __attribute__((may_alias));

struct Fp32 {
    typedef float type;
    enum { pad = 16, parts = 1 };  // what widths are rounded up to
};
template <int P> struct Parts {
    typedef uint16_t type;
    enum { pad = 32, parts = P };
    // Planes of b that meet one of a. all: of 2, see above.
    static constexpr int partners(int plane, bool all) { return all && P == 2 ? 2 : P - plane; }
};
typedef Parts<1> Pairs;

// Rows of a (planes of them one after another), and words of b likewise.
template <class C> struct Left {
    const typename C::type* at;
    int64_t ld, plane;
};
template <class C> struct Right {
    const word* at;
    int64_t ld, step, plane;  // step: from 16 columns to the next 16
};

// --- one block in registers: R rows, V vectors of columns ---

#if defined(__AVX512F__)
enum { MR = 12, MORE = 4, NV = 2 };
#elif defined(__AVX2__)
enum { MR = 6, MORE = 2, NV = 2 };
#else
enum { MR = 4, MORE = 2, NV = 2 };
#endif

INLINE vf times(Fp32, word a, const word* b, vf sum) {
    float x;
    __builtin_memcpy(&x, &a, 4);
    return sum + set1(x) * load_raw<vf>(b);
}
#if defined(__AVX512BF16__)
INLINE vf times(Pairs, word a, const word* b, vf sum) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(a)), load_raw<__m512bh>(b));
}
#endif

template <class C, int R, int V>
static void block(const word* a, int64_t lda, const word* b, int64_t ldb, float* c, int64_t ldc, int64_t words,
                  bool add) {
    vf x[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) x[r][v] = add ? loadf(c + r * ldc + v * W) : zero();
    for (int64_t i = 0; i < words; i++)
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) x[r][v] = times(C(), a[r * lda + i], b + i * ldb + v * W, x[r][v]);
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) storef(c + r * ldc + v * W, x[r][v]);
}

// V vectors of columns for all rows: so much of b stays in the L1 cache meanwhile.
template <class C, int V>
static void panel(const word* a, int64_t lda, const word* b, int64_t ldb, float* c, int64_t ldc, int64_t m,
                  int64_t words, bool add) {
    int64_t i = 0;
    for (; i + MR <= m; i += MR) block<C, MR, V>(a + i * lda, lda, b, ldb, c + i * ldc, ldc, words, add);
    for (; i < m; i += MORE) block<C, MORE, V>(a + i * lda, lda, b, ldb, c + i * ldc, ldc, words, add);
}

#if defined(__AMX_BF16__)
// --- AMX: tiles of 16 rows x 16 words. 0..3 are sums ---

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

INLINE void written() { __asm__ volatile("" ::: "memory"); }  // GCC's tile loads do not say that they read memory

// Up to 4 x 16 x 16 sums: 2 x 2 of 32 rows and 32 columns (`square`), or 16 rows of 32 or 64 columns.
static void amx_load(const float* c, int64_t ldc, bool square, bool four) {
    const float* low = square ? c + 16 * ldc : c + 32;
    _tile_loadd(0, c, ldc * 4);
    _tile_loadd(1, c + 16, ldc * 4);
    if (!four) return;
    _tile_loadd(2, low, ldc * 4);
    _tile_loadd(3, low + 16, ldc * 4);
}
static void amx_store(float* c, int64_t ldc, bool square, bool four) {
    float* low = square ? c + 16 * ldc : c + 32;
    _tile_stored(0, c, ldc * 4);
    _tile_stored(1, c + 16, ldc * 4);
    if (!four) return;
    _tile_stored(2, low, ldc * 4);
    _tile_stored(3, low + 16, ldc * 4);
}
static void amx_zero() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
// 32 numbers along k of it.
template <class C, bool ALL> static void amx_square(const Left<C>& a, const Right<C>& b) {
#pragma GCC unroll 3
    for (int p = 0; p < C::parts; p++) {
        const uint16_t* x = a.at + p * a.plane;
        _tile_loadd(4, x, a.ld * 2);
        _tile_loadd(5, x + 16 * a.ld, a.ld * 2);
        for (int q = 0; q < C::partners(p, ALL); q++) {
            const word* y = b.at + q * b.plane;
            _tile_loadd(6, y, b.ld * 4);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, y + b.step, b.ld * 4);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
}
template <class C, bool ALL> static void amx_strip(const Left<C>& a, const Right<C>& b, bool four) {
#pragma GCC unroll 3
    for (int p = 0; p < C::parts; p++) {
        _tile_loadd(4, a.at + p * a.plane, a.ld * 2);
        for (int q = 0; q < C::partners(p, ALL); q++) {
            const word* y = b.at + q * b.plane;
            _tile_loadd(5, y, b.ld * 4);
            _tile_dpbf16ps(0, 4, 5);
            _tile_loadd(6, y + b.step, b.ld * 4);
            _tile_dpbf16ps(1, 4, 6);
            if (!four) continue;
            _tile_loadd(7, y + 2 * b.step, b.ld * 4);
            _tile_dpbf16ps(2, 4, 7);
            _tile_loadd(5, y + 3 * b.step, b.ld * 4);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
}
#endif

// c[m][n] = a b, or added to what is there. ALL: of scores.
template <class C, bool ALL>
static void product(const Left<C>& a, const Right<C>& b, float* c, int64_t ldc, int64_t m, int64_t n, int64_t k,
                    bool add) {
#if defined(__AMX_BF16__)
    written();
    const bool square = m > 16;
    for (int64_t at = 0; at < n; at += square ? 32 : 64) {
        const bool four = square || n - at > 32;
        if (add)
            amx_load(c + at, ldc, square, four);
        else
            amx_zero();
        for (int64_t i = 0; i < k; i += 32) {
            const Left<C> x = {a.at + i, a.ld, a.plane};
            const Right<C> y = {b.at + i / 2 * b.ld + at / 16 * b.step, b.ld, b.step, b.plane};
            if (square)
                amx_square<C, ALL>(x, y);
            else
                amx_strip<C, ALL>(x, y, four);
        }
        amx_store(c + at, ldc, square, four);
    }
#else
    const int64_t per = 4 / sizeof(typename C::type);
    const word* x = reinterpret_cast<const word*>(a.at);
    for (int64_t at = 0; at < n; at += NV * W) {
        if (n - at >= NV * W)
            panel<C, NV>(x, a.ld / per, b.at + at, b.ld, c + at, ldc, m, k / per, add);
        else
            panel<C, 1>(x, a.ld / per, b.at + at, b.ld, c + at, ldc, m, k / per, add);
    }
#endif
}
