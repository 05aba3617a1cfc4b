// One vector of floats, in the compiler's own vector types, so that every instruction set reads the same source.
//
// LEANCONV_LANES is 16 (AVX-512), 8 (AVX2) or 4 (NEON, SSE2). No function of the standard library is used in what is
// compiled for an instruction set: the linker could otherwise take that copy for machines that lack it.
#pragma once

#include <cstddef>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#define INLINE __attribute__((always_inline))

constexpr int kLanes = LEANCONV_LANES;
#if LEANCONV_LANES == 16 || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

typedef float Reg __attribute__((vector_size(LEANCONV_LANES * 4)));
typedef int32_t Int __attribute__((vector_size(LEANCONV_LANES * 4)));
typedef float Quad __attribute__((vector_size(16)));
typedef float LooseQuad __attribute__((vector_size(16), aligned(4), may_alias));
typedef float Loose __attribute__((vector_size(LEANCONV_LANES * 4), aligned(4), may_alias));

INLINE inline Reg load(const float* at) { return *reinterpret_cast<const Loose*>(at); }
INLINE inline void store(float* at, Reg v) { *reinterpret_cast<Loose*>(at) = v; }
INLINE inline Reg all(float x) { return x - Reg{}; }

// The second operand where one of the two is no number, so that a NaN passes a ReLU as it does in torch. One instruction on
// x86, spelled out: gcc makes a comparison and a choice of it.
#if LEANCONV_LANES == 16 && defined(__AVX512F__)
INLINE inline Reg at_least(Reg low, Reg v) { return _mm512_max_ps(low, v); }
INLINE inline Reg at_most(Reg high, Reg v) { return _mm512_min_ps(high, v); }
#elif LEANCONV_LANES == 8 && defined(__AVX__)
INLINE inline Reg at_least(Reg low, Reg v) { return _mm256_max_ps(low, v); }
INLINE inline Reg at_most(Reg high, Reg v) { return _mm256_min_ps(high, v); }
#elif LEANCONV_LANES == 4 && defined(__SSE__)
INLINE inline Reg at_least(Reg low, Reg v) { return _mm_max_ps(low, v); }
INLINE inline Reg at_most(Reg high, Reg v) { return _mm_min_ps(high, v); }
#else
INLINE inline Reg at_least(Reg low, Reg v) { return low > v ? low : v; }
INLINE inline Reg at_most(Reg high, Reg v) { return high < v ? high : v; }
#endif

// sum += v * w, spelled out. Left to itself gcc makes the pixels a memory operand of every FMA that uses them (a tile of
// 4 x 3 then loads 15 times for 12 FMAs: the load ports set the time), and rotates and spills accumulators in full tiles.
INLINE inline void fma(Reg& sum, Reg v, Reg w) {
#if LEANCONV_LANES == 16 && defined(__AVX512F__)
    asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(v), "v"(w));
#elif LEANCONV_LANES == 8 && defined(__FMA__)
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(v), "x"(w));
#else
    sum += v * w;
#endif
}

// All bits in the first n lanes, none in the others. Lanes are cut off by bits: zero times infinity would be no number.
INLINE inline Int first_lanes(int n) {
    Int mask;
    for (int i = 0; i < kLanes; ++i) mask[i] = i < n ? -1 : 0;
    return mask;
}
INLINE inline Reg keep(Reg v, Int mask) { return reinterpret_cast<Reg>(reinterpret_cast<Int>(v) & mask); }

// The lanes in which a tap is taken, from bits; zeros in the others.
#if LEANCONV_LANES == 16 && defined(__AVX512F__)
typedef __mmask16 Mask;
INLINE inline Mask mask_of(ptrdiff_t bits) { return Mask(bits); }
INLINE inline Reg load(const float* at, Mask mask) { return _mm512_maskz_loadu_ps(mask, at); }
#else
typedef Int Mask;
INLINE inline Mask mask_of(ptrdiff_t bits) {
    Int mask;
    for (int i = 0; i < kLanes; ++i) mask[i] = bits >> i & 1 ? -1 : 0;
    return mask;
}
INLINE inline Reg load(const float* at, Mask mask) { return keep(load(at), mask); }
#endif

// Every second lane of two neighbouring vectors, from the first or from the second lane on.
template <int Odd>
INLINE inline Reg every_second(Reg low, Reg high) {
    Int index;
    for (int i = 0; i < kLanes; ++i) index[i] = 2 * i + Odd;
#if defined(__clang__)
    Reg out;
    for (int i = 0; i < kLanes; ++i) out[i] = index[i] < kLanes ? low[index[i]] : high[index[i] - kLanes];
    return out;
#else
    return __builtin_shuffle(low, high, index);
#endif
}

// Every second of 2 * kLanes floats that begin at `from`, those at even places to `even` or those at odd ones to `odd`, where
// that is not null. With AVX2 by halves of vectors: a shuffle across both halves is slow, on some machines very much so.
INLINE inline void part(const float* from, float* even, float* odd) {
#if LEANCONV_LANES == 8 && !defined(__clang__)
    typedef int32_t Places __attribute__((vector_size(16)));
    for (int half = 0; half < 2; ++half) {
        const Quad low = *reinterpret_cast<const LooseQuad*>(from + half * 8), high = *reinterpret_cast<const LooseQuad*>(from + half * 8 + 4);
        if (even) *reinterpret_cast<LooseQuad*>(even + half * 4) = __builtin_shuffle(low, high, Places{0, 2, 4, 6});
        if (odd) *reinterpret_cast<LooseQuad*>(odd + half * 4) = __builtin_shuffle(low, high, Places{1, 3, 5, 7});
    }
#else
    const Reg low = load(from), high = load(from + kLanes);
    if (even) store(even, every_second<0>(low, high));
    if (odd) store(odd, every_second<1>(low, high));
#endif
}

// f(0), ..., f(N-1) with constants: unrolled by the front end, so that an array indexed by them is split into registers
// before the optimizer sees a loop. With ordinary loops gcc keeps some tiles of accumulators on the stack.
template <int N>
struct Number {
    constexpr operator int() const { return N; }
};
template <int From, int To, class F>
INLINE constexpr void unroll_from(F&& f) {
    if constexpr (From < To) {
        f(Number<From>{});
        unroll_from<From + 1, To>(static_cast<F&&>(f));
    }
}
template <int N, class F>
INLINE constexpr void unroll(F&& f) {
    unroll_from<0, N>(static_cast<F&&>(f));
}

}  // namespace
