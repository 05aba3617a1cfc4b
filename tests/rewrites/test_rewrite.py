"""`rewrite` on small networks: what is kept, what is told, what is refused, and that a story replays."""

from __future__ import annotations

import copy
import re
import socket

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leanconv.errors import LeanconvError, NothingToRewrite, PlanError, RewriteError, UnknownName
from leanconv.ops import OPERATORS
from leanconv.ops.chain import ConvChain
from leanconv.ops.drop_in import ChainRewrite
from leanconv.ops.igc import InterleavedGroup
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.separable import DepthSeparable, Grouped, SpatialSeparable
from leanconv.rewrites import Inflate, Octave, parse_step, replay, rewrite
from leanconv.story import Story, remember, story_of

SEPARABLE = DepthSeparable(init="fresh")


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.Conv2d(32, 8, 1),
    )


def names_of(result) -> list[str]:
    return [change.name for change in result.changes]


def reasons_of(result) -> dict[str, str]:
    return {skip.name: skip.reason for skip in result.skipped}


# -- what a rewrite does --


def test_the_input_is_not_changed():
    net = build()
    kinds, before = [type(m) for m in net.modules()], copy.deepcopy(net.state_dict())
    result = rewrite(net, SEPARABLE, size=(3, 8, 8))
    assert [type(m) for m in net.modules()] == kinds
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    ours = {p.data_ptr() for p in result.model.parameters()}
    assert not ours & {p.data_ptr() for p in net.parameters()}
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in result.model.modules())


def test_changes_and_names():
    net = build()
    result = rewrite(net, SEPARABLE)
    assert names_of(result) == ["3", "5"]
    first, second = result.changes
    assert (first.before, second.before) == ("3x3 16->16", "3x3 16->32 /2x2")
    assert first.after == "depth_separable: 3x3 16->16 g16; 1x1 16->16"
    assert (first.params_before, first.params_after) == (16 * 16 * 9, 16 * 9 + 16 * 16)
    assert (second.params_before, second.params_after) == (32 * 16 * 9 + 32, 16 * 9 + 16 * 32 + 32)
    assert (first.weights, first.error) == ("fresh", None)
    assert result.skipped == ()
    old, new = net.state_dict(), result.model.state_dict()
    changed = ("3.", "5.")
    kept = [key for key in old if not key.startswith(changed)]
    assert kept == [key for key in new if not key.startswith(changed)]
    assert all(torch.equal(old[key], new[key]) for key in kept)


def test_the_summary_counts():
    text = str(rewrite(build(), DepthSeparable()))
    assert text.startswith(
        "2 layers replaced: 6,944 -> 1,088 parameters in them (15.7%)\nweights: 2 projected (relative"
    )
    net = nn.Sequential(*build(), nn.ConvTranspose2d(8, 8, 3))
    assert str(rewrite(net, SEPARABLE)).endswith(
        "1 left alone: 1 x ConvTranspose2d is not a convolution we can plan (it is a transposed one)"
    )


@pytest.mark.parametrize("stem", sorted(OPERATORS))
def test_every_operator_is_idempotent_and_trains(stem):
    step = OPERATORS[stem](where="kernel>1 groups=1 !stem")
    once = rewrite(build(), step, size=(3, 8, 8))
    twice = rewrite(once.model, step, size=(3, 8, 8))
    assert len(once.changes) == 2
    assert twice.changes == ()
    already = "already a chain" if isinstance(step, ChainRewrite) else f"already a {type(once.model[3]).__name__}"
    assert reasons_of(twice) == {"3": already, "5": already}
    a, b = once.model.state_dict(), twice.model.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
    once.model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in once.model.parameters())


def test_projected_weights_are_nearer_than_fresh_ones_and_the_error_is_true():
    net = build().eval()
    result = rewrite(net, OptimizedSeparable(overlap=1.0))
    for change in result.changes:
        assert change.weights == "projected"
        chain, conv = result.model.get_submodule(change.name), net.get_submodule(change.name)
        error = (chain.dense_kernel() - conv.weight).detach().norm() / conv.weight.detach().norm()
        assert change.error == pytest.approx(float(error), rel=1e-3)
        fresh = rewrite(net, OptimizedSeparable(where=change.name, init="fresh")).model.get_submodule(change.name)
        assert change.error < float((fresh.dense_kernel() - conv.weight).detach().norm() / conv.weight.detach().norm())


