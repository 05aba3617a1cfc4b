// Runs plans from a file, for machines that are emulated: test_neon.py writes the file and reads what comes out.
//
// 64-bit integers: plans; then of each the lengths of plan, weights and arena, images, inputs, outputs, floats of each input
// and output; the plan; then as 32-bit floats the weights and the inputs. The outputs are written one behind the other. Of a
// plan that sums gradients the sums are the last output; such a plan is never received, and not checked.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "leanconv_kernels.h"

static void* take(FILE* file, size_t size, int64_t count) {
    void* memory = aligned_alloc(64, (size * size_t(count) / 64 + 2) * 64);
    if (fread(memory, size, size_t(count), file) != size_t(count)) exit(3);
    return memory;
}

int main(int, char** names) {
    FILE *in = fopen(names[1], "rb"), *out = fopen(names[2], "wb");
    if (!in || !out || !leanconv_runs(4)) return 2;
    const int64_t plans = *static_cast<int64_t*>(take(in, 8, 1));
    for (int64_t i = 0; i < plans; ++i) {
        const int64_t* head = static_cast<int64_t*>(take(in, 8, 6));
        const int64_t* sizes = static_cast<int64_t*>(take(in, 8, head[4] + head[5]));
        const int64_t* plan = static_cast<int64_t*>(take(in, 8, head[0]));
        const float* weights = static_cast<float*>(take(in, 4, head[1]));
        int64_t read = 0;
        if (!plan[7] && (leanconv_check(plan, head[0], &read) || read > head[1])) return 7;
        float* arena = static_cast<float*>(aligned_alloc(64, (size_t(head[2]) / 16 + 2) * 64));
        memset(arena, 0, 64);
        const float* inputs[8];
        float* outputs[8];
        if (head[4] > 8 || head[5] > 8) return 4;
        for (int64_t k = 0; k < head[4]; ++k) inputs[k] = static_cast<float*>(take(in, 4, sizes[k]));
        for (int64_t k = 0; k < head[5]; ++k) outputs[k] = static_cast<float*>(malloc(size_t(sizes[head[4] + k]) * 4));
        if (leanconv_run(plan, weights, arena, inputs, outputs, head[3])) return 5;
        for (int64_t k = 0; k < head[5]; ++k)
            if (fwrite(outputs[k], 4, size_t(sizes[head[4] + k]), out) != size_t(sizes[head[4] + k])) return 6;
    }
    return fclose(out);
}
