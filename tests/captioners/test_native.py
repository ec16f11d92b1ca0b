"""Compiling the kernels: kept, made again for another compiler, and done without."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.captioners import native
from tests.captioners.conftest import Make


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache folder of its own, and nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_compiler_that_fails_leaves_plain_torch(
    make: Make,
    regions: torch.Tensor,
    padded: tuple[torch.Tensor, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path / "c++", "exit 1"))
    assert native.library() is None
    assert not native.usable(torch.zeros(1))
    assert not list((tmp_path / "cache").rglob("*.so"))
    captioner, _ = make()
    expected = captioner(regions, *padded, None).logits
    torch.testing.assert_close(captioner.float()(regions.float(), *padded, None).logits, expected.float())


@pytest.mark.parametrize("named", ["/nowhere/c++", "'"])
def test_a_compiler_that_is_not_there_leaves_plain_torch(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("CXX", named)
    assert native.library() is None
    assert native.complaints[-1]


def test_a_compiler_may_be_named_with_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    script = f'echo "$@" >> {asked}\necho no room >&2\nexit 1'
    monkeypatch.setenv("CXX", compiler(tmp_path / "ccache", script) + " g++ -pipe")
    assert native.library() is None
    assert asked.read_text(encoding="utf-8").startswith("g++ -pipe --version")
    assert native.complaints[-1] == "no room"


def test_a_damaged_library_leaves_plain_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = 'while [ "$1" != -o ] && [ $# -gt 0 ]; do shift; done; [ $# -gt 0 ] && echo nothing > "$2"; exit 0'
    monkeypatch.setenv("CXX", compiler(tmp_path / "c++", script))
    assert native.library() is None
    assert (tmp_path / "cache" / "freezeframe").stat().st_mode & 0o777 == 0o700


def test_the_identity_says_what_computes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path / "c++", "exit 1"))
    assert native.identity() == "plain torch"


def test_no_compiler_leaves_plain_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native.library() is None


def test_a_compiler_without_openmp_still_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    script = f'echo "$@" >> {asked}\ncase "$*" in *--version*) echo 1;; *) exit 1;; esac'
    monkeypatch.setenv("CXX", compiler(tmp_path / "c++", script))
    assert native.library() is None
    tries = [line for line in asked.read_text(encoding="utf-8").splitlines() if "-shared" in line]
    assert ["-fopenmp" in line for line in tries] == [True, False]


def test_the_key_knows_source_compiler_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (compiler(tmp_path / name, f"echo {name}") for name in ("one", "other"))
    keys = [native._key([one], ["-O3"]), native._key([other], ["-O3"]), native._key([one], ["-O2"])]
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset({"of another machine"}))
    keys.append(native._key([one], ["-O3"]))
    source = tmp_path / "kernels.cpp"
    source.write_text("// changed", encoding="utf-8")
    monkeypatch.setattr(native, "SOURCE", source)
    keys.append(native._key([one], ["-O3"]))
    assert len(set(keys)) == 5