def test_what_the_target_can_express_is_exact():
    net = build().eval()
    with torch.no_grad():  # a kernel that is depthwise times pointwise
        depthwise, pointwise = torch.randn(1, 16, 3, 3), torch.randn(16, 16, 1, 1)
        net[3].weight.copy_(depthwise * pointwise)
    result = rewrite(net, DepthSeparable(where="3"))
    (change,) = result.changes
    assert (change.weights, change.error) == ("exact", 0.0)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-4, atol=1e-5)


def test_steps_compose_in_order():
    net = build()
    result = rewrite(net, DepthSeparable(where="3"), Grouped(groups=4, where="kernel>1 !stem"), size=(3, 8, 8))
    assert [change.after.split(":")[0] for change in result.changes] == ["depth_separable", "group"]
    assert reasons_of(result) == {"3": "already a chain"}


def test_a_layer_that_cannot_be_planned_stays_and_is_told():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 10, 3))
    result = rewrite(net, Grouped(groups=4))
    assert names_of(result) == ["1"]
    assert "groups (=4) must divide in_channels (=16) and out_channels (=10)" in reasons_of(result)["2"]
    again = rewrite(result.model, Grouped(groups=4))  # twice is once, also with a failure left
    assert again.changes == ()
    assert set(reasons_of(again)) == {"1", "2"}


def test_a_chain_that_would_cost_more_is_not_put_in():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1))
    result = rewrite(net, DepthSeparable(where="!stem"))
    assert names_of(result) == ["1"]
    assert (
        reasons_of(result)["2"]
        == "the chain 1x1 16->16 g16; 1x1 16->16 has more weights (272) than the convolution has"
    )


def test_impossible_options_are_an_error_with_the_plan_error_inside():
    with pytest.raises(
        RewriteError, match="group: none of the 2 selected convolutions can be planned; the first, 3"
    ) as e:
        rewrite(build(), Grouped(groups=7))
    assert not isinstance(e.value, NothingToRewrite)
    assert isinstance(e.value.__cause__, PlanError)
    with pytest.raises(RewriteError, match=r"with a ReLU between its stages cannot be fitted.*init='fresh'"):
        rewrite(build(), DepthSeparable(between="relu"))


# -- what a replacement takes over --


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("stem", ["osep", "igc", "csn"])
def test_dtype_is_kept(dtype, stem):
    net = build().to(dtype)
    result = rewrite(net, OPERATORS[stem](), size=(3, 8, 8))
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert all(change.weights == "projected" and 0 < change.error < 1 for change in result.changes)
    assert result.model(torch.randn(2, 3, 8, 8, dtype=dtype)).isfinite().all()


