// The sums of products that a convolution's weights have as gradients: register tiles of taps x inputs x outputs.
//
// A tile keeps one vector of sums for each weight it is for, runs over the pixels of both maps, and leaves the vectors in
// memory: the lanes are added up once, behind the last image. Two loads serve up to 27 multiply-adds.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

using leanconv::SumArgs;
using leanconv::SumKernel;

// T taps of one kernel row, I inputs, O outputs; M: taps take only some of the lanes, where flat rows end.
template <int T, bool M, int I, int O>
void sum_tile(const SumArgs& args) {
    const SumArgs a = args;  // a local copy: the stores below could change `args`, for all the compiler knows
    Mask lanes[T];
    if constexpr (M) unroll<T>([&](auto t) INLINE { lanes[t] = mask_of(a.lanes[t]); });
    Reg acc[I][T][O];
    unroll<I * T * O>([&](auto n) INLINE { acc[n / (T * O)][n / O % T][n % O] = load(a.sums + n * a.slot); });
    for (int y = 0; y < a.rows; ++y) {
        const float *in[I], *gradient[O];
        unroll<I>([&](auto i) INLINE { in[i] = a.in + a.in_channel[i] + y * a.in_row; });
        unroll<O>([&](auto o) INLINE { gradient[o] = a.gradient + a.gradient_channel[o] + y * a.gradient_row; });
        for (ptrdiff_t x = 0; x < a.width; x += kLanes) {
            Reg g[O];
            unroll<O>([&](auto o) INLINE { g[o] = load(gradient[o] + x); });
            unroll<I * T>([&](auto n) INLINE {
                constexpr int i = n / T, t = n % T;
                const float* at = in[i] + x;
                if constexpr (T > 1) at += a.dx[t];
                Reg v;
                if constexpr (M) v = load(at, lanes[t]);
                else v = load(at);
                unroll<O>([&](auto o) INLINE { fma(acc[i][t][o], v, g[o]); });
            });
        }
    }
    unroll<I * T * O>([&](auto n) INLINE { store(a.sums + n * a.slot, acc[n / (T * O)][n / O % T][n % O]); });
}

template <int T, bool M, int I, int O>
constexpr SumKernel sum_sized() {
    // Sums, the outputs' gradients, one pixel; and the masks, which are vectors too but on AVX-512.
    constexpr int masks = M && kLanes < 16 ? T : 0;
    if constexpr (T * I * O + O + 1 + masks > kRegisters) return nullptr;
#if defined(LEANCONV_FEW_TILES)
    else if constexpr (I > 1 || O > 2) return nullptr;
#endif
    else return sum_tile<T, M, I, O>;
}

struct SumTiles {
    SumKernel at[leanconv::kSumTiles] = {};
    constexpr SumTiles() {
        using namespace leanconv;
        unroll<2>([&](auto three) {
            unroll<2>([&](auto masked) {
                unroll<kMaxChannels>([&](auto i) {
                    unroll<kMaxChannels>([&](auto o) {
                        at[sum_index(three, masked, i + 1, o + 1)] =
                            sum_sized<int(three) ? 3 : 1, (int(masked) > 0), i + 1, o + 1>();
                    });
                });
            });
        });
    }
};
constexpr SumTiles kAllSumTiles;

// The sums of one map alone, for a bias.
void add(const SumArgs& a) {
    Reg acc = load(a.sums);
    const Mask lanes = mask_of(a.lanes[0]);
    for (int y = 0; y < a.rows; ++y)
        for (ptrdiff_t x = 0; x < a.width; x += kLanes) acc += load(a.gradient + y * a.gradient_row + x, lanes);
    store(a.sums, acc);
}

}  // namespace
