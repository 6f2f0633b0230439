// The entry points: what a call asks for is checked as far as memory safety needs it, cut into pieces that depend on
// each sequence alone, and handed to the kernels of the ISA. Compiled once, with the plain flags.
#include <math.h>
#include <stdlib.h>
#include <initializer_list>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "job.h"
#include "parallel.h"

// --- ISAs: bit and argument `isa` are the place in this list ---

namespace hal_generic { extern const Kernels kernels; }
#if defined(HAL_HAVE_V3)
namespace hal_v3 { extern const Kernels kernels; }
#endif
#if defined(HAL_HAVE_V4)
namespace hal_v4 { extern const Kernels kernels; }
#endif
#if defined(HAL_HAVE_BF16)
namespace hal_bf16 { extern const Kernels kernels; }
#endif
#if defined(HAL_HAVE_AMX)
namespace hal_amx { extern const Kernels kernels; }
#endif

enum { GENERIC, V3, V4, V4_BF16, V4_AMX, ISAS };
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
    &hal_bf16::kernels,
#else
    nullptr,
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
    if (isa == V4_BF16) return true;
    return (d7 & (1u << 22)) && (d7 & (1u << 24)) && (low & (3u << 17)) == (3u << 17);  // AMX_BF16, AMX_TILE, XCR0
#else
    return false;
#endif
}

extern "C" int64_t hal_cpu_isas_built(void) {
    int64_t bits = 0;
    for (int i = 0; i < ISAS; i++) bits |= int64_t(VARIANTS[i] != nullptr) << i;
    return bits;
}

extern "C" int64_t hal_cpu_isas(void) {
    int64_t bits = 0;
    for (int i = 0; i < ISAS; i++)
        if (VARIANTS[i] && cpu_has(i) && VARIANTS[i]->ready()) bits |= int64_t(1) << i;
    return bits;
}

extern "C" int64_t hal_cpu_sizeof(int which) { return which ? sizeof(HalWrite) : sizeof(HalCall); }

// --- reading lengths, and what must hold of a call ---

static int64_t at32(const HalTensor& x, int64_t i) {
    return reinterpret_cast<const int32_t*>(x.data)[i * x.stride[0]];
}
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

// Grow-only memory of the calling thread, for the plan and the partial results.
struct Room {
    char* data = nullptr;
    size_t size = 0;
    ~Room() { free(data); }
    char* need(size_t bytes) {
        if (bytes > size) {
            free(data);
            size = (bytes + bytes / 4 + 65535) / 65536 * 65536;
            data = static_cast<char*>(malloc(size));
            if (!data) size = 0;
        }
        return data;
    }
};
static thread_local Room seq_room, item_room, group_room, partial_room, order_room;

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

struct Plan {
    Job job;
    Seq* seqs;
    int64_t batch;
    int64_t *new_first, *new_count, *before;
};

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

// --- the append: before anything is attended to ---

// An append to one place twice would depend on the threads: pages of different sequences must differ.
static bool twice(const Plan& plan) {
    const HalCall& c = *plan.job.call;
    if (!c.page_table.data) return false;
    const int64_t size = plan.job.page_size;
    int64_t count = 0;
    for (int64_t b = 0; b < plan.batch; b++)
        if (plan.new_count[b])
            count += (plan.before[b] + plan.new_count[b] - 1) / size - plan.before[b] / size + 1;
    int64_t* ids = reinterpret_cast<int64_t*>(order_room.need(count * sizeof(int64_t) + 8));
    if (!ids) return true;
    int64_t at = 0;
    for (int64_t b = 0; b < plan.batch; b++) {
        if (!plan.new_count[b]) continue;
        const int32_t* table = reinterpret_cast<const int32_t*>(c.page_table.data) +
                               plan.seqs[b].row * c.page_table.stride[0];
        for (int64_t p = plan.before[b] / size; p <= (plan.before[b] + plan.new_count[b] - 1) / size; p++)
            ids[at++] = table[p];
    }
    qsort(ids, at, sizeof(int64_t), [](const void* a, const void* b) {
        int64_t x = *static_cast<const int64_t*>(a), y = *static_cast<const int64_t*>(b);
        return int(x > y) - int(x < y);
    });
    for (int64_t i = 1; i < at; i++)
        if (ids[i] == ids[i - 1]) return true;
    return false;
}

