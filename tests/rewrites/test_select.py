"""The `where` mini-language: what each term selects, what each mistake says."""

from __future__ import annotations

import pytest
from torch import nn

from leanconv.errors import LeanconvError, NothingToRewrite, RewriteError
from leanconv.ops.separable import DepthSeparable, Grouped
from leanconv.rewrites import rewrite
from leanconv.rewrites.order import order_of
from leanconv.rewrites.select import layers_of, parse


class Net(nn.Module):
    """Registration order differs from the order of execution: `late` is registered first, `stem` runs first."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.stem = nn.Conv2d(3, 8, 7, stride=2, padding=3)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 8, (1, 3), padding=(0, 1)), nn.Conv2d(8, 16, 1))
        self.layer2 = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        )
        self.aux = nn.Conv2d(16, 16, 3)

    def forward(self, x):
        return self.late(self.layer2(self.layer1(self.stem(x))))


def chosen(where: str, *, example: bool = False) -> set[str]:
    net = Net()
    order = order_of(net, (3, 32, 32)) if example else None
    return {layer.name for layer in layers_of(net, order) if parse(where)(layer)}


ALL = {"late", "stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "aux"}


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("", ALL),
        ("kernel>1", ALL - {"layer1.1"}),
        ("kernel=1", {"layer1.1"}),
        ("kernel==7", {"stem"}),
        ("!kernel>1", {"layer1.1"}),
        ("kernel!=3", {"stem", "layer1.1"}),
        ("groups=1 kernel=3", {"late", "layer1.0", "layer2.0", "aux"}),
        ("stride>=2", {"late", "stem"}),
        ("dilation>1", {"layer2.0"}),
        ("in_channels<8", {"stem"}),
        ("out_channels<=8", {"stem", "layer1.0"}),
        ("ndim=2", ALL),
        ("layer[12].*", {"layer1.0", "layer1.1", "layer2.0", "layer2.1"}),
        ("layer?.1", {"layer1.1", "layer2.1"}),
        ("!layer*", {"late", "stem", "aux"}),
        ("aux", {"aux"}),
        ("stem", {"late"}),  # the first that is registered
        ("!stem kernel>3", {"stem"}),
        ("depth<2", {"late", "stem"}),
    ],
)
def test_terms(where, names):
    assert chosen(where) == names


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("stem", {"stem"}),
        ("depth=1", {"layer1.0"}),
        ("depth=6", {"aux"}),  # it never runs and comes last
        ("stage=1", {"stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1"}),
        ("stage=2", {"late"}),
        ("stage<9", ALL - {"aux"}),
        ("!stage=1", {"late"}),
    ],
)
def test_terms_that_an_example_answers(where, names):
    assert chosen(where, example=True) == names


def test_a_resnet_has_its_stages():
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet18", num_classes=2)
    for size in (64, 96):
        stages = {layer.name: layer.stage for layer in layers_of(net, order_of(net, (3, size, size)))}
        assert stages["conv1"] == 1
        assert {stages[f"layer{k}.1.conv1"] for k in (1, 2, 3, 4)} == {2, 3, 4, 5}
        assert stages["layer3.0.conv1"] == stages["layer3.0.conv2"] == 4


def test_a_shared_convolution_is_meant_by_any_of_its_names():
    conv = nn.Conv2d(4, 4, 3)
    net = nn.ModuleDict({"a": conv, "b": conv})
    (layer,) = layers_of(net)
    assert layer.names == ("a", "b")
    assert parse("b")(layer)
    assert not parse("!b")(layer)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("kernal>1", r"where: term 'kernal>1': 'kernal' is no fact .* did you mean 'kernel'\?"),
        ("groups=1 kernel>one", "where: term 'kernel>one': kernel is compared with a whole number, got 'one'"),
        ("kernel=>1", "where: term 'kernel=>1': unknown comparison '=>': expected one of = =="),
        ("kernel > 1", "where: term 'kernel': kernel needs a comparison, such as 'kernel>=2'"),
        ("stem=1", "where: term 'stem=1': 'stem' is no fact of a convolution that can be compared"),
        ("!", "where: term '!': '!' negates exactly one term"),
        ("!!stem", "where: term '!!stem': '!' negates exactly one term"),
        ("kernel>", "where: term 'kernel>': kernel is compared with a whole number, got ''"),
    ],
)
def test_a_wrong_term_is_named(where, message):
    with pytest.raises(LeanconvError, match=message):
        parse(where)
    with pytest.raises(LeanconvError, match=message):
        rewrite(Net(), DepthSeparable(where=where))


def test_stage_needs_an_example():
    with pytest.raises(RewriteError, match=r"depth_separable: where='stage=2' speaks of stage.*pass size"):
        rewrite(Net(), DepthSeparable(where="stage=2"))


def test_nothing_lists_the_nearest_misses():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    with pytest.raises(NothingToRewrite) as caught:
        rewrite(net, Grouped(groups=4))
    message = str(caught.value)
    assert message == (
        "group: nothing matches where='kernel>1 groups=1 !stem': 4 Conv2d seen: "
        "kernel>1 excludes 2 (kernel=1, such as 1); groups=1 excludes 1 (groups=8, such as 3); !stem excludes 1 "
        '(such as 0); nearest misses: 2 fail kernel>1 alone (1, 2): to take them pass where="groups=1 !stem"'
    )
    assert "\n" not in message
    assert len(rewrite(net, Grouped(groups=4, where="groups=1 !stem")).changes) == 2  # the advice is good


def test_nothing_never_advises_what_cannot_be_done():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 8, 1))
    with pytest.raises(
        NothingToRewrite, match=r"2 Conv2d, 1 ConvTranspose2d seen: .*; nearest misses: 1 fail !stem alone"
    ):
        rewrite(net, Grouped())


def test_nothing_when_every_layer_fails_twice():
    with pytest.raises(
        NothingToRewrite,
        match=r"kernel>1 excludes 1 .*; !stem excludes 1 .*; none that could be rewritten fails one term alone",
    ):
        rewrite(nn.Sequential(nn.Conv2d(3, 3, 1)), DepthSeparable())


def test_nothing_in_a_model_without_convolutions():
    with pytest.raises(NothingToRewrite, match="the model has no convolution at all"):
        rewrite(nn.Linear(2, 2), DepthSeparable())