def test_the_meta_device_is_kept_and_nothing_is_claimed_about_weights():
    with torch.device("meta"):
        net = build()
    result = rewrite(net, OptimizedSeparable(where="kernel>1 !stem stage<9"), size=(3, 8, 8))
    assert len(result.changes) == 2
    assert all(p.is_meta for p in result.model.parameters())
    assert {change.weights for change in result.changes} == {"fresh"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_kept():
    net = build().cuda()
    result = rewrite(net, OptimizedSeparable(), size=(3, 8, 8))
    assert {p.device.type for p in (*result.model.parameters(), *result.model.buffers())} == {"cuda"}
    result.model(torch.randn(2, 3, 8, 8, device="cuda")).sum().backward()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept_layer_by_layer(training):
    net = build().train(training)
    net[5].train(not training)
    model = rewrite(net, SEPARABLE, size=(3, 8, 8)).model
    assert [m.training for m in model] == [m.training for m in net]
    assert {m.training for m in model[5].modules()} == {not training}


def test_requires_grad_is_kept():
    net = build()
    net[3].requires_grad_(False)
    net[5].weight.requires_grad_(False)
    model = rewrite(net, SEPARABLE).model
    assert not any(p.requires_grad for p in model[3].parameters())
    assert [name for name, p in model[5].named_parameters() if p.requires_grad] == ["conv2.bias"]
    assert all(p.requires_grad for p in model[0].parameters())


def test_channels_last_is_kept():
    net = build().to(memory_format=torch.channels_last)
    model = rewrite(net, Grouped(groups=2)).model
    assert model[3].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[3].conv1.weight.is_contiguous()


def test_a_shared_convolution_is_rewritten_once_and_shared_again():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.a = nn.Conv2d(8, 8, 3, padding=1)
            self.b = self.a
            self.block = nn.Sequential(self.a, nn.ReLU())

        def forward(self, x):
            return self.block(self.b(self.a(self.stem(x))))

    result = rewrite(Shared(), SEPARABLE, size=(3, 8, 8))
    assert names_of(result) == ["a"]
    assert isinstance(result.model.a, ConvChain)
    assert result.model.a is result.model.b is result.model.block[0]


def test_one_dimension_three_dimensions_and_a_bare_convolution():
    for ndim, conv in ((1, nn.Conv1d), (3, nn.Conv3d)):
        net = nn.Sequential(conv(2, 8, 3), conv(8, 8, 3, padding=1))
        result = rewrite(net, InterleavedGroup(init="fresh"), size=(2, *(6,) * ndim))
        assert result.model(torch.randn(1, 2, *(6,) * ndim)).shape == (1, 8, *(4,) * ndim)
    bare = rewrite(nn.Conv2d(8, 8, 3), DepthSeparable(where=""), size=(8, 5, 5))
    assert isinstance(bare.model, ConvChain)
    assert names_of(bare) == [""]


def test_a_subclass_without_a_meaning_of_its_own_is_a_convolution():
    class Named(nn.Conv2d):
        def __init__(self, width: int) -> None:
            super().__init__(width, width, 3)

    assert names_of(rewrite(nn.Sequential(nn.Conv2d(3, 8, 3), Named(8)), SEPARABLE)) == ["1"]


# -- what stays as it was, with the reason --


class Standardized(nn.Conv2d):
    """Another function of the same weights, as timm's StdConv2d and Conv2dSame are."""

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Mystery(nn.Module):
    """A stranger that calls itself a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.weight)


class MysteryConv(Mystery):
    pass


def _hooked() -> nn.Module:
    conv = nn.Conv2d(8, 8, 3)
    conv.register_forward_hook(lambda m, i, o: o * 2)
    return conv


def _pruned() -> nn.Module:
    from torch.nn.utils import prune

    return prune.l1_unstructured(nn.Conv2d(8, 8, 3), "weight", amount=0.5)


def _patched() -> nn.Module:
    conv = nn.Conv2d(8, 8, 3)
    conv.forward = lambda x: x
    return conv


def _extra() -> nn.Module:
    conv = nn.Conv2d(8, 8, 3)
    conv.register_buffer("mask", torch.ones(1))
    return conv


def _nan() -> nn.Module:
    conv = nn.Conv2d(8, 8, 3)
    conv.weight.data[0, 0, 0, 0] = float("nan")
    return conv


STRANGE = {
    "transposed": (lambda: nn.ConvTranspose2d(8, 8, 3), "not a convolution we can plan"),
    "subclass": (
        lambda: Standardized(8, 8, 3),
        "Standardized is not a plain nn.Conv1d/2d/3d: it defines its own forward",
    ),
    "stranger": (MysteryConv, "MysteryConv is not a plain nn.Conv1d/2d/3d"),
    "parametrized": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), "parametrized"),
    "spectral": (lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)), "parametrized"),
    "hooked": (_hooked, "has a forward hook"),
    "pruned": (_pruned, "has a forward pre- hook"),
    "patched": (_patched, "its forward was replaced on the instance"),
    "extra": (_extra, r"carries more than weight and bias \(mask\)"),
    "nan": (_nan, "holds NaN or infinity"),
}


@pytest.mark.parametrize("case", sorted(STRANGE))
def test_what_is_more_than_a_convolution_stays(case):
    make, reason = STRANGE[case]
    torch.manual_seed(0)
    strange = make()
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), strange)
    result = rewrite(net, DepthSeparable(), size=(3, 16, 16))
    assert names_of(result) == ["1"]
    assert list(reasons_of(result)) == ["2"]
    assert re.search(reason, reasons_of(result)["2"])
    assert type(result.model[2]) is type(strange)
    x = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(result.model[2].eval()(x), strange.eval()(x), equal_nan=True)
    with pytest.raises(NothingToRewrite, match="selects 1 convolutions, but every one has to be left alone: 1: "):
        rewrite(nn.Sequential(nn.Conv2d(3, 8, 3), strange), DepthSeparable())


def test_grouped_convolutions_stay():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=4))
    result = rewrite(net, DepthSeparable(where="kernel>1 !stem"))
    assert reasons_of(result) == {"2": "it already has groups=4: a chain stands for a dense convolution"}


def test_tied_weights_stay():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    net[2].weight = net[1].weight
    result = rewrite(net, SEPARABLE)
    assert names_of(result) == ["3"]
    assert reasons_of(result)["1"].startswith("its weight is tied to that of 1 and 2")
    assert result.model[1].weight is result.model[2].weight


# -- what is refused --


def test_an_optimizer_is_refused_with_the_fix():
    net = build()
    with pytest.raises(RewriteError, match=r"this SGD holds the parameters of the old one.*optimizer after rewriting"):
        rewrite(net, SEPARABLE, optimizer=torch.optim.SGD(net.parameters(), lr=0.1))


@pytest.fixture
def process_group():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_ddp_is_refused_with_the_fix():
    wrapped = nn.parallel.DistributedDataParallel(build())
    with pytest.raises(RewriteError, match=r"wrapped in DistributedDataParallel: pass model\.module, then wrap"):
        rewrite(wrapped, SEPARABLE)
    assert names_of(rewrite(wrapped.module, SEPARABLE)) == ["3", "5"]


@pytest.mark.usefixtures("process_group")
def test_a_fully_sharded_model_is_refused():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharded = fully_shard(build(), mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(RewriteError, match="wrapped in FSDPModule: do this before fully_shard"):
        rewrite(sharded, SEPARABLE)


def test_other_wrappers_are_refused_wherever_they_are():
    with pytest.raises(RewriteError, match=r"wrapped in DataParallel: pass model\.module"):
        rewrite(nn.DataParallel(build()), SEPARABLE)
    with pytest.raises(RewriteError, match=r"0: the model is wrapped in OptimizedModule: .*before torch\.compile"):
        rewrite(nn.Sequential(torch.compile(build())), SEPARABLE)


def test_a_scripted_model_is_refused(recwarn):
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)))
    with pytest.raises(RewriteError, match=r"wrapped in ScriptModule: do this before torch\.jit\.script"):
        rewrite(scripted, SEPARABLE)


def test_an_uninitialised_model_is_refused():
    lazy = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(8, 3))
    with pytest.raises(RewriteError, match=r"module '1' \(LazyConv2d\) is lazy and has no weights yet: run one batch"):
        rewrite(lazy, SEPARABLE)
    lazy(torch.randn(1, 3, 8, 8))
    assert names_of(rewrite(lazy, SEPARABLE)) == ["1"]


def test_gradient_hooks_are_refused_because_a_copy_loses_them():
    net = build()
    net[0].weight.register_hook(lambda gradient: gradient * 0)
    with pytest.raises(RewriteError, match=r"0\.weight has a gradient hook.*rewrite first"):
        rewrite(net, SEPARABLE)
    net = build()
    net[3].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(RewriteError, match=r"3\.weight has a gradient hook"):
        rewrite(net, SEPARABLE)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((), "no rewrite was asked for: pass one or more of osep"),
        ((DepthSeparable,), r"DepthSeparable is a class, a step is one of its instances: pass DepthSeparable\(\)"),
        (("osep",), r"str is no rewrite step: parse_step\('osep'\) makes one"),
        ((3,), "int is no rewrite step"),
    ],
)
def test_wrong_steps(steps, message):
    with pytest.raises(RewriteError, match=message):
        rewrite(build(), *steps)


def test_wrong_models_and_sizes():
    with pytest.raises(RewriteError, match=r"expected an nn\.Module, got str: build or load"):
        rewrite("resnet18", SEPARABLE)
    for size in ((3,), (2, 3, 8, 8, 8), (3, 8, -1), (3, 8.0, 8), "3,8,8", 224):
        with pytest.raises(LeanconvError, match="size is the shape of one input without the batch axis"):
            rewrite(build(), SEPARABLE, size=size)
    with pytest.raises(
        RewriteError, match=r"fails on an input of shape \(4, 8, 8\) in aten.convolution of module '0': RuntimeError"
    ):
        rewrite(build(), SEPARABLE, size=(4, 8, 8))


def test_a_failing_example_is_one_line_and_no_log(caplog):
    net = nn.Sequential(nn.Conv3d(3, 8, 3), nn.Conv3d(8, 8, 3), nn.AvgPool3d(7))
    with pytest.raises(RewriteError, match=r"in aten.avg_pool3d of module '2': RuntimeError: input image") as caught:
        rewrite(net, SEPARABLE, size=(3, 8, 8, 8))
    assert "\n" not in str(caught.value)
    assert not caplog.records
    with pytest.raises(RewriteError, match=r"Bilinear fails on .*: TypeError: .*; it takes 2 inputs"):
        rewrite(nn.Bilinear(2, 2, 2), SEPARABLE, size=(3, 2, 2))


class Grabby(nn.Module):
    """Uses the convolution's own weights, as some fused blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return F.conv2d(x.to(self.conv.weight.dtype), self.conv.weight)


def test_a_parent_that_uses_the_weights_itself_is_found():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU(), Grabby()), nn.Conv2d(8, 8, 3))
    with pytest.raises(
        RewriteError, match=r"1\.1 no longer runs after 1\.1\.conv was replaced.*weight.*'\.\.\. !1\.1\.conv'"
    ):
        rewrite(net, SEPARABLE, size=(3, 16, 16))
    fixed = rewrite(net, DepthSeparable(where="kernel>1 !stem !1.1.conv"), size=(3, 16, 16))
    assert names_of(fixed) == ["2"]


