// Steps on maps in blocks of sixteen channels: dense convolutions, windows, and how such maps come in and go out.
#include <cstring>

#include "run.h"

namespace leanconv {
namespace {

// Of the pixels of a tile, which weights of the next group come into the second cache.
struct Ahead {
    const char* from;
    int64_t bytes, tiles;
};

void run_group(const Run& r, const DenseStep& s, const DenseGroup& g, int64_t first, int64_t rows, Ahead ahead) {
    const Kernels& kernels = *kernels_of(int(s.lanes));
    const int step = (s.pixel >= kBlock ? 2 : 0) + (s.pixel == 2 || s.pixel == 2 * kBlock);
    const int64_t across = (s.width + s.wide - 1) / s.wide, panel = s.slots * kBlock;
    DenseArgs a{};
    a.runs = r.table(s.runs);
    a.n_runs = s.n_runs;
    a.channel = s.channel;
    a.in_row = s.in_row;
    a.panel = panel;
    a.out_row = s.out_row;
    a.residual_row = s.residual_row;
    set_bounds(r, s.bounds, &a);
    a.ahead_step = ahead.bytes / (ahead.tiles * (s.slots ? s.slots : 1));
    const int64_t each = s.width / across, wider = s.width % across, ahead_tile = ahead.bytes / ahead.tiles;
    a.ahead = ahead.from;
    for (int64_t y = first; y < first + rows;) {
        const int64_t high = s.high < first + rows - y ? s.high : first + rows - y;
        for (int64_t i = 0, from = 0, to = 0; i < across; ++i, from = to, a.ahead += ahead_tile) {
            to += each + (i < wider);
            // Blocks, rows and pixels one by one do it too, where a build has few tiles.
            const bool whole = kernels.dense_tile(step, g.blocks, int(high), int(to - from));
            const int64_t blocks = whole ? g.blocks : 1, now_high = whole ? high : 1, now_wide = whole ? to - from : 1;
            const DenseKernel kernel = kernels.dense_tile(step, blocks, int(now_high), int(now_wide));
            for (int64_t b = 0; b < g.blocks; b += blocks)
                for (int64_t row = y; row < y + high; row += now_high)
                    for (int64_t x = from; x < to; x += now_wide) {
                        a.in = r.arena + s.in + row * s.in_row + x * s.pixel;
                        a.weights = r.weights + g.weights + b * panel;
                        a.bias = r.weights + g.bias + b * kBlock;
                        a.half_row = row % 2 ? s.half_row : 0;  // of the second row
                        a.odd = x % 2 ? kBlock : 0;
                        for (int64_t k = 0; k < blocks; ++k) {
                            a.out[k] = r.arena + r.table(g.out)[b + k] + row * s.out_row + x * kBlock;
                            if (const float* from_whole = place(r, g.residual, b + k))
                                a.residual[k] = from_whole + row * s.residual_row + x * kBlock;
                            if (const float* from_half = place(r, g.half, b + k))
                                a.half[k] = from_half + row / 2 * s.half_row + x / 2 * kBlock;
                        }
                        kernel(a);
                    }
        }
        y += high;
    }
    if (s.activation == kNone) return;
    for (int64_t b = 0; b < g.blocks; ++b)
        for (int64_t y = first; y < first + rows; ++y)
            kernels.activate(int(s.activation), r.arena + r.table(g.out)[b] + y * s.out_row, int(s.width) * kBlock);
}

}  // namespace

// Several threads take groups of outputs, of bands that are cut smaller where there are few of those.
void run_dense(const Run& r, const DenseStep& s) {
    if (!s.groups) return;
    const DenseGroup* groups = &r.at<DenseGroup>(s.group);
    const int64_t across = (s.width + s.wide - 1) / s.wide;
    const int64_t wanted = r.helpers && s.macs >= 2 * r.helpers->least ? (2 * r.helpers->workers + s.groups - 1) / s.groups : 1;
    const int64_t most = ((s.rows + wanted - 1) / wanted + s.high - 1) / s.high * s.high, band = most < s.band ? most : s.band;
    share(r, (s.rows + band - 1) / band * s.groups, 1, s.macs, [&](const Run& mine, int64_t number, int64_t) {
        const int64_t y = number / s.groups * band, i = number % s.groups, rows = s.rows - y < band ? s.rows - y : band;
        const int64_t next = i + 1 < s.groups ? groups[i + 1].weights : y + rows < s.rows ? groups[0].weights : s.next;
        const int64_t bytes = s.slots * kBlock * groups[i].blocks * int64_t(sizeof(float));
        const Ahead ahead{reinterpret_cast<const char*>(r.weights + next), bytes, (rows + s.high - 1) / s.high * across};
        run_group(mine, s, groups[i], y, rows, ahead);
    });
}

// Row by row, so that the sixteen channels of its pixels are still in the first cache; four that stand together at once.
void run_gather(const Run& r, const GatherStep& s) {
    constexpr int64_t kTogether = 4;
    share(r, s.blocks, 1, s.macs, [&](const Run&, int64_t b, int64_t) {
        const ptrdiff_t* sources = r.table(s.sources) + b * kBlock;
        for (int64_t y = 0; y < s.rows; ++y)
            for (int64_t c = 0, count = 1; c < kBlock; c += count) {
                float* to = r.arena + r.table(s.out)[b] + y * s.out_row + c;
                const float* from = r.arena + sources[c] + y * s.in_row;
                for (count = 1; count < kTogether && c + count < kBlock && sources[c] >= 0 && sources[c + count] == sources[c] + count;) ++count;
                if (count == kTogether)
                    for (int64_t x = 0; x < s.width; ++x, to += kBlock, from += s.pixel) memcpy(to, from, kTogether * sizeof(float));
                else if (count = 1; sources[c] < 0)
                    for (int64_t x = 0; x < s.width; ++x, to += kBlock) *to = 0;
                else
                    for (int64_t x = 0; x < s.width; ++x, to += kBlock, from += s.pixel) *to = *from;
            }
    });
}

void run_blocks(const Run& r, const BlockStep& s) {
    const Kernels& kernels = *kernels_of(int(s.lanes));
    BlockArgs all{};
    all.in_row = s.in_row;
    all.columns = int(s.wide);
    all.stride = int(s.sx);
    all.pad = int(s.px);
    all.width = int(s.width);
    all.made = int(s.made_width);
    all.whole = s.whole ? int(s.high * s.wide) : 0;
    all.greatest = s.greatest;
    all.by_pixel = s.by_pixel;
    set_bounds(r, s.bounds, &all);
    share(r, s.blocks, 1, s.macs, [&](const Run&, int64_t b, int64_t) {
        for (int64_t y = 0; y < s.made_height; ++y) {
            const int64_t start = y * s.sy - s.py, from = start > 0 ? start : 0;
            const int64_t to = start + s.high < s.height ? start + s.high : s.height;
            BlockArgs a = all;
            a.rows = int(to > from ? to - from : 0);
            a.in = place(r, s.in, b);
            if (a.in && a.rows) a.in += from * s.in_row;
            a.out = r.arena + r.table(s.out)[b] + y * s.out_row;
            a.residual = place(r, s.residual, b);
            if (a.residual) a.residual += y * s.residual_row;
            a.half = place(r, s.half, b);
            if (a.half) a.half += y / 2 * s.half_row;
            a.by = place(r, s.by, b);
            if (a.by) a.by += y * s.by_row;
            kernels.block_row(a);
            if (s.activation != kNone) kernels.activate(int(s.activation), a.out, int(s.made_width) * kBlock);
        }
    });
}

// Channels that stand one behind another in the blocks move together, so that a pixel's line is touched once.
void move_blocks(const Run& r, const Kernels& kernels, const Port& port, float* image, bool in) {
    const ptrdiff_t* table = r.table(port.table);
    BlockMoved m{nullptr, nullptr, 0, port.height, port.width, port.pitch, port.height * port.width};
    if (m.pitch == m.width * kBlock) m.width *= m.height, m.height = 1;  // rows without anything between are one
    for (int64_t c = 0; c < port.channels; c += m.channels) {
        m.channels = 1;
        while (c + m.channels < port.channels && m.channels < kBlock && table[c + m.channels] == table[c] + m.channels) ++m.channels;
        m.map = r.arena + table[c];
        m.image = image + c * m.plane;
        (in ? kernels.into_block : kernels.out_of_block)(m);
    }
}

}  // namespace leanconv
