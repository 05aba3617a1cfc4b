// What runs one step: a plan with its weights and its arena, and tiles of kernels over rows.
#pragma once

#include "kernels.h"
#include "plan.h"

namespace leanconv {

static_assert(sizeof(ptrdiff_t) == sizeof(int64_t), "the tables of a plan are read as they are");

constexpr int64_t kStampFloats = 16;  // a cache line at the start of an arena says whose it is

// Threads that run a task beside the one that asks for it, or in its place: each a number of its own, 0 among them.
struct Helpers {
    void (*run)(void* self, void (*task)(void* data, int worker), void* data);
    void* self;
    int64_t workers, least;  // least: multiply-adds of a piece that is worth handing out
};

struct Run {
    const int64_t* plan;
    const float* weights;
    float* arena;
    const Helpers* helpers = nullptr;
    ptrdiff_t own = 0;  // from what is each thread's own, as the plan has it, to that of this one

    template <class T>
    const T& at(int64_t position) const { return *reinterpret_cast<const T*>(plan + position); }
    const ptrdiff_t* table(int64_t position) const { return reinterpret_cast<const ptrdiff_t*>(plan + position); }

    Run of(int worker) const {
        const Plan& head = at<Plan>(0);
        Run run{plan, weights, arena};
        if (worker) run.own = head.floats - kStampFloats + (worker - 1) * (head.own - kStampFloats);
        return run;
    }
};

// Between which two numbers outputs are cut off, and whether they are.
template <class Arguments>
void set_bounds(const Run& r, int64_t bounds, Arguments* a) {
    a->low = r.weights[bounds];
    a->high = r.weights[bounds + 1];
    a->lowest = a->low != -__builtin_inff();
    a->highest = a->high != __builtin_inff();
}

// The multiply-adds of a step, or as many as matter where a plan that somebody sent says more than a number can hold.
template <class... Sides>
int64_t product(Sides... sides) {
    const double found = (double(sides) * ...);
    return int64_t(found < 1e15 ? found : 1e15);
}

// Rows of a piece of a step of so many multiply-adds, for several threads to take one after another: a multiple of `grain`
// and at most `band`. Two for each thread, since not all are equally fast. `band` where the step is not worth it.
inline int64_t piece_of(const Run& r, int64_t rows, int64_t band, int64_t grain, int64_t macs) {
    if (!r.helpers) return band;
    const int64_t most = 2 * r.helpers->workers, worth = macs / r.helpers->least, pieces = worth < most ? worth : most;
    if (pieces < 2) return band;
    const int64_t piece = ((rows + pieces - 1) / pieces + grain - 1) / grain * grain;
    return piece < band ? piece : band;
}

// `rows` of a step in pieces, `work(run, first, rows)` by whichever threads there are.
template <class Work>
void share(const Run& r, int64_t rows, int64_t piece, int64_t macs, const Work& work) {
    struct Shared {
        const Run& r;
        const Work& work;
        int64_t rows, piece, next;
    } shared{r, work, rows, piece, 0};
    const auto task = [](void* data, int worker) {
        Shared& s = *static_cast<Shared*>(data);
        const Run mine = s.r.of(worker);
        for (;;) {
            const int64_t first = __atomic_fetch_add(&s.next, s.piece, __ATOMIC_RELAXED);
            if (first >= s.rows) return;
            s.work(mine, first, s.rows - first < s.piece ? s.rows - first : s.piece);
        }
    };
    if (r.helpers && piece < rows && macs >= 2 * r.helpers->least) r.helpers->run(r.helpers->self, task, &shared);
    else task(&shared, 0);
}

// Where a block is, by a table; null where there is no such table.
inline const float* place(const Run& r, int64_t table, int64_t block) {
    return table < 0 ? nullptr : r.arena + r.table(table)[block];
}

struct Taps {
    int64_t skipped, first, count;
};

// Of `count` taps, `gap` apart from `start` on, those from 0 to `side`: how many are before, where the first of them is, and
// how many they are.
inline Taps on_map(int64_t start, int64_t gap, int64_t count, int64_t side) {
    const int64_t skipped = start < 0 ? (gap - 1 - start) / gap : 0, first = start + skipped * gap;
    if (skipped >= count || first >= side) return {0, 0, 0};
    const int64_t fit = (side - 1 - first) / gap + 1, left = count - skipped;
    return {skipped, first, fit < left ? fit : left};
}

// How many of `left` rows the next tile takes. No single row is left over where that can be: it keeps too few sums going.
inline int rows_of(const Kernels& kernels, const Tile& t, int vectors, int left) {
    int rows = t.rows < left ? int(t.rows) : left;
    if (rows > 2 && left == rows + 1) rows = (left + 1) / 2;
    while (rows > 1 && !kernels.tile(t.kind, t.masked, t.channels, rows, vectors)) --rows;
    return rows;
}

inline void run_tile(const Kernels& kernels, const Tile& t, const Args& whole, int rows, int vectors) {
    for (int y = 0; y < rows;) {
        const int left = rows - y, high = rows_of(kernels, t, vectors, left);
        int now = left / high * high;
        if (high > 2 && left - now == 1 && now > high) now -= high;
        Args a = whole;
        a.rows = now;
        a.in += y * a.rstep;
        a.out += y * a.opitch;
        if (a.residual) a.residual += y * a.opitch;
        kernels.tile(t.kind, t.masked, t.channels, high, vectors)(a);
        y += now;
    }
}

// As leanconv_run_together, by the threads of `helpers`.
int run_shared(const int64_t* plan, const float* weights, float* arena, const float* const* inputs, float* const* outputs,
               int64_t images, const Helpers& helpers);

void run_volume(const Run& r, const VolumeStep& step);  // volumes.cpp
void run_dense(const Run& r, const DenseStep& step);    // dense.cpp
void run_blocks(const Run& r, const BlockStep& step);
void run_gather(const Run& r, const GatherStep& step);
void run_winograd(const Run& r, const WinogradStep& step);  // winograd.cpp
void move_blocks(const Run& r, const Kernels& kernels, const Port& port, float* image, bool in);
void run_depthwise(const Run& r, const DepthwiseStep& step);  // depthwise.cpp
void run_spread(const Run& r, const SpreadStep& step);  // elementwise.cpp
void run_repeat(const Run& r, const RepeatStep& step);
void run_product(const Run& r, const ProductStep& step);
void run_window(const Run& r, const WindowStep& step);  // windows.cpp
void run_clip(const Run& r, const ClipStep& step);      // clips.cpp

}  // namespace leanconv
