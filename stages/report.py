"""The stage report: everything a person wants to know of a run, as one page.

Owns which files the page is made of. Does not know how it looks.
"""

import click

from pipeline import files
from pipeline.datasets.dataset import images_folder, read_dataset
from pipeline.files import Workspace
from pipeline.report import curves, page
from pipeline.report.page import ReportSettings
from pipeline.report.results import read_evaluation
from pipeline.settings import read_params


def run(workspace: Workspace, settings: ReportSettings, images: str) -> None:
    """Write `results/report.html`.

    Args:
        workspace: where everything lies.
        settings: the section `report`.
        images: the setting `data.images`, where the user's image files are.

    Raises:
        MissingError: an earlier stage has not run, or an image is gone.
        DataError: what an earlier stage left cannot be read.
        ImageError: an image cannot be decoded any more.
    """
    evaluation = read_evaluation(workspace.evaluate_results)
    dataset = read_dataset(workspace.dataset)
    html = page.render(
        evaluation,
        curves.read_charts(workspace.train_results),
        curves.read_kept(workspace.train_results),
        dataset,
        read_params(workspace.params),
        images_folder(workspace.dataset, workspace.root / images),
        settings.gallery,
    )
    files.write_text(workspace.report, html)
    shown = min(settings.gallery, len(evaluation.captions))
    click.echo(f"The page shows {shown} of {len(evaluation.captions):,} captions, {len(html.encode()) / 1e6:.1f} MB.")
    if left_out := len(evaluation.skipped):
        click.echo(f"It names {left_out:,} image{'' if left_out == 1 else 's'} that ingest left out, with the reasons.")
    click.echo(f"Open {workspace.report} in a browser.")
