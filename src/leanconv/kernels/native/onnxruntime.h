// What is needed of onnxruntime's C interface, so that the library is built without its headers, which no wheel has.
//
// The interface is a table of functions to which every version only adds, so a place in it is forever. Places, types and
// the layout of OrtCustomOp are facts of include/onnxruntime/core/session/onnxruntime_c_api.h of the project onnxruntime
// (MIT licence); the static_asserts of its onnxruntime_c_api.cc, "Size of version 1 API cannot change", count the same.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;  // null is success
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
typedef const void* const OrtApi;  // the table

struct OrtApiBase {
    const OrtApi* (*GetApi)(uint32_t version);  // null where onnxruntime is older
    const char* (*GetVersionString)();
};

// An operator. A field is read only where `version` says that it is there: CreateKernelV2 and KernelComputeV2, which can
// say that they failed, came with 16.
struct OrtCustomOp {
    uint32_t version;
    void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
    const char* (*GetName)(const OrtCustomOp*);
    const char* (*GetExecutionProviderType)(const OrtCustomOp*);
    int (*GetInputType)(const OrtCustomOp*, size_t);
    size_t (*GetInputTypeCount)(const OrtCustomOp*);
    int (*GetOutputType)(const OrtCustomOp*, size_t);
    size_t (*GetOutputTypeCount)(const OrtCustomOp*);
    void (*KernelCompute)(void*, OrtKernelContext*);
    void (*KernelDestroy)(void*);
    int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
    int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
    int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
    int (*GetVariadicInputMinArity)(const OrtCustomOp*);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
    OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
    OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
    void* later[8];  // what 17 and 18 added
};

}  // extern "C"

namespace leanconv::ort {

constexpr uint32_t kApiVersion = 17;  // onnxruntime 1.17, the first with KernelContext_ParallelFor
constexpr uint32_t kOpVersion = 16;

enum Code { kFail = 1, kInvalidArgument = 2, kInvalidGraph = 10 };                   // OrtErrorCode
enum { kFloat = 1, kRequired = 0, kVariadic = 2, kDefaultMemory = 0, kSameType = 1 };  // of three enumerations, and a bool

// The functions that are called, each at its place in the table.
struct Functions {
    template <int Place, class F>
    struct At {
        const OrtApi* api;
        template <class... Args>
        auto operator()(Args... args) const { return reinterpret_cast<F*>(const_cast<void*>(api[Place]))(args...); }
    };

    explicit Functions(const OrtApi* table) : table_(table) {}
    const OrtApi* table_;

#define AT(name, place, result, ...) \
    At<place, result(__VA_ARGS__)> name{table_}
    AT(status, 0, OrtStatus*, int, const char*);
    AT(create_domain, 26, OrtStatus*, const char*, OrtCustomOpDomain**);
    AT(add_to_domain, 27, OrtStatus*, OrtCustomOpDomain*, const OrtCustomOp*);
    AT(add_domain, 28, OrtStatus*, OrtSessionOptions*, OrtCustomOpDomain*);
    AT(data, 51, OrtStatus*, OrtValue*, void**);
    AT(dimensions_count, 61, OrtStatus*, const OrtTensorTypeAndShapeInfo*, size_t*);
    AT(dimensions, 62, OrtStatus*, const OrtTensorTypeAndShapeInfo*, int64_t*, size_t);
    AT(element_count, 64, OrtStatus*, const OrtTensorTypeAndShapeInfo*, size_t*);
    AT(shape, 65, OrtStatus*, const OrtValue*, OrtTensorTypeAndShapeInfo**);
    AT(input_count, 88, OrtStatus*, const OrtKernelContext*, size_t*);
    AT(output_count, 89, OrtStatus*, const OrtKernelContext*, size_t*);
    AT(input, 90, OrtStatus*, const OrtKernelContext*, size_t, const OrtValue**);
    AT(output, 91, OrtStatus*, OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**);
    AT(release_status, 93, void, OrtStatus*);
    AT(release_shape, 99, void, OrtTensorTypeAndShapeInfo*);
    AT(integers, 163, OrtStatus*, const OrtKernelInfo*, const char*, int64_t*, size_t*);
    AT(parallel_for, 274, OrtStatus*, const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*);
#undef AT
};

}  // namespace leanconv::ort
