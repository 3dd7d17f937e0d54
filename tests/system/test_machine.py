"""What the machine grants: affinity, control groups, instructions, GPUs."""

import os
from pathlib import Path

import pytest

from pipeline.system import machine


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_driver_of_a_gpu_has_a_version(tmp_path: Path) -> None:
    assert machine.gpu_driver(tmp_path) is None
    for said, version in (
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023\n",
            "535.104.05",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86  Release\n", "570.86"),
        ("something else\nGCC version: 12.3", None),
    ):
        write(tmp_path, {"proc/driver/nvidia/version": said})
        assert machine.gpu_driver(tmp_path) == version


def at_hand(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))


def test_affinity_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at_hand(monkeypatch, 3)
    assert machine.processors(tmp_path) == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "0::/jobs/mine\n",
                "sys/fs/cgroup/jobs/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/jobs/mine/cpu.max": "max 100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/job\n2:memory:/job\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/host/path/of/the/container\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, 16),
    ],
    ids=["none", "v2", "part", "tiny", "nested", "v1", "container", "v1 none", "damaged"],
)
def test_control_groups_limit_processors(
    files: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at_hand(monkeypatch, 16)
    assert machine.processors(write(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: sse avx2\n", {"float32"}),
        ("flags\t\t: avx512f avx512_bf16\n", {"float32", "bfloat16"}),
        ("flags\t\t: amx_bf16 avx512_fp16\n", {"float32", "bfloat16", "float16"}),
        ("flags\t\t: avx512f avx512_vnni\n", {"float32", "int8"}),
        ("Features\t: fp asimd asimdhp bf16\n", {"float32", "bfloat16", "float16"}),
        ("", {"float32"}),
    ],
)
def test_instructions_decide_over_precisions(
    cpuinfo: str, expected: set[str], tmp_path: Path
) -> None:
    root = write(tmp_path, {"proc/cpuinfo": cpuinfo})
    asked = ("float32", "tf32", "bfloat16", "float16", "int8")
    assert {name for name in asked if machine.computes_in(name, root)} == expected


def test_a_gpu_is_its_driver_unless_it_is_hidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not machine.has_gpu(tmp_path)
    write(tmp_path, {"dev/nvidia0": ""})
    assert machine.has_gpu(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not machine.has_gpu(tmp_path)


def test_the_processor_has_a_name(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": "model name\t: Fast 9000\nmodel name\t: Fast 9000\n"})
    assert machine.processor_name(tmp_path) == "Fast 9000"
    assert machine.processor_name(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 3_000 * 1024),
        (
            {
                "proc/self/cgroup": "0::/job\n",
                "sys/fs/cgroup/job/memory.max": "1000000\n",
                "sys/fs/cgroup/job/memory.current": "700000\n",
                "sys/fs/cgroup/job/memory.stat": "anon 1\ninactive_file 200000\n",
            },
            500_000,
        ),
        (
            {
                "proc/self/cgroup": "0::/job\n",
                "sys/fs/cgroup/job/memory.max": "max\n",
                "sys/fs/cgroup/job/memory.current": "700000\n",
                "sys/fs/cgroup/job/memory.stat": "inactive_file 1\n",
            },
            3_000 * 1024,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/job\n3:cpu:/job\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "900000\n",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "300000\n",
                "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 100000\n",
            },
            700_000,
        ),
    ],
    ids=["system", "group, version 2", "no limit", "group, version 1"],
)
def test_memory_that_is_left(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    write(tmp_path, {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    3000 kB\n", **files})
    assert machine.free_memory(tmp_path) == expected


def test_memory_of_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert machine.free_memory(tmp_path) > 0
