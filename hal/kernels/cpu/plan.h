// What is known of a call before it is cut into pieces, and memory for it. Included by plan.cpp.
#pragma once
#include <stdlib.h>
#include "job.h"

static int64_t at32(const HalTensor& x, int64_t i) {
    return reinterpret_cast<const int32_t*>(x.data)[i * x.stride[0]];
}
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

struct Plan {
    Job job;
    Seq* seqs;
    int64_t batch;
    int64_t *new_first, *new_count, *before;
};
