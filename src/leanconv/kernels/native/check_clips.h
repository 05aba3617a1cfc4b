// What steps on clips, and windows, may touch. For check.cpp alone, behind all that it says about numbers and spans.
#pragma once

namespace leanconv {
namespace {

// The extents are those of the loops in volumes.cpp.
template <class Check>
const char* check_volume(Check& c, int64_t position) {
    const VolumeStep* step = c.template records<VolumeStep>(position, 1);
    NEED(step, kCut);
    const VolumeStep& s = *step;
    NEED(c.kernels(s.lanes), kVectors);
    NEED(within(s.channels, 0, kMostSide) && (s.taps == 0 || s.taps == 3), kNumber);
    for (int64_t side : {s.frames, s.height, s.width, s.out_frames, s.out_height, s.out_width, s.st, s.sy, s.sx})
        NEED(within(side, 1, kMostSide), kNumber);
    const int64_t rows = s.frames * s.height, out_rows = s.out_frames * s.out_height, columns = (s.out_width - 1) * s.sx + 1;
    NEED(rows <= kMostMap && out_rows <= kMostMap && columns <= kMostMap, kNumber);
    if (!s.channels) return nullptr;
    Span in, out;
    NEED(c.hull(s.in, s.channels, &in) && c.hull(s.out, s.channels, &out), kCut);
    NEED(c.inside(out + steps(out_rows, s.out_pitch) + run(s.out_width)), kOutside);
    if (!s.taps) {
        const Span frames = steps(s.out_frames, Wide(s.st) * s.height * s.pitch);
        NEED(c.inside(in + frames + steps(s.out_height, Wide(s.sy) * s.pitch) + run(columns + (s.sx == 2))), kOutside);
        return nullptr;
    }
    for (int64_t number : {s.pt, s.py, s.px, s.left}) NEED(within(number, 0, kMostSide), kNumber);
    for (int64_t number : {s.dt, s.dy, s.dx}) NEED(within(number, 1, kMostSide), kNumber);
    NEED(within(s.deep, 1, kMostFilterRows) && within(s.high, 1, kMostFilterRows) && s.deep * s.high <= kMostFilterRows &&
             within(s.rows, 1, kMaxRows) && within(s.scratch_pitch, 1, kMostMap) && within(s.activation, kNone, kHardsigmoid),
         kNumber);
    const bool shares = s.high == 3 && s.sy == 1 && s.dy == 1;
    NEED(c.kernels(s.lanes)->tile(shares ? kRows : kThree, 0, 1, 1, 1), "it needs a tile that this build does not have");
    NEED(c.reads_weights(s.weights, Wide(s.channels) * s.deep * s.high * 3) && c.reads_weights(s.bias, s.channels) &&
             c.reads_weights(s.bounds, 2),
         kWeights);
    NEED(c.inside(in + steps(rows, s.pitch) + run(up(s.width, s.lanes))), kOutside);
    const Wide pitch = s.scratch_pitch, frame = (s.height + 2 * s.py) * pitch;
    const Span frames = point(s.scratch + s.left) + steps(s.frames, frame);
    const int64_t row = up(s.width > s.scratch_pitch ? s.width : s.scratch_pitch, s.lanes);
    NEED(c.owned(point(s.scratch)) && c.owned(frames + run(frame)), kOutside);
    NEED(c.owned(frames + point(s.py * pitch) + steps(s.height, pitch) + run(row)), kOutside);
    const Span whole = run(up(columns, s.lanes));
    const Span taps = steps(s.high, s.dy * pitch) + point(-s.px) + steps(3, s.dx);
    NEED(c.owned(frames + taps + steps(s.out_height, s.sy * pitch) + whole), kOutside);
    NEED(c.owned(point(s.made) + steps(s.out_height, s.made_pitch) + whole), kOutside);
    return nullptr;
}

// The extents are those of the loops in clips.cpp.
template <class Check>
const char* check_clip(Check& c, int64_t position) {
    const ClipStep* step = c.template records<ClipStep>(position, 1);
    const Stage* stage = c.template records<Stage>(position + int64_t(sizeof(ClipStep) / 8), 1);
    NEED(step && stage, kCut);
    const ClipStep& s = *step;
    NEED(c.kernels(stage->lanes), kVectors);
    if (!stage->tiles) return nullptr;
    for (int64_t side : {s.frames, s.height, s.width, s.out_frames, s.out_height, s.out_width, s.deep, s.st, s.dt, s.sy, s.sx, s.band,
                         s.reach, s.count, s.length, s.made_pitch})
        NEED(within(side, 1, kMostSide), kNumber);
    for (int64_t number : {s.pt, s.py}) NEED(within(number, 0, kMostSide), kNumber);
    NEED(within(s.before, 0, s.count) && within(s.sx, 1, kMostPhases) && within(s.wanted, 0, (1 << kMostPhases) - 1) &&
             within(s.scratch_pitch, 1, kMostMap) && within(stage->activation, kNone, kHardsigmoid),
         kNumber);
    const int64_t rows = s.frames * s.height, out_rows = s.out_frames * s.out_height;
    const int64_t band = s.band < s.out_height ? s.band : s.out_height, placed = (band - 1) * s.sy + s.reach;
    const int64_t whole = up(s.out_width, stage->lanes);
    NEED(rows <= kMostMap && out_rows <= kMostMap && placed <= kMostMap, kNumber);
    NEED(c.reads_weights(stage->bounds, 2), kWeights);
    const Span frames = point(s.scratch) + steps(s.frames, s.frame);
    if (s.sx > 1) {
        const int64_t before = s.before * s.sx + s.width, sorted = s.count * s.sx;
        NEED(c.owned(point(s.line) + run(before > sorted ? before : sorted)), kOutside);
    }
    NEED(s.zeros < 0 || (s.plane >= 0 && c.owned(frames + point(s.zeros) + run(s.plane))), kOutside);
    const int64_t row = s.sx > 1 ? (s.sx - 1) * s.length + s.count : s.count;
    const Span placing = frames + steps(placed, s.scratch_pitch) + run(row > s.scratch_pitch ? row : s.scratch_pitch);
    const Span made = point(s.made) + steps(band, s.made_pitch) + run(whole);
    const Tile* tiles = c.template records<Tile>(stage->tile, stage->tiles);
    NEED(tiles, kCut);
    for (int64_t i = 0; i < stage->tiles; ++i) {
        const Tile& t = tiles[i];
        if (t.sorting >= 0) {
            const ClipGroup* group = c.template records<ClipGroup>(t.sorting, 1);
            Span in;
            NEED(group && c.hull(group->table, group->channels, &in), kCut);
            NEED(c.inside(in + steps(rows, s.pitch) + run(s.width)), kOutside);
            NEED(c.owned(placing + steps(group->channels, s.plane)), kOutside);
        }
        NEED(within(t.kind, kFlat, kRows) && t.masked == 0 && within(t.channels, 1, kMaxChannels) && within(t.rows, 1, kMaxRows) &&
                 (t.vectors == 1 || t.vectors == 2 || t.vectors == 4 || t.vectors == 8),
             kNumber);
        NEED(c.kernels(stage->lanes)->tile(t.kind, 0, t.channels, 1, 1), "it needs a tile that this build does not have");
        NEED(t.n_slots >= 0 && t.n_slots % s.deep == 0 && (t.kind != kFlat || t.n_slots / s.deep % 2 == 0), kNumber);
        NEED(t.kind != kRows || stage->kstep == stage->rstep, kNumber);
        NEED(c.reads_weights(t.weights, Wide(t.n_slots) * taps_of(t.kind) * t.channels) && c.reads_weights(t.bias, t.channels), kWeights);
        Span slots{}, out;
        NEED(!t.n_slots || c.shared_hull(t.slots, t.n_slots, &slots), kCut);
        NEED(c.hull(t.out, t.channels, &out), kCut);
        Span in = frames + slots + run(whole) + steps(band + (t.kind == kRows ? 2 : 0), stage->rstep);
        if (t.kind != kFlat) in = in + joined(joined(point(stage->dx[0]), point(stage->dx[1])), point(stage->dx[2]));
        NEED(!t.n_slots || c.owned(in), kOutside);
        NEED(c.owned(made + steps(t.channels, s.made_plane)), kOutside);
        NEED(c.inside(out + steps(out_rows, s.out_pitch) + run(s.out_width)), kOutside);
    }
    return nullptr;
}

// The extents are those of the loops in windows.cpp and windows.h.
template <class Check>
const char* check_window(Check& c, int64_t position) {
    const WindowStep* step = c.template records<WindowStep>(position, 1);
    NEED(step, kCut);
    const WindowStep& s = *step;
    NEED(c.kernels(s.lanes), kVectors);
    NEED(within(s.channels, 0, kMostSide) && within(s.largest, 0, 1) && within(s.right, 0, kMostSide), kNumber);
    for (int64_t side : {s.frames, s.height, s.width, s.out_frames, s.out_height, s.out_width, s.deep, s.high, s.wide, s.st, s.sy,
                         s.sx, s.dt, s.dy, s.dx})
        NEED(within(side, 1, kMostSide), kNumber);
    for (int64_t number : {s.pt, s.py, s.px}) NEED(within(number, 0, kMostSide), kNumber);
    const int64_t rows = s.frames * s.height, out_rows = s.out_frames * s.out_height;
    NEED(rows <= kMostMap && out_rows <= kMostMap, kNumber);
    if (!s.channels) return nullptr;
    Span in, out;
    NEED(c.hull(s.in, s.channels, &in) && c.hull(s.out, s.channels, &out), kCut);
    NEED(c.inside(out + steps(out_rows, s.out_pitch) + run(s.out_width)), kOutside);
    const int64_t made = up(s.out_width, s.lanes), width = up(s.width, s.lanes);
    const bool halved = halves(s.wide, s.sx, s.dx, s.px, s.out_width, s.width);
    NEED(c.inside(in + steps(rows, s.pitch) + run(halved && 2 * made > width ? 2 * made : width)), kOutside);
    NEED(c.owned(point(s.line) + Span{-s.px, Wide(width) + s.right}), kOutside);
    const Span columns = s.sx <= 2 ? run(s.sx * made) : run(Wide(s.out_width - 1) * s.sx + 1);
    NEED(c.owned(point(s.line - s.px) + steps(s.wide, s.dx) + columns), kOutside);
    NEED(s.largest || (c.reads_weights(s.across, made) && c.reads_weights(s.down, s.out_frames + s.out_height)), kWeights);
    return nullptr;
}

}  // namespace
}  // namespace leanconv
