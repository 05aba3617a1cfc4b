// Convolutions over time: the tiles of maps, whose slots are of several frames, over copies with zeros around them.
#include <cstring>

#include "run.h"

namespace leanconv {
namespace {

int64_t bands_of(const ClipStep& s) { return (s.out_height + s.band - 1) / s.band; }

// One row of the map, or of zeros, to a row of the scratch.
void place(const Kernels& kernels, const ClipStep& s, const float* from, float* line, float* to) {
    if (!from) {
        memset(to, 0, size_t(s.scratch_pitch) * sizeof(float));
    } else if (s.sx == 1) {
        const int64_t left = s.count - s.before, width = s.width < left ? s.width : left;
        memset(to, 0, size_t(s.before) * sizeof(float));
        kernels.copy(from, 0, to + s.before, 0, 1, int(width));
        memset(to + s.before + width, 0, size_t(left - width) * sizeof(float));
    } else {
        kernels.copy(from, 0, line + s.before * s.sx, 0, 1, int(s.width));
        for (int64_t phase = 0; phase < s.sx; ++phase)
            if (s.wanted >> phase & 1) kernels.pick(line + phase, 0, to + phase * s.length, 0, 1, int(s.count), int(s.sx));
    }
}

// The rows of one frame that so many rows of results from `y` on need, of all channels of a group.
void place_frame(const Run& r, const Kernels& kernels, const ClipStep& s, const ClipGroup& group, int64_t frame, int64_t y,
                 int64_t rows) {
    const ptrdiff_t* in = r.table(group.table);
    const int64_t start = y * s.sy - s.py, count = (rows - 1) * s.sy + s.reach;
    for (int64_t c = 0; c < group.channels; ++c) {
        const float* from = r.arena + in[c] + frame * s.height * s.pitch;
        float* to = r.arena + r.own + s.scratch + frame * s.frame + c * s.plane;
        for (int64_t row = start; row < start + count; ++row, to += s.scratch_pitch)
            place(kernels, s, row < 0 || row >= s.height ? nullptr : from + row * s.pitch, r.arena + r.own + s.line, to);
    }
}

// The tiles of a group, over `rows` rows of results of one frame; `a` says where they read.
void run_tiles(const Run& r, const Kernels& kernels, const ClipStep& s, const Stage& stage, const Tile* tiles, int64_t count,
               const Taps& frames, Args a, int64_t out_row, int rows) {
    const int lanes = int(stage.lanes), width = int(s.out_width), whole = (width + lanes - 1) / lanes * lanes;
    // Rows of whole vectors are written to where they belong, others beside the copies; of sixteen it was not measured.
    const bool there = whole == width && lanes < 16;
    ptrdiff_t places[kMaxChannels];
    for (int c = 0; c < kMaxChannels; ++c) places[c] = c * s.made_plane;
    a.out = there ? r.arena + out_row * s.out_pitch : r.arena + r.own + s.made;
    a.opitch = there ? s.out_pitch : s.made_pitch;
    for (const Tile* t = tiles; t < tiles + count; ++t) {
        const int64_t each = t->n_slots / s.deep;
        a.slots = r.table(t->slots);  // those of later frames are as far apart
        a.n_slots = each * frames.count;
        a.weights = r.weights + t->weights + frames.skipped * each * taps_of(t->kind) * t->channels;
        a.bias = r.weights + t->bias;
        const ptrdiff_t* out = r.table(t->out);
        a.out_channel = there ? out : places;
        const int vectors = kernels.tile(t->kind, 0, t->channels, 1, int(t->vectors)) ? int(t->vectors) : 1;
        const int across = lanes * vectors;
        a.from = 0;
        a.to = whole / across * across;
        if (a.to) run_tile(kernels, *t, a, rows, vectors);
        a.from = a.to;
        a.to = whole;
        if (a.from < a.to) run_tile(kernels, *t, a, rows, 1);
        for (int64_t c = 0; c < t->channels; ++c) {
            float* made = a.out + a.out_channel[c];
            if (stage.activation != kNone)
                for (int y = 0; y < rows; ++y) kernels.activate(int(stage.activation), made + y * a.opitch, width);
            if (!there) kernels.copy(made, s.made_pitch, r.arena + out[c] + out_row * s.out_pitch, s.out_pitch, rows, width);
        }
    }
}

// Bands from one to another of all groups, one group behind the other.
void convolve(const Run& r, const ClipStep& s, int64_t unit, int64_t end) {
    const Stage& stage = *reinterpret_cast<const Stage*>(&s + 1);
    const Kernels& kernels = *kernels_of(int(stage.lanes));
    const Tile* tiles = &r.at<Tile>(stage.tile);
    const int64_t line = s.before * s.sx + s.width, sorted = s.count * s.sx, bands = bands_of(s);
    if (s.sx > 1) memset(r.arena + r.own + s.line, 0, size_t(line > sorted ? line : sorted) * sizeof(float));
    if (s.zeros >= 0)
        for (int64_t t = 0; t < s.frames; ++t)
            memset(r.arena + r.own + s.scratch + t * s.frame + s.zeros, 0, size_t(s.plane) * sizeof(float));
    Args a{};
    a.rstep = stage.rstep;
    a.kstep = stage.kstep;
    for (int i = 0; i < 3; ++i) a.dx[i] = stage.dx[i];
    a.opitch = s.made_pitch;
    set_bounds(r, stage.bounds, &a);
    int64_t first = 0, group = 0;  // a group begins where a tile has a ClipGroup
    for (int64_t next; first < stage.tiles && group * bands < end; first = next, ++group) {
        for (next = first + 1; next < stage.tiles && tiles[next].sorting < 0;) ++next;
        const ClipGroup none{0, 0}, &read = tiles[first].sorting < 0 ? none : r.at<ClipGroup>(tiles[first].sorting);
        const int64_t from = unit > group * bands ? unit - group * bands : 0;
        const int64_t to = end < (group + 1) * bands ? end - group * bands : bands;
        for (int64_t band = from; band < to; ++band) {
            const int64_t y = band * s.band, rows = s.out_height - y < s.band ? s.out_height - y : s.band;
            for (int64_t t = 0, there = 0; t < s.out_frames; ++t) {
                const Taps frames = on_map(t * s.st - s.pt, s.dt, s.deep, s.frames);
                if (frames.count)
                    for (const int64_t last = frames.first + (frames.count - 1) * s.dt; there <= last; ++there)
                        place_frame(r, kernels, s, read, there, y, rows);
                a.in = r.arena + r.own + s.scratch + frames.first * s.frame;
                run_tiles(r, kernels, s, stage, tiles + first, next - first, frames, a, t * s.out_height + y, int(rows));
            }
        }
    }
}

}  // namespace

void run_clip(const Run& r, const ClipStep& s) {
    const Stage& stage = *reinterpret_cast<const Stage*>(&s + 1);
    if (!stage.tiles) return;  // and nothing else of such a step is checked
    const Tile* tiles = &r.at<Tile>(stage.tile);
    int64_t groups = 0, products = 0;
    for (int64_t i = 0; i < stage.tiles; ++i) {
        groups += i == 0 || tiles[i].sorting >= 0;
        products += tiles[i].n_slots * tiles[i].channels * taps_of(tiles[i].kind);
    }
    const int64_t macs = product(products, s.out_frames, s.out_height, s.out_width), units = groups * bands_of(s);
    share(r, units, piece_of(r, units, units, 1, macs), macs,
          [&](const Run& mine, int64_t first, int64_t count) { convolve(mine, s, first, first + count); });
}

}  // namespace leanconv
