// Depthwise convolutions of maps in blocks: a filter for each channel, those of a block side by side in vectors, as pixels are.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

using leanconv::DepthwiseArgs;
using leanconv::DepthwiseKernel;
using leanconv::kDepthwisePixels;

// W pixels of a row, K neighbouring taps at once, each pixel loaded once for all of those. S: blocks from one pixel to the
// next, 0 where the arguments say it.
template <int W, int K, int S>
void depthwise_tile(const DepthwiseArgs& args) {
    const DepthwiseArgs a = args;
    const Reg low = all(a.low), high = all(a.high);
    for (int part = 0; part < kBlock; part += kLanes) {
        Reg acc[W];
        const Reg bias = load(a.bias + part);
        unroll<W>([&](auto x) INLINE { acc[x] = bias; });
        const float* w = a.weights + part;
        for (ptrdiff_t i = 0; i < a.n_taps; ++i, w += K * kBlock) {
            const float* in = a.in + a.taps[i] + part;
            Reg wv[K];
            unroll<K>([&](auto k) INLINE { wv[k] = load(w + k * kBlock); });
            if constexpr (S == 0) {
                unroll<W>([&](auto x) INLINE { fma(acc[x], load(in + x * a.pixel), wv[0]); });
            } else {
                unroll<(W - 1) * S + K>([&](auto at) INLINE {
                    const Reg v = load(in + at * kBlock);
                    unroll<W>([&](auto x) INLINE {
                        constexpr int tap = at - x * S;
                        if constexpr (tap >= 0 && tap < K) fma(acc[x], v, wv[tap]);
                    });
                });
            }
        }
        if (a.residual) unroll<W>([&](auto x) INLINE { acc[x] += load(a.residual + part + x * kBlock); });
        if (a.half) unroll<W>([&](auto x) INLINE { acc[x] += load(a.half + part + (x % 2 ? a.odd : 0) + x / 2 * kBlock); });
        if (a.lowest) unroll<W>([&](auto x) INLINE { acc[x] = at_least(low, acc[x]); });
        if (a.highest) unroll<W>([&](auto x) INLINE { acc[x] = at_most(high, acc[x]); });
        unroll<W>([&](auto x) INLINE { store(a.out + part + x * kBlock, acc[x]); });
    }
}

struct DepthwiseTiles {
    DepthwiseKernel at[leanconv::kDepthwiseTiles] = {};
    constexpr DepthwiseTiles() {
        using leanconv::depthwise_index;
        unroll<kDepthwisePixels>([&](auto w) {
            at[depthwise_index(1, 0, w + 1)] = depthwise_tile<w + 1, 1, 0>;
            unroll<3>([&](auto k) {
                at[depthwise_index(3 + 2 * k, 1, w + 1)] = depthwise_tile<w + 1, 3 + 2 * k, 1>;
                at[depthwise_index(3 + 2 * k, 2, w + 1)] = depthwise_tile<w + 1, 3 + 2 * k, 2>;
            });
        });
    }
};
constexpr DepthwiseTiles kAllDepthwiseTiles;

}  // namespace
