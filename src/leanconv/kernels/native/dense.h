// Dense convolutions of maps in blocks: sixteen channels of a pixel stand side by side, [block][row][column][16], so that the
// weights of sixteen outputs are vectors, a pixel of one channel is a number that all of them are multiplied with, and
// nothing is lost where a map is narrower than a vector.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

using leanconv::DenseArgs;
using leanconv::DenseKernel;
using leanconv::kBlock;

constexpr int kParts = kBlock / kLanes;  // vectors of a block

// Whether a tile asks for its outputs, what is added to them and the pixels of the next channels before it needs them. With
// AVX2 convolutions of 1 x 1 take 3 to 15 % less time so; for other vectors it was not measured.
constexpr bool kAsksEarly = kLanes == 8;

// R rows of W pixels of B blocks of outputs. S: floats from one pixel that is read to the next.
template <int R, int W, int B, int S>
void dense_tile(const DenseArgs& args) {
    constexpr int P = R * W, V = B * kParts;
    const DenseArgs& a = args;
    const ptrdiff_t channel = a.channel, in_row = a.in_row, panel = a.panel, ahead_step = a.ahead_step;
    Reg acc[P][V];
    unroll<V>([&](auto v) INLINE {
        const Reg bias = load(a.bias + v * kLanes);
        unroll<P>([&](auto p) INLINE { acc[p][v] = bias; });
    });
    if constexpr (kAsksEarly)
        unroll<B>([&](auto block) INLINE {
            const float* out = a.out[block];
            unroll<P>([&](auto p) INLINE { __builtin_prefetch(out + (p / W) * a.out_row + (p % W) * kBlock, 1, 3); });
            if (const float* from = a.residual[block])
                unroll<P>([&](auto p) INLINE { __builtin_prefetch(from + (p / W) * a.residual_row + (p % W) * kBlock, 0, 3); });
        });
    const float* w = a.weights;
    const char* ahead = a.ahead;
    for (const ptrdiff_t *i = a.runs, *end = i + 2 * a.n_runs; i < end; i += 2) {
        const float* q = a.in + i[0];
        if constexpr (kAsksEarly) {
            const float* next = a.in + i[i + 2 < end ? 2 : 0];
            unroll<P>([&](auto p) INLINE { __builtin_prefetch(next + (p / W) * in_row + (p % W) * S, 0, 3); });
        }
        for (const float* last = q + i[1] * channel; q != last; q += channel, w += kBlock, ahead += ahead_step) {
            __builtin_prefetch(ahead, 0, 2);
            Reg wv[V];
            unroll<V>([&](auto v) INLINE { wv[v] = load(w + (v / kParts) * panel + (v % kParts) * kLanes); });
            unroll<P>([&](auto p) INLINE {
                const Reg x = all(q[(p / W) * in_row + (p % W) * S]);
                unroll<V>([&](auto v) INLINE { fma(acc[p][v], x, wv[v]); });
            });
        }
    }
    const Reg low = all(a.low), high = all(a.high);
    unroll<V>([&](auto v) INLINE {
        constexpr int block = v / kParts, part = v % kParts * kLanes;
        if (const float* from = a.residual[block])
            unroll<P>([&](auto p) INLINE { acc[p][v] += load(from + part + (p / W) * a.residual_row + (p % W) * kBlock); });
        if (a.half[block])
            unroll<P>([&](auto p) INLINE {
                const float* from = a.half[block] + (p % W % 2 ? a.odd : 0);
                acc[p][v] += load(from + part + (p / W) * a.half_row + p % W / 2 * kBlock);
            });
        if (a.lowest) unroll<P>([&](auto p) INLINE { acc[p][v] = at_least(low, acc[p][v]); });
        if (a.highest) unroll<P>([&](auto p) INLINE { acc[p][v] = at_most(high, acc[p][v]); });
        unroll<P>([&](auto p) INLINE { store(a.out[block] + part + (p / W) * a.out_row + (p % W) * kBlock, acc[p][v]); });
    });
}

// Pixels of a tile: two FMA units of latency 4 need at least 8 sums, and there are weights and a pixel beside them.
constexpr int most_dense(int blocks) {
    const int vectors = blocks * kParts, sums = kRegisters == 32 ? 28 : 12, found = (sums - (vectors > 2 ? vectors - 2 : 0)) / vectors;
    return found < leanconv::kDensePixels ? found : leanconv::kDensePixels;
}

template <int R, int W, int B, int S>
constexpr DenseKernel dense_sized() {
#if defined(LEANCONV_FEW_TILES)
    if constexpr (R * W > 1) return nullptr;
    else
#endif
    if constexpr (R * W > most_dense(B) || (B == 2 && B * kParts > 2)) return nullptr;
    else return dense_tile<R, W, B, S>;
}

