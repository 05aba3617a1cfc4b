"""How fast a core multiplies and adds in float32 and in bfloat16, by vectors: whether kernels in bfloat16 would pay.

    python benchmarks/bf16_peak.py

Twelve sums that do not wait for each other, by turns: `vfmadd231ps`, 16 multiply-adds a vector, and `vdpbf16ps`, 32.
Needs g++ or clang++ and a CPU with AVX512_BF16. Matrix units (AMX) are not vectors; whether the CPU has them is said.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = r"""
#include <immintrin.h>
#include <stdio.h>
#include <time.h>

static double now() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define DECLARE(i) __m512 s##i = _mm512_set1_ps(1e-3f * i);
#define SINGLE(i) asm("vfmadd231ps %2, %1, %0" : "+v"(s##i) : "v"(x), "v"(y));
#define HALF(i) asm("vdpbf16ps %2, %1, %0" : "+v"(s##i) : "v"(u), "v"(v));
#define ADD(i) all = _mm512_add_ps(all, s##i);

int main() {
    EACH(DECLARE)
    const __m512 x = _mm512_set1_ps(.999f), y = _mm512_set1_ps(1e-3f);
    const __m512i u = _mm512_set1_epi16(0x3f80), v = _mm512_set1_epi16(0x3a83);  // 1 and 1e-3
    const long rounds = 10000000;
    for (int turn = 0; turn < 15; ++turn) {
        double start = now();
        for (long n = 0; n < rounds; ++n) { EACH(SINGLE) asm volatile(""); }
        const double single = now() - start;
        start = now();
        for (long n = 0; n < rounds; ++n) { EACH(HALF) asm volatile(""); }
        const double half = now() - start;
        printf("%g %g\n", rounds * 12 * 32 / single / 1e9, rounds * 12 * 64 / half / 1e9);
    }
    __m512 all = _mm512_setzero_ps();
    EACH(ADD)
    return _mm512_reduce_add_ps(all) == 0;  // or the sums would not be computed
}
"""


def main() -> None:
    import numpy as np

    from leanconv.kernels.build import compiler
    from leanconv.machine import this_machine

    flags = Path("/proc/cpuinfo").read_text()
    if "avx512_bf16" not in flags:
        sys.exit("this CPU has no AVX512_BF16: nothing to measure")
    command = compiler()
    if command is None:
        sys.exit("no C++ compiler: install g++ or clang++")
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "peak.cpp"), Path(folder, "peak")
        source.write_text(SOURCE)
        subprocess.run([command, "-O2", "-mavx512f", "-mavx512bf16", str(source), "-o", str(program)], check=True)
        text = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    taken = np.array([line.split() for line in text.splitlines()], dtype=float)
    low, middle, high = np.quantile(taken, [0.1, 0.5, 0.9], axis=0)
    print(f"{this_machine()}; AMX: {'yes' if 'amx_bf16' in flags else 'no'}")
    for name, *values in zip(("float32", "bfloat16"), middle, low, high, strict=True):
        print(f"{name}: {values[0]:.0f} GFLOP/s ({values[1]:.0f} to {values[2]:.0f})")
    print(f"bfloat16 over float32: {np.median(taken[:, 1] / taken[:, 0]):.2f} of the rate")


if __name__ == "__main__":
    main()
