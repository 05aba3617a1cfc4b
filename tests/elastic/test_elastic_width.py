"""The rounding law and the rows of channel segments, in plain integers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanconv.elastic.coupling.find import assign_ratios
from leanconv.elastic.coupling.rows import Axis, CannotFollow, Segment, align, fix, fixed_row, resolve, unify
from leanconv.elastic.slices import MOST, Channels, Slice
from leanconv.elastic.width import Config, Width, channels_at, make_divisible


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(8, 8), (11.9, 16), (12, 16), (22.4, 24), (57.6, 56), (51.2, 48), (3, 8), (240 * 0.85, 208), (1024 * 0.35, 360)],
)
def test_make_divisible(value, rounded):
    assert make_divisible(value) == rounded


def test_never_loses_more_than_a_tenth():
    for value in range(8, 4000):
        assert make_divisible(value / 3) >= 0.9 * value / 3


@given(
    full=st.integers(1, 4096),
    width=st.floats(0.01, 1.0),
    divisor=st.sampled_from([1, 2, 4, 8, 16]),
    ratio=st.sampled_from([Fraction(1), Fraction(1, 4), Fraction(1, 16), Fraction(6), Fraction(1, 2), Fraction(11, 3)]),
    quantum=st.sampled_from([1, 2, 4, 8, 16, 24]),
)
def test_law_is_legal(full, width, divisor, ratio, quantum):
    full *= quantum
    kept = channels_at(full, width, divisor=divisor, ratio=ratio, quantum=quantum)
    assert 0 < kept <= full
    assert kept % quantum == 0
    assert kept == full or Fraction(kept) / ratio % divisor == 0
    assert channels_at(full, 1.0, divisor=divisor, ratio=ratio, quantum=quantum) == full


@given(st.integers(1, 512), st.floats(0.05, 1.0), st.sampled_from([2, 3, 4, 6]))
def test_ratio_keeps_a_block_in_step(block, width, times):
    outer = channels_at(8 * block, width)
    assert channels_at(8 * block * times, width, ratio=Fraction(times)) == times * outer
    assert channels_at(2 * block, width, ratio=Fraction(1, 4)) * 4 == outer


@given(st.floats(1e-6, 4.0), st.integers(1, 4096))
def test_any_width_is_found_again_by_its_tag(width, resolution):
    config = Config(width, resolution)
    assert Config.from_tag(config.tag) == config
    assert Config.from_tag(config.tag).width == width
    assert "." not in config.tag  # it is a part of a buffer's name


def test_equal_numbers_are_equal_widths_and_drawn_ones_are_no_numbers():
    assert Width(0.5) == 0.5 == Width(0.5)
    assert hash(Width(0.5)) == hash(0.5)
    assert repr(Width(5 / 6)) == repr(5 / 6)
    drawn = Width.by_layer(0.25, 0.75, seed=1)
    assert drawn != 0.5
    assert Config(drawn, 16).tag != Config(0.5, 16).tag
    assert f"{drawn:g}" == "(0.25..0.75 by layer)"


@given(st.integers(1, 10_000), st.integers(1, 4096))
def test_tag_round_trip(ten_thousandths, resolution):
    config = Config(ten_thousandths / 10_000, resolution)
    assert Config.from_tag(config.tag) == config


def row(*units: int) -> tuple[Segment, ...]:
    return tuple(Segment(Axis(n, makers=(f"layer{n}",)), 1) for n in units)


def test_unify_cuts_at_the_same_places():
    one, other = row(16, 16), row(8, 24)
    unify(one, other)
    assert [s.full for s in resolve(one)] == [s.full for s in resolve(other)] == [8, 8, 16]
    assert [s.axis for s in resolve(one)] == [s.axis for s in resolve(other)]


def test_unify_takes_the_coarser_unit():
    groups, plain = row(64), row(64)
    align(groups, 8)
    merged = unify(groups, plain)
    assert [(s.axis.units, s.unit, s.axis.size) for s in merged] == [(8, 8, 8)]


def test_unify_is_transitive_through_a_third():
    a, b, c = row(32), row(32), row(16, 16)
    unify(a, b)
    unify(b, c)
    assert resolve(a) == resolve(b) == resolve(c)


def test_groups_that_do_not_fit_a_part():
    with pytest.raises(CannotFollow, match="groups of 16 channels do not fit into a part of 24"):
        align(row(24), 16)


def test_cut_inside_a_group():
    one = row(32)
    align(one, 16)
    with pytest.raises(CannotFollow, match="cannot be cut at 8"):
        unify(one, row(8, 24))


def test_fix_reaches_everything_that_was_merged():
    a, b = row(32), row(16, 16)
    unify(a, b)
    fix(a, "because")
    assert all(s.axis.fixed == "because" for s in resolve(b))


def test_runs_join_neighbours_and_are_forgotten_in_time():
    law = (1, 8, Fraction(1))
    channels = Channels((Slice(32, 1, law), Slice(8, 1), Slice(64, 1, law)))
    assert channels.runs(Width(0.5)) == ((0, 16), (32, 40))
    assert channels.runs(Width(1.0)) == ((0, 104),)
    for i in range(1, 2 * MOST):
        channels.runs(Width(i / 1000))
    assert len(channels._known) <= MOST


def test_flattened_channels_keep_their_neighbours():
    assert Channels((Slice(32, 9, (1, 8, Fraction(1))),)).runs(Width(0.5)) == ((0, 16 * 9),)


def test_bottleneck_and_expansion_ratios():
    stream, middle, image = row(256), row(64), fixed_row(3, "input")
    stream[0].axis.stream = True
    narrow, expanded, out = row(16), row(96), row(24)
    expanded[0].axis.depthwise = True
    assign_ratios([(image, middle), (middle, stream), (image, narrow), (narrow, expanded), (expanded, out)])
    ratios = [r[0].axis.ratio for r in (stream, middle, narrow, expanded, out)]
    assert ratios == [None, Fraction(1, 4), Fraction(1), Fraction(6), None]


def test_widening_alone_is_no_expansion():
    narrow, wide, wider = row(32), row(64), row(128)
    narrow[0].axis.depthwise = wide[0].axis.depthwise = True
    assign_ratios([(narrow, wide), (wide, wider)])
    assert wide[0].axis.ratio is None
