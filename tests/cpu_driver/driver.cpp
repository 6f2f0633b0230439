// A driver without Python for valgrind and the sanitizers: small calls of every kind, checked against plain loops.
//
// Not part of the library. ci/env_sanitizers.sh builds it with kernel.cpp and plan.cpp:  driver ISA [THREADS]
// ISA is the number of a variant (abi.h). Prints what failed; exit code 1 then.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "abi.h"

static uint32_t state = 12345;
static float uniform() {
    state = state * 1664525u + 1013904223u;
    return float(state >> 8) / float(1 << 24) * 2 - 1;
}

static const size_t SIZES[] = {4, 2, 2, 1, 1, 4, 8, 1};

// Memory of exactly the size that is described, so that one byte too many shows.
struct Array {
    std::vector<float> real;  // what the elements stand for
    char* data;
    HalTensor t;
    Array(int64_t dtype, std::vector<int64_t> shape) : t{} {
        int64_t n = 1;
        t.dtype = dtype;
        t.dim = int64_t(shape.size());
        for (size_t i = shape.size(); i-- > 0;) {
            t.size[i] = shape[i];
            t.stride[i] = n;
            n *= shape[i];
        }
        data = static_cast<char*>(malloc(size_t(n) * SIZES[dtype]));
        t.data = data;
        real.resize(size_t(n));
    }
    Array(const Array&) = delete;
    ~Array() { free(data); }
    void set(size_t i, float x) {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        if (t.dtype == HAL_F32) {
            memcpy(data + i * 4, &x, 4);
        } else if (t.dtype == HAL_BF16) {
            uint16_t h = uint16_t(bits >> 16);  // towards zero: any bfloat16 near x will do
            memcpy(data + i * 2, &h, 2);
            bits = uint32_t(h) << 16;
            memcpy(&x, &bits, 4);
        } else {  // e5m2, e4m3, float16 of a small power of two times 1 + k / 4
            int e;
            float m = frexpf(fabsf(x) < 0.02f ? 0.02f : fabsf(x), &e);
            int quarter = int((m * 2 - 1) * 4), sign = x < 0;
            float value = ldexpf(1 + float(quarter) / 4, e - 1);
            if (t.dtype == HAL_F16) {
                uint16_t h = uint16_t(sign << 15 | (e - 1 + 15) << 10 | quarter << 8);
                memcpy(data + i * 2, &h, 2);
            } else {
                data[i] = char(t.dtype == HAL_E5M2 ? sign << 7 | (e - 1 + 15) << 2 | quarter
                                                   : sign << 7 | (e - 1 + 7) << 3 | quarter << 1);
            }
            x = sign ? -value : value;
        }
        real[i] = x;
    }
    void random() {
        for (size_t i = 0; i < real.size(); i++) set(i, uniform());
    }
    float get(size_t i) const {
        if (t.dtype == HAL_F32) {
            float x;
            memcpy(&x, data + i * 4, 4);
            return x;
        }
        uint16_t h;
        memcpy(&h, data + i * 2, 2);
        if (t.dtype == HAL_BF16) {
            uint32_t bits = uint32_t(h) << 16;
            float x;
            memcpy(&x, &bits, 4);
            return x;
        }
        int e = h >> 10 & 31, m = h & 1023;
        float x = e ? ldexpf(1 + float(m) / 1024, e - 15) : ldexpf(float(m), -24);
        return h >> 15 ? -x : x;
    }
    void ints(const std::vector<int>& values) {
        for (size_t i = 0; i < values.size(); i++) {
            int32_t x = values[i];
            memcpy(data + i * 4, &x, 4);
        }
    }
};

static int failures = 0;

struct Setting {
    const char* name;
    int64_t q_dtype, kv_dtype;
    int heads, kv_heads, dim, dim_v, queries, page;
    std::vector<int> keys;
    int causal, left, chunk;
    float softcap;
    bool sinks, lse, latent, tree, ranges, appends, sparse;
    int splits;
};

