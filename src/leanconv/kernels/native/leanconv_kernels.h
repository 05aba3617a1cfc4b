// The C interface of the library that runs programs of grouped convolutions. Plans are made by leanconv/kernels/pack.py.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LEANCONV_PLAN_VERSION 7
#define LEANCONV_MOST_PORTS 64  // inputs, and outputs, of a plan that is checked
#define LEANCONV_API __attribute__((visibility("default")))

// Which sources this library was built from.
LEANCONV_API const char* leanconv_sources(void);

// 1 where this machine runs kernels of `lanes` floats (16: AVX-512, 8: AVX2 with FMA, 4: NEON or SSE2), 0 where not.
LEANCONV_API int leanconv_runs(int lanes);

// Run `images` images through a plan. `plan` is 64-bit integers, `weights` the floats it speaks of; `inputs` and
// `outputs` have one contiguous array of (images, channels, height, width) for each input and output. `arena` is memory
// of as many floats as the plan asks for, on 64 bytes, one for each thread that runs at the same time; its contents
// belong to the library, between the calls too. Of a plan that sums gradients of weights `outputs` has one array more, of
// one float for each sum, over all `images`. Nothing is allocated, and nothing is kept anywhere else. The lanes of
// the plan must be ones that this machine runs. Returns 0, or 1 for a plan of another version, which is not run.
LEANCONV_API int leanconv_run(const int64_t* plan, const float* weights, float* arena, const float* const* inputs,
                 float* const* outputs, int64_t images);

// The same by several threads, each with an arena of its own: every image is taken by one of them. `next`, a number that all
// are given, which is 0 before the first begins, tells which are taken. Not for plans that sum gradients.
LEANCONV_API int leanconv_run_next(const int64_t* plan, const float* weights, float* arena, const float* const* inputs,
                      float* const* outputs, int64_t images, int64_t* next);

// The same by `workers` threads that share each image, the steps of which are cut into pieces. One thread calls this, up to
// workers - 1 others call leanconv_help, each with a number from 1 to workers - 1 of its own: they return when this one
// calls leanconv_release, and those that come late or never are not waited for. Pieces have `least` multiply-adds or more.
// `team` is LEANCONV_TEAM_BYTES bytes of zeros on 64 bytes, for one run; the arena has leanconv_floats floats.
#define LEANCONV_TEAM_BYTES 256
LEANCONV_API int leanconv_run_together(const int64_t* plan, const float* weights, float* arena, const float* const* inputs,
                      float* const* outputs, int64_t images, void* team, int workers, int64_t least);
LEANCONV_API void leanconv_help(void* team, int worker);
LEANCONV_API void leanconv_release(void* team);
LEANCONV_API int64_t leanconv_floats(const int64_t* plan, int workers);

// Whether a plan of `numbers` integers that somebody sent can be run: null where a run stays within the arena, the inputs
// and outputs of its sizes, and the first `*weights` floats of its weights, on this machine; else what is wrong with it.
LEANCONV_API const char* leanconv_check(const int64_t* plan, int64_t numbers, int64_t* weights);

// Compute `rounds` rounds of multiply-adds that nothing holds up, with vectors of `lanes`, for measuring what the core
// reaches at most; the number of floating-point operations, a multiply-add being two, or 0 where there are no such vectors.
LEANCONV_API int64_t leanconv_peak(int lanes, int64_t rounds);

// Run the steps once more on what a run has left in the arena, and write down the nanoseconds of each, by the clock of
// the thread.
LEANCONV_API void leanconv_time(const int64_t* plan, const float* weights, float* arena, int64_t* nanoseconds);

#ifdef __cplusplus
}
#endif
