// A plan as it lies in memory: 64-bit integers, tables at the positions that other fields name. See leanconv/kernels/pack.py,
// which writes the same fields in the same order.
#pragma once

#include <cstdint>

namespace leanconv {

struct Port {  // an input or an output
    int64_t channels, height, width, pitch, table;  // table: where in the arena each channel starts
    int64_t pixel;                                  // floats from pixel to pixel, 1 or those of a block
};

struct Plan {
    int64_t version, stamp, floats, inputs, outputs, steps;
    int64_t lanes;                     // of the longest vectors
    int64_t sums, sums_at;             // how many sums of products, where in the arena: a cache line for the lanes of each
    int64_t own;                       // what each of several threads has for itself: the arena up to here, behind its stamp
    // Then a Port for each input and output, then the position of each step.
};

enum StepKind { kConvStep, kPoolStep, kSpreadStep, kSumStep, kVolumeStep, kWindowStep, kDenseStep, kBlockStep, kClipStep,
                kRepeatStep, kWinogradStep, kDepthwiseStep, kProductStep, kGatherStep };

struct ConvStep {
    int64_t kind, rows, width, band, flat, stages;  // flat: floats of a row of all maps, which are one run; 0: row by row
    int64_t grain, macs;  // pieces for several threads begin at a multiple of so many rows; multiply-adds of the step
    // Then the stages.
};

struct Stage {
    int64_t lanes, in, in_row, rstep, kstep, dx[3];  // in_row: floats that an output row further down starts further on
    int64_t left, right;                               // the lanes of those taps, of tiles with masks
    int64_t out, out_row, opitch, bounds, activation;  // bounds: where the two floats are in the weights
    int64_t tiles, tile;                             // how many, where
    int64_t own;                                     // kOwnIn, kOwnOut: what it reads or writes is each thread's own
};

enum Own { kOwnIn = 1, kOwnOut = 2 };

struct Tile {
    int64_t sorting;  // the Sorting that is due before it, -1 for none
    int64_t kind, masked, channels, rows, vectors, slots, n_slots, weights, bias, out, residual;  // residual: a table, -1 for none
};

struct Sorting {  // the pixels that some tiles read, sorted by stride or shifted, band by band
    int64_t lanes, channels, table, to, plane, in_row, stride;  // in_row: as in a stage; stride: of columns
    int64_t wanted, length, before, count;                      // columns of each phase; length: from one phase to the next
    int64_t flat, parts, part;                                  // how many SortedRows, where; flat: whether they go to flat maps
};

struct SortedRows {  // for a band of n rows, n * times + more rows
    int64_t from, step, to, pitch, times, more, first, last;  // first, last: the columns of flat maps that are no zeros
};

struct SpreadStep {  // rows and columns `sy` and `sx` apart, zeros between
    int64_t kind, channels, height, width, pitch, sy, sx, out_height, out_width, out_pitch, in, out;  // in, out: tables
};

struct SumStep {  // sums of products of what a convolution read with the gradients of what it made, for each weight
    int64_t kind, lanes, rows, width, band, in_row, gradient_row;  // rows, width: of the gradients; rows stand as said
    int64_t dx[3], kept[3], all;                                   // all: the lanes that are pixels
    int64_t tiles, tile, biases, bias;                             // how many, where: SumTile and SumBias
};

struct SumTile {
    int64_t taps, masked, inputs, outputs, in, gradient, sums;  // in, gradient: tables; sums: the number of the first
};

struct SumBias {
    int64_t gradient, sums;  // the place of the map
};

// One filter of down x rows x 3 for each channel, over maps whose rows are frames one under another. With `taps` of 0 there
// is none, and the pixels pass. A channel is copied into the scratch with zeros around its frames, the tiles write a frame
// beside it, with all columns, and those that a stride leaves are copied from there.
struct VolumeStep {
    int64_t kind, lanes, channels, in, out;  // tables
    int64_t frames, height, width, pitch;    // of what is read
    int64_t out_frames, out_height, out_width, out_pitch;
    int64_t deep, high, taps;           // frames, rows and columns of the filter
    int64_t st, sy, sx, pt, py, px, dt, dy, dx;  // stride, padding and dilation
    int64_t weights, bias, bounds, activation;  // [channel][frame][row][column]; bounds as in a stage
    int64_t scratch, scratch_pitch, left;         // `left` zeros before the first row; those behind a row are before the next
    int64_t made, made_pitch, rows;               // where a frame is written to first, rows of a tile
};

// The greatest number or the mean of windows, over maps whose rows are frames one under another. The rows of a window become
// one, at `line`, with columns beside it that change nothing, as many on the left as the padding says.
struct WindowStep {
    int64_t kind, lanes, channels, in, out;  // tables
    int64_t frames, height, width, pitch;    // of what is read
    int64_t out_frames, out_height, out_width, out_pitch;
    int64_t deep, high, wide;  // frames, rows and columns of a window
    int64_t st, sy, sx, pt, py, px, dt, dy, dx;  // stride, padding and dilation
    int64_t largest;
    int64_t across, down;  // of means: factors of columns, and of frames, then rows
    int64_t line, right;
};

// A convolution over maps whose rows are frames one under another. Its Stage's tiles read frames, `deep` of them at most, in
// the scratch, and as many slots of each; `sorting` of the first tile of a group is where its ClipGroup is.
struct ClipStep {
    int64_t kind;
    int64_t frames, height, width, pitch;  // of what is read
    int64_t out_frames, out_height, out_width, out_pitch;
    int64_t deep, st, pt, dt;  // frames of the kernel, their stride, padding and dilation
    int64_t sy, py, reach;     // reach: rows from the first tap to the last, both counted
    int64_t sx, wanted, before, count, length;  // columns of each phase, from one phase to the next; those that are wanted, by bits
    int64_t scratch, frame, plane, scratch_pitch;
    int64_t zeros;  // where the zeros are in a frame of the scratch, -1: none
    int64_t line;   // a row before it is sorted
    int64_t made, made_plane, made_pitch, band;
    // Then the Stage.
};

struct ClipGroup {
    int64_t channels, table;
};

struct PoolStep {
    int64_t kind, lanes, channels, height, width, pitch, in, out;
};

// Each pixel `ty` rows and `tx` columns, cut off at `height` and `width`, and a residual of the same pitch added.
struct RepeatStep {
    int64_t kind, channels, in, out, residual;  // tables; residual: -1 for none
    int64_t height, width, in_pitch, out_pitch, ty, tx;
};

// Each channel times another, or times the one pixel of it, with what is added.
struct ProductStep {
    int64_t kind, lanes, channels, in, by, out, residual;    // tables; residual: -1 for none
    int64_t rows, width, row, by_row, by_pixel;              // floats from row to row, of what it is multiplied with, from pixel to pixel
    int64_t bounds, activation, macs;
};

// A dense convolution of maps in blocks, see dense.h, or of an input as it came. A band of rows is read by all groups of
// outputs one after the other, so that the pixels stay in the second cache and the weights of a group in the first.
struct DenseStep {
    int64_t kind, lanes, rows, width;      // of what is made
    int64_t band, high, wide;              // rows of a band, rows and pixels of a tile
    int64_t in, in_row, pixel, channel;    // floats that an output row further down, and a pixel, starts further on
    int64_t runs, n_runs, slots;           // pairs: where channels of a tap are, how many; slots: of all of them together
    int64_t out_row, residual_row, half_row;
    int64_t bounds, activation, next;      // next: the weights that are read after these
    int64_t macs;                          // of the step
    int64_t groups, group;                 // how many, where
};

struct DenseGroup {
    int64_t blocks, weights, bias, out, residual, half;  // out, residual, half: tables of the places of blocks, -1 for none
};

// A convolution of 3 x 3 without a stride, by tiles of 2 x 2 outputs: see winograd.h. Each number of a tile is a map for each
// block of inputs (`numbers`), one pixel for a tile of the band, and for each block of outputs of a group (`products`, which
// each thread has for itself). Weights: [block][number][slot][16].
struct WinogradStep {
    int64_t kind, lanes, rows, width;      // of what is made
    int64_t band, wide;                    // rows of tiles of a band; tiles that are multiplied together
    int64_t in, blocks, in_row;            // a table of where the pixels of the first tile begin in each block
    int64_t runs, n_runs, slots;           // as in DenseStep, from the first block of `numbers` on
    int64_t numbers, products, zeros;      // zeros: those that products start from are weights
    int64_t out_row, residual_row, half_row;
    int64_t bounds, activation, next;
    int64_t macs;
    int64_t groups, group;                 // how many DenseGroup, where
};

// A filter for each channel of maps in blocks: see depthwise.h. Weights: [block][row of taps][tap of it][16].
struct DepthwiseStep {
    int64_t kind, lanes, rows, width;         // of what is made
    int64_t wide;                             // pixels of a tile
    int64_t blocks, in, in_row, pixel;        // in: a table; floats that an output row further down, and a pixel, starts further on
    int64_t taps, n_taps, across;             // where the rows of taps are, how many; taps of a row, neighbours
    int64_t weights, bias;
    int64_t out, residual, half;              // tables, -1 for no residual and no half
    int64_t out_row, residual_row, half_row;
    int64_t bounds, activation, macs;
};

// Channels of blocks from anywhere: a table of sixteen places for each block, -1 for zeros.
struct GatherStep {
    int64_t kind, blocks, sources, out;  // tables
    int64_t rows, width, in_row, pixel;  // floats that a row further down, and a pixel, are further on
    int64_t out_row, macs;
};

// The greatest of a window, its mean, or (1 x 1) pixels as they are, with what is added, for maps in blocks.
struct BlockStep {
    int64_t kind, lanes, blocks, in, out, residual, half;  // tables; -1 for no residual and no half
    int64_t height, width, in_row, made_height, made_width, out_row, residual_row, half_row;
    int64_t by, by_row, by_pixel;  // a table of what pixels are multiplied with, -1 for none
    int64_t high, wide, sy, sx, py, px, greatest, whole;  // the window; whole: a mean is of all its pixels, in the map or not
    int64_t bounds, activation, macs;
};

}  // namespace leanconv
