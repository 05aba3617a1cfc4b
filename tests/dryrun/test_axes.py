"""What operators do to axes, by hand, and the same names, arguments and shapes from torch itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leanconv.dryrun.axes import Effect, Resampling, Steps, axis_of, effects, first_place, on_maps, windows
from leanconv.dryrun.operators import bind, is_pointwise, written

aten = torch.ops.aten


def found(operator: Any, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> list[Effect]:
    """The effects of an operator, called on zeros."""
    x = torch.zeros(shape)
    results = operator(x, *args, **kwargs)
    outputs = [one.shape for one in (results if isinstance(results, (tuple, list)) else (results,))]
    name = operator.overloadpacket.__name__
    return effects(name, bind(operator, (x, *args), kwargs), shape, outputs)


def effect(*source: int | None, along: dict[int, Any] | None = None, mixed: Any = (), ordered: Any = ()) -> Effect:
    return Effect(source, along or {}, frozenset(mixed), frozenset(ordered))


MAP = (2, 8, 6, 5)
SAME = 0, 1, 2, 3
PADDED = {2: Steps(padding=3), 3: Steps(padding=1)}
ADAPTED = {2: Resampling("adaptive"), 3: Resampling("adaptive")}
EXACT = {2: Resampling("nearest_exact")}
TABLE = [
    (aten.clone.default, MAP, (), effect(*SAME)),
    (aten.permute.default, MAP, ([0, 2, 3, -3],), effect(0, 2, 3, 1)),
    (aten.transpose.int, MAP, (1, -1), effect(0, 3, 2, 1)),
    (aten.t.default, (4, 3), (), effect(1, 0)),
    (aten.t.default, (4,), (), effect(0)),
    (aten.unsqueeze.default, (2, 8), (-1,), effect(0, 1, None)),
    (aten.unsqueeze.default, (2, 8), (1,), effect(0, None, 1)),
    (aten.squeeze.default, (2, 1, 6, 1), (), effect(0, 2)),
    (aten.squeeze.dim, (2, 1, 6, 1), (-1,), effect(0, 1, 2)),
    (aten.squeeze.dims, (2, 1, 6, 1), ([0, 1],), effect(0, 2, 3)),
    (aten.select.int, MAP, (1, 0), effect(0, 2, 3, ordered={1})),
    (aten.slice.Tensor, MAP, (1, 2, 6, 2), effect(*SAME, along={1: Steps(stride=2, padding=-2)})),
    (aten.slice.Tensor, MAP, (-1, -3), effect(*SAME, along={3: Steps(padding=-2)})),
    (aten.slice.Tensor, MAP, (1, 0, 8), effect(*SAME)),
    (aten.roll.default, MAP, ([1, -2], [2, -1]), effect(*SAME, along={2: Steps(padding=1), 3: Steps(padding=-2)})),
    (aten.flip.default, MAP, ([-1],), effect(*SAME, ordered={3})),
    (aten.unfold.default, MAP, (2, 3, 2), effect(*SAME, None, along={2: Steps(3, 2)})),
    (aten.mean.default, MAP, (), effect(mixed=SAME)),
    (aten.mean.dim, MAP, ([2, -1],), effect(0, 1, mixed={2, 3})),
    (aten.mean.dim, MAP, ([2, 3], True), effect(0, 1, None, None, mixed={2, 3})),
    (aten.amax.default, MAP, ([],), effect(mixed=SAME)),
    (aten.linalg_vector_norm.default, MAP, (2, [1]), effect(0, 2, 3, mixed={1})),
    (aten.argmax.default, MAP, (1,), effect(0, 2, 3, mixed={1}, ordered={1})),
    (aten._softmax.default, MAP, (-1, False), effect(*SAME, mixed={3})),
    (aten.cumsum.default, MAP, (1,), effect(*SAME, mixed={1}, ordered={1})),
    (aten.glu.default, MAP, (1,), effect(0, None, 2, 3, mixed={1}, ordered={1})),
    (aten.avg_pool2d.default, MAP, ([2, 3], [], [1, 0]), effect(*SAME, along={2: Steps(2, 2, 1), 3: Steps(3, 3)})),
    (aten.constant_pad_nd.default, MAP, ([1, 2, 3, 4],), effect(*SAME, along=PADDED)),
    (aten.reflection_pad1d.default, (2, 8, 6), ([2, 1],), effect(0, 1, 2, along={2: Steps(padding=2)})),
    (aten._adaptive_avg_pool2d.default, MAP, ([3, 2],), effect(*SAME, along=ADAPTED)),
    (aten.upsample_linear1d.default, (2, 8, 6), ([9], True), effect(0, 1, 2, along={2: Resampling("linear", True)})),
    (aten._upsample_nearest_exact1d.default, (2, 8, 6), ([9],), effect(0, 1, 2, along=EXACT)),
    (aten._upsample_bilinear2d_aa.default, MAP, ([3, 3], False), effect(*SAME, ordered={2, 3})),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "shape", "args", "expected"), TABLE, ids=lambda one: str(one)[:40])
def test_one_output(operator: Any, shape: tuple[int, ...], args: tuple[Any, ...], expected: Effect) -> None:
    assert found(operator, shape, *args) == [expected]


def test_several_outputs() -> None:
    parts = [effect(*SAME, along={1: Steps(padding=-start)}) for start in (0, 3, 6)]
    assert found(aten.split.Tensor, MAP, 3, 1) == parts
    assert found(aten.split_with_sizes.default, MAP, [3, 3, 2], dim=-3) == parts
    assert found(aten.unbind.int, (2, 3), 1) == [effect(0, ordered={1})] * 3
    assert found(aten.var_mean.correction, MAP, [1]) == [effect(0, 2, 3, mixed={1})] * 2
    assert found(aten.topk.default, MAP, 2) == [effect(0, 1, 2, None, ordered={3})] * 2
    pooled = effect(*SAME, along={2: Steps(3, 2, 1, 2), 3: Steps(3, 2, 1, 2)})
    assert found(aten.max_pool2d_with_indices.default, MAP, [3], [2], [1], [2]) == [pooled] * 2


def test_what_is_not_in_the_table_has_no_effect() -> None:
    assert effects("_fft_c2c", {}, MAP, [MAP]) == []
    assert effects("torchvision.roi_pool2d", {}, MAP, [MAP]) == []


def test_axes_and_places() -> None:
    assert [axis_of(-1, 4), axis_of(2, 4), axis_of(-1, 0)] == [3, 2, 0]
    assert [first_place(start, 5) for start in (None, 2, -2, 9, -9)] == [0, 2, 3, 5, 0]
    assert on_maps(4, 2) == effect(*SAME, ordered={2, 3})
    assert windows({"stride": [2], "padding": 1}, (3, 5)) == [Steps(3, 2, 1), Steps(5, 2, 1)]


def test_arguments_by_name() -> None:
    x = torch.zeros(2, 3)
    assert bind(aten.slice.Tensor, (x,), {"end": 2}) == {"self": x, "dim": 0, "start": None, "end": 2, "step": 1}
    assert written(aten.add_.Tensor) == ("self",)
    assert written(aten.add.Tensor) == ()
    assert [is_pointwise(one) for one in (aten.relu_.default, aten.zero_.default, aten.sum.default)] == [
        True,
        True,
        False,
    ]
