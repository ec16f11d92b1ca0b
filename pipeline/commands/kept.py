"""`freezeframe sweep --keep`: the captioners of a sweep's members, side by side in `models/`, for `evaluate.models`.

Owns where they lie and that DVC tracks each. Does not train (`sweep`), and does not know what DVC does.
"""

from collections.abc import Callable
from pathlib import Path

from pipeline.commands.experiments import Experiments
from pipeline.commands.members import read_members
from pipeline.commands.sweep import sweep
from pipeline.files import Workspace, replacing_folder

Tell = Callable[[str], None]


def sweep_and_keep(workspace: Workspace, path: Path, tell: Tell, together: int | None = None) -> None:
    """Do what `sweep` does; then keep the members' captioners.

    Raises:
        FreezeframeError: as `sweep`; members are kept when all of them are recorded.
    """
    sweep(workspace, path, tell, together)
    keep(workspace, [member.name for member in read_members(path, workspace.params)], tell)


def keep(workspace: Workspace, names: list[str], tell: Tell) -> None:
    """Write the captioner of each experiment to `models/NAME/`, and let DVC track it (`models/NAME.dvc`).

    Args:
        workspace: its other outs stay as they are.
        names: of experiments; a folder that is there already makes way.
        tell: told what to do with them.

    Raises:
        ExperimentError: DVC has no such experiment, or cannot track the folder.
    """
    experiments = Experiments(workspace.root)
    for name in names:
        with replacing_folder(workspace.models / name) as folder:
            experiments.copy(name, workspace.captioner, folder / "whole")
            for file in (folder / "whole").iterdir():
                file.rename(folder / file.name)
            (folder / "whole").rmdir()
    experiments.track([workspace.models / name for name in names])
    tell(
        f'Kept in {workspace.models.name}/, each with a .dvc file for git ("git add {workspace.models.name}"). To '
        f'search with all of them, set evaluate.models to [{", ".join(names)}] and run "dvc repro".'
    )
