// What one instruction set offers to the interpreter of plans: a table of functions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace leanconv {

// Everything a tile needs to run over some rows of a map. Offsets and steps are in floats.
struct Args {
    const float* in;         // the pixel that output pixel (0, 0) starts from, by whatever `slots` count from
    const ptrdiff_t* slots;  // where each (channel, tap) is, each (channel, kernel row) or each channel: see TileKind
    ptrdiff_t n_slots;
    ptrdiff_t rstep, kstep;  // from one output row to the next, from one kernel row to the next, in the input
    ptrdiff_t dx[3];         // the taps of a kernel row
    ptrdiff_t left, right;   // the lanes in which the first and the last of them is taken, one bit each: masked tiles
    const float* weights;    // [channel][tap][output channel of the tile]: read once, in order
    const float* bias;       // [output channel of the tile]
    float* out;              // pixel (0, 0); channels by `out_channel`
    const ptrdiff_t* out_channel;
    ptrdiff_t opitch;
    const float* residual;   // added before `low` and `high`; null: nothing
    const ptrdiff_t* residual_channel;
    float low, high;         // outputs are cut off at both,
    bool lowest, highest;    // if they are to be
    ptrdiff_t ahead, later;  // from a pixel to one that is read soon, in the next band; from its slot to that of the other
    int rows, from, to;      // rows (a multiple of the tile's), and the columns from where to where
};
using Kernel = void (*)(const Args&);

// kFlat takes taps one by one, kThree three columns of a kernel row, kRows and kTwoRows a kernel of 3 x 3; of the last two a
// vector holds one row of the map, or two.
enum TileKind { kFlat, kThree, kRows, kTwoRows };
constexpr int taps_of(int64_t kind) { return kind == kFlat ? 1 : kind == kThree ? 3 : 9; }  // of a slot
enum Activation { kNone, kSilu, kHardswish, kSigmoid, kHardsigmoid };

constexpr int kMostFilterRows = 64;  // of a filter over time: all its frames together
constexpr int kMaxChannels = 6, kMaxRows = 8, kVectors = 4;  // 1, 2, 4 and 8 vectors
constexpr int kTiles = 4 * 2 * kMaxChannels * kMaxRows * kVectors;
constexpr int tile_index(int kind, int masked, int channels, int rows, int vectors) {
    const int size = vectors == 8 ? 3 : vectors / 2;
    return (((kind * 2 + masked) * kMaxChannels + channels - 1) * kMaxRows + rows - 1) * kVectors + size;
}

// Everything a tile of sums needs: see sums.h. Steps in floats; sums stand `slot` floats apart, [input][tap][output].
struct SumArgs {
    const float *in, *gradient;
    const ptrdiff_t *in_channel, *gradient_channel;
    ptrdiff_t in_row, gradient_row;
    ptrdiff_t dx[3], lanes[3];  // the taps of a kernel row, and the lanes in which each is taken, one bit each
    float* sums;
    ptrdiff_t slot, width;
    int rows;
};
using SumKernel = void (*)(const SumArgs&);

constexpr int kSumTiles = 2 * 2 * kMaxChannels * kMaxChannels;
constexpr int sum_index(int three, int masked, int inputs, int outputs) {
    return ((three * 2 + masked) * kMaxChannels + inputs - 1) * kMaxChannels + outputs - 1;
}

// Everything a tile of a dense convolution of maps in blocks needs: see dense.h. Steps in floats.
constexpr int kBlock = 16;  // channels of a block, whatever the vectors
struct DenseArgs {
    const float* in;
    const ptrdiff_t* runs;  // pairs: where some channels of one tap are, and how many, `channel` apart
    ptrdiff_t n_runs, channel, in_row;
    const float* weights;  // [channel of a run][output of a block]
    ptrdiff_t panel;       // from one block to the next
    const float* bias;
    float* out[2];  // of the blocks
    ptrdiff_t out_row;
    const float* residual[2];  // null: nothing is added
    ptrdiff_t residual_row;
    const float* half[2];  // of a map of half the size, each of whose pixels is added to four
    ptrdiff_t half_row, odd;  // odd: from the pixel of the first column to that of the second
    float low, high;
    bool lowest, highest;
    const char* ahead;  // what is read soon, so much in each round
    ptrdiff_t ahead_step;
};
using DenseKernel = void (*)(const DenseArgs&);

constexpr int kDensePixels = 14;
constexpr int kDenseTiles = 4 * 2 * 2 * kDensePixels;
// step: 0 and 1 for pixels one and two floats apart, 2 and 3 for one and two blocks.
constexpr int dense_index(int step, int blocks, int rows, int pixels) {
    return ((step * 2 + blocks - 1) * 2 + rows - 1) * kDensePixels + pixels - 1;
}

// Some pixels of a row of one block, a filter for each channel: see depthwise.h. Steps in floats.
struct DepthwiseArgs {
    const float* in;
    const ptrdiff_t* taps;  // where each row of taps begins, added to `in`
    ptrdiff_t n_taps, pixel;
    const float* weights;  // [row of taps][tap][channel]
    const float* bias;
    const float *residual, *half;  // null: nothing is added
    ptrdiff_t odd;                 // as in DenseArgs
    float* out;
    float low, high;
    bool lowest, highest;
};
using DepthwiseKernel = void (*)(const DepthwiseArgs&);

constexpr int kDepthwisePixels = 8, kDepthwiseTiles = 7 * kDepthwisePixels;
// across: neighbouring taps, 3, 5 or 7 of pixels one or two blocks apart, or one of pixels as far apart as may be.
constexpr int depthwise_index(int across, int step, int pixels) {
    return (across == 1 ? 0 : across - 2 + step - 1) * kDepthwisePixels + pixels - 1;
}

