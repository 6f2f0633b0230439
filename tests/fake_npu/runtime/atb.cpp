// ATB, the library behind libop_plugin_atb.so: three of its operations, whose answers are in Python (atb.py).
//
// The layouts are those that op-plugin is compiled against (third_party/atb/inc: context.h, operation.h, svector.h,
// types.h, infer_op_params.h), as far as they are read here; virtual functions stand in their order there.
#include "fake.h"

#include <cstring>
#include <dlfcn.h>
#include <string>
#include <vector>

extern "C" {
int fake_npu_prepare(const char* op, const char* signature, const std::int64_t* integers, const double* reals);
int fake_npu_launch(const char* op, void* executor, void* stream);
void* aclCreateTensor(const std::int64_t* shape, std::uint64_t ndim, int dtype, const std::int64_t* stride,
                      std::int64_t offset, int format, const std::int64_t*, std::uint64_t, void* data);
int aclDestroyTensor(void* tensor);
void* aclCreateIntArray(const std::int64_t* values, std::uint64_t size);
int aclDestroyIntArray(void* array);
int aclDestroyAclOpExecutor(void* executor);
}

namespace atb {

using Status = std::int32_t;
constexpr Status INVALID_PARAM = 1;  // ERROR_INVALID_PARAM of types.h

struct Dims {
    std::int64_t dims[8];
    std::uint64_t dimNum;
};
struct TensorDesc {
    int dtype, format;
    Dims shape;
};
struct Tensor {
    TensorDesc desc;
    void *deviceData, *hostData;
    std::uint64_t dataSize;
};
template <class T>
struct SVector {
    std::size_t capacity, size;
    T storage[65];
    T* heap;
    const T& at(std::size_t i) const { return heap ? heap[i] : storage[i]; }
};
struct VariantPack {
    SVector<Tensor> in, out;
};

class Context {
 public:
    virtual ~Context() = default;
    virtual Status SetExecuteStream(void* stream) { current = stream; return 0; }
    virtual void* GetExecuteStream() const { return current; }
    virtual Status SetAsyncTilingCopyStatus(bool) { return 0; }
    virtual bool GetAsyncTilingCopyStatus() const { return false; }

