// Operators of CANN's older interface (aclop), which torch_npu still calls for format casts on 310P: Identity between ND
// and FRACTAL_NZ. In NZ the last two dimensions (m, n) lie as (n / 16, m rounded up to 16, 16), zero where there is
// nothing (torch_npu, FormatHelper.cpp: InferShapeNDToNZ, for elements of two bytes).
#include "fake.h"

#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr int NZ = 29;
constexpr std::int64_t TILE = 16;

struct Desc {
    int dtype, format;
    std::vector<std::int64_t> dims;  // of the tensor as torch has it, not of its storage
};
struct Buffer {
    void* data;
    std::size_t size;
};

int cast(const Desc& from, const Buffer& in, const Desc& to, const Buffer& out) {
    if (in.size && (fake::owner(in.data, in.size) < 0 || fake::owner(out.data, out.size) < 0))
        return fake::fail(fake::INVALID_PARAM, "Identity: an address is not device memory");
    const bool tiled = to.format == NZ;
    if (tiled == (from.format == NZ)) {
        if (in.size > out.size) return fake::fail(fake::INVALID_PARAM, "Identity: the output is smaller");
        std::memcpy(out.data, in.data, in.size);
        return fake::OK;
    }
    const auto& dims = from.dims;
    if (dims.size() < 2 || from.dtype != to.dtype || (from.dtype != 1 && from.dtype != 27) || dims != to.dims)
        return fake::fail(fake::NOT_SUPPORTED, "Identity between ND and NZ: two dimensions or more, of two bytes");
    const std::int64_t m = dims[dims.size() - 2], n = dims.back(), rows = (m + TILE - 1) / TILE * TILE;
    const std::int64_t columns = (n + TILE - 1) / TILE;
    std::int64_t outer = 1;
    for (std::size_t i = 0; i + 2 < dims.size(); ++i) outer *= dims[i];
    const std::size_t plain = std::size_t(outer * m * n) * 2, stored = std::size_t(outer * columns * rows * TILE) * 2;
    if (in.size < (tiled ? plain : stored) || out.size < (tiled ? stored : plain))
        return fake::fail(fake::INVALID_PARAM, "Identity: a buffer is smaller than its tensor");
    auto source = static_cast<const std::uint16_t*>(in.data);
    auto target = static_cast<std::uint16_t*>(out.data);
    if (tiled) std::memset(target, 0, stored);
    for (std::int64_t l = 0; l < outer; ++l)
        for (std::int64_t i = 0; i < m; ++i)
            for (std::int64_t j = 0; j < n; ++j) {
                const std::int64_t nd = (l * m + i) * n + j, nz = ((l * columns + j / TILE) * rows + i) * TILE + j % TILE;
                target[tiled ? nz : nd] = source[tiled ? nd : nz];
            }
    return fake::OK;
}

}  // namespace

extern "C" {

int fake_npu_unanswered(const char* name);

void* aclCreateTensorDesc(int dtype, int ndim, const std::int64_t* dims, int format) {
    return new Desc{dtype, format, {dims, dims + (dims ? ndim : 0)}};
}
int aclDestroyTensorDesc(Desc* desc) { delete desc; return fake::OK; }
int aclSetTensorFormat(Desc* desc, int format) { desc->format = format; return fake::OK; }
void* aclCreateDataBuffer(void* data, std::size_t size) { return new Buffer{data, size}; }
int aclDestroyDataBuffer(Buffer* buffer) { delete buffer; return fake::OK; }

int aclopCompileAndExecute(const char* op, int inputs, const Desc* const in_desc[], const Buffer* const in[], int outputs,
                           const Desc* const out_desc[], Buffer* const out[], const void*, int, int, const char*,
                           void* stream) {
    if (std::string(op) != "Identity" || inputs != 1 || outputs != 1)
        return fake_npu_unanswered((std::string("aclop ") + op).c_str());
    fake::count("aclopIdentity");
    // The caller destroys its descriptors before a replay.
    return fake::enqueue(fake::stream_of(stream), op, [a = *in_desc[0], b = *in[0], c = *out_desc[0], d = *out[0]] {
        return cast(a, b, c, d);
    });
}

}
