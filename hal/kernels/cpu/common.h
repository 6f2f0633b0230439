// Addresses, queries and results, shared by the two attention kernels. Included inside HAL_NS.

static const int64_t SIZES[] = {4, 2, 2, 1, 1, 4, 8, 1};
INLINE int64_t size_of(const HalTensor& t) { return SIZES[t.dtype]; }
INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory of one thread, kept between calls.
struct Scratch {
    char* data = nullptr;
    size_t size = 0;
    ~Scratch() { free(data); }
    bool need(size_t bytes) {
        if (bytes <= size) return true;
        free(data);
        size = (bytes + 65535) / 65536 * 65536;
        data = static_cast<char*>(aligned_alloc(4096, size));
        if (!data) size = 0;
        return data != nullptr;
    }
};
static thread_local Scratch scratch;

// Hands out pieces of a block, first to count and then for real.
struct Carver {
    char* base;
    size_t used = 0;
    template <class T> T* take(int64_t count) {
        used = (used + 63) / 64 * 64;
        T* at = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base) + used);
        used += size_t(count) * sizeof(T);
        return at;
    }
};

// First element of query token t of a sequence, head 0.
INLINE char* query(const Job& j, const HalTensor& x, const Seq& s, int64_t b, int64_t t) {
    int64_t at = j.packed ? (s.first + t) * x.stride[0] : b * x.stride[0] + t * x.stride[1];
    return x.data + at * size_of(x);
}
INLINE int64_t head_stride(const Job& j, const HalTensor& x) { return j.packed ? x.stride[1] : x.stride[2]; }

INLINE float number(const HalTensor& x, int64_t b, int64_t h) {
    if (!x.data) return 1.0f;
    int64_t at = x.dim == 2 ? (x.size[0] > 1 ? b * x.stride[0] : 0) + (x.size[1] > 1 ? h * x.stride[1] : 0) : 0;
    return reinterpret_cast<const float*>(x.data)[at];
}

template <class F> INLINE void with_dtype(int64_t dtype, F f) {
    switch (dtype) {
        case HAL_F32: return f(F32());
        case HAL_BF16: return f(BF16());
        case HAL_F16: return f(F16());
        case HAL_E4M3: return f(E4M3());
        default: return f(E5M2());
    }
}

// n elements of any dtype as float32.
template <class T> static void to_float(const char* from, int64_t n, float* to) {
    const typename T::type* p = reinterpret_cast<const typename T::type*>(from);
    int64_t i = 0;
    for (; i + W <= n; i += W) storef(to + i, load<T>(p + i));
    if (i < n) {
        vf last = load_some<T>(p + i, int(n - i));
        for (int64_t k = i; k < n; k++) to[k] = last[k - i];
    }
}
static void floats(int64_t dtype, const char* from, int64_t n, float* to) {
    with_dtype(dtype, [&](auto tag) { to_float<decltype(tag)>(from, n, to); });
}
template <class T> static void from_float(const float* from, int64_t n, char* to) {
    typename T::type* p = reinterpret_cast<typename T::type*>(to);
    int64_t i = 0;
    for (; i + W <= n; i += W) store<T>(p + i, loadf(from + i));
    if (i < n) {
        typename T::type last[W];
        store<T>(last, load_some<F32>(from + i, int(n - i)));
        for (int64_t k = i; k < n; k++) p[k] = last[k - i];
    }
}
// float32 as float32, bfloat16 or float16.
static void rounded(int64_t dtype, const float* from, int64_t n, char* to) {
    if (dtype == HAL_F32)
        from_float<F32>(from, n, to);
    else if (dtype == HAL_F16)
        from_float<F16>(from, n, to);
    else
        from_float<BF16>(from, n, to);
}