 private:
    void* current = nullptr;
};

class Operation {
 public:
    virtual ~Operation() = default;
    virtual std::string GetName() const = 0;
    virtual Status InferShape(const SVector<TensorDesc>&, SVector<TensorDesc>&) const = 0;
    virtual std::uint32_t GetInputNum() const = 0;
    virtual std::uint32_t GetOutputNum() const = 0;
    virtual Status Setup(const VariantPack&, std::uint64_t& workspace, Context*) = 0;
    virtual Status Execute(const VariantPack&, std::uint8_t* workspace, std::uint64_t size, Context*) = 0;
};

class Utils {
 public:
    static std::uint64_t GetTensorSize(const Tensor& tensor);
};

namespace infer {

struct PagedAttentionParam {
    std::int32_t headNum;
    float qkScale;
    std::int32_t kvHeadNum, maskType;
    bool batchRunStatusEnable;
    std::int32_t quantType, outDataType;
    bool hasQuantOffset;
    std::int32_t compressType, calcType, scaleType, inputLayout;
    std::uint32_t mlaVHeadSize;
    std::uint8_t reserved[68];
};
struct SelfAttentionParam {
    std::int32_t quantType, outDataType, headNum, kvHeadNum;
    float qScale, qkScale;
    bool batchRunStatusEnable;
    std::uint32_t isTriuMask;
    std::int32_t calcType, kernelType, clampType;
    float clampMin, clampMax;
    std::int32_t maskType, kvcacheCfg, scaleType, inputLayout;
    std::uint32_t mlaVHeadSize;
    std::int8_t cacheType;
    std::uint32_t windowSize;
    std::uint8_t reserved[64];
};
struct ReshapeAndCacheParam {
    std::int32_t compressType, kvCacheCfg;
    std::uint8_t reserved[16];
};

}  // namespace infer

namespace {

std::size_t item_size(int dtype) {  // aclDataType
    switch (dtype) {
        case 2: case 4: case 12: return 1;
        case 1: case 6: case 7: case 27: return 2;
        case 9: case 10: case 11: return 8;
        default: return 4;
    }
}

std::uint64_t elements(const Dims& shape) {
    std::uint64_t product = 1;
    for (std::uint64_t i = 0; i < shape.dimNum; ++i) product *= std::uint64_t(shape.dims[i]);
    return product;
}

// The arguments of a call as fake_npu_prepare() reads them, in the order of atb.py.
class Arguments {
 public:
    ~Arguments() {
        for (void* tensor : tensors) aclDestroyTensor(tensor);
        for (void* array : arrays) aclDestroyIntArray(array);
    }
    void device(const Tensor& t) {  // what is on the host alone has no memory of the device
        kinds += 'T';
        std::int64_t strides[8], step = 1;
        for (std::uint64_t i = t.desc.shape.dimNum; i-- > 0; step *= t.desc.shape.dims[i]) strides[i] = step;
        tensors.push_back(aclCreateTensor(t.desc.shape.dims, t.desc.shape.dimNum, t.desc.dtype, strides, 0, t.desc.format,
                                          nullptr, 0, t.deviceData));
        integers.push_back(reinterpret_cast<std::int64_t>(tensors.back()));
    }
    void absent() { kinds += 'T'; integers.push_back(0); }
    void host(const Tensor* t) {  // int32 on the host, and the dtype that it has
        kinds += "Ai";
        std::int64_t array = 0;
        if (t && t->hostData && t->desc.dtype == 3) {
            auto values = static_cast<const std::int32_t*>(t->hostData);
            std::vector<std::int64_t> wide(values, values + elements(t->desc.shape));
            arrays.push_back(aclCreateIntArray(wide.data(), wide.size()));
            array = reinterpret_cast<std::int64_t>(arrays.back());
        }
        integers.push_back(array);
        integers.push_back(t ? t->desc.dtype : -1);
    }
    void number(std::int64_t value) { kinds += 'i'; integers.push_back(value); }
    void real(double value) { kinds += 'd'; reals.push_back(value); }

    int prepare(const char* op, void** executor) {
        std::uint64_t workspace = 0;
        integers.push_back(reinterpret_cast<std::int64_t>(&workspace));
        integers.push_back(reinterpret_cast<std::int64_t>(executor));
        reals.push_back(0);
        return fake_npu_prepare(op, kinds.c_str(), integers.data(), reals.data());
    }

 private:
    std::string kinds;
    std::vector<std::int64_t> integers;
    std::vector<double> reals;
    std::vector<void*> tensors, arrays;
};

bool import_answers() {
    static const bool imported = [] {
        auto ensure = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Ensure"));
        auto release = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "PyGILState_Release"));
        auto import = reinterpret_cast<void* (*)(const char*)>(dlsym(RTLD_DEFAULT, "PyImport_ImportModule"));
        auto print = reinterpret_cast<void (*)()>(dlsym(RTLD_DEFAULT, "PyErr_Print"));
        if (!ensure || !import) return false;
        const int state = ensure();
        const bool found = import("fake_npu.atb");
        if (!found) print();
        release(state);
        return found;
    }();
    return imported;
}

const char* name_of(const infer::PagedAttentionParam&) { return "atbPagedAttentionOperation"; }
const char* name_of(const infer::SelfAttentionParam&) { return "atbSelfAttentionOperation"; }
const char* name_of(const infer::ReshapeAndCacheParam&) { return "atbReshapeAndCacheOperation"; }

