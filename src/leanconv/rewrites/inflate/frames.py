"""Inflation of a network whose forward speaks of the two axes of an image: `x.mean((2, 3))`, `x[:, :, ::2, ::2]`,
`b, c, h, w = x.shape`, `F.interpolate(x, (h, w))`.

Such a forward runs as it is written, on the frames of all clips as one batch of images:

    (N, C, T, H, W) -> (N T, C, H, W) -> forward -> outputs of the frames -> outputs of the clips

Every convolution is a 3D one; where its kernel reaches over time it sees the clip. What a clip gives is the mean over
its frames for vectors, (N T, classes) -> (N, classes), and all frames for maps, (N T, C, H, W) -> (N, C, T, H, W), and
sequences, (N T, L, C) -> (N, T, L, C).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from leanconv.errors import LeanconvError

__all__ = ["Clip", "FrameConv3d", "FramePool", "run_on_frames"]


class Clip:
    """How many clips of how many frames the network runs on now; all layers that need it share one.

    >>> Clip().clips
    0
    """

    def __init__(self) -> None:
        self.clips = self.frames = 0

    def __eq__(self, other: object) -> bool:
        """Two are the same: what they hold is of the run that is going on."""
        return isinstance(other, Clip)

    __hash__ = object.__hash__

    def unfolded(self, x: Tensor, what: str) -> Tensor:
        """(N T, C, H, W) to (N, C, T, H, W)."""
        if not self.clips or x.ndim != 4 or x.shape[0] != self.clips * self.frames:
            raise LeanconvError(
                f"{what} reaches over time and needs the frames of {self.clips} clips of {self.frames}, got "
                f"{tuple(x.shape)}: the forward has put something else into the batch; give this kernel length 1"
            )
        return x.reshape(self.clips, self.frames, *x.shape[1:]).transpose(1, 2)


def _folded(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


class FrameConv3d(nn.Conv3d):
    """A 3D convolution of frames that are a batch of images: (N T, C, H, W) in and out."""

    clip: Clip

    def forward(self, x: Tensor) -> Tensor:
        """Frame by frame where the kernel has length 1, otherwise over the clip."""
        if self.kernel_size[0] == 1:
            return super().forward(x.unsqueeze(2)).squeeze(2)
        return _folded(super().forward(self.clip.unfolded(x, f"a kernel of {self.kernel_size}")))


class FramePool(nn.Module):
    """The max of every two frames: (N T, C, H, W) to (N T/2, C, H, W)."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        """Halves the number of frames for all that follows."""
        y = functional.max_pool3d(self.clip.unfolded(x, "the pool over time"), (2, 1, 1))
        self.clip.frames = y.shape[2]
        return _folded(y)


def run_on_frames(model: nn.Module, clip: Clip) -> None:
    """Make `model` take clips, and run on their frames as a batch of images."""
    model.register_forward_pre_hook(_Enter(clip), with_kwargs=True)
    model.register_forward_hook(_Leave(clip))


class _Enter:
    """Clips to frames."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        clips = [x for x in given if x.ndim == 5]
        if not clips or any(x.shape[0] != clips[0].shape[0] or x.shape[2] != clips[0].shape[2] for x in clips):
            raise LeanconvError(
                f"this {type(module).__name__} takes clips, (N, C, T, H, W), of one length; got tensors of shapes "
                f"{[tuple(x.shape) for x in given]}"
            )
        self.clip.clips, self.clip.frames = clips[0].shape[0], clips[0].shape[2]
        return pytree.tree_map(lambda x: _folded(x) if isinstance(x, Tensor) and x.ndim == 5 else x, (args, kwargs))


class _Leave:
    """What the frames gave to what the clips give."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return pytree.tree_map(self._of_clips, output)

    def _of_clips(self, x: Any) -> Any:
        clips, frames = self.clip.clips, self.clip.frames
        if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] != clips * frames:
            return x
        x = x.reshape(clips, frames, *x.shape[1:])
        if x.ndim <= 3:
            return x.mean(1) if x.is_floating_point() else x[:, 0]
        return x if x.ndim == 4 else x.transpose(1, 2)