static void check(const Setting& s, int64_t isa, int64_t threads) {
    const int batch = int(s.keys.size()), group = s.heads / s.kv_heads;
    int most = 1;
    for (int n : s.keys) most = n > most ? n : most;
    const int per = (most + s.page - 1) / s.page, pages = per * batch + 1;
    Array q(s.q_dtype, {batch, s.queries, s.heads, s.dim}), k(s.kv_dtype, {pages, s.page, s.kv_heads, s.dim});
    Array v(s.kv_dtype, {pages, s.page, s.kv_heads, s.dim_v}), table(HAL_I32, {batch, per}), lens(HAL_I32, {batch});
    Array out(s.q_dtype, {batch, s.queries, s.heads, s.dim_v}), lse(HAL_F32, {batch, s.heads, s.queries});
    Array qv(s.q_dtype, {batch, s.queries, s.heads, s.dim_v}), sinks(HAL_F32, {s.heads});
    Array tree(HAL_BOOL, {batch, s.queries, s.queries}), ranges(HAL_I32, {batch, 1, 2});
    Array kn(s.kv_dtype, {batch, s.queries, s.kv_heads, s.dim}), vn(s.kv_dtype, {batch, s.queries, s.kv_heads, s.dim_v});
    Array slots(HAL_I32, {batch * s.queries, 7});
    for (Array* x : {&q, &k, &v, &qv, &sinks, &kn, &vn}) x->random();
    std::vector<int> pages_of, lengths, pairs, picked;
    for (int i = 0; i < batch * per; i++) pages_of.push_back((i * 7 + 1) % (batch * per) % pages);
    if ((batch * per) % 7 == 0)
        for (int i = 0; i < batch * per; i++) pages_of[size_t(i)] = batch * per - i;
    for (int b = 0; b < batch; b++) {
        lengths.push_back(s.keys[size_t(b)] - (s.appends ? s.queries : 0));
        pairs.push_back(0);
        pairs.push_back(s.keys[size_t(b)] / 2);
    }
    for (int i = 0; i < batch * s.queries * 7; i++) picked.push_back(i % 5 == 4 ? -1 : (i * 37) % (pages * s.page));
    table.ints(pages_of);
    lens.ints(lengths);
    ranges.ints(pairs);
    slots.ints(picked);
    for (size_t i = 0; i < tree.real.size(); i++) tree.data[i] = char(uniform() > 0);
    // Keys past a sequence's end are never read.
    HalCall c = {};
    c.q = q.t;
    c.k = k.t;
    c.v = v.t;
    c.page_table = table.t;
    c.cache_seqlens = lens.t;
    c.out = out.t;
    if (s.lse) c.lse = lse.t;
    if (s.latent) c.qv = qv.t;
    if (s.sinks) c.sinks = sinks.t;
    if (s.tree) c.tree_mask = tree.t;
    if (s.ranges) c.mm_prefix_ranges = ranges.t;
    if (s.sparse) c.sparse_indices = slots.t;
    if (s.appends) {
        c.k_new = kn.t;
        c.v_new = vn.t;
    }
    c.causal = s.causal;
    c.left = s.left;
    c.right = -1;
    c.chunk = s.chunk;
    c.cp_world = 1;
    c.seqlen = -1;
    c.max_seqlen_q = -1;
    c.max_seqlen_k = -1;
    c.threads = threads;
    c.num_splits = s.splits;
    c.isa = isa;
    c.scale = 0.3;
    c.softcap = s.softcap;
    int status = hal_cpu_attention(&c);
    if (status) {
        printf("%s: status %d\n", s.name, status);
        failures++;
        return;
    }
    double worst = 0;
    for (int b = 0; b < batch; b++)
        for (int t = 0; t < s.queries; t++)
            for (int h = 0; h < s.heads; h++) {
                const int n = s.keys[size_t(b)], p = t + n - s.queries, kh = h / group;
                const size_t row = size_t((b * s.queries + t) * s.heads + h);
                std::vector<double> sum(size_t(s.dim_v), 0.0);
                double total = s.sinks ? exp(double(sinks.real[size_t(h)])) : 0;
                const int count = s.sparse ? 7 : n;
                for (int i = 0; i < count; i++) {
                    int page, at, key = i;
                    if (s.sparse) {
                        int slot = picked[size_t((b * s.queries + t) * 7 + i)];
                        if (slot < 0) continue;
                        page = slot / s.page;
                        at = slot % s.page;
                    } else {
                        page = pages_of[size_t(b * per + key / s.page)];
                        at = key % s.page;
                        bool seen = (!s.causal || key <= p) && (s.left < 0 || key >= p - s.left);
                        if (s.chunk) seen = seen && p >= 0 && key / s.chunk == p / s.chunk;
                        if (s.tree && key >= n - s.queries)
                            seen = tree.data[(b * s.queries + t) * s.queries + key - (n - s.queries)];
                        if (s.ranges) seen = seen || (p >= 0 && p < n / 2 && key < n / 2);
                        if (!seen) continue;
                    }
                    const size_t where = size_t((page * s.page + at) * s.kv_heads + kh);
                    const bool fresh = s.appends && key >= n - s.queries;
                    const size_t new_row = size_t((b * s.queries + key - (n - s.queries)) * s.kv_heads + kh);
                    double score = 0;
                    for (int d = 0; d < s.dim; d++)
                        score += double(q.real[row * size_t(s.dim) + size_t(d)]) *
                                 double(fresh ? kn.real[new_row * size_t(s.dim) + size_t(d)]
                                              : k.real[where * size_t(s.dim) + size_t(d)]);
                    const float* value = fresh ? &vn.real[new_row * size_t(s.dim_v)] : &v.real[where * size_t(s.dim_v)];
                    if (s.latent)
                        for (int d = 0; d < s.dim_v; d++)
                            score += double(qv.real[row * size_t(s.dim_v) + size_t(d)]) * double(value[d]);
                    score *= 0.3;
                    if (s.softcap > 0) score = double(s.softcap) * tanh(score / double(s.softcap));
                    double w = exp(score);
                    total += w;
                    for (int d = 0; d < s.dim_v; d++) sum[size_t(d)] += w * double(value[d]);
                }
                for (int d = 0; d < s.dim_v; d++) {
                    double want = total == 0 ? 0 : sum[size_t(d)] / total;
                    double off = fabs(want - double(out.get(row * size_t(s.dim_v) + size_t(d))));
                    worst = off > worst || off != off ? off : worst;
                }
                if (s.lse) {
                    double got = double(lse.get(size_t((b * s.heads + h) * s.queries + t)));
                    double off = total == 0 ? (got == -INFINITY ? 0 : 1) : fabs(got - log(total));
                    worst = off > worst || off != off ? off : worst;
                }
            }
    double bound = s.q_dtype == HAL_F32 ? 1e-4 : s.q_dtype == HAL_F16 ? 3e-3 : 3e-2;
    if (!(worst <= bound)) {
        printf("%s: error %g, bound %g\n", s.name, worst, bound);
        failures++;
    }
}

