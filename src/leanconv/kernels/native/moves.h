// How maps come into blocks and out of them: the channels of a pixel stand side by side there, the pixels of a channel do in
// an image, and squares of four channels by four pixels change from one to the other within vectors.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

using leanconv::kBlock;

template <int A, int B, int C, int D>
INLINE inline Quad shuffled(Quad one, Quad other) {
#if defined(__clang__)
    return __builtin_shufflevector(one, other, A, B, C, D);
#else
    typedef int32_t Places __attribute__((vector_size(16)));
    return __builtin_shuffle(one, other, Places{A, B, C, D});
#endif
}

// Four rows of four floats, `step` apart, to four columns, `apart` apart.
INLINE inline void transpose(const float* from, ptrdiff_t step, float* to, ptrdiff_t apart) {
    Quad row[4];
    unroll<4>([&](auto i) INLINE { row[i] = *reinterpret_cast<const LooseQuad*>(from + i * step); });
    const Quad low[2] = {shuffled<0, 4, 1, 5>(row[0], row[1]), shuffled<0, 4, 1, 5>(row[2], row[3])};
    const Quad high[2] = {shuffled<2, 6, 3, 7>(row[0], row[1]), shuffled<2, 6, 3, 7>(row[2], row[3])};
    *reinterpret_cast<LooseQuad*>(to) = shuffled<0, 1, 4, 5>(low[0], low[1]);
    *reinterpret_cast<LooseQuad*>(to + apart) = shuffled<2, 3, 6, 7>(low[0], low[1]);
    *reinterpret_cast<LooseQuad*>(to + 2 * apart) = shuffled<0, 1, 4, 5>(high[0], high[1]);
    *reinterpret_cast<LooseQuad*>(to + 3 * apart) = shuffled<2, 3, 6, 7>(high[0], high[1]);
}

// Channels that stand one behind another, of so many pixels a time.
template <bool In, int Pixels>
void move_block(const leanconv::BlockMoved& args) {
    const leanconv::BlockMoved m = args;
    const ptrdiff_t whole = m.width < 4 ? 0 : m.channels / 4 * 4;
    for (ptrdiff_t y = 0; y < m.height; ++y) {
        float *row = m.map + y * m.pitch, *line = m.image + y * m.width;
        for (ptrdiff_t x = 0; x < m.width; x += Pixels) {
            const auto four = [&](ptrdiff_t c) INLINE {
                for (ptrdiff_t i = x; i < x + Pixels && i < m.width; i += 4) {
                    const ptrdiff_t at = i < m.width - 4 ? i : m.width - 4;  // some pixels a second time
                    float *map = row + at * kBlock + c, *plane = line + c * m.plane + at;
                    if (In) transpose(plane, m.plane, map, kBlock);
                    else transpose(map, kBlock, plane, m.plane);
                }
            };
            if (whole == kBlock) unroll<kBlock / 4>([&](auto i) INLINE { four(4 * i); });
            else
                for (ptrdiff_t c = 0; c < whole; c += 4) four(c);
        }
        for (ptrdiff_t c = whole; c < m.channels; ++c)
            for (ptrdiff_t x = 0; x < m.width; ++x) {
                float *map = row + x * kBlock + c, *plane = line + c * m.plane + x;
                *(In ? map : plane) = *(In ? plane : map);
            }
    }
}

// Four pixels of sixteen channels are whole lines of the map, but a piece of a line of each plane. Where planes are as far
// apart as those of 64 x 64 their lines share so few sets of the cache that the next pixels would find them pushed out.
template <bool In>
void move_block(const leanconv::BlockMoved& maps) {
    if (maps.plane % 512) move_block<In, 4>(maps);
    else move_block<In, kBlock>(maps);
}

}  // namespace
