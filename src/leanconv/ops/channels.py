"""Moves of channels between the stages of a chain: shuffle, gather, pad, crop. They hold no parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ChannelCrop", "ChannelGather", "ChannelPad", "ChannelShuffle", "Device"]

Device = torch.device | str | None


class ChannelShuffle(nn.Module):
    """Read the channels group by group: out[k * g + j] = in[j * (C / g) + k], with C taken from the input."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *) -> (B, C, *)."""
        # Not nn.ChannelShuffle: these three views-and-one-copy are understood by every exporter and compiler.
        shape = x.shape
        return x.reshape(shape[0], self.groups, -1, *shape[2:]).transpose(1, 2).reshape(shape)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"


class ChannelGather(nn.Module):
    """Read channel `index[k]` into slot k: the shuffle where two stages have different numbers of slots."""

    index: Tensor

    def __init__(self, index: tuple[int, ...], *, device: Device = None) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(index, device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *) -> (B, len(index), *)."""
        return x.index_select(1, self.index)

    def extra_repr(self) -> str:
        return f"{self.index.numel()} slots"


class ChannelPad(nn.Module):
    """Append `extra` channels of zeros, the spare input slots of groups that do not divide."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *) -> (B, C + extra, *)."""
        return torch.nn.functional.pad(x, (0, 0) * (x.ndim - 2) + (0, self.extra))

    def extra_repr(self) -> str:
        return f"extra={self.extra}"


class ChannelCrop(nn.Module):
    """Keep the first `channels` channels, dropping the spare output slots of groups that do not divide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *) -> (B, channels, *)."""
        return x[:, : self.channels]

    def extra_repr(self) -> str:
        return f"channels={self.channels}"
