// The greatest number or the mean of windows, row by row of what they make.
#include "run.h"

namespace leanconv {
namespace {

// How many rows of results from `y` on have equally many rows, as far apart as they are themselves, and one factor.
int alike(const WindowStep& s, int64_t y, Taps rows, const float* factors) {
    int64_t next = y + 1;
    for (Taps before = rows; next < s.out_height; ++next) {
        const Taps now = on_map(next * s.sy - s.py, s.dy, s.high, s.height);
        if (now.count != rows.count || now.first - before.first != s.sy || (!s.largest && factors[next] != factors[y])) break;
        before = now;
    }
    return int(next - y);
}

void slide(const Run& r, const WindowStep& s, int64_t begin, int64_t end) {
    const Kernels& kernels = *kernels_of(int(s.lanes));
    const ptrdiff_t *in = r.table(s.in), *out = r.table(s.out);
    WindowArgs a{};
    a.frame = s.dt * s.height * s.pitch;
    a.row = s.dy * s.pitch;
    a.width = int(s.width);
    a.line = r.arena + s.line + r.own;
    a.right = s.right;
    a.taps = s.wide;
    a.stride = s.sx;
    a.gap = s.dx;
    a.rstep = s.sy * s.pitch;
    a.opitch = s.out_pitch;
    a.pad = s.px;
    a.made = int(s.out_width);
    a.across = s.largest ? nullptr : r.weights + s.across;
    for (int64_t x = 1; x <= s.px; ++x) a.line[-x] = s.largest ? -__builtin_inff() : 0;
    for (int64_t c = begin; c < end; ++c)
        for (int64_t t = 0; t < s.out_frames; ++t) {
            const Taps frames = on_map(t * s.st - s.pt, s.dt, s.deep, s.frames);
            for (int64_t y = 0; y < s.out_height; y += a.results) {
                const Taps rows = on_map(y * s.sy - s.py, s.dy, s.high, s.height);
                a.results = alike(s, y, rows, r.weights + s.down + s.out_frames);
                a.in = r.arena + in[c] + (frames.first * s.height + rows.first) * s.pitch;
                a.frames = int(frames.count);
                a.rows = int(rows.count);
                a.out = r.arena + out[c] + (t * s.out_height + y) * s.out_pitch;
                if (!s.largest) a.factor = r.weights[s.down + t] * r.weights[s.down + s.out_frames + y];
                kernels.window(a);
            }
        }
}

}  // namespace

void run_window(const Run& r, const WindowStep& s) {
    if (!s.channels) return;  // and nothing else of such a step is checked
    // A comparison or a sum costs as much as a multiply-add.
    const int64_t macs = product(s.channels, s.deep, s.high, s.wide, s.out_frames, s.out_height, s.out_width);
    share(r, s.channels, piece_of(r, s.channels, s.channels, 1, macs), macs,
          [&](const Run& mine, int64_t first, int64_t channels) { slide(mine, s, first, first + channels); });
}

}  // namespace leanconv
