"""Networks whose forward asks for values, and how each verb is asked to follow one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from leanconv import Octave, make_elastic, measure, rewrite

SIZE = (3, 16, 16)


class Branch(nn.Module):
    """Takes one way or the other by the values of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), Sign())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.stem(x))


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return x
        return -x


VERBS: dict[str, Callable[[nn.Module], object]] = {
    "measure": lambda model: measure(model, SIZE),
    "octave": lambda model: rewrite(model, Octave(), size=SIZE),
    "elastic": lambda model: make_elastic(model, resolutions=(16,), size=SIZE),
}
