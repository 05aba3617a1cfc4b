"""A worker that is killed while it sends what it has read is named as such, not as a broken pipe."""

from __future__ import annotations

from pickle import UnpicklingError

import pytest

from leanconv.data import workers
from leanconv.errors import DataError


@pytest.mark.parametrize(
    "error",
    [
        EOFError("unexpected EOF"),
        ConnectionResetError(),
        FileNotFoundError(),
        UnpicklingError("pickle data was truncated"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_answer_that_is_cut_off(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    ended = []

    class Batches:
        def __init__(self, *_: object, **__: object) -> None:
            self.sent = False

        def __iter__(self) -> Batches:
            return self

        def __next__(self) -> int:
            if self.sent:
                raise error
            self.sent = True
            return 1

        def _shutdown_workers(self) -> None:
            ended.append(True)

    monkeypatch.setattr(workers, "DataLoader", Batches)

    def collated(count: int) -> list[int]:
        return list(workers.collated([0], [[0]], count, list, ahead=1, reading=lambda: ["a.png"]))  # type: ignore[arg-type]

    with pytest.raises(
        DataError, match=r"ended while it sent what it had read \(.*\) while the workers read a\.png: it"
    ):
        collated(1)
    assert ended == [True]
    with pytest.raises(type(error)):  # no worker was there to be killed
        collated(0)
