// Convolutions of 3 x 3 of maps in blocks by Winograd's minimal filtering: see winograd.h.
#include "run.h"

namespace leanconv {
namespace {

constexpr int64_t kNumbers = 16;  // of a tile

// The products of one number of all tiles of a band, for a group of blocks of outputs: a convolution of 1 x 1 of `tiles` pixels.
// Meanwhile the weights of the next number come into the second cache, those of one block after those of another.
void multiply(const WinogradStep& s, int64_t tiles, int64_t blocks, DenseArgs a, const float* next, float* out) {
    constexpr int kStep = 2;  // pixels are a block apart
    const Kernels& kernels = *kernels_of(int(s.lanes));
    const int64_t across = (tiles + s.wide - 1) / s.wide, each = tiles / across, wider = tiles % across;
    const int64_t parts = across > blocks ? across / blocks : 1, apart = kNumbers * s.band * ((s.width + 1) / 2) * kBlock;
    const float *in = a.in, *weights = a.weights;
    a.ahead_step = kBlock * ptrdiff_t(sizeof(float)) / parts;
    for (int64_t i = 0, from = 0, to = 0; i < across; ++i, from = to) {
        to += each + (i < wider);
        const bool whole = kernels.dense_tile(kStep, blocks, 1, int(to - from));  // a build may have few
        const int64_t together = whole ? blocks : 1, wide = whole ? to - from : 1;
        const DenseKernel kernel = kernels.dense_tile(kStep, together, 1, int(wide));
        const int64_t block = i / parts < blocks ? i / parts : blocks - 1;
        a.ahead = reinterpret_cast<const char*>(next + block * a.panel) + i % parts * s.slots * a.ahead_step;
        for (int64_t b = 0; b < blocks; b += together)
            for (int64_t x = from; x < to; x += wide) {
                a.in = in + x * kBlock;
                a.weights = weights + b * a.panel;
                for (int64_t k = 0; k < together; ++k) a.out[k] = out + (b + k) * apart + x * kBlock;
                kernel(a);
            }
    }
}

// Rows of tiles from `first` on, `rows` of them, for the outputs of one group.
void run_group(const Run& r, const WinogradStep& s, const DenseGroup& g, int64_t first, int64_t rows, const float* next) {
    const Kernels& kernels = *kernels_of(int(s.lanes));
    const int64_t across = (s.width + 1) / 2, plane = s.band * across * kBlock, panel = s.slots * kBlock;
    const float* weights = r.weights + g.weights;
    float* products = r.arena + r.own + s.products;
    DenseArgs dense{};
    dense.runs = r.table(s.runs);
    dense.n_runs = s.n_runs;
    dense.channel = 1;
    dense.panel = kNumbers * panel;
    dense.bias = r.weights + s.zeros;
    for (int64_t number = 0; number < kNumbers; ++number) {
        dense.in = r.arena + s.numbers + number * s.blocks * plane;
        dense.weights = weights + number * panel;
        multiply(s, rows * across, g.blocks, dense, number + 1 < kNumbers ? dense.weights + panel : next, products + number * plane);
    }
    WinogradArgs a{};
    a.apart = plane;
    a.tiles = int(across);
    a.width = int(s.width);
    a.out_row = s.out_row;
    a.residual_row = s.residual_row;
    set_bounds(r, s.bounds, &a);
    for (int64_t b = 0; b < g.blocks; ++b) {
        const float *residual = place(r, g.residual, b), *half = place(r, g.half, b);
        a.bias = r.weights + g.bias + b * kBlock;
        for (int64_t y = 0; y < rows; ++y) {
            const int64_t row = 2 * (first + y);
            a.numbers = products + b * kNumbers * plane + y * across * kBlock;
            a.rows = s.rows - row < 2 ? 1 : 2;
            a.out = r.arena + r.table(g.out)[b] + row * s.out_row;
            a.residual = residual ? residual + row * s.residual_row : nullptr;
            a.half = half ? half + row / 2 * s.half_row : nullptr;
            kernels.winograd_outputs(a);
            if (s.activation == kNone) continue;
            for (int k = 0; k < a.rows; ++k) kernels.activate(int(s.activation), a.out + k * s.out_row, int(s.width) * kBlock);
        }
    }
}

}  // namespace

// A band of pixels is mixed once, by blocks of inputs, and read by all groups of outputs; both are shared among threads.
void run_winograd(const Run& r, const WinogradStep& s) {
    if (!s.groups) return;
    const Kernels& kernels = *kernels_of(int(s.lanes));
    const DenseGroup* groups = &r.at<DenseGroup>(s.group);
    const int64_t across = (s.width + 1) / 2, down = (s.rows + 1) / 2, plane = s.band * across * kBlock;
    for (int64_t first = 0; first < down; first += s.band) {
        const int64_t rows = down - first < s.band ? down - first : s.band, macs = s.macs / down * rows;
        share(r, s.blocks, 1, macs, [&](const Run&, int64_t block, int64_t) {
            WinogradArgs a{};
            a.apart = s.blocks * plane;
            a.tiles = int(across);
            a.in_row = s.in_row;
            for (int64_t y = 0; y < rows; ++y) {
                a.in = r.arena + r.table(s.in)[block] + 2 * (first + y) * s.in_row;
                a.numbers = r.arena + s.numbers + block * plane + y * across * kBlock;
                kernels.winograd_pixels(a);
            }
        });
        share(r, s.groups, 1, macs, [&](const Run& mine, int64_t i, int64_t) {
            const int64_t next = i + 1 < s.groups ? groups[i + 1].weights : first + rows < down ? groups[0].weights : s.next;
            run_group(mine, s, groups[i], first, rows, r.weights + next);
        });
    }
}

}  // namespace leanconv
