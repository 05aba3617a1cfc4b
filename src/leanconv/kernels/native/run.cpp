// The interpreter of plans: one image through all steps while its maps are in the cache, then the next.
#include <time.h>

#include <cstring>

#include "leanconv_kernels.h"
#include "run.h"
#include "team.h"

#ifndef LEANCONV_SOURCES
#define LEANCONV_SOURCES ""
#endif

// Which tables of kernels are linked in: LEANCONV_HAS_16, _8 and _4, as kernels/build.py says.
extern "C" {
extern const leanconv::Kernels leanconv_kernels_16, leanconv_kernels_8, leanconv_kernels_4;
}

namespace leanconv {

const Kernels* kernels_of(int lanes) {
#if defined(LEANCONV_HAS_16)
#if defined(LEANCONV_EMULATES_AVX512)  // for tests: vectors of sixteen floats made of two of eight
    const bool avx512 = true;
#else
    const bool avx512 = __builtin_cpu_supports("avx512f");
#endif
    if (lanes == 16) return avx512 ? &leanconv_kernels_16 : nullptr;
#endif
#if defined(LEANCONV_HAS_8)
    if (lanes == 8) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &leanconv_kernels_8 : nullptr;
#endif
#if defined(LEANCONV_HAS_4)
    if (lanes == 4) return &leanconv_kernels_4;
#endif
    return nullptr;
}

namespace {

constexpr int64_t kSortedTogether = 8;  // channels, which stay in the first cache from part to part

void sort(const Run& r, const Sorting& s, int y, int rows) {
    const Kernels& kernels = *kernels_of(int(s.lanes));
    const SortedRows* parts = &r.at<SortedRows>(s.part);
    const Phases phases{int(s.stride), int(s.wanted), s.length, s.before, s.count};
    for (int64_t c = 0; c < s.channels; c += kSortedTogether)
        for (int64_t i = 0; i < s.parts; ++i) {
            const SortedRows& p = parts[i];
            const int64_t channels = s.channels - c < kSortedTogether ? s.channels - c : kSortedTogether;
            const Moved moved{r.arena + y * s.in_row + p.from, r.table(s.table) + c, channels, p.step,
                              r.arena + r.own + s.to + p.to + c * s.plane, s.plane, p.pitch, rows * p.times + p.more};
            if (s.flat) kernels.flatten(moved, int(s.stride), int(p.first), int(p.last));
            else kernels.split(moved, phases);
        }
}

void run_stage(const Run& r, const ConvStep& step, const Stage& s, int first, int rows) {
    const Kernels& kernels = *kernels_of(int(s.lanes));
    const int lanes = int(s.lanes), band = rows;
    int width = int(step.width);
    Args a{};
    a.in = r.arena + s.in + first * s.in_row + (s.own & kOwnIn ? r.own : 0);
    a.rstep = s.rstep;
    a.kstep = s.kstep;
    for (int i = 0; i < 3; ++i) a.dx[i] = s.dx[i];
    a.left = s.left;
    a.right = s.right;
    a.out = r.arena + s.out + first * s.out_row + (s.own & kOwnOut ? r.own : 0);
    a.opitch = s.opitch;
    set_bounds(r, s.bounds, &a);
    if (step.flat) {
        width = rows * int(step.flat);
        rows = 1;
    }
    const Tile* tiles = &r.at<Tile>(s.tile);
    const Sorting* gathering = nullptr;
    int64_t gathered = 0;  // the first tile that reads what was gathered last
    for (int64_t i = 0; i < s.tiles; ++i) {
        const Tile& t = tiles[i];
        if (t.sorting >= 0) {
            gathering = &r.at<Sorting>(t.sorting);
            gathered = i;
            sort(r, *gathering, first, band);
        }
        a.slots = r.table(t.slots);
        a.n_slots = t.n_slots;
        a.weights = r.weights + t.weights;
        a.bias = r.weights + t.bias;
        a.out_channel = r.table(t.out);
        a.residual = t.residual < 0 ? nullptr : a.out;
        a.residual_channel = t.residual < 0 ? nullptr : r.table(t.residual);
        a.from = 0;
        if (t.kind == kTwoRows) {  // vector by vector
            Args b = a;
            b.to = b.rstep = b.opitch = lanes;
            run_tile(kernels, t, b, (width + lanes - 1) / lanes, 1);
        } else {
            const int vectors = kernels.tile(t.kind, t.masked, t.channels, 1, int(t.vectors)) ? int(t.vectors) : 1;
            const int across = lanes * vectors;  // one vector at a time does it too, where a build has few tiles
            // The first tiles of a band fetch the pixels of the next: of sixteen floats a line each of the first four tiles,
            // of fewer every second slot of the first two.
            a.ahead = a.later = 0;
            const int64_t past = i - gathered;
            if (step.flat == 1 && lanes == 16) {
                a.ahead = i < 4 ? width + i * lanes : 0;
            } else if (step.flat == 1 && past < 2) {
                if (!gathering) a.ahead = width, a.later = past;
                else if (t.n_slots + past <= gathering->channels + 1) {
                    a.ahead = r.arena + (first + band) * gathering->in_row - a.in;
                    a.later = r.table(gathering->table) - a.slots + past;
                }
            }
            if (step.flat) {  // a run of vectors: what is left of it in tiles of fewer
                const int all = (width + lanes - 1) / lanes;
                for (int done = 0, v = vectors; v; v /= 2) {
                    if (v > 1 && !kernels.tile(t.kind, t.masked, t.channels, 1, v)) continue;
                    a.from = done * lanes;
                    done += (all - done) / v * v;
                    a.to = done * lanes;
                    if (a.from < a.to) run_tile(kernels, t, a, 1, v);
                }
            } else {
                a.to = width / across * across;
                if (a.to) run_tile(kernels, t, a, rows, vectors);
                if (a.to < width) {
                    a.from = a.to;
                    a.to = width;
                    run_tile(kernels, t, a, rows, 1);
                }
            }
        }
        const bool ragged = width % lanes;
        if (!ragged && s.activation == kNone) continue;
        for (int64_t c = 0; c < t.channels; ++c)
            for (int y = 0; y < rows; ++y) {
                float* row = a.out + a.out_channel[c] + y * s.opitch;
                if (ragged) kernels.cut(row, width);
                if (s.activation != kNone) kernels.activate(int(s.activation), row, width);
            }
    }
}

// Of two stages the first writes a band into memory that stays in the cache, and the second reads it from there.
void run_conv(const Run& r, const ConvStep& step) {
    const Stage* stages = reinterpret_cast<const Stage*>(&step + 1);
    const int64_t piece = piece_of(r, step.rows, step.band, step.grain, step.macs);
    share(r, step.rows, piece, step.macs, [&](const Run& mine, int64_t first, int64_t rows) {
        for (int64_t i = 0; i < step.stages; ++i) run_stage(mine, step, stages[i], int(first), int(rows));
    });
}

// The mean of each channel.
void run_pool(const Run& r, const PoolStep& step) {
    const Kernels& kernels = *kernels_of(int(step.lanes));
    const ptrdiff_t *in = r.table(step.in), *out = r.table(step.out);
    const float pixels = float(step.height * step.width);
    for (int64_t c = 0; c < step.channels; ++c)
        r.arena[out[c]] = kernels.sum(r.arena + in[c], int(step.height), step.pitch, int(step.width)) / pixels;
}

constexpr int64_t kSlotFloats = 16;  // one vector of sums

void run_sums(const Run& r, const Plan& plan, const SumStep& s) {
    const Kernels& kernels = *kernels_of(int(s.lanes));
    const SumTile* tiles = &r.at<SumTile>(s.tile);
    const SumBias* biases = &r.at<SumBias>(s.bias);
    SumArgs a{};
    a.in_row = s.in_row;
    a.gradient_row = s.gradient_row;
    a.width = s.width;
    a.slot = kSlotFloats;
    for (int i = 0; i < 3; ++i) a.dx[i] = s.dx[i];
    for (int64_t y = 0; y < s.rows; y += s.band) {
        a.rows = int(s.rows - y < s.band ? s.rows - y : s.band);
        a.in = r.arena + y * s.in_row;
        for (int i = 0; i < 3; ++i) a.lanes[i] = s.kept[i];
        for (int64_t i = 0; i < s.tiles; ++i) {
            const SumTile& t = tiles[i];
            a.gradient = r.arena + y * s.gradient_row;
            a.in_channel = r.table(t.in);
            a.gradient_channel = r.table(t.gradient);
            a.sums = r.arena + plan.sums_at + t.sums * kSlotFloats;
            if (const SumKernel tile = kernels.sum_tile(t.taps, t.masked, t.inputs, t.outputs)) {
                tile(a);
                continue;
            }
            // One input and one output at a time does it too, where a build has few tiles.
            SumArgs b = a;
            b.slot *= t.outputs;
            for (int64_t k = 0; k < t.inputs * t.outputs; ++k) {
                b.in_channel = a.in_channel + k / t.outputs;
                b.gradient_channel = a.gradient_channel + k % t.outputs;
                b.sums = a.sums + (k / t.outputs * t.taps * t.outputs + k % t.outputs) * kSlotFloats;
                kernels.sum_tile(t.taps, t.masked, 1, 1)(b);
            }
        }
        a.lanes[0] = s.all;
        for (int64_t i = 0; i < s.biases; ++i) {
            a.gradient = r.arena + biases[i].gradient + y * s.gradient_row;
            a.sums = r.arena + plan.sums_at + biases[i].sums * kSlotFloats;
            kernels.add(a);
        }
    }
}

void run_step(const Run& r, const Plan& plan, int64_t position) {
    switch (r.plan[position]) {
        case kConvStep: return run_conv(r, r.at<ConvStep>(position));
        case kPoolStep: return run_pool(r, r.at<PoolStep>(position));
        case kSpreadStep: return run_spread(r, r.at<SpreadStep>(position));
        case kVolumeStep: return run_volume(r, r.at<VolumeStep>(position));
        case kDenseStep: return run_dense(r, r.at<DenseStep>(position));
        case kWinogradStep: return run_winograd(r, r.at<WinogradStep>(position));
        case kDepthwiseStep: return run_depthwise(r, r.at<DepthwiseStep>(position));
        case kGatherStep: return run_gather(r, r.at<GatherStep>(position));
        case kProductStep: return run_product(r, r.at<ProductStep>(position));
        case kRepeatStep: return run_repeat(r, r.at<RepeatStep>(position));
        case kBlockStep: return run_blocks(r, r.at<BlockStep>(position));
        case kWindowStep: return run_window(r, r.at<WindowStep>(position));
        case kClipStep: return run_clip(r, r.at<ClipStep>(position));
        default: return run_sums(r, plan, r.at<SumStep>(position));
    }
}

// The lanes of each sum together, in the same order whatever the vectors.
void total(const float* slots, int64_t count, float* sums) {
    for (int64_t i = 0; i < count; ++i, slots += kSlotFloats) {
        float lanes[kSlotFloats];
        memcpy(lanes, slots, sizeof lanes);
        for (int half = kSlotFloats / 2; half; half /= 2)
            for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
        sums[i] = lanes[0];
    }
}

template <bool In>
void move(const Run& r, const Kernels& kernels, const Port& port, float* image) {
    if (port.pixel != 1) return move_blocks(r, kernels, port, image, In);
    const ptrdiff_t* table = r.table(port.table);
    int rows = int(port.height), width = int(port.width);
    ptrdiff_t pitch = port.pitch;
    if (pitch == width) width *= rows, pitch = width, rows = 1;  // flat maps whose rows are whole are one run
    for (int64_t c = 0; c < port.channels; ++c, image += port.width * port.height) {
        float* map = r.arena + table[c];
        kernels.copy(In ? image : map, In ? width : pitch, In ? map : image, In ? pitch : width, rows, width);
    }
}

void run_image(const Run& r, const Plan& plan, const float* const* inputs, float* const* outputs, int64_t image) {
    const Kernels& kernels = *kernels_of(int(plan.lanes));
    const Port *in = reinterpret_cast<const Port*>(&plan + 1), *out = in + plan.inputs;
    const int64_t* steps = reinterpret_cast<const int64_t*>(out + plan.outputs);
    for (int64_t i = 0; i < plan.inputs; ++i)
        move<true>(r, kernels, in[i], const_cast<float*>(inputs[i]) + image * in[i].channels * in[i].height * in[i].width);
    for (int64_t i = 0; i < plan.steps; ++i) run_step(r, plan, steps[i]);
    for (int64_t i = 0; i < plan.outputs; ++i)
        move<false>(r, kernels, out[i], outputs[i] + image * out[i].channels * out[i].height * out[i].width);
}

// The padding around maps is zeros that no step writes to: they are written when an arena is first used for a plan, or by
// so many threads.
void claim(const Run& r, const Plan& plan, int workers) {
    int64_t stamp[2];  // of the plan; and how many threads it was for
    memcpy(stamp, r.arena, sizeof stamp);
    const bool known = stamp[0] == plan.stamp;
    if (known && stamp[1] >= workers) return;
    const int64_t from = known ? leanconv_floats(r.plan, int(stamp[1])) : 0;
    memset(r.arena + from, 0, size_t(leanconv_floats(r.plan, workers) - from) * sizeof(float));
    stamp[0] = plan.stamp;
    stamp[1] = workers;
    memcpy(r.arena, stamp, sizeof stamp);
}

int64_t nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * int64_t(1000000000) + now.tv_nsec;
}

}  // namespace

