"""Independent jobs as plain data, and what carries them out: processes of this machine."""

from __future__ import annotations

from leanconv.jobs.job import Ended, Job
from leanconv.jobs.local import run_local

__all__ = ["Ended", "Job", "run_local"]
