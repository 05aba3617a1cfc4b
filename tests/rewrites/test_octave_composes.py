"""An octave network is a network like any other: what torch and leanconv do with networks, they do with this one."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from leanconv.build import create_model, load, save
from leanconv.cost import measure
from leanconv.deploy import compare, fold
from leanconv.elastic import calibrate, make_elastic
from leanconv.ops.octave import OctConv
from leanconv.ops.octave_map import OctaveMap
from leanconv.ops.osep import OptimizedSeparable
from leanconv.rewrites import Octave, rewrite

SIZE = (3, 32, 32)


def unit(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Network(nn.Module):
    """A bit of everything: a residual in place, a concatenation, groups, a gate, a pool, something without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = unit(3, 16), unit(16, 16), unit(16, 16)[:2], unit(16, 16)
        self.grouped, self.depthwise = unit(32, 32, groups=2), unit(32, 32, groups=32)
        self.reduce, self.expand = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.norm, self.last, self.head = nn.GroupNorm(4, 32), unit(32, 32, 2), nn.Linear(32, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.a(self.stem(x))
        y = self.b(x)
        y += x
        x = self.grouped(torch.cat([y, self.c(x)], 1))
        gate = torch.sigmoid(self.expand(functional.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        return functional.max_pool2d(self.depthwise(x) * gate, 3, 2, 1)

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.norm(x)).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    net = Network()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return rewrite(net, Octave(**{"last": True, **options}), size=SIZE).model.eval()


def images(batch: int = 2, side: int = 32) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def gradients(net: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    return found


def trained(net: nn.Module, forward: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The output of a step in training mode, and the gradients."""
    net.train()
    y = (net if forward is None else forward)(images())
    y.square().mean().backward()
    return y.detach(), gradients(net)


def agree(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]], net: nn.Module) -> None:
    torch.testing.assert_close(one[0], other[0])
    assert one[1].keys() == other[1].keys() == dict(net.named_parameters()).keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], msg=lambda text, name=name: f"{name}: {text}")


def test_is_the_class_it_was_with_its_methods() -> None:
    net = network()
    assert type(net) is Network
    assert any(module.low_in and module.low_out for module in net.modules() if isinstance(module, OctConv))
    x = images()
    features = net.forward_features(x)
    assert isinstance(features, OctaveMap)
    assert features.shape == (2, 32, 16, 16)
    assert torch.equal(net.forward_head(features), net(x))


def test_its_outputs_are_plain_tensors_however_many() -> None:
    class Pyramid(Network):
        def forward(self, x: Tensor) -> Any:
            x = self.a(self.stem(x))
            return {"maps": [x, functional.max_pool2d(x, 2)], "mean": x.mean((2, 3))}

    net = rewrite(Pyramid(), Octave(first=True, last=True), size=SIZE).model
    out = net(images())
    assert [type(y) for y in (*out["maps"], out["mean"])] == [Tensor] * 3
    assert [y.shape[1:] for y in out["maps"]] == [(16, 32, 32), (16, 16, 16)]
    exported = torch.export.export(net.eval(), (images(),)).module()(images())
    torch.testing.assert_close(exported["maps"][1], net(images())["maps"][1])


def test_under_autocast() -> None:
    net = network()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(images())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), net(images()), atol=0.1, rtol=0.1)
    net.train()
    with torch.autocast("cpu", torch.bfloat16):
        net(images()).float().mean().backward()
    assert gradients(net).keys() == dict(net.named_parameters()).keys()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_other_types(dtype: torch.dtype) -> None:
    net = network().to(dtype)
    assert net(images().to(dtype)).dtype == dtype


def test_channels_last() -> None:
    net = network()
    wanted = net(images())
    seen: list[Any] = []
    moved = copy.deepcopy(net).to(memory_format=torch.channels_last)
    moved.a.register_forward_hook(lambda _, __, y: seen.append(y))
    torch.testing.assert_close(moved(images().to(memory_format=torch.channels_last)), wanted)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    agree(trained(net), trained(moved), net)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    net = network()

    def checkpointed(x: Tensor) -> Tensor:
        x = net.stem(x)
        x = checkpoint(net.a, x, use_reentrant=use_reentrant)
        y = checkpoint(net.b, x, use_reentrant=use_reentrant) + x
        x = net.grouped(torch.cat([y, checkpoint(net.c, x, use_reentrant=use_reentrant)], 1))
        gate = torch.sigmoid(net.expand(functional.relu(net.reduce(x.mean((2, 3), keepdim=True)))))
        x = functional.max_pool2d(checkpoint(net.depthwise, x, use_reentrant=use_reentrant) * gate, 3, 2, 1)
        return checkpoint(net.forward_head, x, use_reentrant=use_reentrant)

    other = copy.deepcopy(net)
    agree(trained(net, checkpointed), trained(other), net)
    blocks = nn.Sequential(net.stem, net.a, net.b)
    y = checkpoint_sequential(blocks, 3, images().requires_grad_(), use_reentrant=use_reentrant)
    assert isinstance(y, OctaveMap)


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "frozen", "detached"])
def test_regions_without_gradients(how: str) -> None:
    net = network().train()
    x = images()
    if how == "inference_mode":
        with torch.inference_mode():
            assert torch.isfinite(net(x)).all()
        return
    if how == "frozen":
        net.a.requires_grad_(False)
        y = net(x)
    elif how == "detached":
        y = net.forward_head(net.forward_features(x).detach())
    else:
        with torch.no_grad():
            features = net.forward_features(x)
        assert not features.requires_grad
        y = net.forward_head(features)
    y.sum().backward()
    got = gradients(net)
    behind = {name for name, _ in net.named_parameters() if name.startswith(("head", "last", "norm"))}
    if how == "frozen":
        assert got.keys() == {name for name, _ in net.named_parameters() if not name.startswith("a.")}
    else:
        assert got.keys() == behind


def test_hooks_see_maps_and_may_change_them() -> None:
    net = network()
    seen: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda _, __, y, name=name: seen.update({name: y}))
        for name, module in net.named_modules()
    ]
    wanted = net(images())
    assert isinstance(seen["a"], Tensor)
    assert seen["a"].shape == (2, 16, 32, 32)
    assert seen["a"].detach().numpy().shape == (2, 16, 32, 32)
    for handle in handles:
        handle.remove()
    net.a.register_forward_hook(lambda _, __, y: y * 2)
    assert not torch.equal(net(images()), wanted)
    net.b.register_forward_pre_hook(lambda _, given: (given[0].flatten(2).view(2, 16, 32, 32),))
    assert torch.isfinite(net(images())).all()


def test_hooks_of_a_norm_are_called_once_with_the_whole_map() -> None:
    model, calls = Network().eval(), []
    model.a[1].register_forward_hook(lambda _, given, y: calls.append((given[0].shape, y.shape)))
    done = rewrite(model, Octave(), size=SIZE)
    calls.clear()
    done.model(images())
    assert calls == [((2, 16, 32, 32),) * 2]


def test_copies_are_their_own() -> None:
    net = network()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.a[0].conv_hh.weight.zero_()
    assert not torch.equal(net(images()), twin(images()))
    assert torch.equal(copy.deepcopy(net)(images()), net(images()))


def test_weights_move_by_state_dict() -> None:
    one, other = network(), network()
    for p in other.parameters():
        nn.init.uniform_(p)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(images()), other(images()))


def test_its_own_train_method_is_obeyed() -> None:
    class Frozen(Network):
        """Keeps its norms in evaluation."""

        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            return self

    net = rewrite(Frozen(), Octave(), size=SIZE).model.train()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 8
    assert not any(norm.training for norm in norms)
    assert net.training


def test_norms_become_synchronized() -> None:
    net = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    assert isinstance(net.a[1].high, nn.SyncBatchNorm)
    assert torch.equal(net(images()), network()(images()))


def _rank(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    net = nn.parallel.DistributedDataParallel(network().train())
    net(images(4)[2 * rank : 2 * rank + 2]).square().sum().backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in net.module.named_parameters()}, f"{folder}/gradients")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_data_parallel_on_two_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    got = torch.load(tmp_path / "gradients")
    net, wanted = network().train(), {}
    for part in images(4).split(2):
        net(part).square().sum().backward()
    wanted = gradients(net)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient * 2, wanted[name], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- compilers


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    net = network()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad():
        for size in ((2, 32), (3, 33)):  # the second at any size
            torch.testing.assert_close(compiled(images(*size)), net(images(*size)))


def test_trains_alike_compiled() -> None:
    torch._dynamo.reset()
    net = network()
    other = copy.deepcopy(net)
    agree(trained(net, torch.compile(net, fullgraph=True, backend="aot_eager")), trained(other), net)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # which torch asks for itself
def test_compiles_where_the_output_is_at_two_resolutions() -> None:
    """The hook that merges it is given such a map; and so is a part of a network that alone is compiled."""

    class Body(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.stem(x)))

    torch._dynamo.reset()
    net = rewrite(Body(), Octave(last=True), size=SIZE).model.double()
    part, whole, inner = (copy.deepcopy(net) for _ in range(3))
    part.a = torch.compile(part.a, fullgraph=True, backend="aot_eager")
    for compiled in (torch.compile(whole, fullgraph=True, backend="aot_eager"), part):
        with torch.no_grad():
            torch.testing.assert_close(compiled.eval()(images().double()), net.eval()(images().double()))
        for size in (32, 32, 24):
            torch.manual_seed(0)
            twin = copy.deepcopy(net).train()
            compiled.load_state_dict({k: twin.state_dict()[k.replace("_orig_mod.", "")] for k in compiled.state_dict()})
            wanted, got = twin(images(2, size).double()), compiled.train()(images(2, size).double())
            torch.testing.assert_close(got, wanted)
            for y in (wanted, got):
                (y.square().mean() + y[:, :1].mean()).backward()
            learnt = {name.replace("_orig_mod.", ""): gradient for name, gradient in gradients(compiled).items()}
            for name, gradient in gradients(twin).items():
                torch.testing.assert_close(learnt[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    inner.b = torch.compile(inner.b, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(inner.eval()(images().double()), net.eval()(images().double()))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="a map at two resolutions enters a compiled region while gradients are"):
        inner.train()(images().double())


IN_COMPILED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "in place": lambda net, x: net.b((x := net.a(x)).mul_(2).add_(x)),
    "in place without a rule": lambda net, x: net.b(net.a(x).masked_fill_(x[:, :1] < 0, 0.5)),
    "a full map in place": lambda net, x: (y := net.a(x), kept := y, y.add_(x.repeat(1, 1, 1, 1)), net.b(kept))[3],
    "parts": lambda net, x: net.b(torch.cat(net.a(x).chunk(2, 1)[::-1], 1)),
    "a branch on a type": lambda net, x: net.b(y * 2 if isinstance(y := net.a(x), Tensor) and y.shape[1] == 16 else y),
    "a region": lambda net, x: _in_region(net, x),
    "attention": lambda net, x: net.b((y := net.a(x)) * y.flatten(2).softmax(-1).view(2, 16, 32, 32)),
}


def _in_region(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.a(x)
    return net.b(y)


@pytest.mark.parametrize("name", IN_COMPILED)
@pytest.mark.parametrize("how", ["compile", "export"])
def test_what_forwards_do_is_compiled_and_exported(name: str, how: str) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = unit(3, 16), unit(16, 16), unit(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return IN_COMPILED[name](self, self.stem(x)).mean((2, 3))

    net = rewrite(Small(), Octave(), size=SIZE).model.eval()
    assert isinstance(net.a[0], OctConv)
    with torch.no_grad():
        if how == "compile":
            torch._dynamo.reset()
            got = torch.compile(net, fullgraph=True, backend="aot_eager")(images())
        else:
            got = torch.export.export(net, (images(),)).module()(images())
        torch.testing.assert_close(got, net(images()))


def test_is_exported_with_a_free_batch(tmp_path: Path) -> None:
    net = network()
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (images(),), dynamic_shapes=({0: batch},), strict=False)
    torch.export.save(program, tmp_path / "net.pt2")
    again = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(again(images(5)), net(images(5)))


@pytest.mark.slow
def test_is_exported_to_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from leanconv.deploy import export

    report = export(network(), tmp_path / "net.onnx", size=SIZE)
    assert report.dynamic_batch
    assert report.folded == len(fold(network(), SIZE).folded) > 10
    assert report.max_abs_difference < 1e-4


# -------------------------------------------------------------------------------------------------- with the others


def test_every_norm_folds() -> None:
    net = network()
    result = fold(net, SIZE)
    assert result.kept == ()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in result.model.modules())
    found = compare(net, result.model, SIZE, seed=5)
    assert found.max_abs <= 2e-5 * max(1.0, found.max_output)


FOLDED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (lambda: create_model("resnet20"), SIZE),
    "separable resnet20": (lambda: rewrite(create_model("resnet20"), OptimizedSeparable(), size=SIZE).model, SIZE),
    "norms with activations": (lambda: create_model("timm/mobilenetv2_035"), (3, 64, 64)),
    "with biases": (lambda: nn.Sequential(nn.Conv2d(3, 16, 3), *(m for _ in range(3) for m in biased())), SIZE),
    "pre-activation": (lambda: create_model("timm/resnetv2_18d"), (3, 64, 64)),
}


def biased() -> tuple[nn.Module, ...]:
    return nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "with biases" else pytest.mark.slow) for name in FOLDED]
)
def test_folds_as_the_dense_network_does(name: str) -> None:
    pytest.importorskip("timm")
    make, size = FOLDED[name]
    torch.manual_seed(0)
    dense = make().eval()
    net = rewrite(dense, Octave(), size=size).model
    with torch.no_grad():
        for _ in range(3):
            net.train()(torch.randn(4, *size))
    net.eval()
    result, plain = fold(net, size), fold(dense, size)
    folded = {one.removesuffix(".high").removesuffix(".low") for one in result.folded}
    assert folded >= set(plain.folded)
    assert len(result.folded) > len(plain.folded)
    found = compare(net, result.model, size, seed=5)
    assert found.max_abs <= 5e-5 * max(1.0, found.max_output)


def test_a_norm_that_has_a_hook_is_not_folded() -> None:
    net = network()
    net.a[1].register_forward_hook(lambda _, __, y: y * 2)
    kept = {one.name: one.reason for one in fold(net, SIZE).kept}
    assert kept == dict.fromkeys(("a.1.high", "a.1.low"), "its BatchNorm carries forward hooks")


@pytest.mark.slow
def test_is_made_elastic_calibrated_and_extracted(tmp_path: Path) -> None:
    net = create_model("oct_resnet26", num_classes=4)
    elastic = make_elastic(net, (0.25, 1.0), (32, 24))
    elastic.train()
    with elastic.at(0.5, 24):
        elastic(images(4)).sum().backward()
    calibrate(elastic, [(images(16), None)], [(0.5, 24)])
    elastic.eval()
    small = elastic.extract(0.5, 24)
    with elastic.at(0.5, 24):
        torch.testing.assert_close(small(images(2, 24)), elastic.model(images(2, 24)))
    assert measure(small, (3, 24, 24)).macs < 0.3 * measure(net, SIZE).macs
    assert fold(small.eval(), (3, 24, 24)).kept == ()
    save(elastic, tmp_path / "elastic")
    again = load(tmp_path / "elastic").eval()
    with again.at(0.5, 24), elastic.at(0.5, 24):
        assert torch.equal(again(images()), elastic(images()))


def test_features_only_and_rewriting_what_timm_makes() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet18", features_only=True).eval()
    done = rewrite(net, Octave(last=True), size=(3, 64, 64))
    maps, wanted = done.model(images(1, 64)), net(images(1, 64))
    assert [type(y) for y in maps] == [Tensor] * 5
    assert [y.shape for y in maps] == [y.shape for y in wanted]
    whole = rewrite(timm.create_model("resnet18", num_classes=3), Octave(), size=(3, 64, 64)).model.eval()
    x = images(1, 64)
    assert torch.equal(whole.forward_head(whole.forward_features(x)), whole(x))
    whole.set_grad_checkpointing(True)
    whole.train()(images(2, 64)).sum().backward()
    assert all(p.grad is not None for p in whole.parameters())
