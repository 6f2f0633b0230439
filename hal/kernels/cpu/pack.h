// Queries, keys and values as the products of gemm.h want them. Included inside HAL_NS.

// 32-bit words: to[c][r] = from[r][c] for a block of W x W (AVX-512: 16 x 16); rows of `to` are ldt words apart.
INLINE void transpose(const word* const* from, int64_t at, word* to, int64_t ldt) {
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

// A number as the sum of bfloat16 numbers: each takes the upper half of what the ones before it left (towards zero, so
// that the rest is exact). words: two numbers' parts in one word.
template <int P> INLINE void split(vf a, vf b, vu* words) {
#pragma GCC unroll 3
    for (int p = 0; p < P; p++) {
        vu x = (vu)a & 0xffff0000u, y = (vu)b & 0xffff0000u;
        words[p] = (x >> 16) | y;
        a -= (vf)x;
        b -= (vf)y;
    }
}

// One row of `padded` float32 numbers to the planes of Parts<P>, numbers i and i + 16 of 32 as neighbours. Queries and
// keys are both held so; for P = 1 they stand in their own order.
template <class C> static void split_row(const float* from, int64_t padded, uint16_t* to, int64_t plane) {
    for (int64_t d = 0; d < padded; d += 32)
        for (int64_t i = 0; i < 16; i += W) {
            vu words[C::parts];
            split<C::parts>(loadf(from + d + i), loadf(from + d + 16 + i), words);
            for (int p = 0; p < C::parts; p++)
                storef(reinterpret_cast<float*>(to + p * plane + d + 2 * i), (vf)words[p]);
        }
}

// One row of any dtype in C's numbers, zeros up to `padded`. line: room for a row of floats.
template <class C>
static void stage(int64_t dtype, const char* from, int64_t width, int64_t padded, float* line, typename C::type* to,
                  int64_t plane) {
    (void)plane;
    if constexpr (sizeof(typename C::type) == 4) {
        floats(dtype, from, width, to);
        memset(to + width, 0, (padded - width) * 4);
    } else if (C::parts > 1) {
        const float* row = reinterpret_cast<const float*>(from);
        if (dtype != HAL_F32 || width < padded) {
            floats(dtype, from, width, line);
            memset(line + width, 0, (padded - width) * 4);
            row = line;
        }
        split_row<C>(row, padded, to, plane);
    } else {
        if (dtype == HAL_BF16) {
            memcpy(to, from, width * 2);
        } else {
            floats(dtype, from, width, line);
            from_float<BF16>(line, width, reinterpret_cast<char*>(to));
        }
        memset(to + width, 0, (padded - width) * 2);
    }
}

// 16 rows -> 16 columns of `words` rows, ld words apart.
static void pack_keys(const word* const* rows, int64_t words, word* to, int64_t ld) {
    for (int64_t n = 0; n < 16; n += W)
        for (int64_t d = 0; d < words; d += W) transpose(rows + n, d, to + d * ld + n, ld);
}

// 32 rows of values (float32 where P > 1, else bfloat16) -> 16 rows of `width` words a plane; word i has rows
// 2 i and 2 i + 1 (P = 1) or i and i + 16, as `weights` are held.
template <int P>
static void pack_values(const char* const* rows, int64_t width, word* to, int64_t ld, int64_t step, int64_t plane) {
    for (int64_t i = 0; i < 16; i++) {
        const char* a = rows[P == 1 ? 2 * i : i];
        const char* b = rows[P == 1 ? 2 * i + 1 : i + 16];
        for (int64_t d = 0; d < width; d += W) {
            vu words[P];
            if (P == 1)
                words[0] = widen(load_raw<vh>(a + d * 2)) | (widen(load_raw<vh>(b + d * 2)) << 16);
            else
                split<P>(load_raw<vf>(a + d * 4), load_raw<vf>(b + d * 4), words);
            word* here = to + i * ld + d / 16 * step + d % 16;
            for (int p = 0; p < P; p++) storef(reinterpret_cast<float*>(here + p * plane), (vf)words[p]);
        }
    }
}

// The weights of one row: n numbers as a row of the left side of a product, planes apart.
template <class C, int N> INLINE void keep(const vf* x, int64_t vectors, typename C::type* to, int64_t plane) {
    (void)plane;
    if constexpr (sizeof(typename C::type) == 4) {
#pragma GCC unroll 16
        for (int v = 0; v < N / W; v++) {
            if (v >= vectors) break;
            storef(to + v * W, x[v]);
        }
    } else {
#if defined(__AVX512BF16__)
#pragma GCC unroll 2
        for (int v = 0; v < N / W; v += 2) {
            if (v >= vectors) break;
            if (C::parts == 1) {
                _mm512_storeu_si512(to + v * W, (__m512i)_mm512_cvtne2ps_pbh((__m512)x[v + 1], (__m512)x[v]));
                continue;
            }
            vu words[C::parts];
            split<C::parts>(x[v], x[v + 1], words);
            for (int p = 0; p < C::parts; p++) _mm512_storeu_si512(to + p * plane + v * W, (__m512i)words[p]);
        }
#endif
    }
}
