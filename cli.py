"""The `freezeframe` command: parses, calls one function, prints. No logic, and no torch for --help."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.errors import FreezeframeError, MissingError
from pipeline.files import FULL, Workspace
from pipeline.version import VERSION

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _example(*lines: str) -> str:
    """The end of a help text, its lines as they are."""
    return "\n".join(("\b", "Example:", *(f"  {line}" for line in lines)))


class Told(click.Group):
    """Turns the project's errors into one paragraph on stderr and exit status 1, Ctrl-C into 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except FreezeframeError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)
        except ModuleNotFoundError as error:
            click.echo(
                f"Error: {error.name} is not installed for {sys.executable}. If that is not the project's Python, run "
                '"source .venv/bin/activate" first; if it is, run "make check" to install what is missing.',
                err=True,
            )
            ctx.exit(1)
        except OSError as error:
            if error.errno in FULL:
                click.echo(f"Error: The disk is full ({error}). Make room and run the same command again.", err=True)
            elif error.filename is not None:
                click.echo(f"Error: {error.filename}: {error.strerror}. Check the path and its permissions.", err=True)
            else:
                raise
            ctx.exit(1)
        except (KeyboardInterrupt, click.Abort):
            click.echo("\nStopped. What was finished is kept; run the same command again to go on.", err=True)
            ctx.exit(130)


@click.group(
    cls=Told,
    context_settings=CONTEXT,
    epilog=_example(
        "freezeframe use flickr8k --images Images --captions Flickr8k.token.txt --splits lists", "dvc repro"
    ),
)
@click.version_option(VERSION, prog_name="freezeframe")
def main() -> None:
    """Image captioning with attention, from features that are computed once."""
    if not sys.stderr.isatty():  # tqdm reads this when it is first loaded: in a log, a bar moves every ten seconds
        os.environ.setdefault("TQDM_MININTERVAL", "10")


def _workspace() -> Workspace:
    """The project of the folder the command is run in: it holds `dvc.yaml`, or settings at least.

    Raises:
        MissingError: it holds neither; the message has the nearest folder above that is a project.
    """
    here = Path.cwd()
    if not any((here / name).exists() for name in ("dvc.yaml", "params.yaml")):
        above = next((folder for folder in here.parents if (folder / "dvc.yaml").exists()), None)
        place = f": {above}" if above else "."
        raise MissingError(f"{here} holds no project; run this in the folder that holds dvc.yaml{place}")
    return Workspace(here)


def _stage(name: str, summary: str, call: Callable[[Workspace, dict[str, Any]], None]) -> None:
    @main.command(name, help=summary, epilog=_example(f"freezeframe {name}"))
    def stage() -> None:
        from pipeline.commands.settings import read_settings

        workspace = _workspace()
        call(workspace, read_settings(workspace.params))


def _ingest(workspace: Workspace, settings: dict[str, Any]) -> None:
    from stages import ingest

    ingest.run(workspace, settings["data"])


def _tokenize(workspace: Workspace, settings: dict[str, Any]) -> None:
    from stages import tokenize

    tokenize.run(workspace, settings["tokenize"])


def _encode(workspace: Workspace, settings: dict[str, Any]) -> None:
    from stages import encode

    encode.run(workspace, settings["encode"], settings["data"].images)


def _train(workspace: Workspace, settings: dict[str, Any]) -> None:
    from stages import train

    train.run(workspace, settings["train"])


def _evaluate(workspace: Workspace, settings: dict[str, Any]) -> None:
    from stages import evaluate

    evaluate.run(workspace, settings["evaluate"])


def _report(workspace: Workspace, settings: dict[str, Any]) -> None:
    from stages import report

    report.run(workspace, settings["report"], settings["data"].images)


_stage("ingest", "Stage 1: read images and captions into data/dataset.", _ingest)
_stage("tokenize", "Stage 2: words and vocabulary into data/tokens.", _tokenize)
_stage("encode", "Stage 3: run the frozen backbone once, into data/features.zarr.", _encode)
_stage("train", "Stage 4: train a decoder from the cache into models/captioner.", _train)
_stage("evaluate", "Stage 5: caption and score a split into results/evaluate.", _evaluate)
_stage("report", "Stage 6: draw results/report.html.", _report)


