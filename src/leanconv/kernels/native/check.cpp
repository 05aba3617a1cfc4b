// What a plan that somebody sent may touch: everything a run of it would read or write is worked out before it is run.
//
// A plan that leanconv wrote uses each of its numbers once, but for tables that neighbouring tiles share, so no more than its
// length is looked at, and the check takes no longer. A plan that passes may still compute nonsense, or long; it stays within the arena, the weights, and the arrays of
// its ports.
#include <initializer_list>

#include "kernels.h"
#include "leanconv_kernels.h"
#include "run.h"

namespace leanconv {
namespace {

typedef __int128 Wide;  // no sum or product of the numbers that are let through overflows it

// Numbers from `low` to `high`, both included.
struct Span {
    Wide low, high;
};
Span operator+(Span a, Span b) { return {a.low + b.low, a.high + b.high}; }
Span point(Wide at) { return {at, at}; }
Span run(Wide count) { return {0, count - 1}; }
Span steps(Wide count, Wide step) { return step < 0 ? Span{(count - 1) * step, 0} : Span{0, (count - 1) * step}; }
Span joined(Span a, Span b) { return {a.low < b.low ? a.low : b.low, a.high > b.high ? a.high : b.high}; }
int64_t up(int64_t number, int64_t step) { return (number + step - 1) / step * step; }

constexpr int64_t kMostField = int64_t(1) << 34, kMostSide = 1 << 24, kMostFloats = int64_t(1) << 32, kMostPhases = 30, kMostMap = 1 << 30;

bool within(int64_t number, int64_t least, int64_t most) { return least <= number && number <= most; }

#define NEED(condition, sentence) \
    if (!(condition)) return sentence
#define PASS(call) \
    if (const char* passed = call) return passed

constexpr const char *kCut = "it is cut off, or refers to itself", *kNumber = "a number in it is out of range",
                     *kOutside = "a step would read or write outside of its memory",
                     *kVectors = "it needs vectors that this machine, or this build, does not have",
                     *kWeights = "a step would read behind its weights", *kKind = "it has a step of an unknown kind";

// Rows that are computed at once, from `first` on.
struct Band {
    int64_t first, rows;
};
constexpr int kBands = 4;

}  // namespace
}  // namespace leanconv

#include "check_blocks.h"
#include "check_clips.h"

namespace leanconv {
namespace {

class Check {
public:
    Check(const int64_t* plan, int64_t numbers) : plan_(plan), numbers_(numbers), unused_(numbers) {}

    int64_t weights = 0;  // the floats that are read

    const char* all() {
        const int64_t size = sizeof(Plan) / 8;
        NEED(numbers_ >= size, kCut);
        const Plan* plan = reinterpret_cast<const Plan*>(plan_);
        unused_ -= size;
        NEED(plan->version == LEANCONV_PLAN_VERSION, "it was written by another version of leanconv");
        NEED(plan->stamp > 0 && within(plan->floats, kStampFloats, kMostFloats), kNumber);
        NEED(within(plan->inputs, 1, LEANCONV_MOST_PORTS) && within(plan->outputs, 1, LEANCONV_MOST_PORTS), kNumber);
        NEED(kernels(plan->lanes), kVectors);
        NEED(plan->sums == 0, kKind);  // programs of gradients are made where they run
        floats_ = plan->floats;
        own_ = plan->own;
        NEED(within(own_, kStampFloats, floats_), kOutside);
        const int64_t ports = plan->inputs + plan->outputs;
        int64_t at = size;
        const Port* port = records<Port>(at, ports);
        NEED(port, kCut);
        for (int64_t i = 0; i < ports; ++i) PASS(check(port[i]));
        at += ports * int64_t(sizeof(Port) / 8);
        const int64_t* step = records<int64_t>(at, plan->steps);
        NEED(step || !plan->steps, kCut);
        for (int64_t i = 0; i < plan->steps; ++i) PASS(check_step(step[i]));
        return nullptr;
    }

    // `count` records at a position; null where they are not there, hold a number that is too large, or would be more than
    // the plan is long, together with all before.
    template <class T>
    const T* records(int64_t position, int64_t count) {
        constexpr int64_t size = sizeof(T) / 8;
        if (!within(count, 1, unused_ / size) || !within(position, 0, numbers_ - count * size)) return nullptr;
        unused_ -= count * size;
        for (int64_t i = position; i < position + count * size; ++i)
            if (!within(plan_[i], -kMostField, kMostField)) return nullptr;
        return reinterpret_cast<const T*>(plan_ + position);
    }

