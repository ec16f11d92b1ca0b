"""What arrives is what was sent, over any address that fsspec knows."""

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.encoding.handover import fetch, send
from pipeline.errors import CacheError, ClusterError, DependencyError


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "worker" / "abc.shard"
    path.parent.mkdir()
    path.write_bytes(b"rows")
    return path


@pytest.fixture(params=["memory", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket/fingerprint" if request.param == "file" else "memory://bucket/fingerprint"


def test_a_shard_arrives_and_is_gone_where_it_lay(shard: Path, address: str, tmp_path: Path) -> None:
    target = tmp_path / "work" / "abc.shard"
    parcel = send(shard, address)
    fetch(parcel, target)
    assert target.read_bytes() == b"rows"
    with pytest.raises(ClusterError, match="is not there for this machine"):
        fetch(parcel, target)
    assert target.read_bytes() == b"rows"


def test_two_workers_may_send_the_same_shard(shard: Path, address: str, tmp_path: Path) -> None:
    first, second = send(shard, address), send(shard, address)
    fetch(first, tmp_path / "first")
    fetch(second, tmp_path / "second")
    assert (tmp_path / "second").read_bytes() == b"rows"


def test_a_shard_that_arrives_damaged_is_refused(shard: Path, tmp_path: Path) -> None:
    parcel = send(shard, "memory://damaged")
    MemoryFileSystem().pipe_file(parcel.address, b"r0ws")
    with pytest.raises(CacheError, match=r"arrived damaged: expected SHA-256 \w+, found"):
        fetch(parcel, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("address", "kind", "told"),
    [
        ("nowhere://bucket", ClusterError, "no address that fsspec knows"),
        ("oci://bucket", DependencyError, r"encode\.shared oci://bucket"),
        ("file:///proc/bucket", ClusterError, r"cannot be written.*Check encode\.shared"),
    ],
)
def test_an_address_that_cannot_be_used_is_told(shard: Path, address: str, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        send(shard, address)
