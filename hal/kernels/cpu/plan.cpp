// The entry points: what a call asks for is checked as far as memory safety needs it (checks.h), cut into pieces
// (pieces.h) and handed to the kernels of the ISA (variants.h). Compiled once, with the plain flags.
#include <stdlib.h>

#include "checks.h"
#include "parallel.h"
#include "pieces.h"
#include "variants.h"

extern "C" int64_t hal_cpu_isas_built(void) {
    int64_t bits = 0;
    for (int i = 0; i < ISAS; i++) bits |= int64_t(VARIANTS[i] != nullptr) << i;
    return bits;
}

extern "C" int64_t hal_cpu_isas(void) {
    int64_t bits = 0;
    for (int i = 0; i < ISAS; i++)
        if (runs(i)) bits |= int64_t(1) << i;
    return bits;
}

extern "C" int64_t hal_cpu_best(void) { return best(); }

extern "C" int64_t hal_cpu_sizeof(int which) { return which ? sizeof(HalWrite) : sizeof(HalCall); }

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

// --- the calls ---

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