static void writes(int64_t isa, int64_t threads) {
    Array k(HAL_F32, {67, 2, 33}), v(HAL_F32, {67, 2, 20}), kc(HAL_E4M3, {9, 8, 2, 33}), vc(HAL_E5M2, {9, 8, 2, 20});
    Array slots(HAL_I64, {67});
    k.random();
    v.random();
    memset(kc.data, 0, kc.real.size());
    memset(vc.data, 0, vc.real.size());
    for (int64_t i = 0; i < 67; i++) {
        int64_t slot = i == 5 ? -1 : i;
        memcpy(slots.data + i * 8, &slot, 8);
    }
    HalWrite c = {};
    c.k = k.t;
    c.v = v.t;
    c.k_cache = kc.t;
    c.v_cache = vc.t;
    c.slots = slots.t;
    c.threads = threads;
    c.isa = isa;
    c.k_scale_number = 0.5;
    c.v_scale_number = 2;
    if (hal_cpu_write(&c)) {
        printf("write: refused\n");
        failures++;
    }
    for (int i = 0; i < 66; i++)
        if (kc.data[5 * 66 + i]) {
            printf("write: the slot of a skipped token was written\n");
            failures++;
            break;
        }
    int64_t bad = 72;
    memcpy(slots.data, &bad, 8);
    if (hal_cpu_write(&c) != HAL_BAD) {
        printf("write: a slot past the cache was not refused\n");
        failures++;
    }
}

