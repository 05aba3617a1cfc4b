"""Files and texts of others, damaged at random by the thousand: an answer or one line, never code, never a hang.

Continuous integration tries a few of each; `python -m pytest -m slow tests/reliability` as many as
`benchmarks/reliability.md` says. `LEANCONV_FUZZ=100000` tries as many of each, `LEANCONV_SEED=1` others.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1] / room) for room in ("data", "train")]

import pytest
import tiny_nets
import torch
from guards import campaign, command, outcome
from tiny_videos import write_video
from torch import Tensor

import leanconv as lc
from leanconv.data import InputContract, attach, open_files
from leanconv.errors import DataError
from leanconv.query import QueryTable, Row
from leanconv.query.rows import Time
from leanconv.train import Classify, FitSettings, OptimSettings, fit
from mutations import as_json, as_text, changed, damaged

One = Callable[[random.Random], str]
Make = Callable[[Path, Any], One]

FULL = {
    "stories": 10_000,
    "tables": 10_000,
    "configs": 2_500,
    "settings": 2_500,
    "safetensors": 1_000,
    "checkpoints": 1_000,
    "resumed": 200,
    "exported": 500,
    "images": 1_000,
    "clips": 500,
    "lists": 2_000,
    "rewrites": 2_000,
}
IN_CI = {name: count // 20 for name, count in FULL.items()} | {"stories": 40, "clips": 15}

CONTRACT = InputContract(size=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, class_names=tuple("abcdefghij"))


def stories(folder: Path, capsys: Any) -> One:
    """Saved models whose story.json was changed: plain, rewritten, elastic, a configuration of it."""
    net = attached(lc.create_model("timm/test_resnet", num_classes=10))
    new = lc.rewrite(net, lc.OptimizedSeparable(overlap=1.0), size=(3, 32, 32))
    wide = lc.make_elastic(lc.create_model("timm/test_resnet", num_classes=10), resolutions=(32, 24), size=(3, 32, 32))
    models = [net, new.model, wide, lc.rewrite(net, lc.Octave(alpha=0.5), size=(3, 64, 64)).model]
    saved = [lc.save(model, folder / f"model{number}") for number, model in enumerate(models)]
    records = [json.loads((path / "story.json").read_text()) for path in saved]

    def one(draw: random.Random) -> str:
        which = draw.randrange(len(saved))
        record = records[which]
        if draw.random() < 0.5:  # the part that builds
            record = record | {"story": changed(record["story"], draw)}
            text = json.dumps(record).encode("utf-8", "surrogatepass")
        else:
            text = as_json(record, draw)
        (saved[which] / "story.json").write_bytes(text)
        if draw.random() < 0.01:
            return command(["measure", str(saved[which])], folder, capsys)
        return outcome(lambda: lc.load(saved[which]), folder)

    return one


def tables(folder: Path, capsys: Any) -> One:
    """Query tables, JSON and CSV, that are loaded, picked from and asked for their fronts."""
    rows = tuple(
        Row(
            width=width,
            resolution=side,
            accuracy=width / 2,
            macs=int(width * side * 1000),
            params=int(width * 100) + 1,
            latency_ms=width + 1,
            latency_low_ms=width,
            latency_high_ms=width + 2,
            times={"openvino_t1_b1": Time(width, width, width)},
        )
        for width in (0.25, 0.5, 1.0)
        for side in (32, 24)
    )
    about = {"widths": [0.25, 1.0], "latency": {"backend": "eager", "threads": 1, "batch": 1}, "machine": {"cpu": "x"}}
    files = [QueryTable(rows, about).save(folder / name) for name in ("table.json", "table.csv")]
    texts = [file.read_bytes() for file in files]

    def one(draw: random.Random) -> str:
        which = draw.randrange(2)
        if which or draw.random() < 0.3:
            content = damaged(texts[which], draw)
            if which and draw.random() < 0.5:
                content = as_text(texts[1].decode(), draw).encode("utf-8", "surrogatepass")
        else:
            content = as_json(json.loads(texts[0]), draw)
        files[which].write_bytes(content)
        if draw.random() < 0.01:
            return command(["pick", str(files[which]), "--max-macs", "20k"], folder, capsys)
        return outcome(lambda: use(QueryTable.load(files[which]), draw), folder)

    def use(table: QueryTable, draw: random.Random) -> None:
        table.front("latency_ms")
        table.pick(max_macs=20_000)
        table.pick(max_latency_ms=1.6, any_machine=True)
        table.save(folder / "again.csv")

    return one


def configs(folder: Path, capsys: Any) -> One:
    """Recipes in YAML that are read, and of which a run is resumed."""
    from leanconv.plain_text import to_yaml
    from leanconv.recipes import get_recipe, named_code, read_recipe, to_data

    recipes = [to_data(get_recipe(name)) for name in ("demo", "oct_resnet50_imagenet", "ip_csn_26_moving_digits")]
    (folder / "run").mkdir()
    file = folder / "run" / "config.yaml"

    def one(draw: random.Random) -> str:
        recipe = draw.choice(recipes)
        text = to_yaml(changed(recipe, draw)) if draw.random() < 0.6 else as_text(to_yaml(recipe), draw)
        data = text.encode("utf-8", "surrogatepass")
        file.write_bytes(damaged(data, draw) if draw.random() < 0.2 else data)
        if draw.random() < 0.01:
            return command(["train", "--dry", "--config", str(file)], folder, capsys)
        return outcome(lambda: named_code(read_recipe(file)), folder)

    return one


def settings(folder: Path, capsys: Any) -> One:
    """--set of recipes and of models."""
    from leanconv.cli.values import read_model, read_options
    from leanconv.recipes import change, get_recipe, named_code

    recipe = get_recipe("demo")
    texts = ("epochs=3", "optim.lr=1e-3", "elastic.widths=[0.25,1.0]", "model=resnet20", "model_args={width: 2}",
             "data.spec=folder:x", "rewrites=[osep:overlap=1, igc]", "elastic.resolutions=[32,24]", "teacher=runs/x",
             "optim={name: adamw, betas: [0.9, 0.999]}", "data.video.frames=8", "name=mine")  # fmt: skip
    models = ("resnet20(num_classes=10)", "o_resnet20(multiplier=3.625,overlap=2)")

    def one(draw: random.Random) -> str:
        if draw.random() < 0.7:
            text = as_text(draw.choice(texts), draw)
            if draw.random() < 0.05:
                return command(["train", "--dry", "demo", "--set", text], folder, capsys)
            return outcome(lambda: named_code(change(recipe, [text])), folder)
        text = as_text(draw.choice(models), draw)
        return outcome(lambda: (read_model(text), read_options([text])), folder)

    return one


def safetensors(folder: Path, capsys: Any) -> One:
    """weights.safetensors of saved models, and files to import weights from."""
    from safetensors.torch import save

    from leanconv.weights import read_tensors

    net = attached(lc.create_model("timm/test_resnet", num_classes=10))
    home = lc.save(net, folder / "model")
    whole = (home / "weights.safetensors").read_bytes()
    small = save({f"layer{i}.weight": torch.ones(2, 3) for i in range(4)})

    def one(draw: random.Random) -> str:
        if draw.random() < 0.3:
            header = 8 + int.from_bytes(whole[:8], "little")
            (home / "weights.safetensors").write_bytes(damaged(whole[:header], draw) + whole[header:])
            return outcome(lambda: lc.load(home), folder)
        (folder / "w.safetensors").write_bytes(damaged(small, draw))
        return outcome(lambda: read_tensors(folder / "w.safetensors"), folder)

    return one


def checkpoints(folder: Path, capsys: Any) -> One:
    """last.ckpt of a run: its bytes, and what it holds."""
    from leanconv.train.checkpoint_io import read_checkpoint

    tiny_nets.run(folder / "run", epochs=1)
    file = folder / "run" / "last.ckpt"
    whole = file.read_bytes()
    content = torch.load(file, weights_only=True)

    def one(draw: random.Random) -> str:
        if draw.random() < 0.5:
            file.write_bytes(damaged(whole, draw))
        else:
            out = BytesIO()
            torch.save(changed(content, draw), out)
            file.write_bytes(out.getvalue())
        return outcome(lambda: read_checkpoint(file), folder)

    return one


def resumed(folder: Path, capsys: Any) -> One:
    """A run that goes on from a checkpoint that was changed where a schema may not see it, to its end."""
    run, text = folder / "run", "stopped here"

    class Stops(Classify):
        def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
            if step == 12:
                raise RuntimeError(text)
            return super().forward(inputs, targets, step)

    def train(objective: Classify, *, resume: bool) -> None:
        settings = FitSettings(epochs=2, optim=OptimSettings(lr=0.1))
        fit(objective, tiny_nets.tiny_data(), settings, run, resume=resume, progress=False)

    with pytest.raises(RuntimeError, match=text):
        train(Stops(tiny_nets.tiny_net()), resume=False)
    content = torch.load(run / "last.ckpt", weights_only=True)
    shutil.copytree(run, folder / "kept")

    def one(draw: random.Random) -> str:
        shutil.rmtree(run)
        shutil.copytree(folder / "kept", run)
        torch.save(changed(content, draw), run / "last.ckpt")
        return outcome(lambda: train(Classify(tiny_nets.tiny_net()), resume=True), folder)

    return one


def exported(folder: Path, capsys: Any) -> One:
    """Exported files, asked about a picture."""
    from PIL import Image

    Image.new("RGB", (40, 36), (200, 20, 90)).save(folder / "a.png")
    net = attached(lc.create_model("timm/test_resnet", num_classes=10)).eval()
    files = [lc.export(net, folder / f"net.{suffix}", size=(3, 32, 32)).path for suffix in ("onnx", "xml")]
    whole = [file.read_bytes() for file in files]

    def one(draw: random.Random) -> str:
        which = draw.randrange(2)
        files[which].write_bytes(damaged(whole[which], draw))
        return outcome(lambda: lc.predict(files[which], [folder / "a.png"]), folder)

    return one


def images(folder: Path, capsys: Any) -> One:
    """Images of many formats, read as `predict` reads them."""
    from PIL import Image

    draw = random.Random("pixels")
    picture = Image.frombytes("RGB", (24, 20), bytes(draw.randrange(256) for _ in range(24 * 20 * 3)))
    kinds = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF", "webp": "WEBP", "ppm": "PPM",
             "tga": "TGA", "jp2": "JPEG2000", "ico": "ICO"}  # fmt: skip
    whole: dict[str, bytes] = {}
    for suffix, kind in kinds.items():
        out = BytesIO()
        picture.save(out, kind)
        whole[suffix] = out.getvalue()

    def one(draw: random.Random) -> str:
        suffix = draw.choice(sorted(whole))
        file = folder / f"image.{suffix}"
        file.write_bytes(damaged(whole[suffix], draw))
        return outcome(lambda: read(file), folder)

    def read(file: Path) -> None:
        data = open_files([str(file)], CONTRACT)
        for _ in data.named_batches():
            pass
        if data.test_problems:
            assert len(data.test_problems[0].reason) < 500
            raise DataError(data.test_problems[0].reason)

    return one


def clips(folder: Path, capsys: Any) -> One:
    """Videos, read as `predict` reads them."""
    names = {"a.mp4": "libx264", "b.avi": "mpeg4", "c.mkv": "libx264"}
    whole = {}
    for name, codec in names.items():
        write_video(folder / name, 24, codec=codec, size=(32, 48))
        whole[name] = (folder / name).read_bytes()
    contract = CONTRACT.at((3, 4, 32, 32))

    def one(draw: random.Random) -> str:
        name = draw.choice(sorted(whole))
        (folder / name).write_bytes(damaged(whole[name], draw))
        return outcome(lambda: read(folder / name), folder)

    def read(file: Path) -> None:
        data: Any = open_files([str(file)], contract)
        for sample in data.test_loader(clips=2, crops=1):
            assert sample.clips.shape == (2, 3, 4, 32, 32)
        if data.test_problems:
            assert len(data.test_problems[0].reason) < 500
            raise DataError(data.test_problems[0].reason)

    return one


def lists(folder: Path, capsys: Any) -> One:
    """CSV lists of videos."""
    from leanconv.data.sets.video_csv import video_csv

    for number in range(8):
        (folder / f"{number}.mp4").touch()
    texts = (
        "path,label,class\n" + "".join(f"{n}.mp4,{n % 3},class {n % 3}\n" for n in range(8)),
        "".join(f"{n}.mp4 {n % 3}\n" for n in range(8)),
        "".join(f"{n}.mp4\tname {n % 3}\n" for n in range(8)),
    )

    def one(draw: random.Random) -> str:
        text = as_text(draw.choice(texts), draw).encode("utf-8", "surrogatepass")
        (folder / "list.csv").write_bytes(damaged(text, draw) if text and draw.random() < 0.3 else text)
        return outcome(lambda: video_csv(str(folder / "list.csv")), folder)

    return one


def rewrites(folder: Path, capsys: Any) -> One:
    """Texts of --rewrite, applied where they can be read."""
    from torch import nn

    from leanconv.rewrites import parse_step

    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    texts = ("osep:overlap=1", "igc:primary_partitions=4,init=fresh", "group:groups=4,where=kernel>1 !stem",
             "octave:alpha=0.5", "csn:style=ip", "depth_separable:init=fresh", "spatial_separable", "inflate:frames=4",
             "osep:num_stages=2,overlap=2", "depthwise:where=layer[34].* stage>=2")  # fmt: skip

    def one(draw: random.Random) -> str:
        text = as_text(draw.choice(texts), draw)
        if draw.random() < 0.01:
            return command(["measure", "resnet20", f"--rewrite={text}"], folder, capsys)
        return outcome(lambda: lc.rewrite(net, parse_step(text), size=(3, 16, 16)), folder)

    return one


def attached(net: Any) -> Any:
    attach(net, CONTRACT)
    return net


FUZZERS: dict[str, Make] = {
    "stories": stories,
    "tables": tables,
    "configs": configs,
    "settings": settings,
    "safetensors": safetensors,
    "checkpoints": checkpoints,
    "resumed": resumed,
    "exported": exported,
    "images": images,
    "clips": clips,
    "lists": lists,
    "rewrites": rewrites,
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own to work in; nothing of this user is to be found by a changed path."""
    platform.uname().processor  # noqa: B018 - Python asks another program, once
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    (tmp_path / "fuzz_mark.py").write_text("open('mark', 'w').close()\ndef run(*args, **options): pass\n")
    yield tmp_path
    assert not (tmp_path / "mark").exists()


def tried(name: str, counts: dict[str, int], home: Path, capsys: Any) -> Counter[str]:
    one = FUZZERS[name](home, capsys)
    count, seed = int(os.environ.get("LEANCONV_FUZZ", counts[name])), int(os.environ.get("LEANCONV_SEED", 0))
    seen = campaign(name, count, seed, one)
    with capsys.disabled():
        print(f"\n{name}: {seen.total()} with seed {seed}: {dict(seen)}")
    return seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FUZZERS)
def test_a_few_damaged_inputs(name: str, home: Path, capsys: Any) -> None:
    seen = tried(name, IN_CI, home, capsys)
    assert seen["refused"] > 0


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FUZZERS)
def test_many_damaged_inputs(name: str, home: Path, capsys: Any) -> None:
    seen = tried(name, FULL, home, capsys)
    assert seen["refused"] > 0
    assert seen["read"] > 0
