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
from leanconv.files import found, scratch_folder, settle, unwritable, whole_file, whole_folder, write_text
from leanconv.files.owner import this_owner


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
    seen = []
    replace = os.replace

    def noting(source: Path, target: Path) -> None:
        seen.append((target.name, found(tmp_path, "index", "data").read_text(), (tmp_path / "index").exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noting)
    with whole_folder(tmp_path, complain, last="index") as draft:
        for name in ("index", "data"):
            (draft / name).write_text("new")
    # From the first move on the new ones are found, and who does not look for them does not meet a mixture.
    assert seen == [("data", "new", False), ("index", "new", False)]
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


REPLACED = """
import os, signal, sys
from pathlib import Path
from leanconv.files import whole_folder
folder, moves = Path(sys.argv[1]), int(sys.argv[2])
replace = os.replace
def counting(source, target):
    global moves
    if moves == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    moves -= 1
    replace(source, target)
os.replace = counting
with whole_folder(folder, ValueError, last="index") as draft:
    for name in ("index", "data", "more"):
        (draft / name).write_text("new")
"""


@pytest.mark.parametrize("moves", [0, 1, 2])
@pytest.mark.parametrize("asked", [False, True])
def test_what_a_killed_writer_had_begun_to_replace_is_finished(tmp_path: Path, moves: int, asked: bool) -> None:
    for name in ("index", "data", "mine"):
        write_text(tmp_path / name, "old")
    done = subprocess.run([sys.executable, "-c", REPLACED, str(tmp_path), str(moves)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [found(tmp_path, "index", name).read_text() for name in ("index", "data", "more", "mine")] == [
        "new", "new", "new", "old"
    ]  # fmt: skip
    if asked:  # by a reader
        settle(tmp_path, "index")
    else:  # by a writer
        with whole_folder(tmp_path, complain, last="index") as draft:
            (draft / "index").write_text("new")
    assert {name: (tmp_path / name).read_text() for name in names(tmp_path)} == {
        "data": "new", "index": "new", "mine": "old", "more": "new"
    }  # fmt: skip


def test_what_was_interrupted_in_this_process_is_finished_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    for name in ("index", "data"):
        write_text(tmp_path / name, "old")
    monkeypatch.setattr(os, "replace", interrupted)

    def write() -> None:
        with whole_folder(tmp_path, complain, last="index") as draft:
            for name in ("index", "data"):
                (draft / name).write_text("new")

    with pytest.raises(KeyboardInterrupt):
        write()
    monkeypatch.setattr(os, "replace", replace)
    assert found(tmp_path, "index", "data").read_text() == "new"
    settle(tmp_path, "index")
    assert {name: (tmp_path / name).read_text() for name in names(tmp_path)} == {"data": "new", "index": "new"}


def test_what_another_machine_replaces_is_left_to_it(tmp_path: Path) -> None:
    for name in ("index", "data"):
        write_text(tmp_path / name, "old")
    ready = tmp_path / ".index.00000000-1-00000001-00000002.ready"
    ready.mkdir()
    (ready / "data").write_text("new")
    settle(tmp_path, "index")
    assert names(tmp_path) == [ready.name, "data", "index"]
    assert found(tmp_path, "index", "data").read_text() == "new"
    assert found(tmp_path, "index", "index").read_text() == "old"


def test_whom_the_umask_allows_may_read(tmp_path: Path) -> None:
    """Also what a writer has made for its own user alone, as safetensors does."""
    before = os.umask(0o027)
    try:
        for folder in (tmp_path / "new", tmp_path):
            with whole_folder(folder, complain, last="a") as draft:
                os.close(os.open(draft / "a", os.O_CREAT | os.O_WRONLY, 0o600))
            assert oct((folder / "a").stat().st_mode & 0o777) == "0o640"
        write_text(tmp_path / "b", "")
    finally:
        os.umask(before)
    assert oct((tmp_path / "new").stat().st_mode & 0o777) == "0o750"
    assert oct((tmp_path / "b").stat().st_mode & 0o777) == "0o640"


def test_folders_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = this_owner()
    gone = tmp_path / f".leanconv.{mine.world}-{mine.process}-00000000-00000001.tmp"  # whose number was given again
    other = tmp_path / ".leanconv.00000000-1-00000001-00000002.tmp"
    for folder in (gone, other):
        folder.mkdir()
        (folder / "a").write_text("")
    with scratch_folder() as folder:
        assert oct(folder.stat().st_mode & 0o777) == "0o700"
        (folder / "a").write_text("")
        assert names(tmp_path) == sorted([other.name, folder.name])
    assert names(tmp_path) == [other.name]


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


def test_the_words_of_the_system_behind_others(tmp_path: Path) -> None:
    """torch says "unexpected pos 64 vs 0" of a full disk."""

    def write() -> None:
        with whole_file(tmp_path / "a", complain, also=(RuntimeError,)):
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904

    with pytest.raises(DataError, match="it: No space left on device"):
        write()
