// The C ABI between hal/kernels/cpu/library.py and the kernels: one plain struct a call, laid out as int64 and double.
// Tensors are data pointers with sizes and strides in elements; a null pointer is an argument that was not given.
#pragma once
#include <stdint.h>

enum HalDtype { HAL_F32, HAL_BF16, HAL_F16, HAL_E4M3, HAL_E5M2, HAL_I32, HAL_I64, HAL_BOOL };

struct HalTensor {
    char* data;
    int64_t dtype, dim, size[4], stride[4];
};

// Order as in library.py's TENSORS and NUMBERS.
struct HalCall {
    HalTensor q, k, v, k_new, v_new, qv, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx, cache_leftpad,
        page_table, cu_seqlens_q, cu_seqlens_k, rotary_seqlens, q_descale, k_descale, v_descale, sinks, out, lse,
        tree_mask, mm_prefix_ranges, sparse_indices, cp_tot_seqused_k, seqused_q, seqused_k;
    int64_t varlen, causal, left, right, chunk, interleaved, cp_world, cp_rank, seqlen, max_seqlen_q, max_seqlen_k,
        threads, num_splits, isa;
    double scale, softcap;
};

struct HalWrite {
    HalTensor k, v, k_cache, v_cache, slots, k_scale, v_scale;
    int64_t threads, isa;
    double k_scale_number, v_scale_number;
};

// What the functions return. HAL_BAD: an argument is not valid, and nothing was written.
enum HalStatus { HAL_OK = 0, HAL_BAD = 1, HAL_NO_MEMORY = 2, HAL_BAD_ISA = 3 };

#define HAL_EXPORT __attribute__((visibility("default")))

extern "C" {
// Numbers of the ISA variants in this library that this CPU has, as bits; and of all that were built.
HAL_EXPORT int64_t hal_cpu_isas(void);
HAL_EXPORT int64_t hal_cpu_isas_built(void);
// Number of the variant that serves this CPU best.
HAL_EXPORT int64_t hal_cpu_best(void);
// Attention of one call of either function of hal.contract.
HAL_EXPORT int hal_cpu_attention(const HalCall* call);
// write_kv_cache: rows of k and v to slots.
HAL_EXPORT int hal_cpu_write(const HalWrite* call);
// sizeof the two structs, so that the caller can check its layout.
HAL_EXPORT int64_t hal_cpu_sizeof(int which);
}
