"""What was made elastic has been run: it is the network that was given and its narrow forms train, or it is refused."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils import _pytree as pytree
from torchvision.ops import FrozenBatchNorm2d

import leanconv as lc
from leanconv.elastic import ElasticNet, MutualObjective, calibrate, make_elastic
from leanconv.errors import LeanconvError, NotCalibrated, RewriteError


def tensors(outputs):
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def check(model, size=(3, 16, 16), *, width=0.5, **options):
    """Make it elastic; train, calibrate and extract it at `width`; the parts of it that are left to look at."""
    net = make_elastic(model, widths=(width, 1.0), resolutions=(size[-2],), size=size, **options)
    x = torch.randn(3, *size)
    net.train()
    with net.at(width):
        answers = tensors(net(x))
    sum(answer.square().sum() for answer in answers).backward()
    if net.norms:
        calibrate(net, [torch.randn(16, *size)], [(width, size[-2])])
    static = net.eval().extract(width).eval()
    with torch.no_grad(), net.at(width):
        for one, other in zip(tensors(net(x)), tensors(static(x)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    return net, static


class Net(nn.Module):
    """Two convolutions with something between them, and a head."""

    def __init__(self, between=None, channels=32):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, channels, 3, 2, 1), nn.Conv2d(channels, channels, 3, padding=1)
        self.between, self.head = between or nn.ReLU(), nn.Linear(channels, 5)

    def forward(self, x):
        return self.head(self.second(self.between(self.first(x))).mean((2, 3)))


def test_nothing_given_is_changed():
    class Drawing(Net):
        def forward(self, x):
            random.random(), np.random.rand()
            return super().forward(x + torch.rand(1))

    model = Drawing(nn.Sequential(nn.BatchNorm2d(32), nn.Dropout(0.5))).train()
    model.between[0].eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = copy.deepcopy(model.state_dict())
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with pytest.raises(RewriteError, match="frozen"):
        make_elastic(model, resolutions=(16,))
    model.between[0].train()
    net = make_elastic(model, resolutions=(16,))
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(states[2], torch.get_rng_state())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(tensor, net.model.state_dict()[name])
    assert model.head.weight.grad.eq(1).all()
    assert model.first.weight.grad is None
    assert all(p.grad is None for p in net.parameters())
    assert net.training
    assert all(module.training for module in net.model.modules())


def test_a_forward_that_answers_differently_each_time_is_refused():
    class Counting(Net):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x) * Counting.calls

    with pytest.raises(RewriteError, match=r"at width 1 in evaluation .* does not answer as the network did"):
        make_elastic(Counting(), resolutions=(16,))


def test_a_path_that_only_training_takes_is_run():
    class Mean(Net):
        def forward(self, x):
            x = self.second(self.between(self.first(x)))
            if self.training:
                x = x - torch.zeros(1, 32, 1, 1)  # a number of channels that no width changes
            return self.head(x.mean((2, 3)))

    with pytest.raises(RewriteError, match=r"Mean: .* at width 0.25 in training"):
        make_elastic(Mean(), resolutions=(16,))


def test_a_part_that_skips_its_layers_is_found_by_what_is_extracted():
    class Odd(Net):
        def forward(self, x):
            narrow = getattr(self.first, "elastic_config", None) is not None and self.first.elastic_config.width < 1
            return super().forward(x) * (2 if narrow else 1)

    with pytest.raises(RewriteError, match="what is extracted from it differ"):
        make_elastic(Odd(), resolutions=(16,))


def test_heads_for_training_only():
    class Heads(Net):
        def __init__(self):
            super().__init__(nn.BatchNorm2d(32))
            self.aid = nn.Sequential(nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 5, 1))

        def forward(self, x):
            y = self.between(self.first(x))
            out = self.head(self.second(y).mean((2, 3)))
            return (out, self.aid(y)) if self.training else out

    net, static = check(Heads())
    assert static.aid[0].weight.shape == (16, 16, 1, 1)
    assert net.calibrated == ((0.5, 16),)
    assert len(net.norms) == 1
    assert not static.train().aid[1].running_mean.any()
    with pytest.raises(LeanconvError, match="returns tuple in training"):
        MutualObjective(net.train())(torch.randn(4, 3, 16, 16), torch.arange(4), 0)


@pytest.mark.slow
def test_googlenet_with_its_two_more_heads():
    from torchvision.models import googlenet

    net, _ = check(googlenet(weights=None, init_weights=False, aux_logits=True), (3, 64, 64))
    assert len(tensors(net.train()(torch.randn(2, 3, 64, 64)))) == 3


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("low_memory", [False, True])
def test_checkpointing_recomputes_in_the_configuration_of_the_forward(reentrant, low_memory):
    from torch.utils.checkpoint import checkpoint

    class Saving(Net):
        saving = False

        def forward(self, x):
            x = self.first(x)
            if self.saving and self.training:
                x = checkpoint(nn.Sequential(self.between, self.second), x, use_reentrant=reentrant)
            else:
                x = self.second(self.between(x))
            return self.head(x.mean((2, 3)))

    if reentrant and low_memory:
        pytest.skip("torch itself refuses reentrant checkpoints in autograd.grad")
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    grads = []
    for saving in (False, True):
        torch.manual_seed(0)
        model = Saving(nn.Sequential(nn.BatchNorm2d(32), nn.ReLU()))
        model.saving = saving
        net = make_elastic(model, resolutions=(32, 24)).train()
        MutualObjective(net, low_memory=low_memory)(x, y, 0)["loss"].backward()
        grads.append([p.grad for p in net.parameters()])
        assert net.active.recalled == {}
    torch.testing.assert_close(*grads)


def test_checkpointing_in_whatever_order_the_losses_are_made():
    from torch.utils.checkpoint import checkpoint

    class Saving(Net):
        def forward(self, x):
            return self.head(checkpoint(self.second, self.first(x), use_reentrant=False).mean((2, 3)))

    net = make_elastic(Saving(), resolutions=(16,)).train()
    x = torch.randn(2, 3, 16, 16)
    wanted = 0
    for width in (1.0, 0.25, 0.5):
        with net.at(width):
            (found,) = torch.autograd.grad(net(x).square().sum(), [net.model.second.weight])
        wanted = wanted + found
    answers = []
    for width in (1.0, 0.25, 0.5):
        with net.at(width):
            answers.append(net(x))
    losses = [answer.square().sum() for answer in answers]
    with net.at(0.75):
        sum(losses[i] for i in (1, 2, 0)).backward()
    torch.testing.assert_close(net.model.second.weight.grad, wanted)
    # A backward that fails leaves nothing behind.
    with net.at(0.25):
        y = net(x)
    net.model.second.register_full_backward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), net.at(0.25):
        net(x).sum().backward()
    del net.model.second._backward_hooks
    net.model.second._backward_hooks = {}
    with torch.no_grad():
        assert y.shape == net(x).shape
        assert not torch.allclose(y, net(x))


def test_checkpoint_around_the_elastic_network():
    from torch.utils.checkpoint import checkpoint

    net = make_elastic(Net(), resolutions=(16,)).train()
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    with net.at(0.5):
        net(x).square().sum().backward()
    wanted, net.model.second.weight.grad = net.model.second.weight.grad, None
    with net.at(0.5):
        y = checkpoint(net, x, use_reentrant=False)
    y.square().sum().backward()
    torch.testing.assert_close(net.model.second.weight.grad, wanted)
    net.model.second.weight.grad = None

    def inside(x):
        with net.at(0.5):
            return net(x)

    checkpoint(inside, x, use_reentrant=True).square().sum().backward()
    torch.testing.assert_close(net.model.second.weight.grad, wanted)
    with net.at(0.5):
        y = checkpoint(net, x, use_reentrant=True)
    with pytest.raises(LeanconvError, match="use_reentrant=False"):
        y.sum().backward()


@pytest.mark.slow
def test_compiled_over_several_configurations():
    net = make_elastic(Net(nn.BatchNorm2d(32)), resolutions=(16, 12))
    torch._dynamo.reset()
    compiled = torch.compile(net.train(), backend="eager")
    x = torch.randn(4, 3, 16, 16)
    for config in ((1.0, 16), (0.25, 12), (0.5, 16), (5 / 6, 12), (0.25, 12), (1.0, 16)):
        with net.at(*config):
            torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("size", [(3, 16, 24), (3, 24, 16), (3, 4, 16, 32), (3, 40)])
def test_sides_that_differ_change_in_step(size):
    kind, axes = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(size) - 1], tuple(range(2, len(size) + 1))

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = kind(3, 16, 3, padding=1), kind(16, 5, 3, padding=1)

        def forward(self, x):
            return self.second(self.first(x).relu()).mean(axes)

    model, native = Flat().eval(), size[-1]
    half = native // 2
    net = make_elastic(model, widths=(0.5, 1.0), resolutions=(native, half), size=size).eval()
    x = torch.randn(2, *size)
    with torch.no_grad(), net.at(1.0, native):
        assert torch.equal(net(x), model(x))
    seen = []
    net.model.first.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[1:])))
    with torch.no_grad(), net.at(0.5, half):
        net(x)
    wanted = (*size[:-2], size[-2] // 2, half) if len(size) > 2 else (3, half)
    assert seen == [wanted] == [net.inputs.at(net.checked(0.5, half))]
    table = lc.QueryTable.measure(net, [(x, torch.zeros(2))], configs=[(0.5, half)], latency=False)
    assert table.rows[0].macs == lc.measure(net.extract(0.5), wanted).macs


def test_a_native_resolution_that_is_no_side_of_the_input_is_refused():
    with pytest.raises(LeanconvError, match="24, must be a side of the native input"):
        make_elastic(Net(), resolutions=(24, 16), size=(3, 32, 32))


@pytest.mark.parametrize("listed", [False, True])
def test_several_inputs(listed):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(1, 16, 3), nn.Conv2d(48, 5, 1)

        def forward(self, a, b):
            parts = [part.mean((2, 3), keepdim=True) for part in (self.a(a), self.b(b))]
            return self.head(torch.cat(parts, 1)).flatten(1)

    class Listed(Two):
        def forward(self, inputs):
            return super().forward(*inputs)

    net = make_elastic((Listed if listed else Two)(), resolutions=(16, 8), size=[(3, 16, 16), (1, 24, 32)]).eval()
    given = torch.randn(2, 3, 16, 16), torch.randn(2, 1, 24, 32)
    with pytest.raises(LeanconvError, match="several inputs"):
        make_elastic(Two(), resolutions=(16,), size=[(3, 16, 16), (1, 24, 32)], frames=(4,))
    with torch.no_grad(), net.at(0.5):
        answer = net(list(given)) if listed else net(*given)
        static = net.extract(0.5)
        torch.testing.assert_close(static(list(given)) if listed else static(*given), answer)
    assert lc.measure(static, net.default_input_size).macs > 0


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (parametrizations.weight_norm, "its weight is computed by a parametrization"),
        (parametrizations.spectral_norm, "its weight is computed by a parametrization"),
        (weight_norm, "its weight is computed by a hook"),
        (spectral_norm, "its weight is computed by a hook"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "its weight is computed by a hook"),
    ],
    ids=["weight norm", "spectral norm", "old weight norm", "old spectral norm", "pruned"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_computed_weights_are_named_or_kept(wrap, told):
    def chain(*layers):
        return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(32, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    everywhere = chain(wrap(nn.Conv2d(3, 32, 3)), wrap(nn.Conv2d(32, 32, 3)))
    with pytest.raises(RewriteError, match=f"no layer's width can be changed.*0: .*{told}"):
        make_elastic(everywhere, resolutions=(16,))

    def one():
        return chain(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), wrap(nn.Conv2d(32, 32, 3)), nn.Conv2d(32, 32, 3))

    with pytest.raises(RewriteError, match=rf"^2: .*{told}.*keep=\['1'\]"):
        make_elastic(one(), resolutions=(16,))
    _, static = check(one(), keep=["1"])
    assert static[0].out_channels == 16
    assert static[1].out_channels == 32


def test_tied_weights_stay_tied_and_are_counted_once():
    class Tied(Net):
        def __init__(self):
            super().__init__()
            self.third = nn.Conv2d(32, 32, 3, padding=1)
            self.third.weight = self.second.weight

        def forward(self, x):
            return self.head(self.third(self.second(self.between(self.first(x)))).mean((2, 3)))

    model = Tied()
    net, static = check(model)
    full = net.extract(1.0)
    assert full.third.weight is full.second.weight
    assert static.third.weight is static.second.weight
    assert static.third.bias is not static.second.bias
    assert lc.measure(full, (3, 16, 16)).params == lc.measure(model, (3, 16, 16)).params
    wide = make_elastic(model, widths=(0.5, 2.0), resolutions=(16,))
    assert wide.model.third.weight is wide.model.second.weight
    assert wide.model.third.weight.shape[0] == 64


def test_layers_that_share_a_weight_have_one_width():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 32, 1), nn.Conv2d(3, 32, 1)
            self.c, self.d = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
            self.d.weight = self.c.weight
            self.head = nn.Conv2d(64, 5, 1)

        def forward(self, x):
            return self.head(torch.cat([self.c(self.a(x)), self.d(self.b(x))], 1))

    from leanconv.elastic import Width

    net = make_elastic(Two(), widths=(0.25, 1.0), resolutions=(8,))
    static = net.extract(Width.by_layer(0.25, 1.0, seed=3))
    assert static.c.weight is static.d.weight


def test_a_norm_used_twice_is_calibrated_over_all_its_uses():
    class Again(Net):
        def forward(self, x):
            x = self.first(x)
            for _ in range(2):
                x = F.relu(self.between(self.second(x))) + 0.5
            return self.head(x.mean((2, 3)))

    model = Again(nn.BatchNorm2d(32))
    batches = [torch.randn(count, 3, 16, 16) * 3 + 1 for count in (16, 16, 16)]
    net = make_elastic(model, widths=(0.5, 1.0), resolutions=(16,))
    calibrate(net, batches, [(1.0, 16), (0.5, 16)])
    for width, reference in ((1.0, copy.deepcopy(model)), (0.5, net.extract(0.5))):
        norm = reference.train().between
        norm.reset_running_stats()
        norm.momentum = None  # torch's own mean over all calls
        with torch.no_grad():
            for batch in batches:
                reference(batch)
        found = net.extract(width).between
        torch.testing.assert_close(found.running_mean, norm.running_mean)
        torch.testing.assert_close(found.running_var, norm.running_var)


def test_frozen_norms():
    model = Net(nn.BatchNorm2d(32))
    net = make_elastic(model, widths=(0.5, 1.0), resolutions=(16,))
    x = torch.randn(4, 3, 16, 16)
    net.train().model.between.eval()
    with pytest.raises(NotCalibrated, match="between: this norm is frozen"), net.at(0.5):
        net(x)
    net(x)  # the largest has the statistics that it always had
    calibrate(net, [torch.randn(32, 3, 16, 16)], [(0.5, 16)])
    statistics = net.model.between.statistics(net.checked(0.5))[0].clone()
    with net.at(0.5):
        net(x).sum().backward()
    assert torch.equal(net.model.between.statistics(net.checked(0.5))[0], statistics)
    check(Net(FrozenBatchNorm2d(32)))


@pytest.mark.parametrize("at", [6, 4])
def test_channels_cut_by_a_number_before_a_norm(at):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.cheap = nn.Conv2d(3, 12, 3), nn.Conv2d(at, at, 3, padding=1)
            self.norm, self.out = nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1)

        def forward(self, x):
            x = self.conv(x)
            return self.out(self.norm(torch.cat([x[:, at:], self.cheap(x[:, :at])], 1)))

    net, static = check(Cut(), divisor=2)
    assert static.norm.num_features < 12
    assert net.calibrated


@pytest.mark.parametrize("how", ["layer", "function", "mode", "reflect", "replicate"])
def test_padding_that_is_not_zero(how):
    class Padded(Net):
        def __init__(self):
            super().__init__()
            if how == "layer":
                self.between = nn.CircularPad2d((1, 2, 0, 1))
            elif how == "function":
                self.between.forward = lambda x: F.pad(x, (1, 1, 1, 1), mode="circular")
            else:
                mode = "circular" if how == "mode" else how
                self.second = nn.Conv2d(32, 32, 3, padding=1, padding_mode=mode)

    _, static = check(Padded())
    assert static.second.in_channels == 16


def test_a_reparametrised_block_becomes_one_convolution_after_extraction():
    timm = pytest.importorskip("timm")
    model = nn.Sequential(nn.Conv2d(3, 32, 3), timm.models.byobnet.RepVggBlock(32, 32), nn.Conv2d(32, 5, 1))
    _, static = check(model)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = static(x)
        static[1].reparameterize()
        torch.testing.assert_close(static(x), before, rtol=1e-4, atol=1e-5)
    assert static[1].reparam_conv.in_channels == 16


class Hybrid(nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.stem, self.conv, self.mixer = nn.Conv2d(3, 32, 4, 4), nn.Conv2d(32, 32, 3, padding=1), mixer
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.conv(F.relu(self.stem(x))).flatten(2).transpose(1, 2)
        x = self.mixer(x, x, x)[0] if isinstance(self.mixer, nn.MultiheadAttention) else self.mixer(x)
        return self.head((x[0] if isinstance(x, tuple) else x).mean(1))


@pytest.mark.parametrize(
    ("mixer", "keep"),
    [
        (lambda: nn.MultiheadAttention(32, 4, batch_first=True), ["conv"]),
        (lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), ["conv", "mixer.linear2"]),
        (lambda: nn.LSTM(32, 32, batch_first=True), ["conv"]),
    ],
    ids=["attention", "transformer", "lstm"],
)
def test_attention_is_refused_by_name_or_kept_whole(mixer, keep):
    with pytest.raises(RewriteError, match=r"^mixer: .*keep="):
        make_elastic(Hybrid(mixer()), resolutions=(16,))
    _, static = check(Hybrid(mixer()), keep=keep)
    assert static.stem.out_channels == 16


def test_attention_of_linear_layers_follows():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

        def forward(self, x):
            b, n, c = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))

    _, static = check(Hybrid(Attention()))
    assert static.mixer.qkv.out_features == 48


def test_a_network_without_values_is_not_run():
    with torch.device("meta"):
        net = make_elastic(Net(nn.BatchNorm2d(32)), resolutions=(16,))
    assert isinstance(net, ElasticNet)
    assert net.extract(0.5, calibrated=False).first.weight.is_meta


def test_five_sixths_is_one_number_everywhere(tmp_path):
    width = 5 / 6
    net = make_elastic(Net(nn.BatchNorm2d(32)), widths=(0.25, 1.0), resolutions=(16,))
    x, y = torch.randn(32, 3, 16, 16), torch.zeros(32, dtype=torch.long)
    calibrate(net, [x], [(width, 16)])
    table = lc.QueryTable.measure(net, [(x, y)], latency=False)
    for suffix in ("csv", "json"):
        again = lc.QueryTable.load(table.save(tmp_path / f"table.{suffix}"))
        row = again.pick(max_macs=1e12)
        assert row.width == width
        assert row.config in net.calibrated
        assert str(row.config) == "0.8333333333333334-16"
        with net.eval().at(row.width, row.resolution):
            net(x)
    again = ElasticNet.load_state_dict(make_elastic(Net(nn.BatchNorm2d(32)), resolutions=(16,)), net.state_dict())
    assert not again.missing_keys
    assert not again.unexpected_keys