int main(int argc, char** argv) {
    const int64_t isa = argc > 1 ? atoi(argv[1]) : 0, threads = argc > 2 ? atoi(argv[2]) : 1;
    if (!(hal_cpu_isas() >> isa & 1)) {
        printf("variant %d is not here\n", int(isa));
        return 2;
    }
    const std::vector<int> some = {1, 17, 70, 40}, longer = {1200, 3};
    const Setting settings[] = {
        {"decode f32", HAL_F32, HAL_F32, 8, 2, 40, 40, 1, 16, some, 1, -1, 0, 0, false, true, false, false, false, false, false, 0},
        {"decode bf16", HAL_BF16, HAL_BF16, 8, 2, 72, 40, 1, 16, some, 1, -1, 0, 0, false, true, false, false, false, false, false, 0},
        {"decode f16", HAL_F16, HAL_F16, 4, 4, 32, 64, 1, 7, some, 1, -1, 0, 0, true, true, false, false, false, false, false, 0},
        {"decode long", HAL_F32, HAL_F32, 4, 1, 32, 32, 1, 64, longer, 1, -1, 0, 0, false, true, false, false, false, false, false, 0},
        {"decode long bf16", HAL_BF16, HAL_BF16, 8, 2, 64, 64, 1, 64, longer, 1, -1, 0, 0, false, true, false, false, false, false, false, 5},
        {"decode e4m3", HAL_BF16, HAL_E4M3, 4, 2, 48, 48, 1, 16, some, 1, -1, 0, 0, false, false, false, false, false, false, false, 0},
        {"verify e5m2", HAL_F32, HAL_E5M2, 4, 2, 48, 48, 3, 16, {3, 9, 40}, 1, -1, 0, 0, false, false, false, false, false, false, false, 0},
        {"window", HAL_F32, HAL_F32, 4, 2, 32, 32, 3, 16, {3, 9, 40}, 1, 5, 0, 3, true, true, false, false, false, false, false, 0},
        {"chunk", HAL_F32, HAL_F32, 4, 2, 32, 32, 6, 16, {6, 9, 40}, 1, -1, 7, 0, false, true, false, false, false, false, false, 0},
        {"extend f32", HAL_F32, HAL_F32, 8, 2, 33, 47, 30, 16, {30, 71, 150}, 1, -1, 0, 0, false, true, false, false, false, false, false, 0},
        {"extend bf16", HAL_BF16, HAL_BF16, 8, 2, 33, 47, 30, 16, {30, 71, 150}, 1, -1, 0, 0, false, true, false, false, false, false, false, 3},
        {"extend, tiles", HAL_F32, HAL_F32, 4, 2, 32, 32, 9, 64, {700, 9, 1300}, 1, -1, 0, 0, false, true, false, false, false, false, false, 0},
        {"extend, tiles bf16", HAL_BF16, HAL_BF16, 4, 2, 32, 32, 9, 64, {700, 9, 1300}, 1, -1, 0, 0, false, true, false, false, false, false, false, 0},
        {"extend, tiles f16", HAL_F16, HAL_F16, 4, 2, 32, 64, 9, 64, {700, 9, 1300}, 1, -1, 0, 0, false, true, false, false, false, false, false, 0},
        {"extend, window over tiles", HAL_BF16, HAL_BF16, 4, 2, 32, 32, 40, 64, {700, 600}, 1, 100, 0, 0, false, true, false, false, false, false, false, 0},
        {"latent, tiles", HAL_BF16, HAL_BF16, 16, 1, 32, 64, 1, 64, {600, 30}, 1, -1, 0, 0, false, true, true, false, false, false, false, 0},
        {"tree, tiles", HAL_BF16, HAL_BF16, 4, 2, 32, 32, 5, 64, {600, 300}, 1, -1, 0, 0, false, true, false, true, false, false, false, 0},
        {"many rows", HAL_F32, HAL_F32, 8, 1, 32, 32, 40, 32, {40, 90}, 1, 33, 0, 0, false, true, false, false, false, false, false, 0},
        {"latent", HAL_F32, HAL_F32, 16, 1, 32, 64, 1, 16, some, 1, -1, 0, 0, false, true, true, false, false, false, false, 0},
        {"latent bf16", HAL_BF16, HAL_BF16, 16, 1, 32, 64, 2, 16, {2, 80}, 1, -1, 0, 0, false, true, true, false, false, false, false, 0},
        {"tree", HAL_F32, HAL_F32, 4, 2, 32, 32, 5, 16, {5, 40}, 1, 9, 0, 0, false, true, false, true, false, false, false, 0},
        {"ranges", HAL_F32, HAL_F32, 4, 2, 32, 32, 5, 16, {5, 40}, 1, -1, 0, 0, false, true, false, false, true, false, false, 0},
        {"append", HAL_F32, HAL_F32, 4, 2, 32, 32, 5, 16, {5, 40}, 1, -1, 0, 0, false, true, false, false, false, true, false, 0},
        {"sparse", HAL_F32, HAL_F32, 4, 2, 32, 32, 3, 16, {3, 40}, 0, -1, 0, 0, true, true, false, false, false, false, true, 0},
        {"few keys", HAL_F32, HAL_F32, 4, 2, 32, 32, 9, 16, {2, 4}, 1, -1, 0, 0, false, true, false, false, false, false, false, 0},
    };
    int count = 0;
    for (const Setting& s : settings) {
        check(s, isa, threads);
        count++;
    }
    writes(isa, threads);
    printf("%d settings, variant %d, %d threads: %d failures\n", count, int(isa), int(threads), failures);
    return failures != 0;
}
