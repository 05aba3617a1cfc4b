"""What the system has no more of is one line, and any other error stays a fault of ours."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from leanconv import cli


def raising(error: Exception):
    def app(*_: object, **__: object) -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/metrics.csv"),
            "runs/a/metrics.csv: No space left on",
        ),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files: what was there before is as it was"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory ran out ("),
        (MemoryError(), "memory ran out (MemoryError): use smaller batches"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), "memory ran out (CUDA out of memory. Tried to): use"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory ran out ("),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    monkeypatch.setattr(cli, "app", raising(error))
    with pytest.raises(SystemExit) as ended:
        cli.main(["list"])
    line = capsys.readouterr().err
    assert ended.value.code == 2
    assert line.startswith(f"leanconv: {said}")
    assert line.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EINVAL, "Invalid argument"), KeyError("bug")])
def test_any_other_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(cli, "app", raising(error))
    with pytest.raises(type(error)):
        cli.main(["list"])