// Rotary embedding of x (float32) at a position, as rotary_cos and rotary_sin say.
static void rotate(const HalCall& c, float* x, int64_t position) {
    int64_t half = c.rotary_cos.size[1];
    for (int64_t i = 0; i < half; i++) {
        float cos, sin;
        floats(c.rotary_cos.dtype, c.rotary_cos.data + (position * c.rotary_cos.stride[0] + i * c.rotary_cos.stride[1])
               * size_of(c.rotary_cos), 1, &cos);
        floats(c.rotary_sin.dtype, c.rotary_sin.data + (position * c.rotary_sin.stride[0] + i * c.rotary_sin.stride[1])
               * size_of(c.rotary_sin), 1, &sin);
        float* a = x + (c.interleaved ? 2 * i : i);
        float* b = x + (c.interleaved ? 2 * i + 1 : half + i);
        float turned = *a * cos - *b * sin;
        *b = *a * sin + *b * cos;
        *a = turned;
    }
}

// Query rows as the kernel's numbers, zeros up to `padded`. work: floats for one row.
template <class C>
static void load_query(const Job& j, const HalTensor& x, const Seq& s, int64_t b, int64_t t, int64_t head,
                       int64_t width, int64_t padded, bool turn, float* work, typename C::type* to) {
    const HalCall& c = *j.call;
    const char* from = query(j, x, s, b, t) + head * head_stride(j, x) * size_of(x);
    turn = turn && c.rotary_cos.data;
    const int64_t same = sizeof(typename C::type) == 2 ? HAL_BF16 : HAL_F32;
    if (x.dtype == same && !turn) {
        memcpy(to, from, width * sizeof(typename C::type));
    } else {
        floats(x.dtype, from, width, work);
        if (turn) {
            rotate(c, work, s.rotary + (j.rotate_all ? t : 0));
            if (x.dtype != HAL_F32) {  // q in its own dtype, as the cache holds keys in theirs
                char* small = reinterpret_cast<char*>(work + width);
                rounded(x.dtype, work, width, small);
                floats(x.dtype, small, width, work);
            }
        }
        rounded(same, work, width, reinterpret_cast<char*>(to));
    }
    memset(to + width, 0, (padded - width) * sizeof(typename C::type));
}

// Where keys are: walks tokens of one sequence in order.
struct Keys {
    const HalCall& c;
    const Seq& s;
    const int32_t* table;
    int64_t page_size;
    Keys(const Job& j, const Seq& seq) : c(*j.call), s(seq), table(nullptr), page_size(j.page_size) {
        if (c.page_table.data)
            table = reinterpret_cast<const int32_t*>(c.page_table.data) + s.row * c.page_table.stride[0];
    }
    // Pointers to head h of keys first.. and their values.
    void find(int64_t first, int64_t n, int64_t h, const char** k, const char** v) const {
        const int64_t ks = size_of(c.k), vs = size_of(c.v);
        if (c.k.dim == 3) {
            const char* kp = c.k.data + ((s.start + first) * c.k.stride[0] + h * c.k.stride[1]) * ks;
            const char* vp = c.v.data + ((s.start + first) * c.v.stride[0] + h * c.v.stride[1]) * vs;
            for (int64_t i = 0; i < n; i++) {
                k[i] = kp + i * c.k.stride[0] * ks;
                v[i] = vp + i * c.v.stride[0] * vs;
            }
            return;
        }
        const int64_t kt = c.k.stride[1] * ks, vt = c.v.stride[1] * vs;
        int64_t token = s.start + first, page = table ? token / page_size : s.row;
        int64_t at = table ? token - page * page_size : token;
        for (int64_t i = 0; i < n;) {
            int64_t id = table ? table[page] : page;
            const char* kp = c.k.data + (id * c.k.stride[0] + h * c.k.stride[2]) * ks + at * kt;
            const char* vp = c.v.data + (id * c.v.stride[0] + h * c.v.stride[2]) * vs + at * vt;
            int64_t more = table && page_size - at < n - i ? page_size - at : n - i;
            for (int64_t e = i + more; i < e; i++, kp += kt, vp += vt) {
                k[i] = kp;
                v[i] = vp;
            }
            page++;
            at = 0;
        }
    }
    // The same for slots of a paged cache.
    void slots(const int32_t* slot, int64_t n, int64_t h, const char** k, const char** v) const {
        for (int64_t i = 0; i < n; i++) {
            int64_t id = slot[i] / page_size, at = slot[i] % page_size;
            k[i] = c.k.data + (id * c.k.stride[0] + at * c.k.stride[1] + h * c.k.stride[2]) * size_of(c.k);
            v[i] = c.v.data + (id * c.v.stride[0] + at * c.v.stride[1] + h * c.v.stride[2]) * size_of(c.v);
        }
    }
};

