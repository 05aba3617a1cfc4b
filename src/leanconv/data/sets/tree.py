"""The files below a folder, each once whatever links lead to it, and what was passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Identity", "Tree", "shared_files"]

Identity = tuple[int, int]
"""The device and the number of a file: the same for all of its names."""


@dataclass
class Tree:
    """What `add` has found below `root`: files with one of `suffixes` (lower case), by the folder that was added.

    `files` are (path below `root`, folder, identity), sorted within a folder. Of a file that has several names in one
    folder the first is kept, `twins` counts the others; `passed` counts files with another suffix, `loops` links to
    folders that were read already or that hold `root`. Hidden files are passed over without being counted.
    """

    root: Path
    suffixes: frozenset[str]
    files: list[tuple[str, str, Identity]] = field(default_factory=list)
    twins: int = 0
    loops: int = 0
    passed: Counter[str] = field(default_factory=Counter)

    def add(self, name: str) -> int:
        """Read the folder `name` in `root` and everything below it; returns how many files it has."""
        found = self.names(name)
        kept: dict[Identity, str] = {}
        for path, identity in found:
            kept.setdefault(identity, path)
        self.twins += len(found) - len(kept)
        self.files += [(path, name, identity) for identity, path in kept.items()]
        return len(kept)

    def names(self, name: str = "") -> list[tuple[str, Identity]]:
        """Every name of every file below the folder `name` in `root`, sorted: (path below `root`, identity)."""
        home = self.root.resolve()
        above = {_identity(os.stat(folder)) for folder in (home, *home.parents)}
        found: list[tuple[str, Identity]] = []
        self._walk(str(self.root / name), found, above)
        return sorted(found)

    def _walk(self, folder: str, found: list[tuple[str, Identity]], seen: set[Identity]) -> None:
        here = os.stat(folder)
        seen.add(_identity(here))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    if _identity(entry.stat()) in seen:
                        self.loops += 1
                    else:
                        self._walk(entry.path, found, seen)
                elif not entry.name.startswith("."):
                    self._file(entry, here.st_dev, found)

    def _file(self, entry: os.DirEntry[str], device: int, found: list[tuple[str, Identity]]) -> None:
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix not in self.suffixes:
            self.passed[suffix] += 1
            return
        try:
            identity = _identity(entry.stat()) if entry.is_symlink() else (device, entry.inode())
        except OSError:  # a link to nothing: an unreadable file by this name
            identity = _identity(entry.stat(follow_symlinks=False))
        found.append((os.path.relpath(entry.path, self.root), identity))

    def beside(self, names: Iterable[str]) -> None:
        """Count the files in `root` itself, which belong to none of its folders `names`."""
        for entry in self.root.iterdir():
            if entry.name not in names and not entry.name.startswith(".") and entry.is_file():
                self.passed[entry.suffix.lower()] += 1

    def remarks(self, what: str) -> list[str]:
        """What was found and may surprise, in sentences; `what` is what a file is: image, video."""
        told = []
        if self.passed:
            kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in self.passed.most_common(8))
            told.append(
                f"{self.root}: {_count(sum(self.passed.values()), 'file')} passed over, no class's {what}s: {kinds}"
            )
        if self.twins:
            told.append(
                f"{self.root}: {_count(self.twins, 'name')} of {what}s that have another name in the same class, each"
                f" {what} is used once"
            )
        if self.loops:
            told.append(f"{self.root}: {_count(self.loops, 'link')} to folders that were read already, not followed")
        classes: dict[Identity, set[str]] = {}
        for _, name, identity in self.files:
            classes.setdefault(identity, set()).add(name)
        torn = [(path, classes[identity]) for path, _, identity in self.files if len(classes[identity]) > 1]
        if torn:
            path, both = torn[0]
            told.append(
                f"{self.root}: {len({path for path, _ in torn})} names of {what}s that are in several classes, for"
                f" example {path} in {' and '.join(sorted(both))}"
            )
        return told


def shared_files(train: Mapping[Identity, str], test: Mapping[Identity, str], what: str) -> list[str]:
    """A sentence where files are in both halves, given by their identities and names."""
    both = [name for identity, name in test.items() if identity in train]
    if not both:
        return []
    return [f"{_count(len(both), what)} also used for training, under this or another name: {both[0]}"]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino
