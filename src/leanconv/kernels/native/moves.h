// How maps come into blocks and out of them: the channels of a pixel stand side by side there, the pixels of a channel do in
// an image, and squares of four channels by four pixels change from one to the other within vectors.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

typedef float Quad __attribute__((vector_size(16)));
typedef float LooseQuad __attribute__((vector_size(16), aligned(4), may_alias));

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

// Channels that stand one behind another. A cache line of each of four planes is moved at once: planes of 64 x 64, say, share
// so few sets of the cache that lines of sixteen would push each other out.
template <bool In>
void move_block(const leanconv::BlockMoved& args) {
    const leanconv::BlockMoved m = args;
    const ptrdiff_t whole = m.width < 4 ? 0 : m.channels / 4 * 4;
    for (ptrdiff_t y = 0; y < m.height; ++y) {
        float *row = m.map + y * m.pitch, *line = m.image + y * m.width;
        for (ptrdiff_t x = 0; x < m.width; x += kBlock)
            for (ptrdiff_t c = 0; c < whole; c += 4)
                for (ptrdiff_t i = x; i < x + kBlock && i < m.width; i += 4) {
                    const ptrdiff_t at = i < m.width - 4 ? i : m.width - 4;  // some columns a second time
                    float *map = row + at * kBlock + c, *plane = line + c * m.plane + at;
                    if (In) transpose(plane, m.plane, map, kBlock);
                    else transpose(map, kBlock, plane, m.plane);
                }
        for (ptrdiff_t c = whole; c < m.channels; ++c)
            for (ptrdiff_t x = 0; x < m.width; ++x) {
                float *map = row + x * kBlock + c, *plane = line + c * m.plane + x;
                *(In ? map : plane) = *(In ? plane : map);
            }
    }
}

}  // namespace