    // The least and the greatest of a table.
    bool hull(int64_t position, int64_t count, Span* found) {
        const int64_t* table = records<int64_t>(position, count);
        if (!table) return false;
        *found = point(table[0]);
        for (int64_t i = 1; i < count; ++i) *found = joined(*found, point(table[i]));
        return true;
    }

    // The same of a table by which neighbouring tiles may read: it is looked at once.
    bool shared_hull(int64_t position, int64_t count, Span* found) {
        if (position != table_ || count != table_count_) {
            if (!hull(position, count, &table_hull_)) return false;
            table_ = position;
            table_count_ = count;
        }
        *found = table_hull_;
        return true;
    }

    bool inside(Span floats) const { return floats.low >= 0 && floats.high < floats_; }
    // What is each thread's own, which stands elsewhere for others than the first.
    bool owned(Span floats) const { return floats.low >= kStampFloats && floats.high < own_; }
    bool inside(Span floats, bool own) const { return own ? owned(floats) : inside(floats); }

    bool reads_weights(int64_t from, Wide count) {
        if (from < 0 || count > kMostField) return false;
        const int64_t end = from + int64_t(count);
        if (end > weights) weights = end;
        return true;
    }

    static const Kernels* kernels(int64_t lanes) {
        return lanes == 16 || lanes == 8 || lanes == 4 ? kernels_of(int(lanes)) : nullptr;
    }

private:
    const char* check(const Port& port) {
        NEED(within(port.channels, 1, kMostSide) && within(port.height, 1, kMostSide) && within(port.width, 1, kMostSide) &&
                 port.height * port.width <= kMostMap,
             kNumber);
        Span origins;
        NEED(hull(port.table, port.channels, &origins), kCut);
        NEED(port.pixel == 1 || port.pixel == kBlock, kNumber);
        NEED(inside(origins + steps(port.height, port.pitch) + steps(port.width, port.pixel)), kOutside);
        return nullptr;
    }

    const char* check_step(int64_t position) {
        NEED(within(position, 0, numbers_ - 1), kCut);
        if (plan_[position] == kConvStep) return check_conv(position);
        if (plan_[position] == kVolumeStep) return check_volume(*this, position);
        if (plan_[position] == kDenseStep) return check_dense(*this, position);
        if (plan_[position] == kWinogradStep) return check_winograd(*this, position);
        if (plan_[position] == kDepthwiseStep) return check_depthwise(*this, position);
        if (plan_[position] == kGatherStep) return check_gather(*this, position);
        if (plan_[position] == kProductStep) return check_product(*this, position);
        if (plan_[position] == kRepeatStep) return check_repeat(*this, position);
        if (plan_[position] == kBlockStep) return check_pixels(*this, position);
        if (plan_[position] == kWindowStep) return check_window(*this, position);
        if (plan_[position] == kClipStep) return check_clip(*this, position);
        NEED(plan_[position] == kPoolStep, kKind);
        const PoolStep* step = records<PoolStep>(position, 1);
        NEED(step, kCut);
        NEED(kernels(step->lanes), kVectors);
        NEED(within(step->channels, 0, kMostSide) && within(step->height, 1, kMostSide) && within(step->width, 1, kMostSide),
             kNumber);
        if (!step->channels) return nullptr;
        Span in, out;
        NEED(hull(step->in, step->channels, &in) && hull(step->out, step->channels, &out), kCut);
        in = in + steps(step->height, step->pitch) + run(up(step->width, step->lanes));
        NEED(inside(in) && inside(out), kOutside);
        return nullptr;
    }

