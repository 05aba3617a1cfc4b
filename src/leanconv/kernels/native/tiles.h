// The convolution kernels: register tiles of rows x vectors of pixels x output channels, one image, channels first.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

using leanconv::Args;
using leanconv::Kernel;

template <int P, int C>
INLINE inline void start(Reg (&acc)[P][C], const Args& a) {
    unroll<C>([&](auto c) INLINE {
        const Reg bias = all(a.bias[c]);
        unroll<P>([&](auto p) INLINE { acc[p][c] = bias; });
    });
}

// Residual and clamp where the sums still are in registers: no pass over the map of their own.
template <int V, int P, int C>
INLINE inline void finish(Reg (&acc)[P][C], const Args& a, const Args& bounds, ptrdiff_t opitch, ptrdiff_t corner) {
    const Reg low = all(bounds.low), high = all(bounds.high);  // not held in registers over the loop
    unroll<C>([&](auto c) INLINE {
        float* out = a.out + corner + a.out_channel[c];
        if (a.residual) {
            const float* from = a.residual + corner + a.residual_channel[c];
            unroll<P>([&](auto p) INLINE { acc[p][c] += load(from + (p / V) * opitch + (p % V) * kLanes); });
        }
        if (a.lowest) unroll<P>([&](auto p) INLINE { acc[p][c] = at_least(low, acc[p][c]); });
        if (a.highest) unroll<P>([&](auto p) INLINE { acc[p][c] = at_most(high, acc[p][c]); });
        unroll<P>([&](auto p) INLINE { store(out + (p / V) * opitch + (p % V) * kLanes, acc[p][c]); });
    });
}

// Where a tile will write, and what it adds, comes into the cache while its sums are made.
template <int V, int P, int C>
INLINE inline void claim(const Args& a, ptrdiff_t opitch, ptrdiff_t corner) {
    unroll<C>([&](auto c) INLINE {
        const float* out = a.out + corner + a.out_channel[c];
        unroll<P>([&](auto p) INLINE { __builtin_prefetch(out + (p / V) * opitch + (p % V) * kLanes, 1, 3); });
        if (a.residual && a.residual != a.out) {
            const float* from = a.residual + corner + a.residual_channel[c];
            unroll<P>([&](auto p) INLINE { __builtin_prefetch(from + (p / V) * opitch + (p % V) * kLanes, 0, 3); });
        }
    });
}

// Slots taken in one round of the loop; a plan fills the last round up with a channel of zeros. A second loop for the
// rest makes gcc keep the accumulators on the stack.
constexpr int kFlatRound = 2;

// A convolution of any kernel as one list of (channel, tap) slots, with T = 1: the tile of 1 x 1, and of all that have none
// of their own. With T = 3 slots are (channel, kernel row), of three taps each. Addresses are what such loops run out of:
// more than three columns known in advance, and gcc keeps some in vector registers, in the way of the FMAs.
// M: where flat rows end, the taps left and right take no pixel of another row.
template <int T, bool M, int R, int V, int C>
void conv_tile(const Args& args) {
    constexpr int P = R * V, U = T == 1 ? kFlatRound : 1;
    const Args a = args;  // a local copy: the stores below could change `args`, for all the compiler knows
    const ptrdiff_t dx0 = a.dx[0], dx1 = a.dx[1], dx2 = a.dx[2], rstep = a.rstep, opitch = a.opitch, ahead = a.ahead;
    const ptrdiff_t later = kLanes == 16 ? 0 : a.later;  // of sixteen floats nothing is gathered
    const Mask left = mask_of(a.left), right = mask_of(a.right);
    for (int y = 0; y < a.rows; y += R)
        for (int x = a.from; x < a.to; x += kLanes * V) {
            Reg acc[P][C];
            start(acc, a);
            const float* base = a.in + y * rstep + x;
            const float* w = a.weights;
            if constexpr (T == 1) claim<V, P, C>(args, opitch, y * opitch + x);
            for (const ptrdiff_t *i = a.slots, *end = i + a.n_slots; i < end; i += U, w += U * T * C) {
                if constexpr (T == 1) unroll<kLanes == 16 ? U : 1>([&](auto u) INLINE {
                    __builtin_prefetch(base + i[u + later] + ahead, 0, 2);
                });
                unroll<U * T>([&](auto all_taps) INLINE {
                    constexpr int kx = all_taps % T;
                    const float* q = base + i[all_taps / T];
                    if constexpr (T > 1) q += kx == 0 ? dx0 : kx == 1 ? dx1 : dx2;
                    const float* wt = w + all_taps * C;
                    auto pixels = [&](auto p) INLINE {
                        const float* at = q + (p / V) * rstep + (p % V) * kLanes;
                        if constexpr (M && kx == 0) return load(at, left);
                        else if constexpr (M && kx == 2) return load(at, right);
                        else return load(at);
                    };
                    // Hold the smaller side of the outer product in registers and stream the larger one.
                    if constexpr (P <= C) {
                        Reg v[P];
                        unroll<P>([&](auto p) INLINE { v[p] = pixels(p); });
                        unroll<C>([&](auto c) INLINE {
                            const Reg wc = all(wt[c]);
                            unroll<P>([&](auto p) INLINE { fma(acc[p][c], v[p], wc); });
                        });
                    } else {
                        Reg wc[C];
                        unroll<C>([&](auto c) INLINE { wc[c] = all(wt[c]); });
                        unroll<P>([&](auto p) INLINE {
                            const Reg v = pixels(p);
                            unroll<C>([&](auto c) INLINE { fma(acc[p][c], v, wc[c]); });
                        });
                    }
                });
            }
            finish<V>(acc, a, args, opitch, y * opitch + x);
        }
}

