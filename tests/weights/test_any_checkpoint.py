"""A property of checkpoints: however a training loop wraps, names and accompanies its weights, they come back."""

from __future__ import annotations

import argparse
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from leanconv.weights.files import read_tensors
from leanconv.weights.fill import fill
from leanconv.weights.plain import PLAIN
from random_nets import network, specs
from random_trials import tried

PREFIXES = (
    *("", "module.", "model.", "_orig_mod.", "module._orig_mod.", "model._orig_mod."),
    *("backbone.", "learner.net.", "encoder_q.", "0.", "module.model."),
)
ENTRIES = ("state_dict", "model", "model_state_dict", "net", "weights", "params", "network", "state_dict.model")
AVERAGES = ("state_dict_ema", "model_ema", "ema_model", "ema")


def trained(spec: Any, factor: float) -> dict[str, Tensor]:
    """Weights as a training leaves them: none is that of a fresh network, all are finite."""
    net = network(spec)
    return {
        name: (value.detach().clone() * factor if value.is_floating_point() else value.detach() + int(factor * 8))
        for name, value in net.state_dict().items()
    }


def company(draw: st.DrawFn, net: nn.Module) -> dict[str, Any]:
    """What training loops keep beside the weights: some of it, in any order."""
    parameters = [p for p in net.parameters() if p.requires_grad] or [nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    beside = {
        "epoch": 12,
        "best_acc1": np.float64(71.25),
        "acc": np.array([0.5, 0.75]),
        "optimizer": optimizer.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 3}],
        "scheduler": {key: value for key, value in schedule.state_dict().items() if key != "optimizer"},
        "args": argparse.Namespace(lr=0.1, out=Path("runs"), crop=(1, 2)),
        "hyper_parameters": {"width": 0.5, "sizes": [1, 2]},
        "scaler": {"scale": 65536.0},
        "rng_state": torch.get_rng_state(),
        "history": {"loss": [1.0, 0.5]},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "loops": {"fit_loop": {"state_dict": {}}},
        "arch": "resnet18",
        "best": True,
        "note": None,
    }
    names = draw(st.lists(st.sampled_from(sorted(beside)), unique=True, max_size=8))
    return {name: beside[name] for name in names}


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[Any, dict[str, Tensor], dict[str, Tensor] | None, Any, bool]:
    """A network's description, its weights, a moving average of them or None, a file's content, and whether the file
    has tensors of something else ("preprocessor.*")."""
    spec = draw(specs(clean=True))
    weights = trained(spec, 0.75)
    assume(weights and torch.isfinite(torch.cat([v.double().flatten() for v in weights.values()])).all())
    prefix = draw(st.sampled_from(PREFIXES))
    held: dict[str, Any] = OrderedDict((prefix + name, value) for name, value in weights.items())
    foreign = draw(st.booleans()) and not prefix
    if foreign:
        held["preprocessor.mean"] = torch.ones(3)
    entry = draw(st.sampled_from(("", *ENTRIES)))
    if not entry:
        return spec, weights, None, held, foreign
    average = trained(spec, 0.5) if draw(st.booleans()) else None
    content: dict[str, Any] = held
    for part in reversed(entry.split(".")):
        content = {part: content}
    if average is not None:
        content[draw(st.sampled_from(AVERAGES))] = {prefix + name: value for name, value in average.items()}
    content |= company(draw, network(spec))
    order = draw(st.permutations(sorted(content)))
    return spec, weights, average, {key: content[key] for key in order}, foreign


def write(content: Any, path: Path, kind: str) -> None:
    if kind == "safetensors":
        save_file({name: value.clone().contiguous() for name, value in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


@tried(40, "LEANCONV_FILES")
@given(made=checkpoints(), kind=st.sampled_from(("zip", "legacy", "safetensors")))
def test_the_weights_come_back(made: Any, kind: str) -> None:
    spec, weights, average, content, foreign = made
    flat = all(isinstance(value, Tensor) for value in content.values())
    assume(flat or kind != "safetensors")
    ignore = ["preprocessor.*"] if foreign else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pth"
        write(content, path, kind)
        for wanted, ema in ((weights, False), *([(average, True)] if average is not None else [])):
            net = network(spec)
            done = fill(net, read_tensors(path, ema=ema, ignore=[] if ema else ignore), PLAIN, source="net.pth")
            got = net.state_dict()
            assert got.keys() == wanted.keys()
            for name, value in wanted.items():
                assert torch.equal(got[name], value), name
            assert done.tensors == len(wanted)
            assert bool(done.other_weights) == (average is not None)
