// Vectors of float32 for one ISA, conversions from what is stored, exp2 and reductions. Included inside HAL_NS.
//
// GCC's vector extensions carry the arithmetic, so `generic` is whatever the compiler makes of 128-bit vectors (SSE2,
// NEON); loads and conversions have intrinsics where AVX2 and AVX-512 do better.

#if defined(__AVX512F__)
enum { W = 16 };
#elif defined(__AVX2__)
enum { W = 8 };
#else
enum { W = 4 };
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));
typedef uint8_t vb __attribute__((vector_size(W)));

#define INLINE static inline __attribute__((always_inline))
#define INLINE_OF inline __attribute__((always_inline))  // a specialisation takes no `static`; HAL_NS keeps it apart

INLINE vf zero() { return vf{}; }
INLINE vf set1(float x) { return x - vf{}; }  // not vf{} + x: the compiler would have to add, for -0
template <class V> INLINE V load_raw(const void* p) { V v; __builtin_memcpy(&v, p, sizeof v); return v; }
INLINE vf loadf(const float* p) { return load_raw<vf>(p); }
INLINE void storef(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE vf as_f(vu x) { return (vf)x; }
INLINE vi lanes() { vi v; for (int i = 0; i < W; i++) v[i] = i; return v; }

// any: does one lane exceed the bound? NaN does not.
#if defined(__AVX512F__)
INLINE bool any_above(vf a, float bound) {
    return _mm512_cmp_ps_mask((__m512)a, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
}
// (a, b): b where one of them is NaN, so pass the data second.
INLINE vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE float hmax(vf a) { return _mm512_reduce_max_ps((__m512)a); }
INLINE float hsum(vf a) { return _mm512_reduce_add_ps((__m512)a); }
#elif defined(__AVX2__)
INLINE bool any_above(vf a, float bound) {
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, _mm256_set1_ps(bound), _CMP_GT_OQ)) != 0;
}
INLINE vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE float hmax(vf a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
INLINE float hsum(vf a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
#else
INLINE bool any_above(vf a, float bound) {
    vi over = a > bound;
    int32_t any = 0;
    for (int i = 0; i < W; i++) any |= over[i];
    return any != 0;
}
INLINE vf vmax(vf a, vf b) { return (a > b) ? a : b; }
INLINE float hmax(vf a) { float m = a[0]; for (int i = 1; i < W; i++) m = m > a[i] ? m : a[i]; return m; }
INLINE float hsum(vf a) { float s = a[0]; for (int i = 1; i < W; i++) s += a[i]; return s; }
#endif

// --- what is stored, as float32. Tags: elements of a row are of T::type ---

struct F32 { typedef float type; };
struct BF16 { typedef uint16_t type; };
struct F16 { typedef uint16_t type; };
struct E4M3 { typedef uint8_t type; };
struct E5M2 { typedef uint8_t type; };

INLINE vu widen(vh h) { return __builtin_convertvector(h, vu); }
INLINE vf half_to_float(vh h) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    return (vf)_mm256_cvtph_ps((__m128i)h);
#else
    vu x = widen(h), magnitude = x & 0x7fff;
    vf real = as_f(magnitude << 13) * 0x1p112f;  // exact, also for subnormals
    vu special = (vu)(magnitude >= 0x7c00);      // inf and NaN
    return as_f((vu)real | (special & 0x7f800000u) | ((x & 0x8000u) << 16));
#endif
}
INLINE vf e4m3_to_float(vb b) {
    vh x = __builtin_convertvector(b, vh);
    vh bits = ((x & (uint16_t)0x7f) << 7) | ((x & (uint16_t)0x80) << 8);
    vf real = half_to_float(bits) * 256.0f;
    vu nan = (vu)(__builtin_convertvector(b, vu) << 25 == 0xfe000000u);
    return as_f((vu)real | nan);
}

template <class T> vf load(const typename T::type* p);
template <> INLINE_OF vf load<F32>(const float* p) { return loadf(p); }
template <> INLINE_OF vf load<BF16>(const uint16_t* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
    return as_f(widen(load_raw<vh>(p)) << 16);
#endif
}
template <> INLINE_OF vf load<F16>(const uint16_t* p) { return half_to_float(load_raw<vh>(p)); }
template <> INLINE_OF vf load<E4M3>(const uint8_t* p) { return e4m3_to_float(load_raw<vb>(p)); }
template <> INLINE_OF vf load<E5M2>(const uint8_t* p) {
    return half_to_float(__builtin_convertvector(load_raw<vb>(p), vh) << 8);
}
// The first n < W elements, zeros after them; nothing past them is read.
template <class T> INLINE vf load_some(const typename T::type* p, int n) {
    typename T::type some[W] = {};
    for (int i = 0; i < n; i++) some[i] = p[i];
    return load<T>(some);
}
template <class T> INLINE vf load_up_to(const typename T::type* p, int64_t n) {
    return n >= W ? load<T>(p) : load_some<T>(p, int(n));
}

// --- float32 as 16 bits, round to nearest even ---

INLINE vu bf16_bits(vf v) {
    vu x = (vu)v, nan = (vu)(v != v);
    vu rounded = (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;
    return (rounded & ~nan) | (nan & 0x7fc0u);
}
INLINE void store_bf16(uint16_t* p, vf v) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#elif defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)bf16_bits(v)));
#else
    vh h = __builtin_convertvector(bf16_bits(v), vh);
    __builtin_memcpy(p, &h, sizeof h);
#endif
}
INLINE uint16_t float_to_half(float f) {
    uint32_t x;
    __builtin_memcpy(&x, &f, 4);
    uint32_t sign = (x >> 16) & 0x8000, magnitude = x & 0x7fffffff;
    if (magnitude >= 0x47800000) return uint16_t(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
    if (magnitude < 0x38800000) {  // subnormal: adding 0.5 puts the rounded bits at the end
        float real;
        __builtin_memcpy(&real, &magnitude, 4);
        real += 0.5f;
        __builtin_memcpy(&magnitude, &real, 4);
        return uint16_t(sign | (magnitude - 0x3f000000));
    }
    return uint16_t(sign | ((magnitude + 0xc8000fff + ((magnitude >> 13) & 1)) >> 13));
}
INLINE void store_half(uint16_t* p, vf v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    for (int i = 0; i < W; i++) p[i] = float_to_half(v[i]);
#endif
}
template <class T> void store(typename T::type* p, vf v);
template <> INLINE_OF void store<F32>(float* p, vf v) { storef(p, v); }
template <> INLINE_OF void store<BF16>(uint16_t* p, vf v) { store_bf16(p, v); }
template <> INLINE_OF void store<F16>(uint16_t* p, vf v) { store_half(p, v); }

// --- exp2, tanh ---

// 2^x: exactly 0 for -inf, NaN stays NaN, good for what a float32 can hold and for all that is smaller. The fraction
// goes through a minimax polynomial of relative error 2e-9 (before rounding) or, for weights that are rounded to
// bfloat16, 3e-6.
#if defined(__AVX512F__)
// Fraction from the floor up: VREDUCE gives it, 0 for an infinite x; VSCALEF floors the power again.
INLINE vf exp2_with(vf x, bool exact) {
    vf f = (vf)_mm512_reduce_ps((__m512)x, 1);
    vf p;
    if (exact) {
        p = set1(2.1702255417e-4f);
        p = p * f + 1.2439688075e-3f;
        p = p * f + 9.6788409381e-3f;
        p = p * f + 5.5483342072e-2f;
        p = p * f + 2.4022983626e-1f;
        p = p * f + 6.9314698384e-1f;
        p = p * f + 1.0f;
    } else {
        p = set1(1.3534167868e-2f);
        p = p * f + 5.2011462773e-2f;
        p = p * f + 2.4144275391e-1f;
        p = p * f + 6.9300383560e-1f;
        p = p * f + 1.0000025933f;
    }
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)x);
}
#else
INLINE vf exp2_with(vf x, bool exact) {
    x = vmax(set1(-127.0f), x);
    vf shifted = x + 12582912.0f;  // 1.5 * 2^23: the integer ends in the low bits
    vf f = x - (shifted - 12582912.0f);  // -0.5 .. 0.5
    vf p;
    if (exact) {
        p = set1(1.5345811967e-4f);
        p = p * f + 1.3399931385e-3f;
        p = p * f + 9.6184889587e-3f;
        p = p * f + 5.5503287766e-2f;
        p = p * f + 2.4022646891e-1f;
        p = p * f + 6.9314720574e-1f;
        p = p * f + 1.0f;
    } else {
        p = set1(9.5701018774e-3f);
        p = p * f + 5.5917861783e-2f;
        p = p * f + 2.4024744841e-1f;
        p = p * f + 6.9312181456e-1f;
        p = p * f + 9.9999926144e-1f;
    }
    vu power = ((vu)shifted - 0x4b400000u + 127u) << 23;  // -127 gives 0
    return p * as_f(power);
}
#endif
INLINE vf exp2(vf x) { return exp2_with(x, true); }
INLINE float exp2_one(float x) { return exp2(set1(x))[0]; }
INLINE vf tanh_of(vf x) {
    vf a = x * 2.8853900817779268f;  // 2 log2 e
    a = vmax(set1(-60.0f), a);
    vf capped = (a > 60.0f) ? set1(60.0f) : a;
    return 1.0f - 2.0f / (exp2(capped) + 1.0f);
}

// --- prefetch ---

INLINE void fetch(const char* p) { __builtin_prefetch(p, 0, 2); }
INLINE void prefetch_row(const char* p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}
