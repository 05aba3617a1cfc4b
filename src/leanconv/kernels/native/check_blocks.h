// What steps on maps in blocks, and those that repeat pixels, may touch: the extents are those of the loops in dense.cpp,
// dense.h and run.cpp. For check.cpp alone, behind all that it says about numbers and spans.
#pragma once

namespace leanconv {
namespace {

// Of the blocks of a table, at so many rows of so many pixels; nothing for a table of -1.
template <class Check>
const char* check_blocks(Check& c, int64_t table, int64_t count, Span pixels) {
    if (table == -1) return nullptr;
    Span places;
    NEED(c.hull(table, count, &places), kCut);
    NEED(c.inside(places + pixels + run(kBlock)), kOutside);
    return nullptr;
}

// Rows and columns of which every second pixel of a map takes the one at half of it.
inline Span half_sized(int64_t rows, int64_t width, int64_t row) {
    return steps((rows + 1) / 2, row) + steps((width + 1) / 2, kBlock);
}

// What is read of pixels one by one: a run has no more of them than it says, and no channel is read twice at once.
template <class Check, class Step>
const char* check_runs(Check& c, const Step& s, int64_t channel, Span* in) {
    int64_t slots = 0;
    for (int64_t i = 0; i < s.n_runs; ++i) {
        const int64_t* one = c.template records<int64_t>(s.runs + 2 * i, 2);
        NEED(one, kCut);
        NEED(within(one[1], 1, kMostSide), kNumber);
        slots += one[1];
        const Span found = point(one[0]) + steps(one[1], channel);
        *in = i ? joined(*in, found) : found;
    }
    NEED(slots == s.slots && slots <= kMostSide, kNumber);
    return nullptr;
}

// What is written to blocks, and what is added to it.
template <class Check, class Step>
const char* check_made(Check& c, const Step& s, int64_t out, int64_t residual, int64_t half, int64_t blocks, int64_t rows, int64_t width) {
    NEED(out != -1, kCut);
    const Span across = steps(width, kBlock);
    PASS(check_blocks(c, out, blocks, steps(rows, s.out_row) + across));
    PASS(check_blocks(c, residual, blocks, steps(rows, s.residual_row) + across));
    return check_blocks(c, half, blocks, half_sized(rows, width, s.half_row));
}

// Groups of outputs, with so many weights for each slot and output; `most`: blocks of the largest.
template <class Check, class Step>
const char* check_groups(Check& c, const Step& s, int64_t each, int64_t* most) {
    *most = 1;
    if (!s.groups) return nullptr;
    const DenseGroup* groups = c.template records<DenseGroup>(s.group, s.groups);
    NEED(groups, kCut);
    for (int64_t i = 0; i < s.groups; ++i) {
        const DenseGroup& g = groups[i];
        NEED(within(g.blocks, 1, 2), kNumber);
        if (g.blocks > *most) *most = g.blocks;
        NEED(c.reads_weights(g.weights, Wide(s.slots) * each * kBlock * g.blocks) && c.reads_weights(g.bias, kBlock * g.blocks), kWeights);
        PASS(check_made(c, s, g.out, g.residual, g.half, g.blocks, s.rows, s.width));
    }
    return nullptr;
}

template <class Check>
const char* check_dense(Check& c, int64_t position) {
    const DenseStep* step = c.template records<DenseStep>(position, 1);
    NEED(step, kCut);
    const DenseStep& s = *step;
    NEED(c.kernels(s.lanes), kVectors);
    for (int64_t side : {s.rows, s.width, s.band, s.high}) NEED(within(side, 1, kMostSide), kNumber);
    NEED(s.high <= 2 && within(s.wide, 1, kDensePixels) && within(s.activation, kNone, kHardsigmoid) &&
             (s.pixel == 1 || s.pixel == 2 || s.pixel == kBlock || s.pixel == 2 * kBlock) && s.n_runs >= 0 && s.groups >= 0 && s.macs >= 0,
         kNumber);
    NEED(c.reads_weights(s.bounds, 2), kWeights);
    NEED(s.next >= 0, kWeights);
    NEED(s.channel != 0, kNumber);
    Span in{};
    PASS(check_runs(c, s, s.channel, &in));
    if (s.n_runs) NEED(c.inside(in + point(s.in) + steps(s.rows, s.in_row) + steps(s.width, s.pixel)), kOutside);
    int64_t blocks;
    return check_groups(c, s, 1, &blocks);
}

template <class Check>
const char* check_winograd(Check& c, int64_t position) {
    const WinogradStep* step = c.template records<WinogradStep>(position, 1);
    NEED(step, kCut);
    const WinogradStep& s = *step;
    NEED(c.kernels(s.lanes), kVectors);
    for (int64_t side : {s.rows, s.width, s.band, s.blocks}) NEED(within(side, 1, kMostSide), kNumber);
    NEED(within(s.wide, 1, kDensePixels) && within(s.activation, kNone, kHardsigmoid) && s.n_runs >= 0 && s.groups >= 0 && s.macs >= 0, kNumber);
    const int64_t across = (s.width + 1) / 2, down = (s.rows + 1) / 2, band = s.band < down ? s.band : down;
    NEED(s.band * across <= kMostMap, kNumber);
    NEED(c.reads_weights(s.bounds, 2) && c.reads_weights(s.zeros, 2 * kBlock) && s.next >= 0, kWeights);
    const Wide plane = Wide(s.band) * across * kBlock, apart = plane * s.blocks;
    Span pixels;
    NEED(c.hull(s.in, s.blocks, &pixels), kCut);
    NEED(c.inside(pixels + steps(2 * down + 2, s.in_row) + steps(2 * across + 2, kBlock) + run(kBlock)), kOutside);
    const Span tiles = steps(band * across, kBlock) + run(kBlock);
    NEED(c.inside(point(s.numbers) + steps(16, apart) + steps(s.blocks, plane) + tiles), kOutside);
    Span in{};
    PASS(check_runs(c, s, 1, &in));
    if (s.n_runs) NEED(c.inside(in + point(s.numbers) + steps(16, apart) + steps(band * across, kBlock)), kOutside);
    int64_t blocks;
    PASS(check_groups(c, s, 16, &blocks));
    NEED(c.owned(point(s.products) + steps(blocks, 16 * plane) + steps(16, plane) + tiles), kOutside);
    return nullptr;
}

template <class Check>
const char* check_depthwise(Check& c, int64_t position) {
    const DepthwiseStep* step = c.template records<DepthwiseStep>(position, 1);
    NEED(step, kCut);
    const DepthwiseStep& s = *step;
    NEED(c.kernels(s.lanes), kVectors);
    for (int64_t side : {s.rows, s.width, s.n_taps, s.pixel}) NEED(within(side, 1, kMostSide), kNumber);
    NEED(within(s.wide, 1, kDepthwisePixels) && within(s.activation, kNone, kHardsigmoid) && within(s.blocks, 0, kMostSide) && s.macs >= 0 &&
             (s.across == 1 || ((s.across == 3 || s.across == 5 || s.across == 7) && (s.pixel == kBlock || s.pixel == 2 * kBlock))) &&
             s.blocks * s.rows <= kMostMap,
         kNumber);
    NEED(c.reads_weights(s.bounds, 2), kWeights);
    if (!s.blocks) return nullptr;
    NEED(s.in != -1, kCut);
    NEED(c.reads_weights(s.weights, Wide(s.blocks) * s.n_taps * s.across * kBlock) && c.reads_weights(s.bias, Wide(s.blocks) * kBlock), kWeights);
    Span taps;
    NEED(c.hull(s.taps, s.n_taps, &taps), kCut);
    PASS(check_blocks(c, s.in, s.blocks, taps + steps(s.rows, s.in_row) + steps(s.width, s.pixel) + steps(s.across, kBlock)));
    return check_made(c, s, s.out, s.residual, s.half, s.blocks, s.rows, s.width);
}

template <class Check>
const char* check_gather(Check& c, int64_t position) {
    const GatherStep* step = c.template records<GatherStep>(position, 1);
    NEED(step, kCut);
    const GatherStep& s = *step;
    NEED(within(s.blocks, 0, kMostSide) && within(s.rows, 1, kMostSide) && within(s.width, 1, kMostSide) && s.macs >= 0, kNumber);
    if (!s.blocks) return nullptr;
    NEED(s.out != -1, kCut);
    PASS(check_blocks(c, s.out, s.blocks, steps(s.rows, s.out_row) + steps(s.width, kBlock)));
    const int64_t* sources = c.template records<int64_t>(s.sources, s.blocks * kBlock);
    NEED(sources, kCut);
    for (int64_t i = 0; i < s.blocks * kBlock; ++i)
        NEED(sources[i] == -1 || c.inside(point(sources[i]) + steps(s.rows, s.in_row) + steps(s.width, s.pixel)), kOutside);
    return nullptr;
}

template <class Check>
const char* check_pixels(Check& c, int64_t position) {
    const BlockStep* step = c.template records<BlockStep>(position, 1);
    NEED(step, kCut);
    const BlockStep& s = *step;
    NEED(c.kernels(s.lanes), kVectors);
    for (int64_t side : {s.height, s.width, s.made_height, s.made_width, s.high, s.wide, s.sy, s.sx})
        NEED(within(side, 1, kMostSide), kNumber);
    NEED(within(s.py, 0, kMostSide) && within(s.px, 0, kMostSide) && within(s.activation, kNone, kHardsigmoid) && s.blocks >= 0 && s.macs >= 0 &&
             s.high * s.wide <= kMostMap && s.height * s.width <= kMostMap && s.made_height * s.sy <= kMostMap && s.made_width * s.sx <= kMostMap,
         kNumber);
    NEED(c.reads_weights(s.bounds, 2), kWeights);
    if (!s.blocks) return nullptr;
    PASS(check_blocks(c, s.in, s.blocks, steps(s.height, s.in_row) + steps(s.width, kBlock)));
    PASS(check_blocks(c, s.by, s.blocks, steps(s.made_height, s.by_row) + steps(s.made_width, s.by_pixel)));
    return check_made(c, s, s.out, s.residual, s.half, s.blocks, s.made_height, s.made_width);
}

template <class Check>
const char* check_product(Check& c, int64_t position) {
    const ProductStep* step = c.template records<ProductStep>(position, 1);
    NEED(step, kCut);
    const ProductStep& s = *step;
    NEED(c.kernels(s.lanes), kVectors);
    NEED(within(s.channels, 0, kMostSide) && within(s.rows, 1, kMostSide) && within(s.width, 1, kMostMap) && within(s.by_pixel, 0, 1) &&
             within(s.activation, kNone, kHardsigmoid) && s.macs >= 0,
         kNumber);
    NEED(c.reads_weights(s.bounds, 2), kWeights);
    if (!s.channels) return nullptr;
    const Span pixels = steps(s.rows, s.row) + run(up(s.width, s.lanes));  // activations are computed in whole vectors
    Span in, by, out, residual;
    NEED(c.hull(s.in, s.channels, &in) && c.hull(s.by, s.channels, &by) && c.hull(s.out, s.channels, &out), kCut);
    NEED(c.inside(in + pixels) && c.inside(by + steps(s.rows, s.by_row) + steps(s.width, s.by_pixel)) && c.inside(out + pixels), kOutside);
    if (s.residual == -1) return nullptr;
    NEED(s.residual >= 0 && c.hull(s.residual, s.channels, &residual), kCut);
    NEED(c.inside(residual + pixels), kOutside);
    return nullptr;
}

template <class Check>
const char* check_repeat(Check& c, int64_t position) {
    const RepeatStep* step = c.template records<RepeatStep>(position, 1);
    NEED(step, kCut);
    const RepeatStep& s = *step;
    NEED(within(s.channels, 0, kMostSide), kNumber);
    for (int64_t side : {s.height, s.width, s.ty, s.tx}) NEED(within(side, 1, kMostSide), kNumber);
    NEED(s.height * s.width <= kMostMap, kNumber);
    if (!s.channels) return nullptr;
    Span in, out, residual;
    NEED(c.hull(s.in, s.channels, &in) && c.hull(s.out, s.channels, &out), kCut);
    const Span read = steps((s.height + s.ty - 1) / s.ty, s.in_pitch) + run((s.width + s.tx - 1) / s.tx);
    const Span written = steps(s.height, s.out_pitch) + run(s.width);
    NEED(c.inside(in + read) && c.inside(out + written), kOutside);
    if (s.residual == -1) return nullptr;
    NEED(s.residual >= 0 && c.hull(s.residual, s.channels, &residual), kCut);
    NEED(c.inside(residual + written), kOutside);
    return nullptr;
}

}  // namespace
}  // namespace leanconv
