"""Streams of random numbers by name: the same as ever, since a run is resumed by a newer leanconv, too."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from leanconv.seeds import generator, isolated, mix, python_random


def test_the_streams_are_those_of_leanconv_0_1() -> None:
    assert (mix(0, "order", 3), mix("a.png"), mix()) == (386106667988085106, 4616230125894097756, 5460801731388113703)
    assert torch.randperm(6, generator=generator(0, "order", 3)).tolist() == [0, 2, 4, 3, 1, 5]
    assert python_random(0, 7).random() == random.Random("0/7").random()
    assert python_random("mixup 3 7").betavariate(0.2, 0.2) == random.Random("mixup 3 7").betavariate(0.2, 0.2)


def test_every_part_counts_and_so_does_its_place() -> None:
    streams = [(0, 1), (1, 0), (0, "1"), ("0", 1), (0, 1, 0), (1,)]
    assert len({mix(*parts) for parts in streams}) == len(streams)
    assert python_random(1, 2).random() != python_random(2, 1).random()


def state() -> tuple[object, ...]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_a_block_of_its_own_draws_the_same_and_disturbs_nothing() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    undisturbed = state()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    with isolated(0, "image", 1):
        one = state()
    with isolated(0, "image", 1):
        other = state()
    with pytest.raises(FloatingPointError), isolated(0, "image", 2):
        raise FloatingPointError
    assert one == other != undisturbed
    assert state() == undisturbed
