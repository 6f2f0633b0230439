// The aclnn calls: their descriptors are read by each operator's signature, and handed to Python for the answer.
#include "fake.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>

namespace {

constexpr int MAX_DIM = 8;
enum Tag : std::int64_t { TENSOR = 0x7e1, TENSORS, SCALAR, INTEGERS, BOOLS, FLOATS };

// Read by Python (decode.py): keep the two in step.
struct Tensor {
    std::int64_t tag, ndim, shape[MAX_DIM], stride[MAX_DIM], offset, dtype, format;
    void* data;
    Tensor* origin;
};
struct Arg {
    std::int64_t kind, is_null, integer, count;
    double real;
    const void* items;  // Tensor, int64_t, char: as kind says
};
struct Call {
    const char* name;
    std::int64_t nargs, device;
    const Arg* args;
};

struct Tensors { std::int64_t tag; std::vector<Tensor> items; };
struct Integers { std::int64_t tag; std::vector<std::int64_t> items; };
struct Scalar { std::int64_t tag; std::int64_t dtype; unsigned char bytes[16]; };

// A call with all that its arguments point to: the caller destroys its descriptors before a replay.
struct Kept {
    Call call;
    std::string name;
    std::vector<Arg> args;
    std::vector<std::unique_ptr<std::vector<Tensor>>> tensors;
    std::vector<std::unique_ptr<std::vector<std::int64_t>>> integers;
    std::vector<std::unique_ptr<std::string>> texts;
};

int (*check_answer)(const Call*) = nullptr;
int (*run_answer)(const Call*) = nullptr;

// The answers are in Python; the first operator imports them, so no program needs to know of this device.
int import_answers() {
    static bool tried = false;
    if (!tried) {
        tried = true;
        auto ensure = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Ensure"));
        auto release = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "PyGILState_Release"));
        auto import = reinterpret_cast<void* (*)(const char*)>(dlsym(RTLD_DEFAULT, "PyImport_ImportModule"));
        auto print = reinterpret_cast<void (*)()>(dlsym(RTLD_DEFAULT, "PyErr_Print"));
        if (ensure && import) {
            const int state = ensure();
            if (!import("fake_npu.answer")) print();
            release(state);
        }
    }
    return run_answer ? fake::OK : fake::fail(fake::INNER, "fake_npu.answer could not be imported");
}

template <class T>
T* described(const std::string& op, std::size_t index, std::int64_t value, Tag tag) {
    auto pointer = reinterpret_cast<T*>(value);
    if (pointer && ((value & 7) || (value >= 0 && value < 65536) || pointer->tag != tag)) {
        std::fprintf(stderr, "fake NPU: argument %zu of %s is not what signatures.py says\n", index, op.c_str());
        std::abort();
    }
    return pointer;
}

}  // namespace

