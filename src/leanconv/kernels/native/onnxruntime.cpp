// Programs as an operator of onnxruntime, for `register_custom_ops_library` from any language.
//
//     domain leanconv, operator Program, version 1
//     inputs: the weights, then the maps (batch, C, H, W) that the program takes; outputs: those it gives; all float32
//     attributes plan_16, plan_8, plan_4: the plan for vectors of so many floats, at least one of them
//
// What stands in a file is not trusted: a plan is checked before a session is made of it, shapes in every run. The threads are
// those of the session: they take whole images, or pieces of the steps of each where there are fewer images than threads.
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <new>

#include "leanconv_kernels.h"
#include "onnxruntime.h"
#include "run.h"

namespace leanconv {
namespace {

using ort::Functions;

__attribute__((format(printf, 3, 4))) OrtStatus* failed(const Functions& ort, ort::Code code, const char* format, ...) {
    char text[512];
    va_list given;
    va_start(given, format);
    vsnprintf(text, sizeof text, format, given);
    va_end(given);
    return ort.status(code, text);
}

#define PASS(call) \
    if (OrtStatus* passed = call) return passed

// Memory for so many threads that run one image, in a list of those that nobody uses now; the floats of the plan follow.
struct alignas(64) Arena {
    Arena* next;
    int workers;
};

constexpr int kMostThreads = 64;
constexpr int64_t kLeastMacs = 2000 * 1000;  // of a piece: a step takes the session's threads some ten microseconds

// One node of one session. Any number of threads may run it.
struct Node {
    Functions ort;
    const int64_t* plan;
    int64_t weights;  // the floats that the plan reads
    int64_t macs;     // of its convolutions
    int threads;      // of the session, 0 as long as nobody has asked
    pthread_mutex_t lock;
    Arena* free;

    const Plan& head() const { return *reinterpret_cast<const Plan*>(plan); }
    const Port* ports() const { return reinterpret_cast<const Port*>(plan + sizeof(Plan) / 8); }

