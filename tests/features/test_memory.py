"""Rows stay in memory where they fit, by what the machine and its control groups leave."""

from pathlib import Path

import pytest

from pipeline.features.memory import available_memory, keep
from pipeline.features.reader import FeatureReader
from tests.features.builders import build, features, layout_of


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 900 kB\nMemAvailable:   500 kB\nHugePages_Total: 0\n"}
GROUP = {**MEMINFO, "proc/self/cgroup": "0::/a/b\n"}
UPPER = {"sys/fs/cgroup/a/memory.max": "90000\n", "sys/fs/cgroup/a/memory.current": "60000\n"}
STAT = {"sys/fs/cgroup/a/memory.stat": "anon 3\ninactive_file 1000\n"}
OLD = {
    **MEMINFO,
    "proc/self/cgroup": "9:name=systemd:/x\n5:cpu,memory:/m\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "5",
    "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
    "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "7000",
    "sys/fs/cgroup/memory/m/memory.usage_in_bytes": "5000",
    "sys/fs/cgroup/memory/m/memory.stat": "total_inactive_file 300\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 0),
        (MEMINFO, 512_000),
        (GROUP, 512_000),
        ({**GROUP, "sys/fs/cgroup/a/b/memory.max": "max\n"}, 512_000),
        ({**GROUP, **UPPER, **STAT}, 31_000),  # a group above limits too, and cached files are no usage
        ({**GROUP, **UPPER, **STAT, "sys/fs/cgroup/a/memory.current": "99999"}, 0),
        (OLD, 2300),
    ],
)
def test_available_memory_is_the_least_that_any_level_leaves(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert available_memory(machine(tmp_path, files)) == expected


def test_this_machine_has_some() -> None:
    assert available_memory() > 2**20


def test_auto_keeps_what_fits_into_half(tmp_path: Path) -> None:
    path = build(tmp_path, features(), layout_of(features())).features
    reader = FeatureReader(path)
    shards = sorted((path / "regions/c").glob("*/0/0"))
    size = reader.stored_bytes(range(7))
    assert size == sum(shard.stat().st_size for shard in shards)
    assert reader.stored_bytes([0, 2, 6]) == shards[0].stat().st_size * 2 // 3 + shards[2].stat().st_size
    meminfo = "MemAvailable: {} kB\n"
    little = machine(tmp_path / "little", {"proc/meminfo": meminfo.format(2 * size // 1024)})
    enough = machine(tmp_path / "enough", {"proc/meminfo": meminfo.format(2 * size // 1024 + 1)})
    assert not keep(reader, range(7), "auto", root=little)
    assert keep(reader, range(7), "auto", root=enough)
    assert not keep(reader, range(7), "auto", processes=2, root=enough)
    assert keep(reader, range(7), "memory", root=little)
    assert not keep(reader, range(7), "stream", root=enough)
