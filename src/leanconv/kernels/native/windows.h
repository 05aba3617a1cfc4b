// The greatest number or the sum of windows: first their rows become one, then the columns of that row.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

using leanconv::WindowArgs;

// The greater of two numbers; none where one of them is none, as in torch.
template <bool Largest>
INLINE inline Reg together(Reg a, Reg b) {
    if constexpr (!Largest) return a + b;
    else return a == a ? at_least(a, b) : a;
}

// R rows, known in advance, at one place.
template <bool Largest, int R>
INLINE inline Reg rows_at(const float* at, ptrdiff_t row) {
    Reg found = load(at);
    unroll<R - 1>([&](auto y) INLINE { found = together<Largest>(found, load(at + (y + 1) * row)); });
    return found;
}

INLINE inline void store_some(float* to, Reg v, int count) {
    if (count >= kLanes) return store(to, v);
#if LEANCONV_LANES == 16 && defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, __mmask16((1 << count) - 1), v);
#else
    float lanes[kLanes];
    store(lanes, v);
    for (int i = 0; i < count; ++i) to[i] = lanes[i];
#endif
}

template <bool Largest>
INLINE inline void finish(const WindowArgs& a, float* out, int x, Reg found) {
    if constexpr (!Largest) found = found * (all(a.factor) * load(a.across + x));
    store_some(out + x, found, a.made - x);
}

// Halves of a map, two columns to one: no row in between.
template <bool Largest, int R>
void halve(const WindowArgs& args) {
    const WindowArgs a = args;
    const float* in = a.in;
    float* out = a.out;
    for (int y = 0; y < a.results; ++y, in += a.rstep, out += a.opitch)
        for (int x = 0; x < a.made; x += kLanes) {
            const Reg low = rows_at<Largest, R>(in + 2 * x, a.row), high = rows_at<Largest, R>(in + 2 * x + kLanes, a.row);
            finish<Largest>(a, out, x, together<Largest>(every_second<0>(low, high), every_second<1>(low, high)));
        }
}

// R: how many rows, in one frame; 0 for any.
template <bool Largest, int R>
INLINE inline void rows_together(const WindowArgs& a, const float* in) {
    const Reg none = all(Largest ? -__builtin_inff() : 0.f);
    for (int x = 0; x < a.width; x += kLanes) {
        if constexpr (R > 0) store(a.line + x, rows_at<Largest, R>(in + x, a.row));
        else {
            Reg found = none;
            for (int t = 0; t < a.frames; ++t)
                for (int y = 0; y < a.rows; ++y) found = together<Largest>(found, load(in + t * a.frame + y * a.row + x));
            store(a.line + x, found);
        }
    }
    for (ptrdiff_t x = 0; x < a.right; ++x) a.line[a.width + x] = none[0];
}

// S: the stride, 0 for any; K: how many columns, 0 for any.
template <bool Largest, int S, int K>
INLINE inline void columns_together(const WindowArgs& a, float* out) {
    for (int x = 0; x < a.made; x += kLanes) {
        const float* at = a.line + x * a.stride - a.pad;
        auto column = [&](ptrdiff_t k) INLINE {
            const float* from = at + k * a.gap;
            if constexpr (S == 1) return load(from);
            else if constexpr (S == 2) return every_second<0>(load(from), load(from + kLanes));
            else {
                Reg some = all(0.f);
                for (int i = 0; i < kLanes && x + i < a.made; ++i) some[i] = from[i * a.stride];
                return some;
            }
        };
        Reg found = column(0);
        if constexpr (K > 0) unroll<K - 1>([&](auto k) INLINE { found = together<Largest>(found, column(k + 1)); });
        else for (ptrdiff_t k = 1; k < a.taps; ++k) found = together<Largest>(found, column(k));
        finish<Largest>(a, out, x, found);
    }
}

template <bool Largest, int R, int S, int K>
void by_line(const WindowArgs& args) {
    const WindowArgs a = args;
    const float* in = a.in;
    float* out = a.out;
    for (int y = 0; y < a.results; ++y, in += a.rstep, out += a.opitch) {
        rows_together<Largest, R>(a, in);
        columns_together<Largest, S, K>(a, out);
    }
}

template <bool Largest>
void windows(const WindowArgs& a) {
    const int rows = a.frames == 1 ? a.rows : 0;
    if (leanconv::halves(a.taps, a.stride, a.gap, a.pad, a.made, a.width)) {
        if (rows == 2) return halve<Largest, 2>(a);
        if (rows == 3) return halve<Largest, 3>(a);
    }
    if (rows == 3 && a.taps == 3 && a.stride == 2) return by_line<Largest, 3, 2, 3>(a);
    if (rows == 3 && a.taps == 3 && a.stride == 1) return by_line<Largest, 3, 1, 3>(a);
    if (a.stride == 2) return by_line<Largest, 0, 2, 0>(a);
    if (a.stride == 1) return by_line<Largest, 0, 1, 0>(a);
    by_line<Largest, 0, 0, 0>(a);
}

void window(const WindowArgs& a) {
    if (a.across) windows<false>(a);
    else windows<true>(a);
}

}  // namespace
