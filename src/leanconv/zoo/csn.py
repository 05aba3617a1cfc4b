"""The networks of the channel-separated-networks paper: one `ResNet3D`, its blocks and convolutions injected.

    resnet3d_*   dense 3x3x3: simple blocks at 18 and 34 layers, bottlenecks elsewhere
    ir_csn_*     interaction-reduced: the 3x3x3 of every bottleneck depthwise (the ablation's bottleneck-D)
    ip_csn_*     interaction-preserved: a dense 1x1x1 before that
    r2plus1d_*   what tables 4 and 5 compare with: every K x K x K as a spatial and a temporal one, without pool1
    resnet3d     the ablation's blocks simple-G, simple-D, bottleneck-G, bottleneck-D, bottleneck-DG

The bottlenecks of 26 layers do not expand: only so do they have the parameters of table 2. The names of the parameters
are those that `rewrite(resnet3d_*, ChannelSeparated(...))` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import nn

from leanconv.nets.r2plus1d import Decomposed3d
from leanconv.nets.resnet3d import LAYERS_3D, resnet3d
from leanconv.ops import conv_maker
from leanconv.ops.chain import Between
from leanconv.ops.csn import ChannelSeparated
from leanconv.zoo.entry import Entry

__all__ = ["CSN"]

CLIP = (3, 8, 224, 224)
LONG_CLIP = (3, 32, 224, 224)
"""Of the ablation, and of the networks of 152 layers, which the paper trains on these alone."""

SMALL_CLIP = (3, 32, 112, 112)
"""Of R(2+1)D."""


def _dense(
    depth: int,
    /,
    *,
    num_classes: int = 400,
    frames: int = 8,
    pool1: bool = True,
    dropout: float = 0.0,
    norm_eps: float = 1e-3,
) -> nn.Module:
    """Table 2."""
    return resnet3d(
        block="simple" if depth in (18, 34) else "bottleneck",
        layers=LAYERS_3D[depth],
        expansion=_expansion(depth),
        num_classes=num_classes,
        frames=frames,
        pool1=pool1,
        dropout=dropout,
        norm_eps=norm_eps,
    )


def _separated(
    depth: int, step: ChannelSeparated, num_classes: int, frames: int, dropout: float, norm_eps: float
) -> nn.Module:
    return resnet3d(
        layers=LAYERS_3D[depth],
        expansion=_expansion(depth),
        conv=conv_maker(step, 3),
        num_classes=num_classes,
        frames=frames,
        dropout=dropout,
        norm_eps=norm_eps,
    )


def _ir_csn(
    depth: int,
    /,
    *,
    num_classes: int = 400,
    space_time: bool = False,
    frames: int = 8,
    dropout: float = 0.0,
    norm_eps: float = 1e-3,
) -> nn.Module:
    """With `space_time` each depthwise 3x3x3 is a 1x3x3 and a 3x1x1, BatchNorm and ReLU between (section 4.2)."""
    between: Between = "bn_relu" if space_time else "bn"
    step = ChannelSeparated(mode="ir", space_time=space_time, between=between)
    return _separated(depth, step, num_classes, frames, dropout, norm_eps)


def _ip_csn(
    depth: int,
    /,
    *,
    num_classes: int = 400,
    relu_between: bool = False,
    frames: int = 8,
    dropout: float = 0.0,
    norm_eps: float = 1e-3,
) -> nn.Module:
    """With `relu_between` a ReLU stands behind the extra 1x1x1 as figure 2 draws it; the released ones have none."""
    between: Between = "bn_relu" if relu_between else "bn"
    step = ChannelSeparated(mode="ip", between=between)
    return _separated(depth, step, num_classes, frames, dropout, norm_eps)


def _r2plus1d(
    depth: int,
    /,
    *,
    num_classes: int = 400,
    frames: int = 32,
    pool1: bool = False,
    dropout: float = 0.0,
    norm_eps: float = 1e-3,
) -> nn.Module:
    """R(2+1)D of 34 or 152 layers, tables 4 and 5; VMZ's PyTorch builder of 152 layers has `pool1`, the paper's not."""
    return resnet3d(
        block="simple" if depth == 34 else "bottleneck",
        layers=LAYERS_3D[depth],
        conv=Decomposed3d,
        stem=partial(Decomposed3d, middle=45),
        pool1=pool1,
        num_classes=num_classes,
        frames=frames,
        dropout=dropout,
        norm_eps=norm_eps,
    )


def _expansion(depth: int) -> int:
    return 4 if depth >= 50 else 1


def _ablation(
    *,
    num_classes: int = 400,
    block: Literal["simple", "bottleneck"] = "bottleneck",
    grouping: Literal["none", "G", "D", "DG"] = "none",
    groups: int = 1,
    layers: Sequence[int] = (3, 4, 6, 3),
    expansion: int | None = None,
    frames: int = 8,
    pool1: bool = True,
    dropout: float = 0.0,
    norm_eps: float = 1e-3,
) -> nn.Module:
    """Figures 3, 4, 6 and 7: any block, grouping, group count and depth."""
    return resnet3d(
        block=block,
        grouping=grouping,
        groups=groups,
        layers=layers,
        expansion=expansion,
        num_classes=num_classes,
        frames=frames,
        pool1=pool1,
        dropout=dropout,
        norm_eps=norm_eps,
    )


SEPARATED = (26, 50, 101, 152)

CSN: dict[str, Entry] = {
    "resnet3d": Entry(_ablation, CLIP),
    **{f"r2plus1d_{depth}": Entry(partial(_r2plus1d, depth), SMALL_CLIP) for depth in (34, 152)},
    **{f"resnet3d_{depth}": Entry(partial(_dense, depth), LONG_CLIP if depth == 152 else CLIP) for depth in LAYERS_3D},
    **{f"ir_csn_{depth}": Entry(partial(_ir_csn, depth), LONG_CLIP if depth == 152 else CLIP) for depth in SEPARATED},
    **{f"ip_csn_{depth}": Entry(partial(_ip_csn, depth), LONG_CLIP if depth == 152 else CLIP) for depth in SEPARATED},
}
"""The rows of the zoo that this paper names."""