// A row of windows, of which `rows` rows and those columns are taken that are in the map.
struct BlockArgs {
    const float* in;
    ptrdiff_t in_row;
    int rows, columns, stride, pad, width, made, whole;  // whole: the pixels that a mean is of, 0 for those in the map
    bool greatest, lowest, highest;
    float low, high;
    const float *residual, *half;
    const float* by;     // null: nothing; what every pixel is multiplied with, `by_pixel` from one to the next
    ptrdiff_t by_pixel;
    float* out;
};

// Maps in blocks, and their image as the caller has it: see moves.h. Steps in floats.
struct BlockMoved {
    float *map, *image;  // the first of `channels` that stand one behind another
    ptrdiff_t channels, height, width;
    ptrdiff_t pitch, plane;  // from row to row of the map, from channel to channel of the image
};

// Rows of results of windows, of which equally many rows lie on the map.
struct WindowArgs {
    const float* in;       // the first of those rows of the first result
    ptrdiff_t frame, row;  // from one to the next
    int frames, rows, width;
    float* line;  // where they become one; what is left of it changes nothing, `right` columns are made so
    ptrdiff_t right;
    ptrdiff_t taps, stride, gap, pad;  // of columns
    float* out;
    int made, results;        // columns and rows
    ptrdiff_t rstep, opitch;  // from one row of them to the next
    const float* across;  // factors of a mean; null: the greatest number
    float factor;
};

// Whether windows take two columns of a map each, all of them on it.
constexpr bool halves(int64_t taps, int64_t stride, int64_t gap, int64_t pad, int64_t made, int64_t width) {
    return taps == 2 && stride == 2 && gap == 1 && pad == 0 && 2 * made <= width;
}

struct Moved {  // `rows` rows of each of `channels` maps, `step` floats apart, to rows `pitch` apart
    const float* from;
    const ptrdiff_t* origins;  // of each channel, added to `from`
    ptrdiff_t channels, step;
    float* to;
    ptrdiff_t plane, pitch, rows;  // plane: from channel to channel of `to`
};

struct Phases {
    int phases, wanted;
    ptrdiff_t length, before, count;
};

// A row of tiles of a convolution by Winograd's minimal filtering: see winograd.h.
struct WinogradArgs {
    const float* in;  // of pixels: the first of a tile
    ptrdiff_t in_row;
    float* numbers;
    ptrdiff_t apart;  // from one of the sixteen numbers of a tile to the next
    int tiles, rows, width;  // of outputs
    const float *bias, *residual, *half;
    ptrdiff_t residual_row, out_row;
    float* out;
    float low, high;
    bool lowest, highest;
};

struct Kernels {
    int lanes;
    const Kernel* tiles;
    // The tile of `rows` x `vectors` x `channels`, null where there is none; `masked`: it looks at `left` and `right`. It
    // stores whole vectors, over the end of a row too, where `cut` has to follow.
    Kernel tile(int64_t kind, int64_t masked, int64_t channels, int rows, int vectors) const {
        return tiles[tile_index(int(kind), int(masked), int(channels), rows, vectors)];
    }
    // Zeros behind column `width` of one row, up to where its last vector ends: what the padding there has to be.
    void (*cut)(float* row, int width);
    // Rows of some channels: to[p * length + i] = from[i * phases + p] in each, for the p in the bits `wanted` and i from
    // -before to count. May store a vector over the end.
    void (*split)(const Moved& rows, const Phases& phases);
    // Rows of some channels, with zeros for the columns before `first` and from `last` on: to[x] = from[x * stride] in
    // each. May store a vector over the end.
    void (*flatten)(const Moved& rows, int stride, int first, int last);
    void (*activate)(int activation, float* row, int width);
    // `rounds` times twelve multiply-adds of vectors that do not wait for each other.
    float (*peak)(int64_t rounds);
    float (*sum)(const float* row, int height, ptrdiff_t pitch, int width);  // of all pixels
    // Sums of products with three taps of a kernel row or one, of so many inputs and outputs; null where there is no such.
    const SumKernel* sum_tiles;
    SumKernel sum_tile(int64_t taps, int64_t masked, int64_t inputs, int64_t outputs) const {
        return sum_tiles[sum_index(taps == 3, int(masked), int(inputs), int(outputs))];
    }
    void (*add)(const SumArgs& args);  // the sum of one map
    void (*copy)(const float* from, ptrdiff_t step, float* to, ptrdiff_t pitch, int rows, int width);  // rows to rows
    // The same, with zeros behind each row up to where the next begins, if that is whole vectors further.
    void (*surround)(const float* from, ptrdiff_t step, float* to, ptrdiff_t pitch, int rows, int width);
    void (*window)(const WindowArgs& args);
    // Every `stride`-th column of rows to rows of `width`. Of two it may read the column behind the last.
    void (*pick)(const float* from, ptrdiff_t step, float* to, ptrdiff_t pitch, int rows, int width, int stride);
    const DenseKernel* dense_tiles;  // null where there is no such
    DenseKernel dense_tile(int step, int64_t blocks, int rows, int pixels) const {
        return dense_tiles[dense_index(step, int(blocks), rows, pixels)];
    }
    const DepthwiseKernel* depthwise_tiles;
    DepthwiseKernel depthwise_tile(int across, int64_t pixel, int pixels) const {
        return depthwise_tiles[depthwise_index(across, int(pixel / kBlock), pixels)];
    }
    void (*block_row)(const BlockArgs& args);
    void (*winograd_pixels)(const WinogradArgs& args);
    void (*winograd_outputs)(const WinogradArgs& args);
    void (*into_block)(const BlockMoved& maps);
    void (*out_of_block)(const BlockMoved& maps);
};

const Kernels* kernels_of(int lanes);  // null where this machine or this build has none

}  // namespace leanconv
