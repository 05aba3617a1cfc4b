"""What is killed: commands, what is there before, what goes on afterwards, and what files mean, dates apart."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import kills
import torch

import leanconv as lc
from leanconv.build.folder import STORY_FILE
from leanconv.deploy import input_of
from leanconv.files import settle
from leanconv.query import QueryTable

CPU = ("--set", "accelerator=cpu")
TIMED = ("seconds", "images_per_second", "clips_per_second")


@dataclass(frozen=True)
class Scenario:
    """`before` makes what is there when `command` begins; a run goes on by --resume, others by the same command."""

    name: str
    command: Sequence[str] | Callable[[], object]
    before: tuple[Sequence[str] | Callable[[], object], ...] = ()

    def begin(self, folder: Path) -> None:
        """An empty folder with what is there before."""
        folder.mkdir(parents=True)
        for command in self.before:
            done = kills.run(command, folder)
            assert done.code == 0, done.err
        shutil.rmtree(folder / "tmp", ignore_errors=True)

    def again(self, folder: Path) -> Sequence[str] | Callable[[], object]:
        """The command that goes on after a kill."""
        if not callable(self.command) and self.command[0] == "train" and (folder / "run" / "config.yaml").exists():
            return ("train", "--resume", "--out", "run")
        return self.command


def save_tiny() -> None:
    """Save a network over the one before."""
    _save(1)


def save_another() -> None:
    """Save a network of the same kind and other weights."""
    _save(0)


def _save(seed: int) -> None:
    torch.manual_seed(seed)
    lc.save(lc.create_model("resnet20", num_classes=4), "saved")


def foreign_checkpoint() -> None:
    """A checkpoint of somebody else's program."""
    torch.manual_seed(2)
    torch.save({"epoch": 9, "state_dict": lc.create_model("timm/resnet18", num_classes=3).state_dict()}, "her.pth.tar")


IMPORT = ("import-weights", "her.pth.tar", "timm/resnet18", "--set", "num_classes=3", "--out", "hers")
ELASTIC = ("train", "demo", "--tiny", *CPU, "--out", "run")
EXPORT = ("export", "lean", "net.xml")

SCENARIOS = {
    one.name: one
    for one in (
        Scenario("save", save_tiny, (save_another,)),
        Scenario("save new", save_tiny),
        Scenario(
            "rewrite",
            ("rewrite", "resnet20", "--rewrite", "depth_separable:init=fresh", "--out", "lean"),
            (("rewrite", "resnet20", "--rewrite", "octave:alpha=0.5", "--out", "lean"),),
        ),
        Scenario("import-weights", (*IMPORT, "--mean", ".5,.5,.5", "--std", ".2,.2,.2"), (foreign_checkpoint, IMPORT)),
        Scenario(
            "export",
            EXPORT,
            (
                ("rewrite", "resnet20", "--rewrite", "octave:alpha=0.5", "--out", "lean"),
                EXPORT,
                ("rewrite", "resnet20", "--rewrite", "depth_separable:init=fresh", "--out", "lean"),
            ),
        ),
        Scenario(
            "table",
            ("table", "run", "--data", "digits", "--step", "0.25", "--out", "table.json"),
            (ELASTIC, ("table", "run", "--data", "digits", "--step", "0.5", "--out", "table.json")),
        ),
        Scenario("train", ("train", "o_resnet20_cifar10", "--tiny", *CPU, "--set", "epochs=2", "--out", "run")),
        Scenario("train elastic", ELASTIC),
        Scenario(
            "train clips",
            ("train", "ip_csn_26_moving_digits", "--tiny", *CPU, "--set", "data.workers=1", "--out", "run"),
        ),
    )
}


def check_readable(folder: Path) -> None:
    """Whatever is there can be read, as the reader of each kind of file reads it."""
    for story in {path.parent for path in folder.rglob(f"*{STORY_FILE}*") if not _hidden(path.parent, folder)}:
        lc.load(story)
    for path in folder.rglob("*.ckpt"):
        assert _hidden(path, folder) or torch.load(path, weights_only=True)["state_dict"]
    for path in folder.rglob("table.json"):
        assert QueryTable.load(path).rows
    settle(folder, "net.xml")
    if (folder / "net.xml").exists():
        input_of(folder / "net.xml")


def meaning(folder: Path) -> dict[str, str]:
    """Every file in the folder, hidden ones too, with a digest of what it means."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == "tmp" or (path.is_dir() and any(path.iterdir())):
            continue
        if "tensorboard/" in name:
            found["tensorboard/"] = ""  # a file for every start
        else:
            found[name] = "" if path.is_dir() else hashlib.sha256(_text(path).encode()).hexdigest()[:16]
    return found


def _text(path: Path) -> str:
    """What a file says, without what differs from time to time."""
    if path.name in ("environment.json", "table.csv"):
        return ""
    if path.suffix == ".ckpt":
        state = torch.load(path, weights_only=True)
        weights = [(name, value.numpy().tobytes()) for name, value in sorted(state["state_dict"].items())]
        return f"{state['epoch']} {state['global_step']} {weights}"
    if path.name == "metrics.csv":
        with path.open() as file:
            return str([[cell for key, cell in row.items() if key not in TIMED] for row in csv.DictReader(file)])
    if path.name == "table.json":
        return str([(row.config, row.accuracy, row.macs) for row in QueryTable.load(path).rows])
    if path.name == "evaluation.json":
        return str({key: value for key, value in json.loads(path.read_text()).items() if key not in TIMED})
    return path.read_bytes().hex()


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
