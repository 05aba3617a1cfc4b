"""Checkpoints that are whole or absent: written beside their place, flushed to disk, then renamed.

Lightning's own writer goes through the system's temporary folder, which may be another disk: its final move is then a
copy, and a process killed during the copy leaves half a file under the final name.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from leanconv.errors import CheckpointError, LeanconvError
from leanconv.files import unwritable, whole_file
from leanconv.schema import Fault
from leanconv.stored_zip import check_stored
from leanconv.train.checkpoint_schema import check_checkpoint

__all__ = ["AtomicCheckpointIO", "read_checkpoint"]


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's plugin for saving, loading and removing checkpoints on a local disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Replace `path` by `checkpoint` in one step; on failure the old file stays and no other is left behind."""
        target = Path(path)

        def complain(reason: str) -> LeanconvError:
            return unwritable(target, reason, what="the checkpoint")

        # torch's writer turns a full disk into a RuntimeError.
        with whole_file(target, complain, also=(RuntimeError,)) as draft, open(draft, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at `path`, never unpickling code."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file, if there is one."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load plain tensors and numbers to the CPU, whose schema is checked; nothing of the file is run.

    Raises `CheckpointError` for a missing, truncated or foreign file.
    """
    try:
        check_stored(path)
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except Exception as error:  # zip, pickle and torch raise their own, unrelated types
        named = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        line = f"it names {named[1][:80]}" if named else (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{path}: not a readable checkpoint (truncated or foreign): {line}") from error
    try:
        check_checkpoint(checkpoint)
    except Fault as error:
        raise CheckpointError(f"{path}: not a checkpoint of a run: {error}") from error
    return checkpoint
