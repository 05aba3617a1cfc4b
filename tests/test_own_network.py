"""A network of one's own, in a file that does not mention leanconv, through everything: the lines a user would type."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import leanconv as lc
from leanconv.errors import CheckpointError, LeanconvError
from leanconv.story import story_of
from leanconv.zoo.names import construct

NETS = """
from torch import nn

class MyNet(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.one = nn.Conv2d(3, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.two(self.one(x).relu()).relu()
        return self.head(x.mean((2, 3)))

class Wide(MyNet):
    def __init__(self, width, *, bias=True):
        super().__init__(width)

def build(width=16):
    return MyNet(width)

def nested():
    class Inner(MyNet):
        pass
    return Inner()
"""

TYPED = """
import torch
import leanconv as lc
from my_nets import MyNet

new = lc.rewrite(MyNet(), lc.OptimizedSeparable(where="two"), size=(3, 32, 32), source="my_nets:MyNet")
print(lc.measure(new, (3, 32, 32)).params)
net = lc.make_elastic(new, widths=(0.5, 1.0), resolutions=(32, 24))
objective = lc.MutualObjective(net)
optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
optimizer.zero_grad()
objective(images, labels, step=0)["loss"].backward()
optimizer.step()
lc.save(net, "saved")
"""

LOADED = """
import leanconv as lc

net = lc.load("saved", trust_code=True)
report = lc.export(net.extract(width=0.5), "half.onnx", size=(3, 32, 32))
print(net.widths, report.path)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `my_nets.py` in it, as a user has."""
    (tmp_path / "my_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    return tmp_path


def python(code: str) -> str:
    """What another process prints when it is fed `code` in the working folder."""
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(lc.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_users_file_to_an_exported_one(here: Path) -> None:
    assert int(python(TYPED)) < 16 * 3 * 9 + 16 + 16 * 16 * 9 + 16 + 170
    assert sorted(path.name for path in (here / "saved").iterdir()) == ["story.json", "weights.safetensors"]
    assert python(LOADED).split() == ["(0.5,", "1.0)", "half.onnx"]
    assert (here / "half.onnx").stat().st_size > 0


def advised(error: LeanconvError) -> list[str]:
    """The lines of code in a message."""
    return re.findall(r"lc\.\w+\([^()]*\)", str(error))


def test_what_the_message_advises_works_when_typed(here: Path) -> None:
    from my_nets import MyNet

    nets: list[object] = [MyNet(), lc.rewrite(MyNet(), lc.OptimizedSeparable(where="two"))]
    nets.append(lc.make_elastic(MyNet(), widths=(0.5, 1.0), resolutions=(32,)))
    for number, model in enumerate(nets):
        with pytest.raises(LeanconvError, match="nothing says how this") as caught:
            lc.save(model, f"saved{number}")  # type: ignore[arg-type]
        lines = advised(caught.value)
        assert [line.partition("(")[0] for line in lines] == ["lc.save", "lc.load"]
        eval(lines[0], {"lc": lc, "model": model})
        loaded = python(f"import leanconv as lc; print(sorted({lines[1]}.state_dict()))")
        own = getattr(model, "model", model) if isinstance(model, lc.Rewritten) else model
        assert loaded.strip() == str(sorted(own.state_dict()))
    with pytest.raises(CheckpointError, match="trust_code=True"):
        lc.load("saved0")


def test_arguments_that_a_class_cannot_do_without_are_named(here: Path) -> None:
    from my_nets import Wide

    with pytest.raises(LeanconvError, match=r"source='my_nets:Wide', source_options=\{'width': \.\.\.\}\)"):
        lc.save(Wide(8), "saved")
    lc.save(Wide(8), "saved", source="my_nets:Wide", source_options={"width": 8})
    assert lc.load("saved", trust_code=True).one.out_channels == 8


def test_what_no_other_process_could_import_is_not_advised(here: Path) -> None:
    from my_nets import nested

    for model in (nested(), nn.Sequential(nn.Conv2d(3, 4, 3))):
        with pytest.raises(LeanconvError, match="put what builds it into a function") as caught:
            lc.save(model, "saved")
        assert advised(caught.value) == []
    with pytest.raises(LeanconvError, match="__main__ is the script that runs now"):
        lc.save(nested(), "saved", source="__main__:nested")


def test_a_source_may_be_a_function_with_arguments_or_a_name(here: Path) -> None:
    from my_nets import build

    step = lc.DepthSeparable(where="two")
    new = lc.rewrite(build(width=8), step, source="my_nets:build", source_options={"width": 8})
    lc.save(lc.rewrite(new, step), "saved")  # nothing left to do: the story has one step
    loaded = lc.load("saved", trust_code=True)
    story = story_of(loaded)
    assert story is not None
    assert story.options == {"width": 8}
    assert [stem for stem, _ in story.steps] == ["depth_separable"]
    plain = construct("resnet20", {"num_classes": 3})
    assert story_of(plain) is None
    lc.save(plain, "named", source="resnet20", source_options={"num_classes": 3})
    assert lc.load("named").fc.out_features == 3


def test_steps_add_up_whoever_says_the_source(here: Path) -> None:
    from my_nets import MyNet

    first = lc.rewrite(MyNet(), lc.DepthSeparable(where="two"))
    net = lc.make_elastic(first, widths=(0.5, 1.0), resolutions=(32,), source="my_nets:MyNet")
    story = story_of(net)
    assert story is not None
    assert story.model == "my_nets:MyNet"
    assert [stem for stem, _ in story.steps] == ["depth_separable", "elastic"]
    lc.save(net, "saved")
    x = torch.randn(1, 3, 32, 32)
    with net.eval().at(0.5), lc.load("saved", trust_code=True).at(0.5) as loaded:
        assert torch.equal(net(x), loaded.eval()(x))
    static = net.extract(width=0.5, calibrated=False)
    lc.save(static, "half")
    assert torch.equal(lc.load("half", trust_code=True).eval()(x), static.eval()(x))


@pytest.mark.parametrize("source", ["my_nets.py:build", "my_nets:", " ", 3])
def test_a_source_that_is_none(here: Path, source: str) -> None:
    from my_nets import MyNet

    with pytest.raises(LeanconvError, match=r"source says how the network is built, 'package\.module:function'"):
        lc.save(MyNet(), "saved", source=source)
    with pytest.raises(LeanconvError, match=r"source_options .* are keywords of source, which is not given"):
        lc.rewrite(MyNet(), lc.OptimizedSeparable(), source_options={"width": 3})


def test_a_source_that_builds_something_else(here: Path) -> None:
    from my_nets import MyNet

    with pytest.raises(CheckpointError, match=r"not what my_nets:build and the steps since build: .*other shape"):
        lc.save(MyNet(8), "saved", source="my_nets:build")
    assert not Path("saved").exists()


def test_copies_can_be_saved(here: Path) -> None:
    from my_nets import MyNet

    new = lc.rewrite(MyNet(), lc.OptimizedSeparable(where="two"), source="my_nets:MyNet").model
    octave = lc.rewrite(MyNet(), lc.Octave(first=True, last=True), size=(3, 32, 32), source="my_nets:MyNet").model
    net = lc.make_elastic(MyNet(), widths=(0.5, 1.0), resolutions=(32,), source="my_nets:MyNet")
    x = torch.randn(1, 3, 32, 32)
    for model in (new, octave, net):
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert story_of(copied) == story_of(model)
            lc.save(copied, "saved")
            assert torch.equal(lc.load("saved", trust_code=True)(x), model(x))
