"""What is written to disk: whole or not at all, under the name of whoever writes it, by one writer at a time.

`whole` writes files and folders, `scratch` makes folders for what is needed for a moment, `lock` lets one process at a
time write to a folder, and `owner` says which process a name on disk belongs to, and whether that one is gone.
"""

from leanconv.files.lock import LOCK, held
from leanconv.files.scratch import scratch_folder
from leanconv.files.whole import csv_text, found, settle, sweep, unwritable, whole_file, whole_folder, write_text

__all__ = [
    "LOCK",
    "csv_text",
    "found",
    "held",
    "scratch_folder",
    "settle",
    "sweep",
    "unwritable",
    "whole_file",
    "whole_folder",
    "write_text",
]
