// Winograd's minimal filtering of 3 x 3, F(2 x 2, 3 x 3), on maps in blocks: four by four pixels become sixteen numbers, as
// the weights have; those are multiplied number by number, sixteen times for 2 x 2 outputs where the taps need thirty-six.
//
//     output = A' [ (G weights G') * (B' pixels B) ] A,    the last two in here; every number is a map of its own between.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

// B' of four rows or columns: 1 0 -1 0, 0 1 1 0, 0 -1 1 0, 0 1 0 -1.
INLINE inline void mixed(const Reg (&d)[4], Reg (&out)[4]) {
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[1] - d[3];
}

// A row of tiles of one block. Neighbouring tiles share two columns of pixels, whose mixed rows are kept.
void winograd_pixels(const leanconv::WinogradArgs& args) {
    const leanconv::WinogradArgs a = args;
    for (int part = 0; part < kBlock; part += kLanes) {
        const float* in = a.in + part;
        float* out = a.numbers + part;
        Reg left[2][4];  // columns, mixed rows
        unroll<2>([&](auto x) INLINE {
            Reg d[4];
            unroll<4>([&](auto y) INLINE { d[y] = load(in + y * a.in_row + x * kBlock); });
            mixed(d, left[x]);
        });
        for (int t = 0; t < a.tiles; ++t, in += 2 * kBlock, out += kBlock) {
            Reg right[2][4];
            unroll<2>([&](auto x) INLINE {
                Reg d[4];
                unroll<4>([&](auto y) INLINE { d[y] = load(in + y * a.in_row + (x + 2) * kBlock); });
                mixed(d, right[x]);
            });
            unroll<4>([&](auto y) INLINE {
                const Reg row[4] = {left[0][y], left[1][y], right[0][y], right[1][y]};
                Reg m[4];
                mixed(row, m);
                unroll<4>([&](auto x) INLINE { store(out + (y * 4 + x) * a.apart, m[x]); });
                left[0][y] = right[0][y];
                left[1][y] = right[1][y];
            });
        }
    }
}

// The outputs of a row of tiles of one block, of which the last ones may have a row or a column less.
void winograd_outputs(const leanconv::WinogradArgs& args) {
    const leanconv::WinogradArgs a = args;
    const Reg low = all(a.low), high = all(a.high);
    for (int part = 0; part < kBlock; part += kLanes) {
        const Reg bias = load(a.bias + part);
        const float* numbers = a.numbers + part;
        for (int t = 0; t < a.tiles; ++t, numbers += kBlock) {
            Reg sums[2][4];  // A' of the four rows: 1 1 1 0, 0 1 -1 -1
            unroll<4>([&](auto x) INLINE {
                Reg m[4];
                unroll<4>([&](auto y) INLINE { m[y] = load(numbers + (y * 4 + x) * a.apart); });
                sums[0][x] = m[0] + m[1] + m[2];
                sums[1][x] = m[1] - m[2] - m[3];
            });
            const ptrdiff_t at = ptrdiff_t(t) * 2 * kBlock + part;
            const Reg more = a.half ? bias + load(a.half + ptrdiff_t(t) * kBlock + part) : bias;
            const bool both = 2 * t + 1 < a.width;
            unroll<2>([&](auto y) INLINE {
                if (y >= a.rows) return;
                const Reg(&s)[4] = sums[y];
                Reg made[2] = {s[0] + s[1] + s[2] + more, s[1] - s[2] - s[3] + more};
                unroll<2>([&](auto x) INLINE {
                    if (x && !both) return;
                    Reg v = made[x];
                    if (a.residual) v += load(a.residual + y * a.residual_row + at + x * kBlock);
                    if (a.lowest) v = at_least(low, v);
                    if (a.highest) v = at_most(high, v);
                    store(a.out + y * a.out_row + at + x * kBlock, v);
                });
            });
        }
    }
}

}  // namespace
