// Depthwise convolutions of maps in blocks: see depthwise.h.
#include "run.h"

namespace leanconv {

// Block by block, row by row: the rows that taps share are still in the first cache. Several threads take some of them all.
void run_depthwise(const Run& r, const DepthwiseStep& s) {
    const Kernels& kernels = *kernels_of(int(s.lanes));
    const int64_t across = (s.width + s.wide - 1) / s.wide, each = s.width / across, wider = s.width % across;
    const int64_t rows = s.blocks * s.rows;
    DepthwiseArgs all{};
    all.taps = r.table(s.taps);
    all.n_taps = s.n_taps;
    all.pixel = s.pixel;
    set_bounds(r, s.bounds, &all);
    share(r, rows, piece_of(r, rows, rows, 1, s.macs), s.macs, [&](const Run&, int64_t first, int64_t count) {
        for (int64_t i = first; i < first + count; ++i) {
            const int64_t b = i / s.rows, y = i % s.rows;
            const float *in = place(r, s.in, b) + y * s.in_row, *residual = place(r, s.residual, b), *half = place(r, s.half, b);
            float* out = r.arena + r.table(s.out)[b] + y * s.out_row;
            DepthwiseArgs a = all;
            a.weights = r.weights + s.weights + b * s.n_taps * s.across * kBlock;
            a.bias = r.weights + s.bias + b * kBlock;
            for (int64_t k = 0, x = 0; k < across; ++k) {
                const int64_t wide = each + (k < wider);
                a.in = in + x * s.pixel;
                a.out = out + x * kBlock;
                a.odd = x % 2 ? kBlock : 0;
                if (residual) a.residual = residual + y * s.residual_row + x * kBlock;
                if (half) a.half = half + y / 2 * s.half_row + x / 2 * kBlock;
                kernels.depthwise_tile(int(s.across), s.pixel, int(wide))(a);
                x += wide;
            }
            if (s.activation != kNone) kernels.activate(int(s.activation), out, int(s.width) * kBlock);
        }
    });
}

}  // namespace leanconv
