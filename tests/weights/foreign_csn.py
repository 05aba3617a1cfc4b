"""Other projects' channel-separated networks, put together by hand so that their state dicts are named as theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock, BasicStem, Bottleneck, R2Plus1dStem, VideoResNet


def conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv3d:
    return nn.Conv3d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)


def stem_conv() -> nn.Conv3d:
    return nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)


def stem_pool() -> nn.MaxPool3d:
    return nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))


# ------------------------------------------------------------------------------------ VMZ, on torchvision's own class


class Depthwise(nn.Conv3d):
    def __init__(self, cin: int, cout: int, middle: int, stride: int = 1) -> None:
        super().__init__(cin, cout, 3, stride, 1, groups=cin, bias=False)

    @staticmethod
    def get_downsample_stride(stride: int) -> tuple[int, int, int]:
        return stride, stride, stride


class Preserved(nn.Sequential):
    def __init__(self, cin: int, cout: int, middle: int, stride: int = 1) -> None:
        super().__init__(conv(cin, cout, 1), nn.BatchNorm3d(cout), Depthwise(cout, cout, middle, stride))

    get_downsample_stride = Depthwise.get_downsample_stride


class Decomposed(nn.Sequential):
    """R(2+1)D with the channels between that VMZ computes from its own, not from the block's."""

    def __init__(self, cin: int, cout: int, middle: int, stride: int = 1) -> None:
        between = 27 * cin * cout // (9 * cin + 3 * cout)
        spatial = nn.Conv3d(cin, between, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        temporal = nn.Conv3d(between, cout, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)
        super().__init__(spatial, nn.BatchNorm3d(between), nn.ReLU(), temporal)

    get_downsample_stride = Depthwise.get_downsample_stride


def vmz(kind: str, layers: Sequence[int], classes: int) -> nn.Module:
    if kind.startswith("r2plus1d"):
        block = BasicBlock if kind == "r2plus1d_simple" else Bottleneck
        return VideoResNet(block, [Decomposed] * 4, list(layers), R2Plus1dStem, num_classes=classes)
    makers = [Preserved if kind == "ip" else Depthwise] * 4
    stem = lambda: nn.Sequential(*BasicStem(), stem_pool())  # noqa: E731
    return VideoResNet(Bottleneck, makers, list(layers), stem, num_classes=classes)


# ------------------------------------------------------------------------------------------------------- mmaction2


class ConvModule(nn.Module):
    def __init__(self, made: nn.Conv3d, *, active: bool = True) -> None:
        super().__init__()
        self.conv, self.bn = made, nn.BatchNorm3d(made.out_channels)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return torch.relu(y) if self.active else y


class CsnBottleneck(nn.Module):
    def __init__(self, cin: int, planes: int, stride: int, kind: str) -> None:
        super().__init__()
        self.conv1 = ConvModule(conv(cin, planes, 1))
        mix = [ConvModule(conv(planes, planes, 1), active=False)] if kind == "ip" else []
        self.conv2 = nn.Sequential(*mix, ConvModule(conv(planes, planes, 3, stride, planes)))
        self.conv3 = ConvModule(conv(planes, 4 * planes, 1), active=False)
        self.downsample = None
        if stride != 1 or cin != 4 * planes:
            self.downsample = ConvModule(conv(cin, 4 * planes, 1, stride), active=False)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.conv3(self.conv2(self.conv1(x))) + identity)


class Backbone(nn.Module):
    def __init__(self, kind: str, layers: Sequence[int]) -> None:
        super().__init__()
        self.conv1, self.maxpool = ConvModule(stem_conv()), stem_pool()
        width = 64
        for stage, count in enumerate(layers):
            planes = 64 * 2**stage
            blocks = []
            for block in range(count):
                blocks.append(CsnBottleneck(width, planes, 2 if stage and not block else 1, kind))
                width = 4 * planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x