// False for what is not answered here.
bool fill(Arguments& a, const infer::PagedAttentionParam& p, const VariantPack& pack) {
    const bool masked = p.maskType != 0, spec = p.calcType == 1;
    if (p.batchRunStatusEnable || p.quantType || p.compressType || p.scaleType || p.inputLayout || p.mlaVHeadSize ||
        pack.in.size != 5u + masked + spec)
        return false;
    for (std::size_t i = 0; i < 5; ++i) a.device(pack.in.at(i));
    masked ? a.device(pack.in.at(5)) : a.absent();
    a.host(spec ? &pack.in.at(5u + masked) : nullptr);
    a.device(pack.out.at(0));
    a.real(p.qkScale);
    for (std::int64_t value : {p.headNum, p.kvHeadNum, p.maskType, p.calcType}) a.number(value);
    return true;
}

bool fill(Arguments& a, const infer::SelfAttentionParam& p, const VariantPack& pack) {
    if (p.quantType || p.batchRunStatusEnable || p.clampType || p.scaleType || p.inputLayout || p.mlaVHeadSize ||
        p.cacheType || p.windowSize || p.calcType != 3 || pack.in.size != 5)  // 3: PA_ENCODER
        return false;
    for (std::size_t i = 0; i < 4; ++i) a.device(pack.in.at(i));
    a.host(&pack.in.at(4));
    a.number(std::int64_t(pack.in.at(4).desc.shape.dimNum));
    a.device(pack.out.at(0));
    a.real(p.qkScale);
    for (std::int64_t value : {p.headNum, p.kvHeadNum, p.maskType, std::int32_t(p.isTriuMask)}) a.number(value);
    return true;
}

bool fill(Arguments& a, const infer::ReshapeAndCacheParam& p, const VariantPack& pack) {
    if (p.compressType || pack.in.size != 5) return false;
    for (std::size_t i = 0; i < 5; ++i) a.device(pack.in.at(i));
    a.number(p.kvCacheCfg);
    return true;
}

template <class Param>
class Answered : public Operation {
 public:
    explicit Answered(const Param& p) : param(p) {}
    ~Answered() override { forget(); }
    std::string GetName() const override { return name_of(param) + 3; }  // without "atb"
    Status InferShape(const SVector<TensorDesc>&, SVector<TensorDesc>&) const override { return INVALID_PARAM; }
    std::uint32_t GetInputNum() const override { return 0; }
    std::uint32_t GetOutputNum() const override { return 0; }

    Status Setup(const VariantPack& pack, std::uint64_t& workspace, Context*) override {
        workspace = 0;
        forget();
        if (!import_answers()) return fake::fail(fake::INNER, "fake_npu.atb could not be imported");
        Arguments arguments;
        int code = fill(arguments, param, pack)
                       ? arguments.prepare(name_of(param), &executor)
                       : fake::fail(fake::NOT_SUPPORTED, std::string(name_of(param)) + ": this use of it has no answer");
        if (code) forget();
        return code;
    }
    Status Execute(const VariantPack&, std::uint8_t*, std::uint64_t, Context* context) override {
        void* prepared = executor;
        executor = nullptr;  // the launch owns it
        return prepared ? fake_npu_launch(name_of(param), prepared, context->GetExecuteStream()) : INVALID_PARAM;
    }

 private:
    void forget() {
        if (executor) aclDestroyAclOpExecutor(executor);
        executor = nullptr;
    }
    Param param;
    void* executor = nullptr;
};

}  // namespace

std::uint64_t Utils::GetTensorSize(const Tensor& tensor) {
    return elements(tensor.desc.shape) * item_size(tensor.desc.dtype);
}

Status CreateContext(Context** context) { *context = new Context; return 0; }
Status DestroyContext(Context* context) { delete context; return 0; }
Status DestroyOperation(Operation* operation) { delete operation; return 0; }

template <class Param>
Status CreateOperation(const Param& param, Operation** operation) {
    *operation = new Answered<Param>(param);
    return 0;
}
template Status CreateOperation(const infer::PagedAttentionParam&, Operation**);
template Status CreateOperation(const infer::SelfAttentionParam&, Operation**);
template Status CreateOperation(const infer::ReshapeAndCacheParam&, Operation**);

}  // namespace atb
