"""Finished workspaces, made once; a test that changes one gets a copy."""

import shutil
from pathlib import Path

import pytest

from pipeline.files import Workspace
from tests import tiny
from tests.encoding import quick


@pytest.fixture(autouse=True)
def _bars_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line sets for a log goes with the test that has called it."""
    monkeypatch.setenv("TQDM_MININTERVAL", "10")


@pytest.fixture(scope="session")
def encoded_once(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return tiny.encoded(tmp_path_factory.mktemp("encoded"))


@pytest.fixture(scope="session")
def quick_once(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A cache by an encoder of plain arithmetic. Read it; to change it copy it."""
    workspace = Workspace(tmp_path_factory.mktemp("quick"))
    quick.draw(workspace)
    quick.encode(workspace, quick.quick_encoder())
    return workspace


@pytest.fixture(scope="session")
def evaluated_once(encoded_once: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Read it; to change it take `evaluated`."""
    root = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(encoded_once.root, root, dirs_exist_ok=True)
    return tiny.evaluated(tiny.trained(Workspace(root)))


@pytest.fixture
def encoded(encoded_once: Workspace, tmp_path: Path) -> Workspace:
    """A workspace up to its cache, to be changed at will."""
    return Workspace(Path(shutil.copytree(encoded_once.root, tmp_path / "run")))


@pytest.fixture
def evaluated(evaluated_once: Workspace, tmp_path: Path) -> Workspace:
    """A workspace up to its scores, to be changed at will."""
    return Workspace(Path(shutil.copytree(evaluated_once.root, tmp_path / "run")))
