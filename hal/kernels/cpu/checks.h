// What must hold of a call so that nothing outside its arguments' memory is read or written. Included by plan.cpp.
#pragma once
#include <math.h>
#include <initializer_list>
#include "plan.h"

static bool ints(const HalTensor& x, int64_t count) {
    return !x.data || (x.dtype == HAL_I32 && x.dim == 1 && x.size[0] == count);
}
static bool dense(const HalTensor& x) { return x.stride[x.dim - 1] == 1 || x.size[x.dim - 1] == 1; }

// Memory of its own for every element: what is written must not be an expanded view.
static bool own(const HalTensor& x) {
    for (int i = 0; i < x.dim; i++)
        if (x.stride[i] == 0 && x.size[i] > 1) return false;
    return true;
}

// Cumulative lengths of `count` sequences over `total` rows.
static bool cumulative(const HalTensor& x, int64_t count, int64_t total) {
    if (!ints(x, count + 1) || at32(x, 0) != 0 || at32(x, count) != total) return false;
    for (int64_t b = 0; b < count; b++)
        if (at32(x, b) > at32(x, b + 1)) return false;
    return true;
}

static bool shapes(const HalCall& c, int64_t batch, bool packed) {
    const int64_t last = packed ? 2 : 3, heads_at = last - 1;
    const int64_t heads = c.q.size[heads_at], dim = c.q.size[last], kd = c.k.dim;
    if (c.q.dim != last + 1 || !dense(c.q) || c.q.dtype > HAL_E5M2 || heads < 1 || dim < 1) return false;
    if (kd != c.v.dim || (kd != 3 && kd != 4) || !dense(c.k) || !dense(c.v) || c.k.dtype != c.v.dtype) return false;
    if (c.k.dtype > HAL_E5M2 || (c.k.dtype != c.q.dtype && c.k.dtype < HAL_E4M3)) return false;
    if (c.q.dtype >= HAL_E4M3 && c.k.dtype != c.q.dtype) return false;
    for (int i = 0; i < kd - 1; i++)
        if (c.k.size[i] != c.v.size[i]) return false;
    const int64_t kv_heads = c.k.size[kd - 2], dim_v = c.v.size[kd - 1];
    if (c.k.size[kd - 1] != dim || kv_heads < 1 || heads % kv_heads || dim_v < 1) return false;
    for (const HalTensor* x : {&c.qv, &c.out}) {
        if (!x->data) continue;
        if (x->dim != c.q.dim || !dense(*x) || x->size[last] != dim_v) return false;
        for (int i = 0; i < last; i++)
            if (x->size[i] != c.q.size[i]) return false;
    }
    if (c.qv.data && c.qv.dtype != c.q.dtype) return false;
    if (!own(c.out)) return false;
    if (c.out.dtype != (c.q.dtype >= HAL_E4M3 ? int64_t(HAL_BF16) : c.q.dtype)) return false;
    for (const HalTensor* x : {&c.q_descale, &c.k_descale, &c.v_descale}) {
        if (!x->data) continue;
        int64_t count = 1;
        for (int i = 0; i < x->dim; i++) count *= x->size[i];
        if (x->dtype != HAL_F32) return false;
        if (count != 1 && (x->dim != 2 || x->size[0] != batch || x->size[1] != kv_heads)) return false;
    }
    if (c.sinks.data && (c.sinks.dim != 1 || c.sinks.size[0] != heads || c.sinks.dtype > HAL_F16)) return false;
    if (c.page_table.data && (c.page_table.dim != 2 || c.page_table.dtype != HAL_I32 || kd != 4 ||
                              (c.page_table.stride[1] != 1 && c.page_table.size[1] > 1))) return false;
    if (c.tree_mask.data) {
        const HalTensor& x = c.tree_mask;
        if (x.dtype != HAL_BOOL || x.dim != (packed ? 2 : 3) || x.size[0] != c.q.size[0]) return false;
        if (packed ? x.size[1] != c.max_seqlen_q : x.size[1] != c.q.size[1] || x.size[2] != c.q.size[1]) return false;
    }
    const HalTensor& r = c.mm_prefix_ranges;
    if (r.data && (r.dtype != HAL_I32 || r.dim != 3 || r.size[0] != batch || r.size[2] != 2)) return false;
    const HalTensor& s = c.sparse_indices;
    const int64_t rows = packed ? c.q.size[0] : c.q.size[0] * c.q.size[1];
    if (s.data && (s.dtype != HAL_I32 || s.dim != 2 || s.size[0] != rows || kd != 4)) return false;
    if (s.data && (c.causal || c.left >= 0 || c.right >= 0 || c.chunk || c.tree_mask.data || r.data ||
                   c.cp_world != 1 || c.cache_leftpad.data)) return false;
    if (!(c.scale > 0) || !(c.softcap >= 0) || isinf(c.scale) || isinf(c.softcap)) return false;
    if (c.left < -1 || c.right < -1 || c.chunk < 0 || c.cp_world < 1 || c.cp_rank < 0 || c.cp_rank >= c.cp_world)
        return false;
    if ((c.cp_world > 1) != (c.cp_tot_seqused_k.data != nullptr)) return false;
    if (c.cp_world > 1 && !c.varlen && (c.k_new.data || c.cache_leftpad.data)) return false;
    return ints(c.cp_tot_seqused_k, batch) && ints(c.cache_seqlens, batch) && ints(c.cache_leftpad, batch) &&
           ints(c.cache_batch_idx, batch) && ints(c.seqused_q, batch) && ints(c.seqused_k, batch) &&
           ints(c.rotary_seqlens, batch);
}