@main.command(
    epilog=_example(
        "freezeframe use flickr8k --images Images --captions Flickr8k.token.txt --splits lists \\",
        "  --set encode.backbone=resnet50",
    )
)
@click.argument("presets", nargs=-1, required=True, metavar="PRESET...")
@click.option("--images", metavar="DIR", help="The folder of images.")
@click.option("--captions", metavar="FILE", help="The captions file (coco: or the folder of several).")
@click.option("--splits", metavar="DIR|FILE", help="Split lists; left out: the captions file's own, else 80/10/10.")
@click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="A single setting; repeatable.")
def use(
    presets: tuple[str, ...],
    images: str | None,
    captions: str | None,
    splits: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Write params.yaml for a data set and a system."""
    from pipeline.commands.use import use as write_params

    click.echo(write_params(_workspace(), presets, images, captions, splits, assignments))


@main.command(epilog=_example("freezeframe sweep sweep.yaml --keep"))
@click.argument("path", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--keep", is_flag=True, help="Write each captioner to models/EXPERIMENT too, for evaluate.models.")
@click.option(
    "--together", type=click.IntRange(1), metavar="N", help="Train N at a time, and record them, then the next."
)
def sweep(path: Path, keep: bool, together: int | None) -> None:
    """Train several settings in one pass over the cache; each becomes a DVC experiment."""
    from pipeline.commands.kept import sweep_and_keep
    from pipeline.commands.sweep import sweep as train_members

    (sweep_and_keep if keep else train_members)(_workspace(), path, click.echo, together)


@main.command(epilog=_example("freezeframe caption photo.jpg --attention photo-attention.png"))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option(
    "--attention",
    type=click.Path(path_type=Path),
    metavar="FIGURE",
    help="Draw what each word looked at: a .png, .pdf or .svg for a paper.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def caption(images: tuple[Path, ...], attention: Path | None, as_json: bool) -> None:
    """Caption new images with the models of evaluate.models and the transform of their cache."""
    import json

    from pipeline.commands.caption import caption_images

    captions, warnings = caption_images(_workspace(), images, attention)
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)
    if as_json:
        text = json.dumps(captions, indent=2, ensure_ascii=False)
        click.echo(text.encode("utf-8", "backslashreplace"))  # names of files need not be UTF-8
    for entry in () if as_json else captions:
        said = entry["caption"]
        click.echo(f"{click.format_filename(entry['image'])}: {said}" if len(captions) > 1 else said)


@main.command(epilog=_example("freezeframe score results.json captions_val2014.json"))
@click.argument("captions", type=click.Path(path_type=Path))
@click.argument("references", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def score(captions: Path, references: Path, as_json: bool) -> None:
    """Score anyone's captions: ours, or COCO result files, against COCO annotations, dataset.jsonl or a token file."""
    import json

    from pipeline.commands.score import score_files

    metrics = score_files(captions, references)
    if as_json:
        click.echo(json.dumps(metrics, indent=2))
        return
    for name, value in metrics.items():
        click.echo(f"{name:<16} {value:.2f}" if isinstance(value, float) else f"{name:<16} {value}")


@main.command(
    epilog=_example("freezeframe pack tutorial --name flickr8k --captions-per-image 5 --min-word-frequency 5")
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="OUT_DIR")
@click.option("--image-size", type=click.IntRange(1, 4096), default=256, show_default=True, help="Pixels, squared.")
@click.option("--captions-per-image", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option(
    "--min-word-frequency",
    type=click.IntRange(0),
    metavar="N",
    help="Words said no more often in training captions are <unk>; left out: tokenize.min_count - 1.",
)
@click.option("--name", metavar="NAME", help="The data set's, in the files' names; left out: its format.")
def pack(
    folder: Path, image_size: int, captions_per_image: int, min_word_frequency: int | None, name: str | None
) -> None:
    """Write the data set as the older tutorials' HDF5 and JSON files."""
    from pipeline.commands.pack import PackSettings, pack_dataset
    from pipeline.commands.settings import read_settings

    workspace = _workspace()
    settings = read_settings(workspace.params)
    wanted = PackSettings(image_size, captions_per_image, min_word_frequency, name)
    pack_dataset(workspace, settings["data"], settings["tokenize"], folder, wanted, click.echo)


@main.group(epilog=_example("freezeframe cache info"))
def cache() -> None:
    """Look after the feature cache."""


@cache.command("info", epilog=_example("freezeframe cache info"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cache_info(as_json: bool) -> None:
    """Shapes, size, fingerprint, and which shards are there."""
    import json

    from pipeline.commands import cache as command

    info = command.cache_info(_workspace())
    click.echo(json.dumps(info, indent=2) if as_json else command.cache_text(info))


@cache.command("verify", epilog=_example("freezeframe cache verify --repair"))
@click.option("--repair", is_flag=True, help="Encode broken and missing shards again, to the same bytes.")
@click.option("--fast", is_flag=True, help="Do not read the source images.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def cache_verify(context: click.Context, repair: bool, fast: bool, as_json: bool) -> None:
    """Read every byte: broken, missing and stale shards, changed images. Exits with 1 if anything is wrong."""
    import dataclasses
    import json

    from pipeline.commands.settings import read_settings
    from pipeline.commands.verify import report_text, verify

    workspace = _workspace()
    report = verify(workspace, read_settings(workspace.params), fast, repair)
    click.echo(json.dumps(dataclasses.asdict(report), indent=2) if as_json else report_text(report))
    context.exit(1 if report.faults else 0)


@cache.command("export", epilog=_example("freezeframe cache export --format npz features"))
@click.argument("path", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--format", "kind", type=click.Choice(["hdf5", "npz", "npy"]), required=True)
@click.option(
    "--layout",
    type=click.Choice(["array", "keys"]),
    help="Of hdf5: one array with ids (array, the default), or a dataset an image (keys).",
)
def cache_export(path: Path, kind: str, layout: str | None) -> None:
    """Write the features to a file (hdf5) or a folder (npz, npy) for other programs."""
    if layout and kind != "hdf5":
        raise click.UsageError(f"--layout is for --format hdf5; {kind} is a file an image.")
    from pipeline.commands.interchange import export_cache

    click.echo(export_cache(_workspace(), path, kind, layout or "array"))  # type: ignore[arg-type]


@cache.command("import", epilog=_example("freezeframe cache import trainval_resnet101_faster_rcnn_genome_36.tsv"))
@click.argument("path", type=click.Path(path_type=Path), metavar="FILE|DIR")
def cache_import(path: Path) -> None:
    """Take features from a file or folder of another program instead of running a backbone."""
    from pipeline.commands.interchange import import_cache

    click.echo(import_cache(_workspace(), path))


if __name__ == "__main__":
    # A queued experiment runs its own workspace's code: this folder comes first, an installed copy never.
    sys.exit(main())
