// A plan as it lies in memory: 64-bit integers, tables at the positions that other fields name. See leanconv/kernels/pack.py,
// which writes the same fields in the same order.
#pragma once

#include <cstdint>

namespace leanconv {

struct Port {  // an input or an output
    int64_t channels, height, width, pitch, table;  // table: where in the arena each channel starts
};

struct Plan {
    int64_t version, stamp, floats, inputs, outputs, steps;
    // Then a Port for each input and output, then the position of each step.
};

enum StepKind { kConvStep, kPoolStep };

struct ConvStep {
    int64_t kind, rows, width, band, flat, stages;  // flat: floats of a row of all maps, which are one run; 0: row by row
    // Then the stages.
};

struct Stage {
    int64_t lanes, in, in_row, rstep, kstep, dx[3];  // in_row: floats that an output row further down starts further on
    int64_t left, right;                               // the lanes of those taps, of tiles with masks
    int64_t out_row, opitch, bounds, activation;     // bounds: where the two floats are in the weights
    int64_t tiles, tile;                             // how many, where
};

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

struct PoolStep {
    int64_t kind, lanes, channels, height, width, pitch, in, out;
};

}  // namespace leanconv