extern "C" {

void fake_npu_answer_with(int (*check)(const Call*), int (*run)(const Call*)) {
    check_answer = check;
    run_answer = run;
}

// An operator that finds out its result's shape (aclnnNonzero) tells the caller so.
void fake_npu_set_shape(Tensor* tensor, const std::int64_t* shape, std::int64_t ndim) {
    tensor->ndim = ndim;
    std::memcpy(tensor->shape, shape, std::size_t(ndim) * sizeof(std::int64_t));
}

// First phase. signature: a letter for each argument, see signatures.py. The last two are the results.
int fake_npu_prepare(const char* op, const char* signature, const std::int64_t* integers, const double* reals) {
    auto kept = new Kept;
    kept->name = op;
    for (const char* kind = signature; *kind; ++kind) {
        const std::size_t index = std::size_t(kind - signature);
        Arg arg{*kind, 0, 0, 0, 0, nullptr};
        if (*kind == 'd') arg.real = *reals++;
        else if (*kind == 'f') { float low; std::memcpy(&low, reals++, sizeof low); arg.real = low; }
        else {
            const std::int64_t value = *integers++;
            arg.integer = value;
            arg.is_null = value == 0;
            if (*kind == 'b') arg.integer = value & 0xff;
            if (*kind == 'e') arg.integer = std::int32_t(value);
            if (*kind == 'T' && value) {
                auto tensor = described<Tensor>(op, index, value, TENSOR);
                kept->tensors.push_back(std::make_unique<std::vector<Tensor>>(1, *tensor));
                kept->tensors.back()->front().origin = tensor;
                arg.count = 1;
                arg.items = kept->tensors.back()->data();
            } else if (*kind == 'L' && value) {
                kept->tensors.push_back(std::make_unique<std::vector<Tensor>>(described<Tensors>(op, index, value, TENSORS)->items));
                arg.count = std::int64_t(kept->tensors.back()->size());
                arg.items = kept->tensors.back()->data();
            } else if ((*kind == 'A' || *kind == 'B') && value) {
                kept->integers.push_back(std::make_unique<std::vector<std::int64_t>>(
                    described<Integers>(op, index, value, *kind == 'A' ? INTEGERS : BOOLS)->items));
                arg.count = std::int64_t(kept->integers.back()->size());
                arg.items = kept->integers.back()->data();
            } else if (*kind == 'S' && value) {
                auto scalar = described<Scalar>(op, index, value, SCALAR);
                kept->texts.push_back(std::make_unique<std::string>(reinterpret_cast<char*>(scalar->bytes), sizeof scalar->bytes));
                arg.count = scalar->dtype;
                arg.items = kept->texts.back()->data();
            } else if (*kind == 's' && value) {
                kept->texts.push_back(std::make_unique<std::string>(reinterpret_cast<const char*>(value)));
                arg.items = kept->texts.back()->c_str();
            }
        }
        kept->args.push_back(arg);
    }
    kept->call = {kept->name.c_str(), std::int64_t(kept->args.size()), fake::current_device(), kept->args.data()};
    *reinterpret_cast<std::uint64_t*>(integers[0]) = 0;
    *reinterpret_cast<void**>(integers[1]) = kept;
    if (int code = import_answers()) return code;
    return check_answer(&kept->call);
}

// Second phase
int fake_npu_launch(const char* op, void* executor, void* stream) {
    fake::count(op);
    std::shared_ptr<Kept> kept(static_cast<Kept*>(executor));
    auto s = fake::stream_of(stream);
    kept->call.device = s->device;
    return fake::enqueue(s, op, [kept] { return run_answer(&kept->call); });
}

// Of a call that is only asked for its workspace
int aclDestroyAclOpExecutor(void* executor) { delete static_cast<Kept*>(executor); return fake::OK; }

int fake_npu_unanswered(const char* name) {
    return fake::fail(fake::NOT_SUPPORTED, std::string(name) + " has no answer (tests/fake_npu/signatures.py lists those that have)");
}
void fake_npu_abort(const char* name) {
    std::fprintf(stderr, "fake NPU: %s has no answer\n", name);
    std::abort();
}
void fake_npu_count(const char* name) { fake::count(name); }

void* aclCreateTensor(const std::int64_t* shape, std::uint64_t ndim, int dtype, const std::int64_t* stride, std::int64_t offset,
                      int format, const std::int64_t*, std::uint64_t, void* data) {
    if (ndim > MAX_DIM) fake_npu_abort("a tensor of more than 8 dimensions");
    auto tensor = new Tensor{};
    tensor->tag = TENSOR;
    tensor->ndim = std::int64_t(ndim);
    std::memcpy(tensor->shape, shape, ndim * sizeof *shape);
    if (stride) std::memcpy(tensor->stride, stride, ndim * sizeof *stride);
    tensor->offset = offset;
    tensor->dtype = dtype;
    tensor->format = format;
    tensor->data = data;
    return tensor;
}
int aclDestroyTensor(Tensor* tensor) { delete tensor; return fake::OK; }
int aclGetViewShape(const Tensor* tensor, std::int64_t** shape, std::uint64_t* ndim) {
    *ndim = std::uint64_t(tensor->ndim);
    *shape = new std::int64_t[MAX_DIM];  // the caller deletes it
    std::memcpy(*shape, tensor->shape, sizeof tensor->shape);
    return fake::OK;
}
void* aclCreateTensorList(Tensor** tensors, std::uint64_t size) {
    auto list = new Tensors{TENSORS, {}};
    for (std::uint64_t i = 0; i < size; ++i) {  // an index list has holes
        list->items.push_back(tensors[i] ? *tensors[i] : Tensor{});
        list->items.back().origin = tensors[i];
    }
    return list;
}
int aclDestroyTensorList(Tensors* list) {
    for (auto& tensor : list->items) delete tensor.origin;
    delete list;
    return fake::OK;
}
void* aclCreateIntArray(const std::int64_t* values, std::uint64_t size) { return new Integers{INTEGERS, {values, values + size}}; }
int aclDestroyIntArray(Integers* array) { delete array; return fake::OK; }
void* aclCreateBoolArray(const bool* values, std::uint64_t size) { return new Integers{BOOLS, {values, values + size}}; }
int aclDestroyBoolArray(Integers* array) { delete array; return fake::OK; }
void* aclCreateScalar(const void* value, int dtype) {
    // aclDataType: float, half, int8, int32, uint8, -, int16, uint16, uint32, int64, uint64, double, bool, ..., complex, bfloat16
    static const std::size_t sizes[] = {4, 2, 1, 4, 1, 0, 2, 2, 4, 8, 8, 8, 1, 0, 0, 0, 8, 16};
    auto scalar = new Scalar{SCALAR, dtype, {}};
    const std::size_t size = dtype == 27 ? 2 : dtype < 18 ? sizes[dtype] : 0;
    if (!size) fake_npu_abort("a scalar of this aclDataType");
    std::memcpy(scalar->bytes, value, size);
    return scalar;
}
int aclDestroyScalar(Scalar* scalar) { delete scalar; return fake::OK; }

}
