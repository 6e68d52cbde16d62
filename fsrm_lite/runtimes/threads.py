"""Says how many threads are worth starting: as many as there are physical cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of physical cores that this process may use, at least 1.

    Counted are the cores, not the hyperthreads, among the CPUs of the process's affinity mask. If the CPU quota of a
    cgroup (version 1 or 2, at any level above this process) is less, that quota counts, rounded down to whole cores.
    Where the system says nothing about cores, each logical CPU counts as one.

    Args:
        root: The folder in which ``proc`` and ``sys`` are mounted. Tests pass another one.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    cores = len({_siblings(root, cpu) for cpu in cpus})
    quota = _cgroup_quota(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def _siblings(root: Path, cpu: int) -> str:
    """Return a name that the hyperthreads of one core have in common."""
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text("ascii").strip()
    except (OSError, ValueError):
        return str(cpu)


def _cgroup_quota(root: Path) -> float | None:
    """Return the smallest CPU quota, in cores, among the cgroups of this process; None where there is none."""
    quotas = [q for folder in _cgroup_folders(root) if (q := _quota(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(root: Path) -> list[Path]:
    """Return the folders in which a CPU quota of this process may be written."""
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
    """Return the CPU quota, in cores, that a cgroup's folder states (in the form of version 2, else 1), or None."""
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