    Arena* take(int workers) {
        pthread_mutex_lock(&lock);
        Arena* arena = free;
        if (arena) free = arena->next;
        pthread_mutex_unlock(&lock);
        if (arena && arena->workers >= workers) return arena;
        ::free(arena);
        void* memory = nullptr;
        const size_t floats = size_t(leanconv_floats(plan, workers));
        if (posix_memalign(&memory, 64, sizeof(Arena) + floats * sizeof(float))) return nullptr;
        memset(memory, 0, 2 * sizeof(Arena));  // whatever the memory held must not pass for a stamp
        static_cast<Arena*>(memory)->workers = workers;
        return static_cast<Arena*>(memory);
    }
    void give(Arena* arena) {
        pthread_mutex_lock(&lock);
        arena->next = free;
        free = arena;
        pthread_mutex_unlock(&lock);
    }
};

void destroy(void* kernel) {
    Node* node = static_cast<Node*>(kernel);
    while (Arena* arena = node->free) {
        node->free = arena->next;
        free(arena);
    }
    pthread_mutex_destroy(&node->lock);
    free(const_cast<int64_t*>(node->plan));
    free(node);
}

// The plan for the longest vectors that this machine has and the file a plan for.
OrtStatus* read_plan(const Functions& ort, const OrtKernelInfo* info, int64_t** plan, size_t* numbers) {
    bool any = false;
    for (int lanes = 16; lanes >= 4; lanes /= 2) {
        if (!leanconv_runs(lanes)) continue;
        any = true;
        char name[16];
        snprintf(name, sizeof name, "plan_%d", lanes);
        *numbers = 0;
        if (OrtStatus* none = ort.integers(info, name, nullptr, numbers)) {
            ort.release_status(none);
            continue;
        }
        *plan = static_cast<int64_t*>(malloc(*numbers * sizeof(int64_t) + 1));
        if (!*plan) return failed(ort, ort::kFail, "leanconv: no memory for a plan of %zu numbers", *numbers);
        OrtStatus* problem = ort.integers(info, name, *plan, numbers);
        if (problem) free(*plan);
        return problem;
    }
    if (!any)
        return failed(ort, ort::kFail, "leanconv: this CPU has neither AVX-512 nor AVX2 with FMA, for which the library was built");
    return failed(ort, ort::kInvalidGraph, "leanconv: a node Program has no plan for the vectors of this machine: export the model again");
}

int64_t macs_of(const int64_t* plan) {
    const Run r{plan, nullptr, nullptr};
    const Plan& head = r.at<Plan>(0);
    const int64_t* steps = plan + sizeof(Plan) / 8 + (head.inputs + head.outputs) * int64_t(sizeof(Port) / 8);
    int64_t macs = 0;
    for (int64_t i = 0; i < head.steps; ++i) {
        if (plan[steps[i]] == kConvStep) macs += r.at<ConvStep>(steps[i]).macs;
        if (plan[steps[i]] == kDenseStep) macs += r.at<DenseStep>(steps[i]).macs;
        if (plan[steps[i]] == kDepthwiseStep) macs += r.at<DepthwiseStep>(steps[i]).macs;
        if (plan[steps[i]] == kWinogradStep) macs += r.at<WinogradStep>(steps[i]).macs;
    }
    return macs;
}

OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    const Functions ort(api);
    int64_t *plan = nullptr, weights = 0;
    size_t numbers = 0;
    PASS(read_plan(ort, info, &plan, &numbers));
    if (const char* problem = leanconv_check(plan, int64_t(numbers), &weights)) {
        free(plan);
        return failed(ort, ort::kInvalidGraph,
                      "leanconv: the plan of a node Program cannot be run (%s); it is damaged, or of another version than this "
                      "library: export the model again, and use the library that is written beside it",
                      problem);
    }
    void* memory = malloc(sizeof(Node));
    if (!memory) {
        free(plan);
        return failed(ort, ort::kFail, "leanconv: no memory");
    }
    *kernel = new (memory) Node{ort, plan, weights, macs_of(plan), 0, PTHREAD_MUTEX_INITIALIZER, nullptr};
    return nullptr;
}

// The shape of an input, which has to be (batch, C, H, W) of the port; of all inputs one batch.
OrtStatus* check_input(const Node& node, const OrtValue* value, const Port& port, size_t index, int64_t* batch) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    PASS(node.ort.shape(value, &info));
    int64_t sides[4] = {};
    size_t rank = 0;
    OrtStatus* problem = node.ort.dimensions_count(info, &rank);
    if (!problem && rank == 4) problem = node.ort.dimensions(info, sides, 4);
    node.ort.release_shape(info);
    PASS(problem);
    if (index == 0) *batch = sides[0];
    if (rank != 4 || sides[1] != port.channels || sides[2] != port.height || sides[3] != port.width || sides[0] != *batch)
        return failed(node.ort, ort::kInvalidArgument,
                      "leanconv: input %zu of a program is of %zu axes, (%lld, %lld, %lld, %lld), expected (%lld, %lld, %lld, "
                      "%lld): a file with kernels is for the size that it was exported for",
                      index, rank, (long long)sides[0], (long long)sides[1], (long long)sides[2], (long long)sides[3],
                      (long long)*batch, (long long)port.channels, (long long)port.height, (long long)port.width);
    return nullptr;
}

struct Job {
    Node* node;
    const float* weights;
    const float* inputs[LEANCONV_MOST_PORTS];
    float* outputs[LEANCONV_MOST_PORTS];
    bool no_memory;
};

// How many threads a session has, which its interface does not tell: so many as are in one loop at once, if they have time to
// wake up.
struct Meeting {
    int want, inside, most;
    bool over;
};

int64_t microseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * int64_t(1000000) + now.tv_nsec / 1000;
}