class Head(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_cls(x.mean((2, 3, 4)))


class Recognizer(nn.Module):
    def __init__(self, kind: str, layers: Sequence[int], classes: int) -> None:
        super().__init__()
        self.backbone, self.cls_head = Backbone(kind, layers), Head(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.cls_head(self.backbone(x))


# ---------------------------------------------------------------------------------------------------- pytorchvideo


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = stem_conv(), nn.BatchNorm3d(64), stem_pool()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(torch.relu(self.norm(self.conv(x))))


class Branch2(nn.Module):
    def __init__(self, cin: int, inner: int, stride: int) -> None:
        super().__init__()
        self.conv_a, self.norm_a = conv(cin, inner, 1), nn.BatchNorm3d(inner)
        self.conv_b, self.norm_b = conv(inner, inner, 3, stride, inner), nn.BatchNorm3d(inner)
        self.conv_c, self.norm_c = conv(inner, 4 * inner, 1), nn.BatchNorm3d(4 * inner)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm_a(self.conv_a(x)))
        x = torch.relu(self.norm_b(self.conv_b(x)))
        return self.norm_c(self.conv_c(x))


class ResBlock(nn.Module):
    def __init__(self, cin: int, inner: int, stride: int) -> None:
        super().__init__()
        self.branch1_conv = self.branch1_norm = None
        if stride != 1 or cin != 4 * inner:
            self.branch1_conv, self.branch1_norm = conv(cin, 4 * inner, 1, stride), nn.BatchNorm3d(4 * inner)
        self.branch2 = Branch2(cin, inner, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.branch1_conv is None else self.branch1_norm(self.branch1_conv(x))
        return torch.relu(shortcut + self.branch2(x))


class Stage(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = block(x)
        return x


class Projection(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.proj = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.mean((2, 3, 4)))


class Net(nn.Module):
    def __init__(self, kind: str, layers: Sequence[int], classes: int) -> None:
        super().__init__()
        assert kind == "ir"
        parts: list[nn.Module] = [Stem()]
        width = 64
        for stage, count in enumerate(layers):
            inner = 64 * 2**stage
            blocks: list[nn.Module] = []
            for block in range(count):
                blocks.append(ResBlock(width, inner, 2 if stage and not block else 1))
                width = 4 * inner
            parts.append(Stage(blocks))
        self.blocks = nn.ModuleList([*parts, Projection(classes)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


# --------------------------------------------------------------------------------------------------------- gluon-cv


class Affine(nn.Module):
    """A BatchNorm that was frozen into a scale and a shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, 1, 1).uniform_(0.8, 1.2))
        self.bias = nn.Parameter(torch.empty(channels, 1, 1, 1).uniform_(-0.1, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class SeparatedBlock(nn.Module):
    def __init__(self, cin: int, planes: int, stride: int, norm: type[nn.Module], *, first: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(cin, planes, 1), norm(planes)
        self.conv3, self.bn3 = conv(planes, planes, 3, stride, planes), norm(planes)
        self.conv4, self.bn4 = conv(planes, 4 * planes, 1), norm(4 * planes)
        self.down_sample = nn.Sequential(conv(cin, 4 * planes, 1, stride), norm(4 * planes)) if first else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn3(self.conv3(y)))
        return torch.relu(self.bn4(self.conv4(y)) + (x if self.down_sample is None else self.down_sample(x)))


class GluonCv(nn.Module):
    def __init__(self, kind: str, layers: Sequence[int], classes: int, norm: type[nn.Module] = nn.BatchNorm3d) -> None:
        super().__init__()
        assert kind == "ir"
        self.conv1, self.bn1, self.maxpool = stem_conv(), norm(64), stem_pool()
        width = 64
        for stage, count in enumerate(layers):
            planes = 64 * 2**stage
            blocks = []
            for block in range(count):
                blocks.append(SeparatedBlock(width, planes, 2 if stage and not block else 1, norm, first=not block))
                width = 4 * planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.out_fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.out_fc(x.mean((2, 3, 4)))


NETWORKS = {"vmz": vmz, "mmaction2": Recognizer, "pytorchvideo": Net, "gluoncv": GluonCv}
EPS = {"vmz": 1e-3, "mmaction2": 1e-3, "pytorchvideo": 1e-5, "gluoncv": 1e-3}
PAIRS = [
    *(
        ("vmz", "ir"),
        ("vmz", "ip"),
        ("mmaction2", "ir"),
        ("mmaction2", "ip"),
        ("pytorchvideo", "ir"),
        ("gluoncv", "ir"),
    ),
]


def build(project: str, kind: str, layers: Sequence[int], classes: int = 400, **options: object) -> nn.Module:
    """The network as that project builds it, its statistics off neutral, in eval mode."""
    net = NETWORKS[project](kind, layers, classes, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = EPS[project]
            if not module.weight.is_meta:
                module.weight.data.uniform_(0.8, 1.2)
                module.running_var.uniform_(0.01, 0.1)  # small, so that eps matters
                module.bias.data.uniform_(-0.1, 0.1)
                module.running_mean.uniform_(-0.1, 0.1)
                module.num_batches_tracked.fill_(7)
    return net.eval()
