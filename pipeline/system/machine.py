"""What this process may use of the machine: processors, their instructions, memory, GPUs.

Reads Linux's own files; imports nothing heavy.
"""

import math
import os
import platform
import re
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final

_ROOT: Final = Path("/")
# Where the system does not say: enough for a hundred thousand images of 2,048 features.
_UNKNOWN_MEMORY: Final = 4 << 30
# Instructions that compute in a precision, by their names in /proc/cpuinfo. A processor without
# them would only convert to and from float32: slower than float32, and less exact.
_INSTRUCTIONS: Final = MappingProxyType(
    {
        "bfloat16": frozenset({"amx_bf16", "avx512_bf16", "bf16"}),
        "float16": frozenset({"amx_fp16", "asimdhp", "avx512_fp16"}),
        "int8": frozenset({"amx_int8", "avx512_vnni", "avx_vnni"}),
    }
)


# What processes that share a machine agreed on; a list, so that a function need not rebind a name.
_agreed: list[int] = []


def use_at_most(count: int) -> None:
    """Let this process use no more processors than these, where others share the machine."""
    _agreed[:] = [count]


def processors(root: Path = _ROOT) -> int:
    """Return how many processors this process may use: affinity and control-group quota.

    Args:
        root: Root of the file system, for tests.
    """
    available = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, math.ceil(min(available, _quota(root), *_agreed)))


def processor_name(root: Path = _ROOT) -> str:
    """Return the processor's name."""
    names = _cpuinfo(root, "model name")
    return names[0] if names else platform.processor() or platform.machine()


def computes_in(precision: str, root: Path = _ROOT) -> bool:
    """Tell whether the processor has instructions for a precision; float32 it always has."""
    if precision == "float32":
        return True
    lines = _cpuinfo(root, "flags") or _cpuinfo(root, "Features")
    flags = set(lines[0].split()) if lines else set()
    return bool(flags & _INSTRUCTIONS.get(precision, frozenset()))


def instructions(precision: str) -> list[str]:
    """Return the instructions of which a processor needs one to compute in a precision."""
    return sorted(_INSTRUCTIONS.get(precision, frozenset()))


def free_memory(root: Path = _ROOT) -> int:
    """Return the bytes of memory that this process could still take: system and control group."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return _UNKNOWN_MEMORY
    fields = (line.partition(":") for line in lines)
    sizes = {name: rest.split() for name, _, rest in fields}
    available = sizes.get("MemAvailable", ["0"])
    limits = [
        _left(root / "sys/fs/cgroup" / kind / ancestor)
        for kind, group in _groups(root, "memory")
        for ancestor in (group, *group.parents)
    ]
    return int(min([1024 * int(available[0]), *limits]))


def has_gpu(root: Path = _ROOT) -> bool:
    """Tell whether a GPU's driver is there; whether a library can use it is another question."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return False
    return any((root / "dev" / name).exists() for name in ("nvidia0", "nvidiactl", "kfd"))


def gpu_driver(root: Path = _ROOT) -> str | None:
    """Return the version of NVIDIA's driver; None without one."""
    try:
        said = (root / "proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"\b\d+(\.\d+)+\b", said.partition("\n")[0])
    return found.group() if found else None


def _cpuinfo(root: Path, field: str) -> list[str]:
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in pairs if name.strip() == field]


def _quota(root: Path) -> float:
    """Return the processors that the control groups of this process grant, or infinity.

    Version 2 has one tree with ``cpu.max``; version 1 a tree for ``cpu`` with two files. In a
    container the path that the kernel names may lie outside what is mounted, so every prefix
    counts, down to the mount itself.
    """
    folders = [
        root / "sys/fs/cgroup" / kind / ancestor
        for kind, group in _groups(root, "cpu")
        for ancestor in (group, *group.parents)
    ]
    return min((_granted(folder) for folder in folders), default=math.inf)


def _groups(root: Path, resource: str) -> list[tuple[str, PurePosixPath]]:
    """Return (mount below /sys/fs/cgroup, path) of the groups that may limit a resource."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        relative = PurePosixPath(path.lstrip("/"))
        if not controllers:
            groups.append(("", relative))
        elif resource in controllers.split(","):
            groups += [(resource, relative), (controllers, relative)]
    return groups


def _granted(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except (OSError, ValueError):
        return math.inf
    return float(quota) / float(period) if quota not in ("max", "-1") else math.inf


def _left(folder: Path) -> float:
    """Return the bytes that a control group has left, or infinity; both versions' files."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            granted = int((folder / limit).read_text())
            taken = int((folder / used).read_text())
            # Files in the cache count as taken, though they make room when asked.
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return granted - taken + int(stat.get(cached, 0))
        except (OSError, ValueError):
            continue
    return math.inf
