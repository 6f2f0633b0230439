// What the planner (plan.cpp) hands to the kernels: plain data, so that no template is shared between ISAs.
#pragma once
#include "abi.h"

struct Seq {
    int64_t first, len_q;  // rows in q flattened to [total_q, Hq, D]
    int64_t start, local;  // first token in the cache (or in packed k) and how many from there on
    int64_t len_k;         // keys as the mask counts them (global under context parallelism)
    int64_t row;           // of the page table or of the unpaged cache
    int64_t rotary;        // position of the first query
};

// One piece of work: query tokens t0..t1 of a sequence, KV heads h0..h1, keys j0..j1 (counted from seq.start; under
// sparse_indices columns of the row). Pieces of a group are combined by whoever finishes its last one.
struct Item {
    int64_t seq, t0, t1, h0, h1, j0, j1;
    int64_t group;    // -1: the only piece, writes its rows itself
    int64_t partial;  // offset of its (rows x dv) sums in the workspace, in floats
    int64_t stats;    // offset of its (rows x 2) maxima and totals
    int64_t rows;     // true: the kernel for few rows
    int64_t cost;
};

struct Group {
    int64_t first, count;  // pieces, in the order of their keys
    int left;              // not finished yet
};

struct Job {
    const HalCall* call;
    const Seq* seqs;
    const Item* items;   // in the order of Group.first
    Group* groups;
    float *partial, *stats;
    int64_t heads, kv_heads, group, dim, dim_v, dim_qv, page_size, packed;
    int64_t local, rotate_all;
    bool complex_mask;
};

// First visible position and one past the last for the query at position p, by window, causal and chunk alone.
static inline void hal_limits(const HalCall* c, int64_t p, int64_t len_k, int64_t* low, int64_t* high) {
    int64_t right = c->causal ? 0 : c->right, lo = 0, hi = len_k;
    if (c->left >= 0 && p - c->left > 0) lo = p - c->left;
    if (right >= 0 && p + right + 1 < hi) hi = p + right + 1;
    if (c->chunk > 0) {
        int64_t at = p >= 0 ? p / c->chunk : -((-p + c->chunk - 1) / c->chunk);
        if (at * c->chunk > lo) lo = at * c->chunk;
        if ((at + 1) * c->chunk < hi) hi = (at + 1) * c->chunk;
    }
    *low = lo;
    *high = hi < lo ? lo : hi;
}

// Position -> first local key at or after it.
static inline int64_t hal_local(const HalCall* c, int64_t position) {
    if (c->cp_world == 1) return position;
    int64_t over = position - c->cp_rank;
    return over <= 0 ? 0 : (over + c->cp_world - 1) / c->cp_world;
}

// Local keys that token t of a sequence may see: the hull of window, chunk, tree and ranges.
static inline void hal_span(const HalCall* c, const Seq* s, int64_t b, int64_t t, int64_t* low, int64_t* high) {
    int64_t p = t + s->len_k - s->len_q, lo, hi;
    hal_limits(c, p, s->len_k, &lo, &hi);
    if (c->tree_mask.data) {
        int64_t own = s->len_k - s->len_q;
        if (own < 0) own = 0;
        if (hi <= lo) lo = own;
        if (own < lo) lo = own;
        hi = s->len_k;
    }
    if (c->mm_prefix_ranges.data) {
        const HalTensor* r = &c->mm_prefix_ranges;
        for (int64_t i = 0; i < r->size[1]; i++) {
            const int32_t* pair = (const int32_t*)r->data + b * r->stride[0] + i * r->stride[1];
            int64_t start = pair[0], end = pair[r->stride[2]];
            if (start < 0 || p < start || p >= end) continue;
            if (end > s->len_k) end = s->len_k;
            if (end <= start) continue;
            if (hi <= lo) { lo = start; hi = end; }
            if (start < lo) lo = start;
            if (end > hi) hi = end;
        }
    }
    *low = hal_local(c, lo);
    *high = hal_local(c, hi);
    if (*high > s->local) *high = s->local;
    if (*low > *high) *low = *high;
}

// Keys of one piece where those of few rows are split, the least of others; pieces of a sequence that others are split
// for; query rows that are few. None depends on the number of threads nor on the other sequences, so the bits of a
// result do not either.
enum { HAL_SPLIT = 512, HAL_PIECES = 16, HAL_FEW_ROWS = 8 };

// The functions of one ISA.
struct Kernels {
    int (*run)(const Job*, int64_t item, int64_t next);  // next: the piece that likely follows on this thread, or -1
    int (*append)(const Job*, int64_t b, int64_t first, int64_t last, int64_t to);
    int (*write)(const HalWrite*, int64_t first, int64_t last);
    int64_t (*block_rows)(const Job*);
    int (*ready)(void);
};