void meet(void* data, size_t) {
    Meeting& m = *static_cast<Meeting*>(data);
    const int64_t until = microseconds() + 1000;
    const int now = __atomic_add_fetch(&m.inside, 1, __ATOMIC_SEQ_CST);
    for (int most = __atomic_load_n(&m.most, __ATOMIC_SEQ_CST); most < now;)
        if (__atomic_compare_exchange_n(&m.most, &most, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) break;
    while (!__atomic_load_n(&m.over, __ATOMIC_SEQ_CST))
        if (__atomic_load_n(&m.inside, __ATOMIC_SEQ_CST) >= m.want || microseconds() > until)
            __atomic_store_n(&m.over, true, __ATOMIC_SEQ_CST);
    __atomic_sub_fetch(&m.inside, 1, __ATOMIC_SEQ_CST);
}

OrtStatus* count_threads(Node& node, OrtKernelContext* context, int* threads) {
    *threads = __atomic_load_n(&node.threads, __ATOMIC_RELAXED);
    if (*threads) return nullptr;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    Meeting meeting{cores < 1 ? 1 : cores < kMostThreads ? int(cores) : kMostThreads, 0, 1, false};
    if (meeting.want > 1) PASS(node.ort.parallel_for(context, meet, size_t(meeting.want), 0, &meeting));
    *threads = meeting.most;
    __atomic_store_n(&node.threads, *threads, __ATOMIC_RELAXED);
    return nullptr;
}

// A task on the threads of a session: those that begin late find nothing left.
struct Session {
    const Functions& ort;
    OrtKernelContext* context;
    int threads;
    OrtStatus* problem;
};

void run_by_session(void* self, void (*task)(void* data, int worker), void* data) {
    Session& session = *static_cast<Session*>(self);
    struct Task {
        void (*run)(void* data, int worker);
        void* data;
    } one{task, data};
    const auto each = [](void* given, size_t worker) { static_cast<Task*>(given)->run(static_cast<Task*>(given)->data, int(worker)); };
    OrtStatus* problem = session.ort.parallel_for(session.context, each, size_t(session.threads), 0, &one);
    if (!problem) return;
    if (session.problem) session.ort.release_status(problem);
    else session.problem = problem;
}

// All images one after another, each in pieces.
OrtStatus* share_images(Job& job, OrtKernelContext* context, int64_t images, int threads) {
    Arena* arena = job.node->take(threads);
    if (!arena) {
        job.no_memory = true;
        return nullptr;
    }
    Session session{job.node->ort, context, threads, nullptr};
    run_shared(job.node->plan, job.weights, reinterpret_cast<float*>(arena + 1), job.inputs, job.outputs, images,
               {run_by_session, &session, threads, kLeastMacs});
    job.node->give(arena);
    return session.problem;
}

// One image, in whatever thread has time.
void image(void* data, size_t number) {
    Job& job = *static_cast<Job*>(data);
    const Plan& plan = job.node->head();
    const Port *in = job.node->ports(), *out = in + plan.inputs;
    const float* inputs[LEANCONV_MOST_PORTS];
    float* outputs[LEANCONV_MOST_PORTS];
    auto floats = [](const Port& port) { return size_t(port.channels * port.height * port.width); };
    for (int64_t i = 0; i < plan.inputs; ++i) inputs[i] = job.inputs[i] + number * floats(in[i]);
    for (int64_t i = 0; i < plan.outputs; ++i) outputs[i] = job.outputs[i] + number * floats(out[i]);
    Arena* arena = job.node->take(1);
    if (!arena) {
        __atomic_store_n(&job.no_memory, true, __ATOMIC_RELAXED);
        return;
    }
    leanconv_run(job.node->plan, job.weights, reinterpret_cast<float*>(arena + 1), inputs, outputs, 1);
    job.node->give(arena);
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
    Node& node = *static_cast<Node*>(kernel);
    const Functions& ort = node.ort;
    const Plan& plan = node.head();
    const Port *in = node.ports(), *out = in + plan.inputs;
    size_t inputs = 0, outputs = 0;
    PASS(ort.input_count(context, &inputs));
    PASS(ort.output_count(context, &outputs));
    if (int64_t(inputs) != plan.inputs + 1 || int64_t(outputs) != plan.outputs)
        return failed(ort, ort::kInvalidGraph, "leanconv: a node Program has %zu inputs and %zu outputs, its plan %lld and %lld",
                      inputs, outputs, (long long)plan.inputs + 1, (long long)plan.outputs);
    Job job{};
    job.node = &node;
    int64_t batch = 0;
    for (size_t i = 0; i < inputs; ++i) {
        const OrtValue* value = nullptr;
        void* data = nullptr;
        PASS(ort.input(context, i, &value));
        PASS(ort.data(const_cast<OrtValue*>(value), &data));
        if (i > 0) {
            PASS(check_input(node, value, in[i - 1], i - 1, &batch));
            job.inputs[i - 1] = static_cast<const float*>(data);
            continue;
        }
        OrtTensorTypeAndShapeInfo* info = nullptr;
        size_t count = 0;
        PASS(ort.shape(value, &info));
        OrtStatus* problem = ort.element_count(info, &count);
        ort.release_shape(info);
        PASS(problem);
        if (count < size_t(node.weights))
            return failed(ort, ort::kInvalidGraph, "leanconv: a node Program has %zu weights, its plan reads %lld: export the model again",
                          count, (long long)node.weights);
        job.weights = static_cast<const float*>(data);
    }
    for (size_t i = 0; i < outputs; ++i) {
        const int64_t sides[4] = {batch, out[i].channels, out[i].height, out[i].width};
        OrtValue* value = nullptr;
        void* data = nullptr;
        PASS(ort.output(context, i, sides, 4, &value));
        PASS(ort.data(value, &data));
        job.outputs[i] = static_cast<float*>(data);
    }
    int threads = 1;
    if (batch && batch < kMostThreads && node.macs >= 4 * kLeastMacs) PASS(count_threads(node, context, &threads));
    if (batch == 1 && threads == 1) {
        image(&job, 0);
    } else if (batch < threads) {
        PASS(share_images(job, context, batch, threads));
    } else if (batch) {
        PASS(ort.parallel_for(context, image, size_t(batch), 0, &job));
    }
    if (job.no_memory)
        return failed(ort, ort::kFail, "leanconv: no memory for the maps of a program, %lld MB for each thread",
                      (long long)(plan.floats >> 18));
    return nullptr;
}

const OrtCustomOp kProgram = {
    .version = ort::kOpVersion,
    .CreateKernel = nullptr,
    .GetName = [](const OrtCustomOp*) { return "Program"; },
    .GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; },
    .GetInputType = [](const OrtCustomOp*, size_t) -> int { return ort::kFloat; },
    .GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 2; },
    .GetOutputType = [](const OrtCustomOp*, size_t) -> int { return ort::kFloat; },
    .GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; },
    .KernelCompute = nullptr,
    .KernelDestroy = destroy,
    .GetInputCharacteristic = [](const OrtCustomOp*, size_t index) -> int { return index ? ort::kVariadic : ort::kRequired; },
    .GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return ort::kVariadic; },
    .GetInputMemoryType = [](const OrtCustomOp*, size_t) -> int { return ort::kDefaultMemory; },
    .GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; },
    .GetVariadicInputHomogeneity = [](const OrtCustomOp*) -> int { return ort::kSameType; },
    .GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; },
    .GetVariadicOutputHomogeneity = [](const OrtCustomOp*) -> int { return ort::kSameType; },
    .CreateKernelV2 = create,
    .KernelComputeV2 = compute,
    .later = {},
};

