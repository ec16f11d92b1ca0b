"""A cache made in milliseconds, to be damaged at will, and the engine that a repair of it would use."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import repair
from pipeline.files import Workspace
from pipeline.vision.encoder import Encoder, EncodeSettings
from tests.encoding.quick import QuickEngine, quick_encoder, shards


@pytest.fixture
def workspace(quick_once: Workspace, tmp_path: Path) -> Workspace:
    """A copy whose work is swept, as it is when a later stage has started."""
    workspace = Workspace(Path(shutil.copytree(quick_once.root, tmp_path / "own")))
    for path in shards(workspace):
        path.unlink()
    return workspace


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> QuickEngine:
    """The engine of whatever encoder a repair asks for."""
    encoder = quick_encoder()

    def like(fields: dict[str, Any], settings: EncodeSettings) -> tuple[Encoder, list[str]]:  # noqa: ARG001
        return encoder, []

    monkeypatch.setattr(repair, "encoder_like", like)
    assert isinstance(encoder.engine, QuickEngine)
    return encoder.engine
