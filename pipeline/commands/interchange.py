"""`freezeframe cache export` and `freezeframe cache import`.

Owns what they tell. How the files look is `pipeline.features`' matter.
"""

import json
from pathlib import Path

from pipeline.commands.use import use
from pipeline.features.foreign import open_foreign
from pipeline.features.interchange import Format, Keeping, export_features
from pipeline.features.reader import FeatureReader
from pipeline.files import Workspace
from pipeline.vision.encoder import IMPORTED


def export_cache(workspace: Workspace, path: Path, kind: Format, keeping: Keeping) -> str:
    """Write the cache's features for other programs.

    Returns:
        What was written.

    Raises:
        MissingError, CacheError: there is no whole cache.
        SettingsError, SpaceError, DataError: see `export_features`.
    """
    reader = FeatureReader(workspace.features)
    dtype = export_features(reader, path, kind, keeping)
    layout = reader.layout
    grid = f"{layout.grid[0]} x {layout.grid[1]}" if layout.grid else "no grid"
    restored = ", restored from uint8" if reader.quantisation is not None else ""
    return (
        f"Wrote the features of {len(reader.ids):,} images to {path}: {layout.cells} regions ({grid}) of "
        f"{layout.channels} channels, {dtype}{restored}."
    )


def import_cache(workspace: Workspace, path: Path) -> str:
    """Let the encode stage read a file or folder of features instead of running a backbone.

    Returns:
        What was set and what to do next.

    Raises:
        MissingError, DataError: it is not there, or of no known form; `params.yaml` is then unchanged.
        SettingsError: `params.yaml` does not fit.
    """
    with open_foreign(path) as foreign:
        count = len(list(foreign.names()))
    # JSON is YAML: a path may hold what YAML alone would not leave as it is.
    weights = json.dumps(str(path.resolve()), ensure_ascii=False)
    use(workspace, [], None, None, None, [f"encode.backbone={IMPORTED}", f"encode.weights={weights}"])
    return (
        f"params.yaml is set to take the features of {path} ({count:,} images there) instead of running a backbone. "
        'Run "dvc repro". If the file changes under its name, run "dvc repro -f encode": only its path is a setting.'
    )
