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
    int64_t kind, rows, width, band, split, stages;  // split: its position, -1 for none
    // Then the stages.
};

struct Split {  // the columns of what a strided convolution reads, sorted by phase, band by band
    int64_t lanes, channels, table, to, plane, pitch, length, count, phases, wanted;
    int64_t source_pitch, stride, row_step, span;  // rows: `stride` an output row, `span` for each; every `row_step`-th
};

struct Stage {
    int64_t lanes, in, in_row, rstep, kstep, dx[3];     // in_row: floats that an output row further down starts further on
    int64_t out_row, opitch, bounds, activation;  // bounds: where the two floats are in the weights
    int64_t tiles, tile;                          // how many, where
};

struct Tile {
    int64_t kind, channels, rows, vectors, slots, n_slots, weights, bias, out, residual;  // residual: a table, -1 for none
};

struct PoolStep {
    int64_t kind, lanes, channels, height, width, pitch, in, out;
};

}  // namespace leanconv