// 3 x 3, neither stride nor dilation, one or two output channels: a loaded vector serves three rows of outputs, 27 loads for 36 FMAs (C = 1)
// and 36 for 72 (C = 2). In the general tile the two load ports, not the two FMA units, would set the time.
// Q is how many rows of the map a vector holds; R counts vectors.
template <int Q, bool M, int R, int C>
void rows_tile(const Args& args) {
    const Args a = args;
    const ptrdiff_t rstep = a.rstep, kstep = a.kstep, opitch = a.opitch;
    const Mask left = mask_of(a.left), right = mask_of(a.right);
    for (int y = 0; y < a.rows; y += R)
        for (int x = a.from; x < a.to; x += kLanes) {
            Reg acc[R][C];
            start(acc, a);
            const float* base = a.in + y * rstep + x;
            const float* w = a.weights;
            for (const ptrdiff_t *i = a.slots, *end = i + a.n_slots; i < end; ++i, w += 9 * C)
                unroll<3>([&](auto kx) INLINE {
                    const float* q = base + *i + a.dx[kx];
                    Reg column[3][C];
                    unroll<3 * C>([&](auto t) INLINE { column[t / C][t % C] = all(w[(t / C * 3 + kx) * C + t % C]); });
                    unroll<Q * (R - 1) + 3>([&](auto row) INLINE {
                        Reg v;
                        if constexpr (M && kx == 0) v = load(q + row * kstep, left);
                        else if constexpr (M && kx == 2) v = load(q + row * kstep, right);
                        else v = load(q + row * kstep);
                        unroll<3 * C>([&](auto t) INLINE {
                            constexpr int ky = t / C, r = (row - ky) / Q;
                            if constexpr (row >= ky && (row - ky) % Q == 0 && r < R) fma(acc[r][t % C], v, column[ky][t % C]);
                        });
                    });
                });
            finish<1>(acc, a, args, opitch, y * opitch + x);
        }
}

// ------------------------------------------------------------------------------------------- which tiles there are

// Most pixels (in vectors) of a tile by its output channels. Two FMA units of latency 4 need at least 8 accumulators.
constexpr int most_pixels(int c) {
    if (kRegisters == 32) return c <= 3 ? 8 : 4;
    return c == 1 ? 8 : c <= 3 ? 4 : c == 4 ? 3 : 2;
}

template <int Kind, bool M, int R, int V, int C>
constexpr Kernel sized() {
#if defined(LEANCONV_FEW_TILES)  // for sanitizers, which make of every tile much code: those of one vector do all the work
    if constexpr (R > 1 || V > 1) return nullptr;
    else
#endif
    if constexpr (Kind == leanconv::kRows || Kind == leanconv::kTwoRows) {
        constexpr bool two = Kind == leanconv::kTwoRows, tall = R == 8 && kRegisters == 32 && !two;
        if constexpr (V > 1 || C > 2 || (M && !two) || (R > 4 && !tall)) return nullptr;
        else return rows_tile<two ? 2 : 1, M, R, C>;
    } else {
        constexpr bool three = Kind == leanconv::kThree;
        if constexpr (R * V > most_pixels(C) || (R > 4 && (V > 1 || R < 8)) || (V == 8 && kLanes < 16)) return nullptr;
        else if constexpr (M && (R > 1 || !three)) return nullptr;
        else return conv_tile<three ? 3 : 1, M, R, V, C>;
    }
}

struct Tiles {
    Kernel at[leanconv::kTiles] = {};
    constexpr Tiles() {
        using namespace leanconv;
        unroll<4>([&](auto kind) {
            unroll<2>([&](auto masked) {
                unroll<kMaxChannels>([&](auto c) {
                    unroll<kMaxRows>([&](auto r) {
                        unroll<kVectors>([&](auto v) {
                            constexpr int V = 1 << int(v);
                            at[tile_index(kind, masked, c + 1, r + 1, V)] = sized<int(kind), (int(masked) > 0), r + 1, V, c + 1>();
                        });
                    });
                });
            });
        });
    }
};
constexpr Tiles kAllTiles;

}  // namespace