    const char* check_conv(int64_t position) {
        const ConvStep* step = records<ConvStep>(position, 1);
        NEED(step, kCut);
        NEED(within(step->rows, 1, kMostSide) && within(step->width, 1, kMostSide) && within(step->band, 1, kMostSide) &&
                 within(step->flat, 0, kMostSide) && within(step->stages, 1, 2),
             kNumber);
        NEED(within(step->grain, 1, kMostSide) && step->macs >= 0, kNumber);
        // Rows are computed in pieces of any size up to a band, which begin at multiples of the grain. Everything is linear
        // in where they begin and how many they are: of those of a whole band the first and the last, and of those that end
        // with the map the longest and the shortest.
        const int64_t band = step->band < step->rows ? step->band : step->rows, grain = step->grain;
        NEED(band * step->flat <= kMostMap, kNumber);
        NEED(band == step->rows || band % grain == 0, kNumber);
        const int64_t last = (step->rows - 1) / grain * grain, whole = (step->rows - band) / grain * grain,
                      longest = up(step->rows - band, grain);
        const Band bands[kBands] = {{0, band}, {whole, band}, {longest, step->rows - longest}, {last, step->rows - last}};
        const Stage* stages = records<Stage>(position + int64_t(sizeof(ConvStep) / 8), step->stages);
        NEED(stages, kCut);
        for (int64_t i = 0; i < step->stages; ++i) {
            const Stage& s = stages[i];
            NEED(kernels(s.lanes), kVectors);
            NEED(within(s.activation, kNone, kHardsigmoid) && within(s.own, 0, kOwnIn | kOwnOut), kNumber);
            // The last vector of a piece must not reach into the next one.
            NEED(!step->flat || step->rows <= grain || grain * step->flat % s.lanes == 0, kNumber);
            NEED(reads_weights(s.bounds, 2), kWeights);
            if (!s.tiles) continue;
            const Tile* tiles = records<Tile>(s.tile, s.tiles);
            NEED(tiles, kCut);
            for (int64_t k = 0; k < s.tiles; ++k) {
                if (tiles[k].sorting >= 0) {
                    const Sorting* sorting = records<Sorting>(tiles[k].sorting, 1);
                    NEED(sorting, kCut);
                    PASS(check(*sorting, bands));
                }
                PASS(check(*step, s, tiles[k], bands));
            }
        }
        return nullptr;
    }

    // The extents are those of the loops in run.cpp and tiles.h.
    const char* check(const ConvStep& step, const Stage& s, const Tile& t, const Band (&bands)[kBands]) {
        NEED(within(t.kind, kFlat, kTwoRows) && within(t.masked, 0, 1) && within(t.channels, 1, kMaxChannels) &&
                 within(t.rows, 1, kMaxRows) && (t.vectors == 1 || t.vectors == 2 || t.vectors == 4 || t.vectors == 8),
             kNumber);
        NEED(kernels(s.lanes)->tile(t.kind, t.masked, t.channels, 1, 1), "it needs a tile that this build does not have");
        NEED(t.n_slots >= 0 && (t.kind != kFlat || t.n_slots % 2 == 0), kNumber);
        NEED(t.kind != kTwoRows || (step.flat && 2 * s.kstep == s.lanes), kNumber);
        NEED(t.kind != kRows || s.kstep == s.rstep, kNumber);
        NEED(reads_weights(t.weights, Wide(t.n_slots) * taps_of(t.kind) * t.channels), kWeights);
        NEED(reads_weights(t.bias, t.channels), kWeights);
        Span slots{}, out, residual{};
        NEED(!t.n_slots || shared_hull(t.slots, t.n_slots, &slots), kCut);
        NEED(hull(t.out, t.channels, &out), kCut);
        NEED(t.residual < 0 || hull(t.residual, t.channels, &residual), kCut);
        const Span across = joined(joined(point(s.dx[0]), point(s.dx[1])), point(s.dx[2]));
        for (const Band& band : bands) {
            const int64_t rows = step.flat ? 1 : band.rows, width = step.flat ? band.rows * step.flat : step.width;
            const int64_t whole = up(width, s.lanes);
            Span in = point(s.in + Wide(band.first) * s.in_row) + slots;
            if (t.kind != kFlat) in = in + across;
            if (t.kind == kTwoRows) in = in + run(s.lanes) + steps(2 * (whole / s.lanes) + 1, s.kstep);
            else in = in + run(whole) + steps(rows + (t.kind == kRows ? 2 : 0), s.rstep);
            const Span to = point(s.out + Wide(band.first) * s.out_row) + steps(rows, s.opitch) + run(whole);
            NEED((!t.n_slots || inside(in, s.own & kOwnIn)) && inside(to + out, s.own & kOwnOut), kOutside);
            NEED(t.residual < 0 || inside(to + residual, s.own & kOwnOut), kOutside);
        }
        return nullptr;
    }

