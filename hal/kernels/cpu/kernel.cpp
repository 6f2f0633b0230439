// All kernels for one ISA: compiled once a variant, with its flags and HAL_NS its namespace. Nothing of the standard
// library that may end up outside the namespace (a function shared by variants would be of whichever ISA is linked).
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include "job.h"

namespace HAL_NS {
#include "simd.h"
#include "gemm.h"
#include "common.h"
#include "pack.h"
#include "tiles.h"
#include "rows.h"
#include "rows_amx.h"
#include "write.h"

// DOTS: blocks of bfloat16 by VDPBF16PS, without AMX; else as float32. variants.h says who is served by which.
template <bool DOTS> static int run(const Job* j, int64_t i, int64_t next) {
    const Item* then = next < 0 ? nullptr : &j->items[next];
    const Item& it = j->items[i];
    const HalCall& c = *j->call;
    // bfloat16 and fp8 are exact in bfloat16.
    const bool pairs = c.q.dtype != HAL_F32 && c.q.dtype != HAL_F16 && c.k.dtype != HAL_F32 && c.k.dtype != HAL_F16;
    (void)pairs;
    if (it.rows) {
#if defined(__AMX_BF16__)
        const int64_t rows = (it.t1 - it.t0) * j->group;
        if (pairs && c.k.dtype == HAL_BF16 && Amx::serves(j->dim, rows) && Amx::serves(j->dim_v, rows))
            return few_rows<Amx>(*j, it, then);
#endif
#if defined(__AVX512BF16__)
        if (pairs && c.k.dtype == HAL_BF16) return few_rows<Dot>(*j, it, then);
#endif
        switch (c.k.dtype) {
            case HAL_F32: return few_rows<Plain<F32>>(*j, it, then);
            case HAL_BF16: return few_rows<Plain<BF16>>(*j, it, then);
            case HAL_F16: return few_rows<Plain<F16>>(*j, it, then);
            case HAL_E4M3: return few_rows<Plain<E4M3>>(*j, it, then);
            default: return few_rows<Plain<E5M2>>(*j, it, then);
        }
    }
#if defined(__AMX_BF16__)
    if (pairs) return tiles<Pairs>(*j, it);
    if (c.q.dtype == HAL_F16) return tiles<Parts<2>>(*j, it);
    return tiles<Parts<3>>(*j, it);
#else
#if defined(__AVX512BF16__)
    if (DOTS && pairs) return tiles<Pairs>(*j, it);
#endif
    return tiles<Fp32>(*j, it);
#endif
}

static int64_t block_rows(const Job* j) {
    int64_t width = j->dim + j->dim_v + j->dim_qv;
#if defined(__AMX_BF16__)
    if (width <= 256) return 512;  // packing takes a larger part of the time
#endif
    return width <= 256 ? 256 : width <= 640 ? 128 : 64;
}

static int ready() {
#if defined(__AMX_BF16__)
    // Linux gives a process the tile registers when it asks for them (arch_prctl ARCH_REQ_XCOMP_PERM, XTILEDATA).
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return 1;
#endif
}

extern const Kernels kernels;
const Kernels kernels = {run<false>, append, write, block_rows, ready};
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
extern const Kernels dots;
const Kernels dots = {run<true>, append, write, block_rows, ready};
#endif
}  // namespace HAL_NS