struct DenseTiles {
    DenseKernel at[leanconv::kDenseTiles] = {};
    constexpr DenseTiles() {
        using namespace leanconv;
        unroll<4>([&](auto step) {
            constexpr int S = (int(step) / 2 ? kBlock : 1) * (1 + int(step) % 2);
            unroll<2>([&](auto b) {
                unroll<2>([&](auto r) {
                    unroll<kDensePixels>([&](auto w) { at[dense_index(step, b + 1, r + 1, w + 1)] = dense_sized<r + 1, w + 1, b + 1, S>(); });
                });
            });
        });
    }
};
constexpr DenseTiles kAllDenseTiles;

// The pixels of some rows, row by row as they lie in memory: sums of rows are added, so that few of many are.
INLINE inline Reg summed(const float* in, int columns, const leanconv::BlockArgs& a) {
    Reg sum{};
    for (int y = 0; y < a.rows; ++y, in += a.in_row) {
        Reg row[4] = {};
        int i = 0;
        for (; i + 4 <= columns; i += 4) unroll<4>([&](auto k) INLINE { row[k] += load(in + (i + k) * kBlock); });
        for (; i < columns; ++i) row[0] += load(in + i * kBlock);
        sum += (row[0] + row[1]) + (row[2] + row[3]);
    }
    return sum;
}

// The greatest of C columns of some rows and of `sum`, or all of them added to it.
template <int C>
INLINE inline Reg gathered(Reg sum, const float* in, const leanconv::BlockArgs& a) {
    for (int y = 0; y < a.rows; ++y, in += a.in_row)
        unroll<C>([&](auto i) INLINE {
            const Reg v = load(in + i * kBlock);
            if (a.greatest) sum = v > sum || v != v ? v : sum;
            else sum += v;
        });
    return sum;
}

// What is done to a sum of pixel x of a row before it is stored: what it is multiplied with, what is added, where it is cut.
INLINE inline Reg ended(Reg sum, const leanconv::BlockArgs& a, ptrdiff_t x, int part) {
    if (a.by) sum *= load(a.by + x * a.by_pixel + part);
    if (a.residual) sum += load(a.residual + x * kBlock + part);
    if (a.half) sum += load(a.half + x / 2 * kBlock + part);
    if (a.lowest) sum = at_least(all(a.low), sum);
    if (a.highest) sum = at_most(all(a.high), sum);
    return sum;
}

// A row of pixels as they are, all of them on the map.
void block_pixels(const leanconv::BlockArgs& args) {
    const leanconv::BlockArgs a = args;
    for (ptrdiff_t x = 0; x < a.made; ++x)
        unroll<kParts>([&](auto part) INLINE {
            constexpr int at = part * kLanes;
            const Reg v = a.in ? load(a.in + x * a.stride * kBlock + at) : Reg{};
            store(a.out + x * kBlock + at, ended(v, a, x, at));
        });
}

// One row of a block: the greatest or the mean of the pixels of a window that are in the map, or a pixel as it is, and what
// is added to it.
void block_row(const leanconv::BlockArgs& args) {
    const bool on_map = args.pad == 0 && ptrdiff_t(args.made - 1) * args.stride < args.width;  // a plan may say otherwise
    if (args.rows == 1 && args.columns == 1 && on_map) return block_pixels(args);
    const leanconv::BlockArgs a = args;
    float share = 1;
    int shared = 1;  // of how many pixels the share is
    for (int x = 0; x < a.made; ++x) {
        const int start = x * a.stride - a.pad, from = start > 0 ? start : 0;
        const int to = start + a.columns < a.width ? start + a.columns : a.width;
        const int pixels = a.rows * (to > from ? to - from : 0);
        if (const int of = a.whole ? a.whole : pixels; of != shared && of) share = 1.f / float(of), shared = of;
        for (int part = 0; part < kBlock; part += kLanes) {
            Reg sum = all(a.greatest ? -__builtin_inff() : 0.f);
            const float* in = a.in ? a.in + ptrdiff_t(from) * kBlock + part : nullptr;
            if (in && to - from == 2) sum = gathered<2>(sum, in, a);
            else if (in && to - from == 3) sum = gathered<3>(sum, in, a);
            else if (in && !a.greatest && to > from) sum = summed(in, to - from, a);
            else
                for (int i = from; in && i < to; ++i, in += kBlock) sum = gathered<1>(sum, in, a);
            if (!a.greatest && shared > 1) sum *= share;
            store(a.out + ptrdiff_t(x) * kBlock + part, ended(sum, a, x, part));
        }
    }
}

}  // namespace