// k and v of this step, and their rotation.
static bool appended(const HalCall& c, int64_t batch) {
    if (!c.k_new.data)
        return !c.v_new.data && !c.cu_seqlens_k.data && !c.rotary_cos.data && !c.rotary_sin.data &&
               !c.rotary_seqlens.data;
    const int64_t dims = c.cu_seqlens_k.data ? 3 : 4;
    if (!c.v_new.data || (!c.cache_seqlens.data && c.seqlen < 0)) return false;
    for (int which = 0; which < 2; which++) {
        const HalTensor& x = which ? c.v_new : c.k_new;
        const HalTensor& cache = which ? c.v : c.k;
        if (x.dim != dims || !dense(x) || x.dtype != cache.dtype || x.size[dims - 2] != cache.size[2] ||
            x.size[dims - 1] != cache.size[3])
            return false;
        for (int i = 0; i < dims - 2; i++)
            if (x.size[i] != c.k_new.size[i]) return false;
    }
    if (dims == 3 ? !cumulative(c.cu_seqlens_k, batch, c.k_new.size[0]) : c.k_new.size[0] != batch) return false;
    if (c.k.data == c.v.data || !own(c.k) || !own(c.v)) return false;
    if (!c.rotary_cos.data) return !c.rotary_sin.data && !c.rotary_seqlens.data;
    for (const HalTensor* x : {&c.rotary_cos, &c.rotary_sin})
        if (!x->data || x->dim != 2 || x->dtype != c.q.dtype || x->size[0] != c.rotary_cos.size[0] ||
            x->size[1] != c.rotary_cos.size[1])
            return false;
    return c.k.dtype < HAL_E4M3 && c.rotary_cos.size[1] > 0 && 2 * c.rotary_cos.size[1] <= c.q.size[c.q.dim - 1];
}

static bool pages(const HalCall& c, int64_t row, int64_t first, int64_t last, int64_t page_size) {
    if (first >= last) return true;
    const int32_t* table = reinterpret_cast<const int32_t*>(c.page_table.data) + row * c.page_table.stride[0];
    for (int64_t i = first / page_size; i <= (last - 1) / page_size; i++)
        if (table[i] < 0 || table[i] >= c.k.size[0]) return false;
    return true;
}