    const char* check(const Sorting& s, const Band (&bands)[kBands]) {
        NEED(kernels(s.lanes), kVectors);
        NEED(within(s.stride, 1, kMostPhases) && within(s.wanted, 0, (1 << kMostPhases) - 1) && within(s.flat, 0, 1) &&
                 within(s.count, 0, kMostSide) && within(s.before, -kMostSide, kMostSide) && s.channels >= 0 && s.parts >= 0,
             kNumber);
        if (!s.channels || !s.parts) return nullptr;
        Span origins;
        NEED(hull(s.table, s.channels, &origins), kCut);
        const SortedRows* parts = records<SortedRows>(s.part, s.parts);
        NEED(parts, kCut);
        for (int64_t i = 0; i < s.parts; ++i) {
            const SortedRows& p = parts[i];
            NEED(within(p.times, 0, kMostSide) && within(p.more, -kMostSide, kMostSide), kNumber);
            NEED(!s.flat || (within(p.pitch, 1, s.lanes) && within(p.first, 0, kMostSide) && within(p.last, 0, kMostSide)),
                 kNumber);
            for (const Band& band : bands) {
                const Wide count = Wide(band.rows) * p.times + p.more;
                NEED(count <= kMostSide, kNumber);
                if (count <= 0) continue;
                const Span from = origins + point(Wide(band.first) * s.in_row + p.from);
                const Span to = point(Wide(s.to) + p.to) + steps(s.channels, s.plane);
                PASS(s.flat ? check_flattened(s, p, int64_t(count), from, to)
                            : check_split(s, from + steps(count, p.step), to + steps(count, p.pitch)));
            }
        }
        return nullptr;
    }

    const char* check_flattened(const Sorting& s, const SortedRows& p, int64_t count, Span from, Span to) const {
        if (s.stride == 1 && p.step == p.pitch) {
            const Span all = run(up(count * p.pitch, s.lanes));
            NEED(inside(from + all) && owned(to + all), kOutside);
        } else if (s.stride == 2 && 2 * p.pitch == s.lanes) {
            NEED(inside(from + steps(count, p.step) + run(s.lanes)) && owned(to + run(up(count, 2) / 2 * s.lanes)), kOutside);
        } else {
            const int64_t last = p.last < p.pitch ? p.last : p.pitch;
            const Span columns{Wide(p.first) * s.stride, Wide(last - 1) * s.stride};
            NEED(p.first >= last || inside(from + steps(count, p.step) + columns), kOutside);
            NEED(owned(to + steps(count, p.pitch) + run(p.pitch)), kOutside);
        }
        return nullptr;
    }

    const char* check_split(const Sorting& s, Span from, Span to) const {
        for (int64_t phase = 0; phase < s.stride; ++phase) {
            const bool wanted = s.wanted >> phase & 1;
            const Span there = to + point(Wide(phase) * s.length);
            if (s.stride == 2) {  // by vectors, and both phases of what is before them
                const int64_t whole = up(s.count, s.lanes);
                if (s.before > 0)
                    NEED(inside(from + Span{-2 * s.before, -1}) && owned(there + Span{-s.before, -1}), kOutside);
                if (s.count > 0) NEED(inside(from + run(2 * whole)) && (!wanted || owned(there + run(whole))), kOutside);
            } else if (wanted && -s.before < s.count) {
                const Span columns{-s.before, s.count - 1};
                NEED(inside(from + Span{columns.low * s.stride + phase, columns.high * s.stride + phase}), kOutside);
                NEED(owned(there + columns), kOutside);
            }
        }
        return nullptr;
    }

    const int64_t* plan_;
    int64_t numbers_, unused_, floats_ = 0, own_ = 0;
    int64_t table_ = -1, table_count_ = 0;
    Span table_hull_{};
};

}  // namespace
}  // namespace leanconv

extern "C" const char* leanconv_check(const int64_t* plan, int64_t numbers, int64_t* weights) {
    leanconv::Check check(plan, numbers);
    const char* problem = check.all();
    *weights = check.weights;
    return problem;
}