# -- stories --


def told() -> nn.Sequential:
    net = build()
    remember(net, Story(model="tests:build"))
    return net


def test_a_story_grows_by_every_step_that_changed_something():
    net = told()
    result = rewrite(net, parse_step("osep:where=3"), parse_step("depth_separable:where=5"))
    assert [stem for stem, _ in result.story.steps] == ["osep", "depth_separable"]
    assert result.story.steps[0][1]["where"] == "3"
    assert result.story.steps[0][1]["init"] == "project"
    assert story_of(result.model) == result.story
    assert story_of(net) == Story(model="tests:build")
    assert rewrite(result.model, parse_step("osep:where=3")).story == result.story
    assert rewrite(build(), SEPARABLE).story.model is None
    assert [stem for stem, _ in rewrite(build(), SEPARABLE).story.steps] == ["depth_separable"]


@pytest.mark.parametrize("stem", sorted(OPERATORS))
def test_a_replayed_story_takes_the_weights(stem):
    step = OPERATORS[stem](where="kernel>1 stage<=1 !stem")
    result = rewrite(told(), step, size=(3, 8, 8))
    assert result.story.steps[0][1]["size"] == [3, 8, 8]
    story = Story.from_json(result.story.to_json())
    again = replay(told(), story.steps)
    assert story_of(again) == story
    again.load_state_dict(result.model.state_dict(), strict=True)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.eval()(x), result.model.eval()(x))