int run_shared(const int64_t* numbers, const float* weights, float* arena, const float* const* inputs, float* const* outputs,
               int64_t images, const Helpers& helpers) {
    const Run r{numbers, weights, arena, &helpers};
    const Plan& plan = r.at<Plan>(0);
    if (plan.version != LEANCONV_PLAN_VERSION || plan.sums) return 1;
    claim(r, plan, int(helpers.workers));
    for (int64_t image = 0; image < images; ++image) run_image(r, plan, inputs, outputs, image);
    return 0;
}

}  // namespace leanconv

using namespace leanconv;

extern "C" {

const char* leanconv_sources(void) { return LEANCONV_SOURCES; }

int leanconv_runs(int lanes) { return kernels_of(lanes) != nullptr; }

int leanconv_run(const int64_t* numbers, const float* weights, float* arena, const float* const* inputs,
                 float* const* outputs, int64_t images) {
    const Run r{numbers, weights, arena};
    const Plan& plan = r.at<Plan>(0);
    if (plan.version != LEANCONV_PLAN_VERSION) return 1;
    claim(r, plan, 1);
    if (plan.sums) memset(arena + plan.sums_at, 0, size_t(plan.sums * kSlotFloats) * sizeof(float));
    for (int64_t image = 0; image < images; ++image) run_image(r, plan, inputs, outputs, image);
    if (plan.sums) total(arena + plan.sums_at, plan.sums, outputs[plan.outputs]);
    return 0;
}

int leanconv_run_next(const int64_t* numbers, const float* weights, float* arena, const float* const* inputs,
                      float* const* outputs, int64_t images, int64_t* next) {
    const Run r{numbers, weights, arena};
    const Plan& plan = r.at<Plan>(0);
    if (plan.version != LEANCONV_PLAN_VERSION || plan.sums) return 1;
    claim(r, plan, 1);
    for (;;) {
        const int64_t image = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (image >= images) return 0;
        run_image(r, plan, inputs, outputs, image);
    }
}

int leanconv_run_together(const int64_t* numbers, const float* weights, float* arena, const float* const* inputs,
                          float* const* outputs, int64_t images, void* team, int workers, int64_t least) {
    return run_shared(numbers, weights, arena, inputs, outputs, images, {run_by_team, team, workers, least});
}

int64_t leanconv_floats(const int64_t* numbers, int workers) {
    const Plan& plan = *reinterpret_cast<const Plan*>(numbers);
    return plan.floats + (workers - 1) * (plan.own - kStampFloats);
}

int64_t leanconv_peak(int lanes, int64_t rounds) {
    const Kernels* kernels = kernels_of(lanes);
    if (!kernels) return 0;
    volatile float sink = kernels->peak(rounds);
    (void)sink;
    return rounds * 12 * lanes * 2;
}

void leanconv_time(const int64_t* numbers, const float* weights, float* arena, int64_t* times) {
    const Run r{numbers, weights, arena};
    const Plan& plan = r.at<Plan>(0);
    const int64_t* steps = reinterpret_cast<const int64_t*>(reinterpret_cast<const Port*>(&plan + 1) + plan.inputs + plan.outputs);
    for (int64_t i = 0; i < plan.steps; ++i) {
        const int64_t start = nanoseconds();
        run_step(r, plan, steps[i]);
        times[i] = nanoseconds() - start;
    }
}

}  // extern "C"
