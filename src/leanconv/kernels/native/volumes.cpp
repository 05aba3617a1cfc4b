// Channelwise convolutions over time: one filter for each channel, frame by frame while what it reads is in the cache.
#include <cstring>

#include "run.h"

namespace leanconv {
namespace {

void pass(const Kernels& kernels, const VolumeStep& s, const float* from, float* to) {
    for (int64_t t = 0; t < s.out_frames; ++t)
        kernels.pick(from + t * s.st * s.height * s.pitch, s.sy * s.pitch, to + t * s.out_height * s.out_pitch, s.out_pitch,
                     int(s.out_height), int(s.out_width), int(s.sx));
}

void filter(const Run& r, const VolumeStep& s, int64_t begin, int64_t end) {
    const Kernels& kernels = *kernels_of(int(s.lanes));
    const ptrdiff_t *in = r.table(s.in), *out = r.table(s.out);
    const int64_t pitch = s.scratch_pitch, frame = (s.height + 2 * s.py) * pitch, columns = (s.out_width - 1) * s.sx + 1;
    float *before = r.arena + s.scratch + r.own, *scratch = before + s.left, *made = r.arena + s.made + r.own;
    memset(before, 0, size_t(s.left) * sizeof(float));
    for (int64_t t = 0; t < s.frames; ++t) {  // the rows of zeros above and below
        memset(scratch + t * frame, 0, size_t(s.py * pitch) * sizeof(float));
        memset(scratch + t * frame + (s.py + s.height) * pitch, 0, size_t(s.py * pitch) * sizeof(float));
    }
    // A vector serves three rows of outputs where those are neighbours in the input too.
    const bool shares = s.high == 3 && s.sy == 1 && s.dy == 1;
    const int64_t each = shares ? 1 : s.high;  // slots of a frame
    ptrdiff_t slots[kMostFilterRows];
    for (int64_t k = 0; k < s.deep; ++k)
        for (int64_t y = 0; y < each; ++y) slots[k * each + y] = k * s.dt * frame + y * s.dy * pitch;
    Tile tile{};
    tile.kind = shares ? kRows : kThree;
    tile.channels = 1;
    tile.rows = s.rows;
    const ptrdiff_t place = 0;
    Args a{};
    a.slots = slots;
    a.rstep = s.sy * pitch;
    a.kstep = pitch;
    for (int i = 0; i < 3; ++i) a.dx[i] = i * s.dx - s.px;
    a.out_channel = &place;
    set_bounds(r, s.bounds, &a);
    // Rows of whole vectors are written to where they belong; of sixteen it was not measured.
    const bool whole = s.sx == 1 && s.out_width % s.lanes == 0 && s.lanes < 16;
    a.opitch = whole ? s.out_pitch : s.made_pitch;
    a.to = int((columns + s.lanes - 1) / s.lanes * s.lanes);
    for (int64_t c = begin; c < end; ++c) {
        const float* weights = r.weights + s.weights + c * s.deep * s.high * 3;
        a.bias = r.weights + s.bias + c;
        for (int64_t t = 0, there = 0; t < s.out_frames; ++t) {
            const Taps frames = on_map(t * s.st - s.pt, s.dt, s.deep, s.frames);
            if (frames.count)
                for (; there <= frames.first + (frames.count - 1) * s.dt; ++there)
                    kernels.surround(r.arena + in[c] + there * s.height * s.pitch, s.pitch, scratch + there * frame + s.py * pitch, pitch,
                                     int(s.height), int(s.width));
            a.in = scratch + frames.first * frame;
            a.n_slots = frames.count * each;
            a.weights = weights + frames.skipped * s.high * 3;
            float* to = r.arena + out[c] + t * s.out_height * s.out_pitch;
            a.out = whole ? to : made;
            run_tile(kernels, tile, a, int(s.out_height), 1);
            if (s.activation != kNone)
                for (int64_t y = 0; y < s.out_height; ++y) kernels.activate(int(s.activation), a.out + y * a.opitch, int(columns));
            if (!whole)
                kernels.pick(made, s.made_pitch, to, s.out_pitch, int(s.out_height), int(s.out_width), int(s.sx));
        }
    }
}

}  // namespace

void run_volume(const Run& r, const VolumeStep& s) {
    if (!s.channels) return;  // and nothing else of such a step is checked
    if (!s.taps) {
        const Kernels& kernels = *kernels_of(int(s.lanes));
        const ptrdiff_t *in = r.table(s.in), *out = r.table(s.out);
        for (int64_t c = 0; c < s.channels; ++c) pass(kernels, s, r.arena + in[c], r.arena + out[c]);
        return;
    }
    const int64_t macs = product(s.channels, s.deep, s.high, s.taps, s.out_frames, s.out_height, s.out_width);
    share(r, s.channels, piece_of(r, s.channels, s.channels, 1, macs), macs,
          [&](const Run& mine, int64_t first, int64_t channels) { filter(mine, s, first, first + channels); });
}

}  // namespace leanconv