// One finished row: sums, the maximum (base 2, scaled) and the total of its weights.
static void finish(const Job& j, const Item& it, int64_t row, float* sums, float top, float total) {
    const HalCall& c = *j.call;
    const Seq& s = j.seqs[it.seq];
    int64_t tokens = it.t1 - it.t0, per = tokens * j.group;
    int64_t h = it.h0 + row / per, t = it.t0 + row % per / j.group, head = h * j.group + row % j.group;
    float factor = 1.0f, sink = -INFINITY;
    if (c.sinks.data)
        floats(c.sinks.dtype, c.sinks.data + head * c.sinks.stride[0] * size_of(c.sinks), 1, &sink);
    if (sink != -INFINITY) {
        sink *= 1.4426950408889634f;
        float most = total == 0 || sink > top ? sink : top;
        if (total != 0) factor = exp2_one(top - most);
        total = total * factor + exp2_one(sink - most);
        top = most;
    }
    float scale = total == 0 ? 0.0f : factor / total * number(c.v_descale, it.seq, h);
    for (int64_t i = 0; i < j.dim_v; i += W) storef(sums + i, total == 0 ? zero() : loadf(sums + i) * scale);
    rounded(c.out.dtype, sums, j.dim_v,
            query(j, c.out, s, it.seq, t) + head * head_stride(j, c.out) * size_of(c.out));
    if (c.lse.data) {
        float lse = total == 0 ? -INFINITY : (top + log2f(total)) * 0.6931471805599453f;
        int64_t at = j.packed ? head * c.lse.stride[0] + (s.first + t) * c.lse.stride[1]
                              : it.seq * c.lse.stride[0] + head * c.lse.stride[1] + t * c.lse.stride[2];
        reinterpret_cast<float*>(c.lse.data)[at] = lse;
    }
}

// The pieces of a group into its rows, in the order of their keys, by whoever finished the last one.
static void combine(const Job& j, const Group& g, float* sums) {
    const Item& first = j.items[g.first];
    int64_t rows = (first.t1 - first.t0) * j.group * (first.h1 - first.h0), dv = round_up(j.dim_v, 16);
    for (int64_t r = 0; r < rows; r++) {
        float top = -INFINITY, total = 0;
        for (int64_t i = g.first; i < g.first + g.count; i++) {
            float m = j.stats[j.items[i].stats + r * 2];
            if (m > top || m != m) top = m;
        }
        float shift = top == -INFINITY ? 0.0f : top;
        memset(sums, 0, dv * sizeof(float));
        for (int64_t i = g.first; i < g.first + g.count; i++) {
            const Item& it = j.items[i];
            float factor = exp2_one(j.stats[it.stats + r * 2] - shift);
            total += j.stats[it.stats + r * 2 + 1] * factor;
            const float* part = j.partial + it.partial + r * dv;
            for (int64_t d = 0; d < dv; d += W) storef(sums + d, loadf(sums + d) + loadf(part + d) * factor);
        }
        finish(j, first, r, sums, top, total);
    }
}

// A row of a piece: its own result, or its part of a group's. sums has room for dim_v rounded up to 16.
INLINE void hand_over(const Job& j, const Item& it, int64_t row, float* sums, float top, float total) {
    if (it.group < 0) return finish(j, it, row, sums, top, total);
    int64_t dv = round_up(j.dim_v, 16);
    memcpy(j.partial + it.partial + row * dv, sums, dv * sizeof(float));
    j.stats[it.stats + row * 2] = top;
    j.stats[it.stats + row * 2 + 1] = total;
}
static void leave(const Job& j, const Item& it, float* sums) {
    if (it.group < 0) return;
    Group& g = j.groups[it.group];
    if (__atomic_sub_fetch(&g.left, 1, __ATOMIC_ACQ_REL) == 0) combine(j, g, sums);
}

// How scores become weights: s * mult is the exponent of 2, after the softcap if there is one.
struct Scale {
    float mult, cap, before;  // cap 0: none; before: what s is multiplied by inside tanh
    Scale(const HalCall& c, float descale) {
        float real = float(c.scale) * descale;
        cap = float(c.softcap);
        before = cap > 0 ? real / cap : 0;
        mult = (cap > 0 ? cap : real) * 1.4426950408889634f;
    }
};

// A block of scores of one row to weights, and what the row has so far brought up to a new maximum. n: keys, a multiple
// of W and at most N. low, high: those that the row sees; seen: bytes per key, or null. store: takes the weights as n / W
// vectors. WHOLE: n is N, all are seen, and there is no softcap.
template <int N, bool WHOLE, class Store>
INLINE void weigh(const float* s, int64_t n, int64_t low, int64_t high, const uint8_t* seen, const Scale& how,
                  bool exact, float* top, float* total, float* sums, int64_t dv, Store store) {
    vf most = set1(-INFINITY);
    vf x[N / W];
    const bool all = WHOLE || (low <= 0 && high >= n && !seen);
    const int vectors = WHOLE ? N / W : int(n / W);
#pragma GCC unroll 16
    for (int v = 0; v < N / W; v++) {
        if (v >= vectors) break;
        x[v] = loadf(s + v * W);
        if (!WHOLE && how.cap > 0) x[v] = tanh_of(x[v] * how.before);
        if (!all) {
            vi at = lanes() + v * W;
            x[v] = (at >= int(low)) & (at < int(high)) ? x[v] : set1(-INFINITY);
            if (seen) {
                vi bits = __builtin_convertvector(load_raw<vb>(seen + v * W), vi);
                x[v] = bits != 0 ? x[v] : set1(-INFINITY);
            }
        }
        most = vmax(most, x[v]);
    }
    // The weights' common factor is 2^-top: any top will do that keeps them in range, so it follows the maximum only
    // when that has grown by more than 2^8.
    if (any_above(most * how.mult, *top == -INFINITY ? -INFINITY : *top + 8)) {
        float m = hmax(most) * how.mult;
        float factor = exp2_one(*top - m);
        if (*top != -INFINITY) {
            for (int64_t d = 0; d < dv; d += W) storef(sums + d, loadf(sums + d) * factor);
            storef(total, loadf(total) * factor);
        }
        *top = m;
    }
    const float shift = *top == -INFINITY ? 0.0f : *top;
    vf sum = loadf(total);
#pragma GCC unroll 16
    for (int v = 0; v < N / W; v++) {
        if (v >= vectors) break;
        x[v] = exp2_with(x[v] * how.mult - shift, exact);
        sum += x[v];
    }
    store(x, vectors);
    storef(total, sum);
}

// The same, weights stored in a row as float32 or bfloat16.
template <int N, class E>
INLINE void soften(float* s, E* weights, int64_t n, int64_t low, int64_t high, const uint8_t* seen, const Scale& how,
                   float* top, float* total, float* sums, int64_t dv) {
    auto store = [&](const vf* x, int vectors) {
        if (sizeof(E) == 4) {
#pragma GCC unroll 16
            for (int v = 0; v < N / W; v++) {
                if (v >= vectors) break;
                storef(reinterpret_cast<float*>(weights) + v * W, x[v]);
            }
            return;
        }
#if defined(__AVX512BF16__)
        // Two vectors in one store: what reads them reads 64 bytes, which two stores could not forward.
        for (int v = 0; v < N / W; v += 2) {
            if (v >= vectors) break;
            _mm512_storeu_si512(weights + v * W, (__m512i)_mm512_cvtne2ps_pbh(
                v + 1 < vectors ? (__m512)x[v + 1] : _mm512_setzero_ps(), (__m512)x[v]));
        }
#endif
    };
    weigh<N, false>(s, n, low, high, seen, how, sizeof(E) == 4, top, total, sums, dv, store);
}
