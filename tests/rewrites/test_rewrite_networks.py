"""`rewrite` on timm's and torchvision's networks: runs, trains, is idempotent, keeps names, replays to equal outputs.

`where` is the default where the network has dense spatial convolutions beside its stem; depthwise and grouped networks
have their 1x1 convolutions rewritten instead.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from leanconv.errors import NothingToRewrite
from leanconv.rewrites import parse_step, replay, rewrite
from leanconv.story import Story, remember, story_of

DENSE = "kernel>1 groups=1 !stem"
POINTWISE = "groups=1 !stem"

# name, step, input size, how many layers change
NETWORKS = [
    pytest.param("timm/resnet18", f"osep:where={DENSE}", (3, 64, 64), 16, id="resnet18"),
    pytest.param(
        "timm/resnet18", "depth_separable:where=stage>=4 kernel>1,init=fresh", (3, 64, 64), 8, id="resnet18-stage"
    ),
    pytest.param("timm/mobilenetv2_100", f"osep:where={POINTWISE}", (3, 64, 64), 34, id="mobilenetv2_100"),
    pytest.param("timm/efficientnet_b0", f"osep:where={POINTWISE}", (3, 64, 64), 64, id="efficientnet_b0"),
    pytest.param("timm/convnext_tiny", f"igc:where={POINTWISE},init=fresh", (3, 64, 64), 3, id="convnext_tiny"),
    pytest.param("torchvision/r3d_18", f"csn:where={DENSE}", (3, 4, 32, 32), 16, id="r3d_18"),
    *(
        pytest.param(name, step, size, count, id=name.split("/")[1], marks=pytest.mark.slow)
        for name, step, size, count in (
            ("timm/resnet50", f"osep:where={DENSE}", (3, 64, 64), 16),
            ("timm/resnext50_32x4d", f"osep:where={POINTWISE}", (3, 64, 64), 36),
            ("timm/densenet121", f"depth_separable:where={DENSE}", (3, 64, 64), 58),
            ("timm/seresnet50", f"igc:where={DENSE}", (3, 64, 64), 16),
            ("timm/regnety_008", f"osep:where={POINTWISE}", (3, 64, 64), 60),
            ("timm/vgg16_bn", f"osep:where={DENSE} features.*", (3, 224, 224), 12),
        )
    ),
]


def build(name: str) -> nn.Module:
    package, _, model = name.partition("/")
    torch.manual_seed(0)
    if package == "timm":
        import timm

        made = timm.create_model(model, num_classes=10)
    else:
        from torchvision.models import get_model

        made = get_model(model, num_classes=10, weights=None)
    remember(made, Story(model=name, options={"num_classes": 10}))
    return made


def settle(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics that are not the initial ones, so that a lost buffer would show."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.mark.parametrize(("name", "text", "size", "count"), NETWORKS)
def test_networks(name: str, text: str, size: tuple[int, ...], count: int) -> None:
    torch.set_num_threads(1)
    net, step = settle(build(name)), parse_step(text)
    result = rewrite(net, step, size=size)
    changed = tuple(f"{change.name}." for change in result.changes)
    assert len(changed) == count, [str(skip) for skip in result.skipped]
    assert sum(c.params_after for c in result.changes) < sum(c.params_before for c in result.changes)

    # names and values outside the replaced layers
    old, new = net.state_dict(), result.model.state_dict()
    kept = [key for key in old if not key.startswith(changed)]
    assert kept == [key for key in new if not key.startswith(changed)]
    assert all(torch.equal(old[key], new[key]) for key in kept)

    # twice is once
    twice = rewrite(result.model, step, size=size if "stage" in text else None)
    assert twice.changes == ()
    assert {skip.name for skip in twice.skipped} >= {change.name for change in result.changes}
    assert list(twice.model.state_dict()) == list(new)

    # save, load
    blob = io.BytesIO()
    torch.save(new, blob)
    blob.seek(0)
    story = story_of(result.model)
    assert story is not None
    loaded = replay(build(story.model), Story.from_json(story.to_json()).steps)
    loaded.load_state_dict(torch.load(blob, weights_only=True), strict=True)
    x = torch.randn(2, *size)
    with torch.no_grad():
        want = result.model.eval()(x)
        assert want.isfinite().all()
        assert torch.equal(loaded.eval()(x), want)

    # forward and backward
    loaded.train()
    out: Tensor = loaded(x)
    assert out.shape == (2, 10)
    out.square().mean().backward()
    for change in result.changes:
        layer = loaded.get_submodule(change.name)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters()), change.name


# -- strangers --


def _convs(model: nn.Module, kind: str) -> set[str]:
    return {name for name, module in model.named_modules() if type(module).__name__ == kind}


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=10, **options)

    return make


@pytest.mark.parametrize(
    ("make", "kind", "where", "some"),
    [
        (_timm("tf_efficientnet_b0"), "Conv2dSame", "kernel>1 groups=1", False),
        (_timm("resnetv2_50x1_bit"), "StdConv2d", "groups=1 kernel>1", False),
        (_timm("nfnet_l0"), "ScaledStdConv2d", "groups=1 kernel>1", False),
        (_timm("tf_efficientnet_cc_b0_4e"), "CondConv2d", "groups=1 !stem", True),
        (_timm("mixnet_s"), "MixedConv2d", "groups=1 !stem", True),
    ],
    ids=["same", "std", "scaled_std", "cond", "mixed"],
)
def test_convolutions_with_another_meaning_are_left_alone(make, kind, where, some):
    net = make()
    strangers = _convs(net, kind)
    assert strangers
    step = parse_step(f"osep:init=fresh,where={where}")
    if not some:
        with pytest.raises(
            NothingToRewrite, match=f"{kind} is not a plain nn.Conv1d/2d/3d: it defines its own forward"
        ):
            rewrite(net, step)
        return
    result = rewrite(net, step, size=(3, 64, 64))
    assert result.changes
    assert _convs(result.model, kind) == strangers
    told = {skip.name for skip in result.skipped if kind in skip.reason}
    expected = {name for name in strangers if not list(net.get_submodule(name).children())}
    assert told <= expected
    assert bool(told) == bool(expected)


def test_a_story_survives_json_with_a_default_step():
    net = build("timm/resnet18")
    result = rewrite(net, parse_step("osep:init=fresh"))
    assert result.story is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = replay(build("timm/resnet18"), Story.from_json(result.story.to_json()).steps)
    assert list(again.state_dict()) == list(result.model.state_dict())