static int append(const Plan& plan, const Kernels& kernels) {
    const HalCall& c = *plan.job.call;
    const int64_t step = 64;
    int64_t total = 0, bytes = 0, count = 0;
    for (int64_t b = 0; b < plan.batch; b++) total += plan.new_count[b], count += (plan.new_count[b] + step - 1) / step;
    bytes = total * plan.job.kv_heads * (plan.job.dim + plan.job.dim_v) * 2;
    int64_t threads = bytes < 1 << 16 ? 1 : c.threads;
    return parallel(count, threads, [&](int64_t i) {
        int64_t b = 0;
        for (int64_t here; i >= (here = (plan.new_count[b] + step - 1) / step); b++) i -= here;
        int64_t last = (i + 1) * step < plan.new_count[b] ? (i + 1) * step : plan.new_count[b];
        return kernels.append(&plan.job, b, i * step, last, plan.before[b]);
    });
}

// --- cutting into pieces ---

struct Cut {
    Item* items;
    Group* groups;
    int64_t count, group_count, room, group_room, floats, stats;
};

static bool add(Plan& plan, Cut& cut, Item it, int64_t splits, int64_t step) {
    const Job& j = plan.job;
    const int64_t rows = (it.t1 - it.t0) * j.group * (it.h1 - it.h0), dv = (j.dim_v + 15) / 16 * 16;
    if (cut.count + splits > cut.room) {
        cut.room = (cut.count + splits) * 2 + 64;
        if (cut.room * sizeof(Item) > item_room.size) {
            char* old = item_room.data;
            size_t bytes = cut.room * sizeof(Item);
            char* more = static_cast<char*>(realloc(old, bytes));
            if (!more) return false;
            item_room.data = more;
            item_room.size = bytes;
        }
        cut.items = reinterpret_cast<Item*>(item_room.data);
    }
    if (cut.group_count == cut.group_room) {
        cut.group_room = cut.group_room * 2 + 64;
        if (cut.group_room * sizeof(Group) > group_room.size) {
            size_t bytes = cut.group_room * sizeof(Group);
            char* more = static_cast<char*>(realloc(group_room.data, bytes));
            if (!more) return false;
            group_room.data = more;
            group_room.size = bytes;
        }
        cut.groups = reinterpret_cast<Group*>(group_room.data);
    }
    const int64_t j0 = it.j0, j1 = it.j1;
    it.group = -1;
    if (splits > 1) {
        it.group = cut.group_count;
        cut.groups[cut.group_count++] = {cut.count, splits, int(splits)};
    }
    for (int64_t i = 0; i < splits; i++) {
        it.j0 = j0 + i * step < j1 ? j0 + i * step : j1;
        it.j1 = it.j0 + step < j1 ? it.j0 + step : j1;
        it.partial = cut.floats;
        it.stats = cut.stats;
        it.cost = rows * (it.j1 - it.j0) + rows * 16;
        if (splits > 1) {
            cut.floats += rows * dv;
            cut.stats += rows * 2;
        }
        cut.items[cut.count++] = it;
    }
    return true;
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Pieces of `keys` keys: as many as num_splits asks for, else of about HAL_SPLIT * `blocks`. Whole tiles each.
static void split(const HalCall& c, int64_t keys, int64_t blocks, int64_t* splits, int64_t* step) {
    int64_t asked = c.num_splits > 1 ? c.num_splits : c.num_splits == 1 && !c.varlen ? 1
                    : ceil_div(keys, HAL_SPLIT * blocks);
    if (asked < 1) asked = 1;
    *step = ceil_div(ceil_div(keys, asked), 64) * 64;
    if (*step < 64) *step = 64;
    *splits = keys > 0 ? ceil_div(keys, *step) : 1;
}

static bool cut(Plan& plan, const Kernels& kernels, Cut& out) {
    const Job& j = plan.job;
    const HalCall& c = *j.call;
    int64_t work = 0;
    for (int64_t b = 0; b < plan.batch; b++) work += ceil_div(plan.seqs[b].local, HAL_SPLIT) * (plan.seqs[b].len_q > 0);
    // KV heads of one piece of few rows: all, unless threads would idle or their state outgrow the L1 cache.
    int64_t together = 32768 / ((j.dim + j.dim_v) * 4 * j.group);
    if (together < 1) together = 1;
    while (together > 1 && work * ceil_div(j.kv_heads, together) < 3 * c.threads && c.threads > 1)
        together = (together < j.kv_heads ? together : j.kv_heads) / 2;
    if (together < 1) together = 1;
    const int64_t most = kernels.block_rows(&j);
    for (int64_t b = 0; b < plan.batch; b++) {
        const Seq& s = plan.seqs[b];
        if (s.len_q == 0) continue;
        Item it = {};
        it.seq = b;
        int64_t splits, step;
        if (c.sparse_indices.data) {
            for (it.t0 = 0; it.t0 < s.len_q; it.t0++)
                for (it.h0 = 0; it.h0 < j.kv_heads; it.h0++) {
                    it.t1 = it.t0 + 1;
                    it.h1 = it.h0 + 1;
                    it.j0 = 0;
                    it.j1 = c.sparse_indices.size[1];
                    split(c, it.j1, s.len_q, &splits, &step);
                    if (!add(plan, out, it, splits, step)) return false;
                }
            continue;
        }
        it.rows = s.len_q * j.group <= HAL_FEW_ROWS && !c.qv.data && !j.complex_mask;
        int64_t tokens = it.rows ? s.len_q : most / j.group;
        if (tokens < 1) tokens = 1;
        // Equal blocks: 65 tokens are 33 and 32, not 64 and 1.
        const int64_t blocks = ceil_div(s.len_q, tokens);
        tokens = ceil_div(s.len_q, blocks);
        for (int64_t t0 = 0; t0 < s.len_q; t0 += tokens) {
            it.t0 = t0;
            it.t1 = t0 + tokens < s.len_q ? t0 + tokens : s.len_q;
            it.j0 = s.local;
            it.j1 = 0;
            for (int64_t t = it.t0; t < it.t1; t++) {
                int64_t lo, hi;
                hal_span(&c, &s, b, t, &lo, &hi);
                if (hi <= lo) continue;
                if (lo < it.j0) it.j0 = lo;
                if (hi > it.j1) it.j1 = hi;
            }
            if (it.j1 <= it.j0) it.j0 = it.j1 = 0;
            split(c, it.j1 - it.j0, blocks, &splits, &step);
            const int64_t heads = it.rows ? together : 1;
            for (it.h0 = 0; it.h0 < j.kv_heads; it.h0 += heads) {
                it.h1 = it.h0 + heads < j.kv_heads ? it.h0 + heads : j.kv_heads;
                if (!add(plan, out, it, splits, step)) return false;
            }
        }
    }
    return true;
}

extern "C" int hal_cpu_attention(const HalCall* call) {
    const HalCall& c = *call;
    if (c.isa < 0 || c.isa >= ISAS || !VARIANTS[c.isa]) return HAL_BAD_ISA;
    const Kernels& kernels = *VARIANTS[c.isa];
    Plan plan = {};
    int status = sequences(c, &plan);
    if (status) return status;
    if (c.k_new.data) {
        if (twice(plan)) return HAL_BAD;
        status = append(plan, kernels);
        if (status) return status;
    }
    Cut pieces = {};
    pieces.items = reinterpret_cast<Item*>(item_room.data);
    pieces.room = int64_t(item_room.size / sizeof(Item));
    pieces.groups = reinterpret_cast<Group*>(group_room.data);
    pieces.group_room = int64_t(group_room.size / sizeof(Group));
    if (!cut(plan, kernels, pieces)) return HAL_NO_MEMORY;
    if (!pieces.count) return HAL_OK;
    Job& job = plan.job;
    job.items = pieces.items;
    job.groups = pieces.groups;
    float* sums = reinterpret_cast<float*>(partial_room.need((pieces.floats + pieces.stats) * sizeof(float) + 64));
    if (!sums) return HAL_NO_MEMORY;
    job.partial = sums;
    job.stats = sums + pieces.floats;
    int64_t cost = 0;
    for (int64_t i = 0; i < pieces.count; i++) cost += pieces.items[i].cost;
    // Waking threads takes some microseconds: about what this much work does.
    int64_t threads = cost * (job.dim + job.dim_v) < 1 << 18 ? 1 : c.threads;
    if (threads > 1) {
        // The costly ones first, so that none is left over for the end.
        struct Turn { int64_t cost, item; };
        Turn* turns = reinterpret_cast<Turn*>(order_room.need(pieces.count * sizeof(Turn)));
        if (!turns) return HAL_NO_MEMORY;
        for (int64_t i = 0; i < pieces.count; i++) turns[i] = {pieces.items[i].cost, i};
        qsort(turns, pieces.count, sizeof(Turn), [](const void* a, const void* b) {
            const Turn *x = static_cast<const Turn*>(a), *y = static_cast<const Turn*>(b);
            if (x->cost != y->cost) return x->cost < y->cost ? 1 : -1;
            return int(x->item > y->item) - int(x->item < y->item);
        });
        return parallel(pieces.count, threads, [&](int64_t i) {
            return kernels.run(&job, turns[i].item, i + threads < pieces.count ? turns[i + threads].item : -1);
        });
    }
    return parallel(pieces.count, 1, [&](int64_t i) {
        return kernels.run(&job, i, i + 1 < pieces.count ? i + 1 : -1);
    });
}

extern "C" int hal_cpu_write(const HalWrite* call) {
    const HalWrite& c = *call;
    if (c.isa < 0 || c.isa >= ISAS || !VARIANTS[c.isa]) return HAL_BAD_ISA;
    const Kernels& kernels = *VARIANTS[c.isa];
    const int64_t tokens = c.k.size[0];
    if (c.k.dim != 3 || c.v.dim != 3 || c.k_cache.dim != 4 || c.v_cache.dim != 4 || c.v.size[0] != tokens) return HAL_BAD;
    for (int which = 0; which < 2; which++) {
        const HalTensor &x = which ? c.v : c.k, &cache = which ? c.v_cache : c.k_cache;
        const HalTensor& scale = which ? c.v_scale : c.k_scale;
        const double number = which ? c.v_scale_number : c.k_scale_number;
        if (x.size[1] != cache.size[2] || x.size[2] != cache.size[3] || !dense(x) || !dense(cache)) return HAL_BAD;
        if (cache.size[0] != c.k_cache.size[0] || cache.size[1] != c.k_cache.size[1]) return HAL_BAD;
        const bool scaled = scale.data || number != 0;
        if (scaled ? cache.dtype != HAL_E4M3 && cache.dtype != HAL_E5M2 : x.dtype != cache.dtype) return HAL_BAD;
        if (x.dtype > HAL_E5M2) return HAL_BAD;
        if (scale.data && (scale.dtype != HAL_F32 || scale.dim > 1 ||
                           (scale.dim == 1 && scale.size[0] != 1 && scale.size[0] != x.size[1]))) return HAL_BAD;
    }
    if (c.slots.dtype != HAL_I64 || c.slots.dim != 1 || c.slots.size[0] != tokens) return HAL_BAD;
    const int64_t end = c.k_cache.size[0] * c.k_cache.size[1];
    for (int64_t i = 0; i < tokens; i++) {
        int64_t slot = reinterpret_cast<const int64_t*>(c.slots.data)[i * c.slots.stride[0]];
        if (slot < -1 || slot >= end) return HAL_BAD;
    }
    const int64_t step = 32;
    int64_t bytes = tokens * c.k.size[1] * (c.k.size[2] + c.v.size[2]) * 2;
    return parallel(ceil_div(tokens, step), bytes < 1 << 17 ? 1 : c.threads, [&](int64_t i) {
        return kernels.write(call, i * step, (i + 1) * step < tokens ? (i + 1) * step : tokens);
    });
}