def test_replay_fits_nothing(monkeypatch):
    result = rewrite(told(), OptimizedSeparable())

    def never(*_):
        raise AssertionError("project_ was called")

    monkeypatch.setattr(ConvChain, "project_", never)
    replay(told(), result.story.steps)


def test_replay_leaves_alone_what_was_left_alone_for_its_state():
    net = told()
    net[3].register_forward_hook(lambda m, i, o: None)
    result = rewrite(net, SEPARABLE)
    assert result.story.steps[0][1]["keep"] == ["3"]
    again = replay(told(), result.story.steps)  # a bare model: no hook, the same structure
    assert list(again.state_dict()) == list(result.model.state_dict())


def test_replay_refuses_a_foreign_step():
    with pytest.raises(UnknownName, match="unknown rewrite 'elastic'"):
        replay(build(), [("elastic", {"widths": [0.25, 1.0]})])


def test_spatial_separable_leaves_what_has_one_axis():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, (1, 3)), nn.Conv2d(8, 8, 3))
    result = rewrite(net, SpatialSeparable())
    assert names_of(result) == ["2"]
    assert "fewer than two spatial axes" in reasons_of(result)["1"]


def test_what_rewrite_returns_is_rewritten_again():
    once = rewrite(told(), DepthSeparable(where="3"))
    twice = rewrite(once, Grouped(groups=4, where="5"))
    assert names_of(twice) == ["5"]
    assert [stem for stem, _ in twice.story.steps] == ["depth_separable", "group"]


def test_a_step_that_needs_a_run_takes_the_size_that_the_model_says():
    net = told()
    with pytest.raises(RewriteError, match="octave: pass size"):
        rewrite(net, Octave())
    net.pretrained_cfg = {"input_size": (3, 32, 32)}
    assert rewrite(net, Octave(last=True)).story.steps[0][1]["size"] == [3, 32, 32]
    assert names_of(rewrite(net, DepthSeparable(where="kernel>1 stage=0 !stem"))) == ["3"]
    assert rewrite(net, Octave(last=True), size=(3, 16, 16)).story.steps[0][1]["size"] == [3, 16, 16]


class Transposed(nn.Module):
    """Uses the weights of a convolution once more."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 16, 3, padding=1) for i in (3, 16, 16))

    def forward(self, x):
        x = self.c(torch.relu(self.b(self.a(x))))
        return F.conv_transpose2d(x, self.b.weight, padding=1)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (SEPARABLE, r"^Transposed no longer runs after b.* was replaced: .*!b'"),
        (Inflate(frames=4), r"^inflate: Transposed has no 3D form: .*conv_transpose2d.*, in `.*b\.weight.*:\d+"),
    ],
    ids=["chain", "inflate"],
)
def test_a_network_that_no_longer_runs_is_no_matter_of_size(step, told):
    with pytest.raises(RewriteError, match=told) as error:
        rewrite(Transposed(), step, size=(3, 16, 16))
    assert "pass size" not in str(error.value)
    assert "size must be" not in str(error.value)
