"""`train --model MODEL --data SPEC`: somebody's own network on somebody's own pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import leanconv as lc
from leanconv.build import create_model, load, save, with_new_classifier
from leanconv.cli import main
from leanconv.data.contract import InputContract, attach, contract_of
from leanconv.errors import LeanconvError
from leanconv.train import Classify, OptimSettings
from leanconv.train.optim import make_optimizer

COLOURS = {"blue": (30, 40, 200), "green": (30, 200, 40), "red": (200, 40, 30)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colours, twelve pictures each to train on and four to test on."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                noise = random.integers(-25, 25, (32, 32, 3))
                Image.fromarray(np.uint8(np.array(colour) + noise)).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return lc.save(lc.create_model("resnet20"), tmp_path_factory.mktemp("hers") / "hers", size=(3, 32, 32))


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def leanconv(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str]:
        code: object = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        told = capsys.readouterr()
        return int(code or 0), told.out + told.err

    return run


SHORT = ("--set", "epochs=1", "--set", "data.batch_size=12", "--set", "accelerator=cpu")


def test_her_network_learns_her_classes(leanconv: Run, pictures: Path, ten_classes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = ("train", "--model", ten_classes, "--data", f"folder:{pictures}", "--out", run)
    code, said = leanconv(*given, *SHORT)
    assert code == 2
    assert "10 outputs" in said
    assert "3 classes" in said
    assert not run.exists()
    code, said = leanconv(*given, "--new-classifier", *SHORT)
    assert code == 0, said
    trained = lc.load(run / "model")
    assert trained(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    assert recipe["optim"]["body"] == 0.1
    assert recipe["ema"] is not None
    code, said = leanconv("eval", run)
    assert code == 0, said
    assert "12 images" in said


def test_the_body_keeps_its_weights_and_the_classifier_is_new(ten_classes: Path) -> None:
    before = lc.load(ten_classes)
    after, fresh = with_new_classifier(ten_classes, 3)
    assert fresh == ("fc",)
    kept = {name: p for name, p in after.named_parameters() if not name.startswith("fc.")}
    assert len(kept) == len(list(before.named_parameters())) - 2
    assert all(torch.equal(p, before.get_parameter(name)) for name, p in kept.items())


@pytest.mark.parametrize("how", ["octave", "elastic", "stride"])
def test_a_new_classifier_keeps_what_was_done_since(how: str, tmp_path: Path) -> None:
    net = lc.create_model("timm/resnet18", num_classes=7).eval()
    if how == "octave":
        net = lc.rewrite(net, lc.Octave(alpha=0.5), size=(3, 64, 64)).model
    elif how == "elastic":
        net = lc.make_elastic(net, widths=(0.5, 1.0), resolutions=(64, 48))
    else:
        net.layer4[0].conv1.stride = net.layer4[0].downsample[0].stride = (1, 1)
    folder = lc.save(net, tmp_path / "net", size=(3, 64, 64))
    new, _ = with_new_classifier(folder, 4)
    x = torch.randn(2, 3, 64, 64)
    assert new(x).shape == (2, 4)
    again = lc.load(lc.save(new, tmp_path / "new", size=(3, 64, 64)))
    assert torch.equal(again.eval()(x), new.eval()(x))
    if how == "stride":
        assert again.layer4[0].conv1.stride == (1, 1)


def test_elastic_with_a_teacher(leanconv: Run, pictures: Path, ten_classes: Path, tmp_path: Path) -> None:
    teacher, _ = with_new_classifier(ten_classes, 3)
    folder = lc.save(teacher, tmp_path / "teacher", size=(3, 32, 32))
    code, said = leanconv(
        "train", "--model", folder, "--data", f"folder:{pictures}", "--elastic", "--teacher", folder, "--dry"
    )
    assert code == 0, said
    recipe = yaml.safe_load(said)
    assert recipe["elastic"]["resolutions"] == [32, 24]
    assert recipe["elastic"]["teacher"] == str(folder)
    assert recipe["teacher"] is None


def test_the_teacher_is_learnt_and_stays() -> None:
    torch.manual_seed(0)
    teacher, net = nn.Linear(4, 3), nn.Linear(4, 3)
    objective = Classify(net, teacher=teacher, hard_labels=0.25)
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    losses = objective(x, y, step=0)
    taught, own = teacher(x).log_softmax(1), net(x).log_softmax(1)
    kl = (taught.exp() * (taught - own)).sum(1).mean()
    entropy = nn.functional.cross_entropy(net(x), y)
    torch.testing.assert_close(losses["loss"], 0.25 * entropy + 0.75 * kl)
    losses["loss"].backward()
    assert teacher.weight.grad is None
    assert set(objective.state_dict()) == {"net.weight", "net.bias"}  # no checkpoint holds the teacher
    assert objective.double().teacher.net.weight.dtype == torch.float64
    with pytest.raises(LeanconvError, match="same classes"):
        Classify(net.float(), teacher=nn.Linear(4, 2))(x, y, step=0)


def test_the_body_has_its_own_rate() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = make_optimizer(OptimSettings(lr=0.2, body=0.1, weight_decay=1e-3, decay="weights"), net)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    wanted = [(0.02, 1e-3), (0.02, 0), (0.02, 0), (0.02, 0), (0.2, 1e-3), (0.2, 0)]
    assert [rates[id(p)] for p in net.parameters()] == [pytest.approx(pair) for pair in wanted]
    plain = make_optimizer(OptimSettings(lr=0.2), net)
    assert [len(group["params"]) for group in plain.param_groups] == [6]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "resnet20"], "--data"),
        (["demo", "--model", "resnet20", "--data", "digits"], "one of them alone"),
        (["demo", "--elastic"], "belong to --model"),
        (["--model", "nowhere", "--data", "digits"], "nowhere"),
        (["--model", "resnet20", "--data", "digits", "--set", "optim.body=2"], "optim.body"),
    ],
)
def test_what_cannot_be_meant(leanconv: Run, given: list[str], said: str, tmp_path: Path) -> None:
    code, output = leanconv("train", *given, "--out", tmp_path / "run")
    assert code == 2
    assert said in output
    assert not (tmp_path / "run").exists()


def test_classes_of_a_trained_network_keep_their_outputs(leanconv: Run, tmp_path: Path) -> None:
    """Its names are in another order than the folders': the data are numbered as its outputs, as is the result."""
    names = ("fox", "cat", "dog")
    root = tmp_path / "photos"
    for part in ("train", "test"):
        for number, name in enumerate(sorted(names)):
            (root / part / name).mkdir(parents=True)
            for shade in range(3):
                Image.new("RGB", (16, 16), (90 * number, 80, 60 * shade)).save(root / part / name / f"{shade}.png")
    net = create_model("resnet20", num_classes=3)
    contract = InputContract(size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, class_names=names)
    attach(net, contract)
    save(net, tmp_path / "hers", size=(3, 16, 16))
    train = (
        "--model",
        tmp_path / "hers",
        "--set",
        "epochs=1",
        "--set",
        "accelerator=cpu",
        "--set",
        "data.batch_size=6",
    )
    data = ("--data", f"folder:{root}")
    assert leanconv("train", *train, *data, "--out", tmp_path / "run")[0] == 0
    found = contract_of(load(tmp_path / "run" / "model"))
    assert found is not None
    assert (found.class_names, found.mean) == (names, (0.5,) * 3)
    rows = (tmp_path / "run" / "predictions.csv").read_text().splitlines()[1:]
    assert {(Path(row.split(",")[0]).parent.name, row.split(",")[1]) for row in rows} == {(n, n) for n in names}
    # A teacher that numbers them otherwise would teach the wrong ones.
    attach(net, replace(contract, class_names=tuple(sorted(names))))
    save(net, tmp_path / "teacher", size=(3, 16, 16))
    code, output = leanconv("train", *train, *data, "--teacher", tmp_path / "teacher", "--out", tmp_path / "taught")
    assert code == 2
    assert "has its classes in another order than the student: output 0 is 'cat' there and 'fox' here" in output
    attach(net, replace(contract, mean=(0.2,) * 3))
    save(net, tmp_path / "teacher", size=(3, 16, 16))
    code, output = leanconv("train", *train, *data, "--teacher", tmp_path / "teacher", "--out", tmp_path / "taught")
    assert code == 2
    assert "sees inputs with mean 0.200, 0.200, 0.200" in output
    assert "the student 0.500, 0.500, 0.500" in output
    # As many other classes are other classes.
    (root / "train" / "dog").rename(root / "train" / "hen")
    (root / "test" / "dog").rename(root / "test" / "hen")
    code, output = leanconv("train", *train, *data, "--out", tmp_path / "new")
    assert code == 2
    assert "the class 'hen' (1 of 3) is none of the 3 that" in output
    assert "--new-classifier" in output
    assert leanconv("train", *train, *data, "--new-classifier", "--out", tmp_path / "new")[0] == 0
    found = contract_of(load(tmp_path / "new" / "model"))
    assert found is not None
    assert found.class_names == ("cat", "fox", "hen")
