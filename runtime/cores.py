"""How many processor cores this process may use: its affinity, and the quota of its container."""

from __future__ import annotations

import math
import os
from pathlib import Path

_V2 = Path("/sys/fs/cgroup/cpu.max")
_V1 = Path("/sys/fs/cgroup/cpu")


def available_cores() -> int:
    """Cores that this process may keep busy, at least 1.

    A container with a quota of two cores on a machine of sixty-four is stopped for most of every period when it runs
    sixty-four threads; the affinity alone does not show that.
    """
    quota = _quota()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(quota) if quota else allowed))


def _quota() -> float | None:
    """Cores that the control group may use; None for no limit. Inside a container its own group is the root."""
    try:
        if _V2.is_file():
            limit, period = _V2.read_text().split()
            return None if limit == "max" else int(limit) / int(period)
        limit_us = int((_V1 / "cpu.cfs_quota_us").read_text())
        return None if limit_us <= 0 else limit_us / int((_V1 / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None
