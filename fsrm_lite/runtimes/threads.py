"""How many threads are worth starting: physical cores that this process may use, and no more."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Return the physical cores this process may use, at least 1.

    Counts cores, not hyperthreads, among the CPUs of the affinity mask, and rounds a cgroup's CPU quota (version 1 or 2,
    any level above this process) down to whole cores. Where the system tells nothing, all logical CPUs count.

    Args:
        root: Where ``proc`` and ``sys`` are mounted; tests give a folder.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    cores = len({_siblings(root, cpu) for cpu in cpus})
    quota = _cgroup_quota(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def _siblings(root: Path, cpu: int) -> str:
    """Return a name that hyperthreads of one core share."""
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text("ascii").strip()
    except (OSError, ValueError):
        return str(cpu)


def _cgroup_quota(root: Path) -> float | None:
    """Return the smallest CPU quota, in cores, of the cgroups this process is in, or None."""
    quotas = [q for folder in _cgroup_folders(root) if (q := _quota(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(root: Path) -> list[Path]:
    mount = root / "sys/fs/cgroup"
    folders = [mount, mount / "cpu", mount / "cpu,cpuacct"]
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = mount / controllers if controllers else mount
        folder = base / path.lstrip("/")
        while folder not in (base, folder.parent):
            folders.append(folder)
            folder = folder.parent
    return folders


def _quota(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text("ascii").split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((folder / "cpu.cfs_quota_us").read_text("ascii"))
        return None if quota_us <= 0 else quota_us / int((folder / "cpu.cfs_period_us").read_text("ascii"))
    except (OSError, ValueError):
        return None
