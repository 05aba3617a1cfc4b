"""Files and folders are whole or absent, whatever happens to the writer."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from leanconv.errors import DataError, LeanconvError
from leanconv.files import unwritable, whole_file, whole_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def complain(reason: str) -> LeanconvError:
    return DataError(f"it: {reason}")


def test_a_file_is_written_and_its_folder_made(tmp_path: Path) -> None:
    path = write_text(tmp_path / "new" / "notes.txt", "a\r\nb\n")
    assert path.read_bytes() == b"a\r\nb\n"
    assert names(path.parent) == ["notes.txt"]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = write_text(tmp_path / "notes.txt", "old")

    def write(error: Exception) -> None:
        with whole_file(path, complain, also=(RuntimeError,)) as draft:
            draft.write_text("half")
            raise error

    with pytest.raises(ZeroDivisionError):
        write(ZeroDivisionError())
    with pytest.raises(DataError, match="it: No space left on device"):
        write(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(DataError, match="it: two lines"):
        write(RuntimeError("two\nlines"))
    assert names(tmp_path) == ["notes.txt"]
    assert path.read_text() == "old"


def test_a_file_that_really_cannot_grow(tmp_path: Path) -> None:
    """The operating system stops the write half-way, as a quota or a full disk does."""
    path = tmp_path / "new" / "er" / "notes.txt"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(
            LeanconvError, match=r"notes\.txt: the notes cannot be written: File too large; nothing was"
        ):
            write_text(path, "x" * 2000, what="the notes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []  # nor the folders that were made for it


@pytest.mark.parametrize("where", ["file/notes.txt", "/proc/notes.txt"])
def test_places_that_cannot_be_written_to(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt: cannot be written: "):
        write_text(tmp_path / where, "x", error=DataError)
    with pytest.raises(LeanconvError, match="it: "), whole_folder((tmp_path / where).parent / "model", complain):
        pass
    assert names(tmp_path) == ["file"]


def test_a_folder_is_new_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    with whole_folder(folder, complain) as draft:
        (draft / "part").mkdir()
        (draft / "part" / "a").write_text("a")
        assert not folder.exists()
    assert (folder / "part" / "a").read_text() == "a"
    assert names(folder.parent) == ["model"]


def test_in_a_folder_that_is_there_files_are_replaced_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("index", "data", "mine"):
        write_text(tmp_path / name, "old")
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    with whole_folder(tmp_path, complain, last="index") as draft:
        for name in ("index", "data"):
            (draft / name).write_text("new")
    assert order == ["data", "index"]
    assert {name: (tmp_path / name).read_text() for name in names(tmp_path)} == {
        "data": "new",
        "index": "new",
        "mine": "old",
    }

    def fail() -> None:
        with whole_folder(tmp_path, complain) as draft:
            (draft / "data").write_text("newer")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == ["data", "index", "mine"]
    assert (tmp_path / "data").read_text() == "new"


def test_the_faster_of_two_may_win(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    with whole_folder(folder, complain, keep_existing=True) as draft:
        (draft / "a").write_text("late")
        write_text(folder / "a", "early")
    assert (folder / "a").read_text() == "early"
    assert names(tmp_path) == ["set"]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "model", "mine")
    with pytest.raises(DataError, match="it: Not a directory"), whole_folder(tmp_path / "model", complain):
        pass
    assert (tmp_path / "model").read_text() == "mine"


KILLED = """
import os, signal, sys
from pathlib import Path
from leanconv.files import whole_file, whole_folder
with {what}(Path(sys.argv[1]), ValueError) as draft:
    (draft / "half" if draft.is_dir() else draft).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("what", ["whole_file", "whole_folder"])
def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path: Path, what: str) -> None:
    path = tmp_path / "notes"
    done = subprocess.run([sys.executable, "-c", KILLED.format(what=what), str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    assert len(names(tmp_path)) == 1  # what it left
    mine = tmp_path / f".notes.{os.getpid()}.tmp"
    foreign = tmp_path / ".notes.00000000-1-ab.tmp"  # of another machine
    other = tmp_path / ".notes.txt.tmp"
    for kept in (mine, foreign, other):
        kept.write_text("")
    write_text(path, "whole")
    assert names(tmp_path) == sorted(["notes", mine.name, foreign.name, other.name])


def test_writers_in_one_process_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with whole_file(path, complain) as one, whole_file(path, complain) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"
    assert names(tmp_path) == ["notes"]


def test_the_error_is_one_line() -> None:
    text = str(unwritable(Path("a/b.json"), "No space left on device", what="the table"))
    assert text.startswith("a/b.json: the table cannot be written: No space left on device; nothing was left behind.")
    assert "\n" not in text
