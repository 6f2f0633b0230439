// New keys and values into the cache. Included inside HAL_NS.

// float32 to fp8, round to nearest even; what is beyond the format's range becomes its largest number, NaN stays NaN.
INLINE uint8_t to_fp8(float f, bool e4m3) {
    const uint32_t bits = e4m3 ? 3 : 2;
    const int least = e4m3 ? -6 : -14;  // exponent of the smallest normal number
    const uint8_t most = e4m3 ? 0x7e : 0x7b;
    uint32_t x;
    __builtin_memcpy(&x, &f, 4);
    uint8_t sign = uint8_t(x >> 24 & 0x80);
    x &= 0x7fffffff;
    if (x > 0x7f800000) return sign | 0x7f;
    float magnitude;
    __builtin_memcpy(&magnitude, &x, 4);
    float limit = e4m3 ? 448.0f : 57344.0f;
    if (magnitude >= limit) return sign | most;
    int exponent = int(x >> 23) - 127;
    if (exponent < least) exponent = least;
    // Units of the last place of the result: adding 2^23 of them leaves the rounded count in the low bits.
    uint32_t one = uint32_t(exponent - int(bits) + 23 + 127) << 23;
    float unit;
    __builtin_memcpy(&unit, &one, 4);
    float sum = magnitude + unit;
    uint32_t count;
    __builtin_memcpy(&count, &sum, 4);
    count -= one;  // 0 .. 2 << bits
    return sign | uint8_t((uint32_t(exponent - least) << bits) + count);
}

// A row [heads][width] of either argument to its place in a cache.
static void put(const HalTensor& from, const char* row, int64_t head_stride, const HalTensor& to, char* place,
                const HalTensor* scale, float number, float* work) {
    const int64_t heads = to.size[2], width = to.size[3], in = size_of(from), out = size_of(to);
    const bool copy = from.dtype == to.dtype && !(scale && (scale->data || number != 0));
    if (copy && (head_stride == width || heads == 1) && (to.stride[2] == width || heads == 1)) {
        memcpy(place, row, heads * width * in);
        return;
    }
    for (int64_t h = 0; h < heads; h++) {
        const char* p = row + h * head_stride * in;
        char* o = place + h * to.stride[2] * out;
        if (copy) {
            memcpy(o, p, width * in);
            continue;
        }
        float factor = number;
        if (scale->data) {
            int64_t at = scale->dim == 1 && scale->size[0] > 1 ? h * scale->stride[0] : 0;
            factor = reinterpret_cast<const float*>(scale->data)[at];
        }
        floats(from.dtype, p, width, work);
        for (int64_t i = 0; i < width; i++)
            reinterpret_cast<uint8_t*>(o)[i] = to_fp8(work[i] / factor, to.dtype == HAL_E4M3);
    }
}

// Tokens first..last of the arguments k and v are those of sequence b from absolute position `to` on.
static int append(const Job* j, int64_t b, int64_t first, int64_t last, int64_t to) {
    const HalCall& c = *j->call;
    const Seq& s = j->seqs[b];
    const bool packed = c.cu_seqlens_k.data;
    const int64_t heads = j->kv_heads, dim = j->dim;
    float* work;
    char* turned;
    for (Carver carve{nullptr};; carve = Carver{scratch.data}) {
        work = carve.take<float>(2 * (dim + j->dim_v) + 64);
        turned = carve.take<char>(heads * dim * 4 + 64);
        if (carve.base) break;
        if (!scratch.need(carve.used)) return HAL_NO_MEMORY;
    }
    for (int64_t i = first; i < last; i++) {
        int64_t token = to + i, page = s.row, at = token;
        if (c.page_table.data) {
            const int32_t* table = reinterpret_cast<const int32_t*>(c.page_table.data) + s.row * c.page_table.stride[0];
            page = table[token / j->page_size];
            at = token % j->page_size;
        }
        for (int which = 0; which < 2; which++) {
            const HalTensor& x = which ? c.v_new : c.k_new;
            const HalTensor& cache = which ? c.v : c.k;
            // Packed rows of a sequence start at cu_seqlens_k[b].
            int64_t row = packed ? reinterpret_cast<const int32_t*>(c.cu_seqlens_k.data)[b * c.cu_seqlens_k.stride[0]] + i
                                 : i;
            int64_t where = packed ? row * x.stride[0] : b * x.stride[0] + row * x.stride[1];
            const char* from = x.data + where * size_of(x);
            int64_t step = packed ? x.stride[1] : x.stride[2];
            char* place = cache.data + (page * cache.stride[0] + at * cache.stride[1]) * size_of(cache);
            if (!which && c.rotary_cos.data) {
                for (int64_t h = 0; h < heads; h++) {
                    floats(x.dtype, from + h * step * size_of(x), dim, work);
                    rotate(c, work, s.rotary + i);
                    rounded(x.dtype, work, dim, turned + h * dim * size_of(x));
                }
                from = turned;
                step = dim;
            }
            put(x, from, step, cache, place, nullptr, 0, work);
        }
    }
    return HAL_OK;
}

static int write(const HalWrite* c, int64_t first, int64_t last) {
    float* work;
    int64_t wide = c->k.size[2] > c->v.size[2] ? c->k.size[2] : c->v.size[2];
    for (Carver carve{nullptr};; carve = Carver{scratch.data}) {
        work = carve.take<float>(wide + 64);
        if (carve.base) break;
        if (!scratch.need(carve.used)) return HAL_NO_MEMORY;
    }
    const int64_t page_size = c->k_cache.size[1];
    auto place = [&](int64_t i, const HalTensor& cache) -> char* {
        if (i >= last) return nullptr;
        int64_t slot = reinterpret_cast<const int64_t*>(c->slots.data)[i * c->slots.stride[0]];
        if (slot < 0) return nullptr;
        int64_t page = slot / page_size, at = slot - page * page_size;
        return cache.data + (page * cache.stride[0] + at * cache.stride[1]) * size_of(cache);
    };
    for (int64_t i = first; i < last; i++) {
        for (int which = 0; which < 2; which++) {
            const HalTensor& x = which ? c->v : c->k;
            const HalTensor& cache = which ? c->v_cache : c->k_cache;
            char *to = place(i, cache), *then = place(i + 1, cache);
            // Slots are anywhere: the next one's lines are asked for while this one is filled.
            const int64_t bytes = cache.size[2] * cache.size[3] * size_of(cache);
            if (then)
                for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(then + b, 1, 3);
            if (to)
                put(x, x.data + i * x.stride[0] * size_of(x), x.stride[1], cache, to,
                    which ? &c->v_scale : &c->k_scale, float(which ? c->v_scale_number : c->k_scale_number), work);
        }
    }
    return HAL_OK;
}
