// What runs one step: a plan with its weights and its arena, and tiles of kernels over rows.
#pragma once

#include "kernels.h"
#include "plan.h"

namespace leanconv {

static_assert(sizeof(ptrdiff_t) == sizeof(int64_t), "the tables of a plan are read as they are");

struct Run {
    const int64_t* plan;
    const float* weights;
    float* arena;

    template <class T>
    const T& at(int64_t position) const { return *reinterpret_cast<const T*>(plan + position); }
    const ptrdiff_t* table(int64_t position) const { return reinterpret_cast<const ptrdiff_t*>(plan + position); }
};

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

void run_volume(const Run& r, const VolumeStep& step);  // volumes.cpp
void run_window(const Run& r, const WindowStep& step);  // windows.cpp

}  // namespace leanconv
