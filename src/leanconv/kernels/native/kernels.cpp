// The kernels of one instruction set: compiled once for each, with its flags, LEANCONV_LANES and LEANCONV_TABLE.
#include "dense.h"
#include "depthwise.h"
#include "kernels.h"
#include "moves.h"
#include "sums.h"
#include "tiles.h"
#include "vectors.h"
#include "windows.h"
#include "winograd.h"

namespace {

// By bits: zero times what is stored there could be no number. (Within the tiles, a second way to store the sums makes gcc
// keep all of them on the stack.)
void cut(float* row, int width) {
    float* last = row + width / kLanes * kLanes;
    if (last < row + width) store(last, keep(load(last), first_lanes(width % kLanes)));
}

// Columns 0 2 4 ... of rows to `to`, 1 3 5 ... to `to + length`, or one of the two. Before the first whole vector one by one.
template <bool Even, bool Odd>
void part_rows(const leanconv::Moved& moved, const leanconv::Phases& by) {
    const leanconv::Moved m = moved;
    const ptrdiff_t length = by.length, before = by.before, count = by.count;
    for (ptrdiff_t c = 0; c < m.channels; ++c) {
        const float* from = m.from + m.origins[c];
        float* to = m.to + c * m.plane;
        for (ptrdiff_t y = 0; y < m.rows; ++y, from += m.step, to += m.pitch) {
            for (ptrdiff_t i = -before; i < 0; ++i) {
                if constexpr (Even) to[i] = from[2 * i];
                if constexpr (Odd) to[length + i] = from[2 * i + 1];
            }
            for (ptrdiff_t i = 0; i < count; i += kLanes)
                part(from + 2 * i, Even ? to + i : nullptr, Odd ? to + length + i : nullptr);
        }
    }
}

// Columns 0 2 4 ... | 1 3 5 ..., after which the taps of neighbouring outputs of a stride are neighbours.
void split(const leanconv::Moved& moved, const leanconv::Phases& by) {
    if (by.phases == 2) {
        if (by.wanted == 3) return part_rows<true, true>(moved, by);
        return by.wanted & 1 ? part_rows<true, false>(moved, by) : by.wanted & 2 ? part_rows<false, true>(moved, by) : void();
    }
    const leanconv::Moved m = moved;
    const leanconv::Phases b = by;
    for (ptrdiff_t c = 0; c < m.channels; ++c) {
        const float* from = m.from + m.origins[c];
        float* to = m.to + c * m.plane;
        for (ptrdiff_t y = 0; y < m.rows; ++y, from += m.step, to += m.pitch)
            for (int p = 0; p < b.phases; ++p)
                if (b.wanted >> p & 1)
                    for (ptrdiff_t i = -b.before; i < b.count; ++i) to[p * b.length + i] = from[i * b.phases + p];
    }
}

void flatten(const leanconv::Moved& moved, int stride, int first, int last) {
    const leanconv::Moved m = moved;
    const int pitch = int(m.pitch), rows = int(m.rows);
    Int lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    const Int column = lane & (pitch - 1);  // a power of two, less than a vector
    const Int kept = (column >= first) & (column < last);
    for (ptrdiff_t c = 0; c < m.channels; ++c) {
        const float* from = m.from + m.origins[c];
        float* to = m.to + c * m.plane;
        if (stride == 1 && m.step == pitch) {
            for (int i = 0; i < rows * pitch; i += kLanes) store(to + i, keep(load(from + i), kept));
        } else if (stride == 2 && 2 * pitch == kLanes) {
            for (int y = 0; y < rows; y += 2, from += 2 * m.step, to += kLanes)
                store(to, keep(every_second<0>(load(from), load(y + 1 < rows ? from + m.step : from)), kept));
        } else {
            for (int y = 0; y < rows; ++y, from += m.step, to += pitch)
                for (int x = 0; x < pitch; ++x) to[x] = x >= first && x < last ? from[x * stride] : 0;
        }
    }
}

// e^x to 1e-7 of it: 2^n e^r with |r| <= ln 2 / 2, n the nearest number to x / ln 2: adding 1.5 * 2^23 rounds to it, and has
// it in the last bits. Infinite where a float cannot hold it, as in torch, from 88 on. N vectors take turns: each waits long
// for itself, longer than a machine looks ahead.
template <int N>
INLINE inline void exponential(const Reg (&x)[N], Reg (&y)[N]) {
    constexpr float kTerms[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    const Reg most = all(88.f), least = all(-87.f), shift = all(12582912.f);
    Reg rounded[N], r[N];
    unroll<N>([&](auto i) INLINE { r[i] = at_least(least, at_most(most, x[i])); });
    unroll<N>([&](auto i) INLINE { rounded[i] = r[i] * 1.44269504f + shift; });
    unroll<N>([&](auto i) INLINE { y[i] = rounded[i] - shift; });
    unroll<N>([&](auto i) INLINE { r[i] = r[i] - y[i] * .693359375f; });
    unroll<N>([&](auto i) INLINE { r[i] = r[i] + y[i] * 2.12194440e-4f; });
    unroll<N>([&](auto i) INLINE { y[i] = all(1.9875691500e-4f); });
    unroll<5>([&](auto k) INLINE { unroll<N>([&](auto i) INLINE { y[i] = y[i] * r[i] + kTerms[k]; }); });
    unroll<N>([&](auto i) INLINE { y[i] = y[i] * r[i] + 1.f; });
    unroll<N>([&](auto i) INLINE { y[i] = y[i] * r[i] + 1.f; });
    unroll<N>([&](auto i) INLINE {
        y[i] = reinterpret_cast<Reg>(reinterpret_cast<Int>(y[i]) + (reinterpret_cast<Int>(rounded[i]) << 23));  // times 2^n
        y[i] = x[i] > most ? all(__builtin_inff()) : y[i];
    });
}

template <int Activation, int N>
INLINE inline void activated(float* at) {
    using namespace leanconv;
    Reg v[N];
    unroll<N>([&](auto i) INLINE { v[i] = load(at + i * kLanes); });
    if constexpr (Activation == kSilu || Activation == kSigmoid) {
        Reg e[N];
        unroll<N>([&](auto i) INLINE { v[i] = -v[i]; });
        exponential(v, e);
        unroll<N>([&](auto i) INLINE { v[i] = (Activation == kSilu ? -v[i] : all(1.f)) / (1.f + e[i]); });
    } else {
        unroll<N>([&](auto i) INLINE {
            const Reg part = at_most(all(6.f), at_least(all(0.f), v[i] + 3.f));
            v[i] = Activation == kHardswish ? v[i] * part * (1.f / 6) : part * (1.f / 6);
        });
    }
    unroll<N>([&](auto i) INLINE { store(at + i * kLanes, v[i]); });
}

// Zeros of the padding behind a row stay zeros: by themselves, or because the last vector is cut.
template <int Activation>
void activate_row(float* row, int width) {
    constexpr bool kKeepsZeros = Activation == leanconv::kSilu || Activation == leanconv::kHardswish;
    int x = 0;
    for (; x + 4 * kLanes <= width; x += 4 * kLanes) activated<Activation, 4>(row + x);
    for (; x < width; x += kLanes) activated<Activation, 1>(row + x);
    if (!kKeepsZeros && width % kLanes) cut(row, width);
}

void activate(int activation, float* row, int width) {
    switch (activation) {
        case leanconv::kSilu: return activate_row<leanconv::kSilu>(row, width);
        case leanconv::kHardswish: return activate_row<leanconv::kHardswish>(row, width);
        case leanconv::kSigmoid: return activate_row<leanconv::kSigmoid>(row, width);
        default: return activate_row<leanconv::kHardsigmoid>(row, width);
    }
}

float sum(const float* row, int height, ptrdiff_t pitch, int width) {
    Reg total{};
    const int whole = width / kLanes * kLanes;
    const Int rest = first_lanes(width - whole);
    for (int y = 0; y < height; ++y, row += pitch) {
        for (int x = 0; x < whole; x += kLanes) total += load(row + x);
        if (whole < width) total += keep(load(row + whole), rest);
    }
    float all_lanes = 0;
    for (int i = 0; i < kLanes; ++i) all_lanes += total[i];
    return all_lanes;
}

void copy(const float* from, ptrdiff_t step, float* to, ptrdiff_t pitch, int rows, int width) {
    const int whole = width / kLanes * kLanes;
    for (; rows > 0; --rows, from += step, to += pitch) {
        for (int x = 0; x < whole; x += kLanes) store(to + x, load(from + x));
        if (whole == width) continue;
        if (whole) store(to + width - kLanes, load(from + width - kLanes));  // some columns a second time
        else for (int x = 0; x < width; ++x) to[x] = from[x];
    }
}

void surround(const float* from, ptrdiff_t step, float* to, ptrdiff_t pitch, int rows, int width) {
    const int whole = width / kLanes * kLanes;
    const Int rest = first_lanes(width - whole);
    for (; rows > 0; --rows, from += step, to += pitch) {
        int x = 0;
        for (; x < whole; x += kLanes) store(to + x, load(from + x));
        if (x < width) store(to + x, keep(load(from + x), rest)), x += kLanes;
        for (; x < pitch; x += kLanes) store(to + x, Reg{});
    }
}

void pick(const float* from, ptrdiff_t step, float* to, ptrdiff_t pitch, int rows, int width, int stride) {
    if (stride == 1) return copy(from, step, to, pitch, rows, width);
    for (; rows > 0; --rows, from += step, to += pitch) {
        if (stride == 2 && width >= kLanes) {  // the last vector has some columns a second time
            for (int x = 0;; x = x + 2 * kLanes < width ? x + kLanes : width - kLanes) {
                part(from + 2 * x, to + x, nullptr);
                if (x == width - kLanes) break;
            }
            continue;
        }
        for (int x = 0; x < width; ++x) to[x] = from[ptrdiff_t(x) * stride];
    }
}

float peak(int64_t rounds) {
    Reg acc[12], factor = all(.999f), more = all(1e-3f), total{};
    unroll<12>([&](auto i) INLINE { acc[i] = all(1e-3f * float(i)); });  // equal sums would be merged into one
    for (int64_t round = 0; round < rounds; ++round) {
        unroll<12>([&](auto i) INLINE { fma(acc[i], factor, more); });
        asm volatile("");
    }
    unroll<12>([&](auto i) INLINE { total += acc[i]; });
    return total[0];
}

}  // namespace

extern "C" __attribute__((visibility("hidden"))) const leanconv::Kernels LEANCONV_TABLE;
extern "C" const leanconv::Kernels LEANCONV_TABLE = {
    kLanes, kAllTiles.at, cut, split, flatten, activate, peak, sum, kAllSumTiles.at, add, copy, surround, window, pick, kAllDenseTiles.at,
    kAllDepthwiseTiles.at, block_row, winograd_pixels, winograd_outputs, move_block<true>, move_block<false>};