// Every sequence, and that nothing outside the arguments' memory is asked for.
static int sequences(const HalCall& c, Plan* plan) {
    const bool packed = c.varlen || c.cu_seqlens_q.data, cached = c.k.dim == 4;
    if (c.varlen && !c.cu_seqlens_q.data) return HAL_BAD;
    if (c.varlen ? cached != (c.page_table.data != nullptr) : !cached) return HAL_BAD;
    const int64_t batch = packed ? c.cu_seqlens_q.size[0] - 1 : c.q.size[0];
    if (batch < 0 || (packed && (batch < 1 || c.cu_seqlens_q.dim != 1)) || !shapes(c, batch, packed)) return HAL_BAD;
    if (packed && !cumulative(c.cu_seqlens_q, batch, c.q.size[0])) return HAL_BAD;
    if (!c.varlen && !appended(c, batch)) return HAL_BAD;
    if (c.varlen && !cached && (!c.cu_seqlens_k.data || !cumulative(c.cu_seqlens_k, batch, c.k.size[0])))
        return HAL_BAD;
    if (c.varlen && cached && (!c.seqused_k.data || c.cu_seqlens_k.data)) return HAL_BAD;

    char* room = seq_room.need(batch * (sizeof(Seq) + 3 * sizeof(int64_t)) + 64);
    if (!room) return HAL_NO_MEMORY;
    plan->seqs = reinterpret_cast<Seq*>(room);
    plan->new_first = reinterpret_cast<int64_t*>(room + batch * sizeof(Seq));
    plan->new_count = plan->new_first + batch;
    plan->before = plan->new_count + batch;
    plan->batch = batch;

    Job& j = plan->job;
    j.call = &c;
    j.packed = packed;
    j.heads = c.q.size[packed ? 1 : 2];
    j.dim = c.q.size[packed ? 2 : 3];
    j.kv_heads = c.k.size[c.k.dim - 2];
    j.dim_v = c.v.size[c.v.dim - 1];
    j.dim_qv = c.qv.data ? j.dim_v : 0;
    j.group = j.heads / j.kv_heads;
    j.page_size = cached ? c.k.size[1] : 0;
    j.local = c.left >= 0 || c.right >= 0 || c.chunk > 0;
    j.rotate_all = c.causal || j.local;
    j.complex_mask = c.tree_mask.data || c.mm_prefix_ranges.data;
    j.seqs = plan->seqs;

    const bool sparse = c.sparse_indices.data;
    const bool walks = !sparse || c.k_new.data;  // sparse queries name their keys: the table serves an append only
    const int64_t owners = c.page_table.data ? c.page_table.size[0] : cached ? c.k.size[0] : batch;
    const int64_t capacity = c.page_table.data ? c.page_table.size[1] * j.page_size : j.page_size;
    if (c.page_table.data && j.page_size < 1) return HAL_BAD;
    if (cached && walks && !c.cache_batch_idx.data && (c.page_table.data ? owners < batch : owners != batch))
        return HAL_BAD;
    for (int64_t b = 0; b < batch; b++) {
        Seq& s = plan->seqs[b];
        s.first = packed ? at32(c.cu_seqlens_q, b) : b * c.q.size[1];
        s.len_q = packed ? at32(c.cu_seqlens_q, b + 1) - s.first : c.q.size[1];
        if (packed && s.len_q > c.max_seqlen_q) return HAL_BAD;
        if (c.seqused_q.data) {
            int64_t used = at32(c.seqused_q, b);
            if (used < 0 || used > s.len_q) return HAL_BAD;
            s.len_q = used;
        }
        s.row = c.cache_batch_idx.data ? at32(c.cache_batch_idx, b) : b;
        if (c.cache_batch_idx.data && (s.row < 0 || s.row >= owners)) return HAL_BAD;
        plan->new_first[b] = plan->new_count[b] = 0;
        int64_t end;
        if (!cached) {
            s.start = at32(c.cu_seqlens_k, b);
            end = at32(c.cu_seqlens_k, b + 1);
            if (end - s.start > c.max_seqlen_k && c.max_seqlen_k >= 0) return HAL_BAD;
            if (c.seqused_k.data) {
                int64_t used = at32(c.seqused_k, b);
                if (used < 0 || used > end - s.start) return HAL_BAD;
                end = s.start + used;
            }
            s.rotary = 0;
        } else {
            int64_t before = c.varlen ? at32(c.seqused_k, b) : c.cache_seqlens.data ? at32(c.cache_seqlens, b)
                             : c.seqlen >= 0 ? c.seqlen : capacity;
            if (c.varlen && c.max_seqlen_k >= 0 && before > c.max_seqlen_k) return HAL_BAD;
            s.start = c.cache_leftpad.data ? at32(c.cache_leftpad, b) : 0;
            if (before < 0 || before > capacity || s.start < 0 || s.start > before) return HAL_BAD;
            plan->before[b] = end = before;
            if (c.k_new.data) {
                plan->new_first[b] = c.cu_seqlens_k.data ? at32(c.cu_seqlens_k, b) : 0;
                plan->new_count[b] = c.cu_seqlens_k.data ? at32(c.cu_seqlens_k, b + 1) - plan->new_first[b]
                                                         : c.k_new.size[1];
                end += plan->new_count[b];
                if (end > capacity) return HAL_BAD;
            }
            s.rotary = c.rotary_seqlens.data ? at32(c.rotary_seqlens, b) : before;
            if (c.page_table.data && walks && !pages(c, s.row, sparse ? before : s.start, end, j.page_size))
                return HAL_BAD;
            if (c.rotary_cos.data) {
                int64_t turned = j.rotate_all ? s.len_q : s.len_q < 1 ? s.len_q : 1;
                if (plan->new_count[b] > turned) turned = plan->new_count[b];
                if (s.rotary < 0 || s.rotary + turned > c.rotary_cos.size[0]) return HAL_BAD;
            }
        }
        s.local = end - s.start;
        s.len_k = s.local;
        if (c.cp_world > 1) {
            s.len_k = at32(c.cp_tot_seqused_k, b);
            int64_t mine = (s.len_k - c.cp_rank + c.cp_world - 1) / c.cp_world;
            if (s.len_k < 0 || s.local != (s.len_k > c.cp_rank ? mine : 0)) return HAL_BAD;
        }
        if (c.tree_mask.data && s.len_q > s.len_k) return HAL_BAD;
    }
    if (c.k_new.data && c.cache_batch_idx.data)  // distinct rows
        for (int64_t b = 0; b < batch; b++)
            for (int64_t o = 0; o < b; o++)
                if (plan->seqs[o].row == plan->seqs[b].row) return HAL_BAD;
    if (c.mm_prefix_ranges.data)
        for (int64_t b = 0; b < batch; b++)
            for (int64_t i = 0; i < c.mm_prefix_ranges.size[1]; i++) {
                const int32_t* p = reinterpret_cast<const int32_t*>(c.mm_prefix_ranges.data) +
                                   b * c.mm_prefix_ranges.stride[0] + i * c.mm_prefix_ranges.stride[1];
                int64_t start = p[0], end = p[c.mm_prefix_ranges.stride[2]];
                if (!(start == -1 && end == -1) && (start < 0 || end < start)) return HAL_BAD;
            }
    if (sparse) {
        const int64_t slots = c.k.size[0] * c.k.size[1];
        for (int64_t t = 0; t < c.sparse_indices.size[0]; t++)
            for (int64_t i = 0; i < c.sparse_indices.size[1]; i++) {
                int64_t slot = reinterpret_cast<const int32_t*>(c.sparse_indices.data)[
                    t * c.sparse_indices.stride[0] + i * c.sparse_indices.stride[1]];
                if (slot < -1 || slot >= slots) return HAL_BAD;
            }
    }
    return HAL_OK;
}
