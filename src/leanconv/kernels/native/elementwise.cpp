// Steps that compute each pixel from those at its place, on maps row by row.
#include <cstring>

#include "run.h"

namespace leanconv {

// The pixels of a strided convolution's gradient where they stood among the pixels that it read.
void run_spread(const Run& r, const SpreadStep& s) {
    const ptrdiff_t *in = r.table(s.in), *out = r.table(s.out);
    for (int64_t c = 0; c < s.channels; ++c)
        for (int64_t y = 0; y < s.out_height; ++y) {
            float* row = r.arena + out[c] + y * s.out_pitch;
            memset(row, 0, size_t(s.out_width) * sizeof(float));
            if (y % s.sy || y / s.sy >= s.height) continue;
            const float* from = r.arena + in[c] + y / s.sy * s.pitch;
            for (int64_t x = 0; x < s.width; ++x) row[x * s.sx] = from[x];
        }
}

void run_repeat(const Run& r, const RepeatStep& s) {
    const ptrdiff_t *in = r.table(s.in), *out = r.table(s.out), *residual = s.residual < 0 ? nullptr : r.table(s.residual);
    share(r, s.channels, 1, s.channels * s.height * s.width, [&](const Run&, int64_t c, int64_t) {
        for (int64_t y = 0; y < s.height; ++y) {
            float* row = r.arena + out[c] + y * s.out_pitch;
            const float* from = r.arena + in[c] + y / s.ty * s.in_pitch;
            const float* added = residual ? r.arena + residual[c] + y * s.out_pitch : nullptr;
            for (int64_t x = 0; x < s.width; x += s.tx, ++from)
                for (int64_t k = x; k < x + s.tx && k < s.width; ++k) row[k] = added ? *from + added[k] : *from;
        }
    });
}

void run_product(const Run& r, const ProductStep& s) {
    const Kernels& kernels = *kernels_of(int(s.lanes));
    const ptrdiff_t *in = r.table(s.in), *factor = r.table(s.by), *out = r.table(s.out);
    struct {
        float low, high;
        bool lowest, highest;
    } a;
    set_bounds(r, s.bounds, &a);
    share(r, s.channels, piece_of(r, s.channels, s.channels, 1, s.macs), s.macs, [&](const Run&, int64_t first, int64_t count) {
        for (int64_t c = first; c < first + count; ++c)
            for (int64_t y = 0; y < s.rows; ++y) {
                float* row = r.arena + out[c] + y * s.row;
                const float *from = r.arena + in[c] + y * s.row, *by = r.arena + factor[c] + y * s.by_row;
                const float one = *by;  // which no store can change, as far as the compiler sees
                if (s.by_pixel)
                    for (int64_t x = 0; x < s.width; ++x) row[x] = from[x] * by[x];
                else
                    for (int64_t x = 0; x < s.width; ++x) row[x] = from[x] * one;
                if (const float* added = place(r, s.residual, c))
                    for (int64_t x = 0; x < s.width; ++x) row[x] += added[y * s.row + x];
                // The second operand where one of the two is no number, as in vectors.h.
                if (a.lowest)
                    for (int64_t x = 0; x < s.width; ++x) row[x] = a.low > row[x] ? a.low : row[x];
                if (a.highest)
                    for (int64_t x = 0; x < s.width; ++x) row[x] = a.high < row[x] ? a.high : row[x];
                if (s.activation != kNone) kernels.activate(int(s.activation), row, int(s.width));
            }
    });
}

}  // namespace leanconv