// The domain has to be there for as long as any session is, so it is made once for each copy of onnxruntime, and is never
// released. Of several copies in one process only the last is remembered.
pthread_mutex_t domain_lock = PTHREAD_MUTEX_INITIALIZER;
const OrtApi* domain_of = nullptr;
OrtCustomOpDomain* domain = nullptr;

OrtStatus* find_domain(const OrtApi* api, OrtCustomOpDomain** found) {
    const Functions ort(api);
    if (domain_of != api) {
        OrtCustomOpDomain* made = nullptr;
        PASS(ort.create_domain("leanconv", &made));
        PASS(ort.add_to_domain(made, &kProgram));
        domain = made;
        domain_of = api;
    }
    *found = domain;
    return nullptr;
}

}  // namespace
}  // namespace leanconv

extern "C" LEANCONV_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    using namespace leanconv;
    const OrtApi* api = base->GetApi(ort::kApiVersion);
    if (!api) {
        const Functions first(base->GetApi(1));
        return failed(first, ort::kFail, "leanconv's kernels need onnxruntime 1.17 or later, this is %s", base->GetVersionString());
    }
    OrtCustomOpDomain* found = nullptr;
    pthread_mutex_lock(&domain_lock);
    OrtStatus* problem = find_domain(api, &found);
    pthread_mutex_unlock(&domain_lock);
    if (problem) return problem;
    return Functions(api).add_domain(options, found);
}
