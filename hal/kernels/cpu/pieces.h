// A call cut into pieces that depend on each sequence alone. Included by plan.cpp.
#pragma once
#include "plan.h"

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

// Pieces of `keys` keys, a multiple of 64 each: as many as num_splits asks for, else `wanted`.
static void split(const HalCall& c, int64_t keys, int64_t wanted, int64_t* splits, int64_t* step) {
    int64_t asked = c.num_splits > 1 ? c.num_splits : c.num_splits == 1 && !c.varlen ? 1 : wanted;
    if (asked < 1) asked = 1;
    *step = ceil_div(ceil_div(keys, asked), 64) * 64;
    if (*step < 64) *step = 64;
    *splits = keys > 0 ? ceil_div(keys, *step) : 1;
}

// How often to split the keys of pieces by tiles. Each row of each hands over its sums, which takes as long as some 300
// keys do: so only as far as HAL_PIECES asks for, and every 8192 keys.
static int64_t splits_of(int64_t keys, int64_t pieces) {
    const int64_t many = ceil_div(HAL_PIECES, pieces), most = ceil_div(keys, HAL_SPLIT), least = ceil_div(keys, 8192);
    const int64_t few = many < most ? many : most;
    return few > least ? few : least;
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
                    split(c, it.j1, splits_of(it.j1, s.len_q * j.kv_heads), &splits, &step);
                    if (!add(plan, out, it, splits, step)) return false;
                }
            continue;
        }
        it.rows = s.len_q * j.group <= HAL_FEW_ROWS && !c.qv.data && !j.complex_mask;
        // Twice the rows where there are many blocks: keys are packed once for each.
        const bool large = s.len_q * j.group * j.kv_heads >= 128 * most;
        int64_t tokens = it.rows ? s.len_q : (large ? 2 : 1) * most / j.group;
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
            const int64_t keys = it.j1 - it.j0;
            split(c, keys, it.rows ? ceil_div(keys, HAL_SPLIT) : splits_of(keys, blocks * j.kv_heads), &splits, &step);
            const int64_t heads = it.rows ? together : 1;
            for (it.h0 = 0; it.h0 < j.kv_heads; it.h0 += heads) {
                it.h1 = it.h0 + heads < j.kv_heads ? it.h0 + heads : j.kv_heads;
                if (!add(plan, out, it, splits, step)) return false;
            }
        }
    }
    return true;
}
