"""The wide residual network for small images (Zagoruyko and Komodakis, BMVC 2016), in pre-activation form.

    3x3 stem - 3 stages of n blocks of k times the width - BatchNorm, ReLU - average pool - linear
    block: a = relu(BN(x));  conv3x3(dropout(relu(BN(conv3x3(a))))) + shortcut

The shortcut is x itself, or a 1x1 convolution of `a` where the width changes; the first block of the later stages
halves the map. Depth counts the convolutions along the blocks and the stem: 6n + 4.
"""

from __future__ import annotations

from torch import Tensor, nn

from leanconv.errors import LeanconvError
from leanconv.nets._shared import at_least_one

__all__ = ["WideBlock", "WideResNet"]


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each behind a BatchNorm and a ReLU, the stride in the first, and a shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(dropout)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, out_channels, ceil(h / stride), ceil(w / stride))."""
        active = self.relu(self.bn1(x))
        y: Tensor = self.conv2(self.dropout(self.relu(self.bn2(self.conv1(active)))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A wide ResNet of `depth` layers and `widen` times the width of the thin one; WRN-28-10 by default.

    Raises `LeanconvError` for a depth that is not 6n + 4 and for counts below 1.

    >>> sum(p.numel() for p in WideResNet().parameters())
    36479194
    """

    def __init__(self, depth: int = 28, widen: int = 10, *, num_classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        blocks, rest = divmod(at_least_one("depth", depth) - 4, 6)
        if blocks < 1 or rest:
            raise LeanconvError(f"depth of a wide residual network must be 6n + 4 (10, 16, 22, 28, ...), got {depth}")
        at_least_one("widen", widen)
        at_least_one("num_classes", num_classes)
        channels = 16
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        for stage in range(3):
            layers = []
            for block in range(blocks):
                width = 16 * 2**stage * widen
                layers.append(WideBlock(channels, width, 2 if stage and not block else 1, dropout))
                channels = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, 3, h, w) to class scores (b, num_classes)."""
        x = self.stem(x)
        for stage in ("layer1", "layer2", "layer3"):
            x = self.get_submodule(stage)(x)
        scores: Tensor = self.fc(self.flatten(self.pool(self.relu(self.bn(x)))))
        return scores
