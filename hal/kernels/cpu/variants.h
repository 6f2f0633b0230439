// The ISA variants in this library: bit and argument `isa` are the place in the list. Included by plan.cpp.
#pragma once
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include "job.h"

namespace hal_generic { extern const Kernels kernels; }
#if defined(HAL_HAVE_V3)
namespace hal_v3 { extern const Kernels kernels; }
#endif
#if defined(HAL_HAVE_V4)
namespace hal_v4 { extern const Kernels kernels; }
#endif
#if defined(HAL_HAVE_BF16)
namespace hal_bf16 { extern const Kernels kernels, dots; }
#endif
#if defined(HAL_HAVE_AMX)
namespace hal_amx { extern const Kernels kernels; }
#endif

enum { GENERIC, V3, V4, V4_BF16, V4_DOT, V4_AMX, ISAS };
static const Kernels* const VARIANTS[ISAS] = {
    &hal_generic::kernels,
#if defined(HAL_HAVE_V3)
    &hal_v3::kernels,
#else
    nullptr,
#endif
#if defined(HAL_HAVE_V4)
    &hal_v4::kernels,
#else
    nullptr,
#endif
#if defined(HAL_HAVE_BF16)
    &hal_bf16::kernels, &hal_bf16::dots,
#else
    nullptr, nullptr,
#endif
#if defined(HAL_HAVE_AMX)
    &hal_amx::kernels,
#else
    nullptr,
#endif
};

static bool cpu_has(int isa) {
    if (isa == GENERIC) return true;
#if defined(__x86_64__)
    unsigned a, b, c, d, b7, c7, d7;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const unsigned v3 = bit_AVX | bit_FMA | bit_MOVBE | bit_F16C;
    if ((low & 6) != 6 || (c & v3) != v3 || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return false;
    if (!(b7 & bit_AVX2) || !(b7 & bit_BMI) || !(b7 & bit_BMI2)) return false;
    if (isa == V3) return true;
    const unsigned v4 = bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL;
    if ((low & 0xe6) != 0xe6 || (b7 & v4) != v4) return false;
    if (isa == V4) return true;
    unsigned a1 = 0;
    if (!__get_cpuid_count(7, 1, &a1, &b, &c, &d) || !(a1 & (1u << 5))) return false;
    if (isa == V4_BF16 || isa == V4_DOT) return true;
    return (d7 & (1u << 22)) && (d7 & (1u << 24)) && (low & (3u << 17)) == (3u << 17);  // AMX_BF16, AMX_TILE, XCR0
#else
    return false;
#endif
}

static bool runs(int isa) { return VARIANTS[isa] && cpu_has(isa) && VARIANTS[isa]->ready(); }

// VDPBF16PS does twice as much as an FMA on float32. AMD's cores are said to start as many of them; Intel's start a
// quarter, so that float32 is twice as fast there (measured on a Xeon with AMX: 113 and 225 GFLOP/s).
static bool dots_pay() {
#if defined(__x86_64__)
    unsigned a, b, c, d;
    return !__get_cpuid(0, &a, &b, &c, &d) || b != signature_INTEL_ebx;
#else
    return false;
#endif
}

static int best() {
    for (int isa = ISAS - 1; isa > GENERIC; isa--)
        if (runs(isa) && (isa != V4_DOT || dots_pay())) return isa;
    return GENERIC;
}
