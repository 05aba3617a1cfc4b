"""Interleaved timing, on a clock that the candidates move themselves."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable

import pytest
import torch

from leanconv.cost import compare_latency
from leanconv.errors import LeanconvError


class Clock:
    """Seconds that pass only when a candidate runs; `drift` makes every run slower than the one before."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now = 0.0
        self.speed = 1.0
        self.drift = drift
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.log.append(name)
            self.now += seconds * self.speed
            self.speed += self.drift

        return run


def test_every_round_times_every_candidate_once_in_changing_order() -> None:
    clock = Clock()
    candidates = {name: clock.candidate(name, 0.01) for name in "abc"}
    compare_latency(candidates, rounds=12, warmup=2, clock=clock)
    timed = clock.log[3 * (2 + 1) :]  # two warm-ups and one call to choose the repeats
    rounds = [tuple(timed[i : i + 3]) for i in range(0, len(timed), 3)]
    assert len(rounds) == 12
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 1


def test_numbers() -> None:
    clock = Clock()
    result = compare_latency(
        {"a": clock.candidate("a", 0.010), "b": clock.candidate("b", 0.025)}, rounds=7, clock=clock
    )
    assert list(result) == ["a", "b"]
    a, b = result["a"], result["b"]
    assert (a.median_ms, a.low_ms, a.high_ms) == pytest.approx((10, 10, 10))
    assert (b.ratio, b.ratio_low, b.ratio_high) == pytest.approx((2.5, 2.5, 2.5))
    assert (a.ratio, a.rounds, a.threads) == (1.0, 7, 1)
    assert json.loads(json.dumps(b.to_json())) == b.to_json()


def test_quantiles_and_median_of_a_known_spread() -> None:
    clock = Clock()
    durations = iter([0.0, *range(1, 12)])  # one call to choose the repeats, then 1 .. 11 s

    def candidate() -> None:
        clock.now += next(durations)

    latency = compare_latency({"a": candidate}, rounds=11, warmup=0, clock=clock)["a"]
    assert (latency.low_ms, latency.median_ms, latency.high_ms) == pytest.approx((2000, 6000, 10000))


def test_drift_does_not_become_a_difference() -> None:
    clock = Clock(drift=0.01)  # at the end everything takes several times as long
    same = {name: clock.candidate(name, 0.01) for name in "ab"}
    result = compare_latency(same, rounds=200, clock=clock)
    assert result["b"].ratio == pytest.approx(1, abs=0.02)
    assert result["b"].high_ms > 2 * result["b"].low_ms


def test_short_calls_are_repeated() -> None:
    clock = Clock()
    result = compare_latency({"a": clock.candidate("a", 0.0005)}, rounds=4, warmup=1, min_sample_ms=5, clock=clock)
    assert result["a"].calls_per_sample == 10
    assert len(clock.log) == 1 + 1 + 4 * 10
    assert result["a"].median_ms == pytest.approx(0.5)


def test_threads_and_collector_are_restored() -> None:
    before = torch.get_num_threads()
    seen = []

    def candidate() -> None:
        seen.append((torch.get_num_threads(), gc.isenabled()))

    compare_latency({"a": candidate}, rounds=2, threads=before + 1, min_sample_ms=0)
    assert set(seen) == {(before + 1, False)}
    assert torch.get_num_threads() == before

    def broken() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no") as caught:
        compare_latency({"fine": candidate, "broken": broken}, rounds=2, threads=before + 1)
    assert caught.value.__notes__ == ["while timing candidate 'broken'"]
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_real_work_is_ordered() -> None:
    small, large = torch.randn(64, 64), torch.randn(512, 512)
    result = compare_latency({"small": lambda: small @ small, "large": lambda: large @ large}, rounds=5)
    assert result["large"].ratio > 5
    assert 0 < result["small"].low_ms <= result["small"].median_ms <= result["small"].high_ms


@pytest.mark.parametrize(
    ("candidates", "settings", "message"),
    [
        ({}, {}, "at least one candidate"),
        ({"a": 3}, {}, "candidate 'a' must be a callable without arguments, got int"),
        ({"a": int}, {"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"a": int}, {"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"a": int}, {"threads": 0}, "threads must be at least 1, got 0"),
        ({"a": int}, {"min_sample_ms": -1.0}, "min_sample_ms must not be negative"),
    ],
)
def test_bad_settings(candidates: dict[str, Callable[[], object]], settings: dict[str, int], message: str) -> None:
    with pytest.raises(LeanconvError, match=message):
        compare_latency(candidates, **settings)  # type: ignore[arg-type]
