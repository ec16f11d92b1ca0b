"""Stage evaluate: captions of a split by search or sampling, their scores, and what each word looked at.

Owns which files the stage reads and writes. Does not know how a score is computed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tqdm import tqdm

from pipeline.captioners.captioner import Captioner
from pipeline.captioners.hypothesis import Hypothesis
from pipeline.captioners.options import EvaluateSettings
from pipeline.captioners.search import find_captions
from pipeline.datasets.dataset import Dataset, Split, read_dataset
from pipeline.errors import DataError
from pipeline.features.reader import FeatureReader
from pipeline.files import Workspace, lock, replacing_folder, under_dvc, write_json
from pipeline.hardware import find_device, use_large_pages
from pipeline.language.vocabulary import Vocabulary
from pipeline.language.words import tokenize
from pipeline.scoring.blind import blind_caption
from pipeline.scoring.fragments import fragments
from pipeline.scoring.java_scores import java_scores
from pipeline.scoring.scores import score_captions, signature, vocabulary_used
from pipeline.training.batches import Regions
from pipeline.training.checkpoint import sweep_trainings
from pipeline.training.consensus import Consensus
from pipeline.training.models import Models, read_models

Words = list[str]


def run(workspace: Workspace, settings: EvaluateSettings) -> None:
    """Caption every image of a split and score the captions into `results/evaluate/`.

    Args:
        workspace: reads `data/` and the models named, writes `results/evaluate/`.
        settings: the section `evaluate`.
    """
    with lock(workspace.work("evaluate") / "lock", "evaluating"):
        use_large_pages()
        device = find_device(settings.device, "evaluate.device")
        dataset, models = read_dataset(workspace.dataset), _models(workspace, settings.models, device)
        if under_dvc():
            sweep_trainings(workspace)
        reader = FeatureReader(workspace.features, models.config.features, models.config.encoding)
        reader.require_ids(dataset.ids)
        rows = dataset.rows(settings.split)
        if not rows:
            raise DataError(f"The data set has no {settings.split} images. Set evaluate.split to another split.")
        regions = Regions(reader, reader.grid, device, torch.float32)
        consensus = Consensus(dataset, reader, models.vocabulary, settings) if settings.consensus.neighbours else None
        hypotheses = _search(models.captioner(reader.grid), regions, dataset, rows, settings, consensus)
        captions = [models.vocabulary.decode(hypothesis.words) for hypothesis in hypotheses]
        references = {dataset.ids[row]: _references(dataset, row) for row in rows}
        metrics = _metrics(dataset, models.vocabulary, captions, references, settings)
        with replacing_folder(workspace.evaluate_results) as folder:
            _write(folder, dataset, hypotheses, captions, references, metrics)
            _write_attention(folder / "attention.npz", hypotheses, models.grid)
        _tell(metrics, hypotheses)


def _models(workspace: Workspace, names: Sequence[str], device: torch.device) -> Models:
    models = read_models(workspace, names, device)
    models.members[0].require_vocabulary(
        Vocabulary.read(workspace.tokens / "vocabulary.json"), workspace.models / names[0]
    )
    return models


def _search(
    captioner: Captioner,
    regions: Regions,
    dataset: Dataset,
    rows: Sequence[int],
    settings: EvaluateSettings,
    consensus: Consensus | None,
) -> list[Hypothesis]:
    hypotheses: list[Hypothesis] = []
    how = f"beam {settings.beam}" if settings.method == "beam" else "sampled"
    with tqdm(total=len(rows), desc=f"captions, {how}", unit="image") as bar:
        for part, seen in regions.parts(rows):
            keys = [dataset.examples[row].sha256 for row in part]
            found = find_captions(captioner, seen, settings, keys)
            hypotheses += consensus.choose(captioner, seen, found, keys) if consensus else found
            bar.update(len(part))
    return hypotheses


def _references(dataset: Dataset, row: int) -> list[Words]:
    return [tokenize(caption) for caption in dataset.examples[row].captions]


def _metrics(
    dataset: Dataset,
    vocabulary: Vocabulary,
    captions: list[Words],
    references: dict[str, list[Words]],
    settings: EvaluateSettings,
) -> dict[str, Any]:
    answers = list(references.values())
    said = [tokenize(" ".join(caption)) for caption in captions]  # split again, as whoever scores the text does
    metrics: dict[str, Any] = dict(score_captions(said, answers))
    blind = _blind(dataset)
    metrics["fragments"] = fragments(captions)
    metrics["bleu4_blind"] = score_captions([blind] * len(answers), answers)["bleu4"]
    if settings.java_scores:
        metrics |= java_scores(captions, answers)
    return {
        **metrics,
        "images": len(answers),
        "vocabulary_used": vocabulary_used(captions, vocabulary.ids),
        "caption_blind": " ".join(blind),
        "signature": signature(
            references, settings.split, settings.named(), "<unk> is never said", len(settings.models)
        ),
    }


def _blind(dataset: Dataset) -> Words:
    training = [caption for row in dataset.rows("train") for caption in _references(dataset, row)]
    judges: Split = "validation" if dataset.rows("validation") else "test"
    return blind_caption(training, [_references(dataset, row) for row in dataset.rows(judges)])


def _write(
    folder: Path,
    dataset: Dataset,
    hypotheses: list[Hypothesis],
    captions: list[Words],
    references: dict[str, list[Words]],
    metrics: dict[str, Any],
) -> None:
    write_json(
        folder / "captions.json",
        [
            {
                "image": image,
                "caption": " ".join(caption),
                "references": [" ".join(reference) for reference in others],
                "log_probability": round(hypothesis.log_probability, 6),
            }
            for hypothesis, caption, (image, others) in zip(hypotheses, captions, references.items(), strict=True)
        ],
    )
    write_json(folder / "skipped.json", dataset.summary["skipped"])
    write_json(folder / "metrics.json", metrics)


def _write_attention(path: Path, hypotheses: list[Hypothesis], grid: tuple[int, int] | None) -> None:
    """Words x regions of all captions one after another; the grid of boxes, which have none, is (0, 0)."""
    np.savez_compressed(
        path,
        weights=np.concatenate([hypothesis.attention for hypothesis in hypotheses]).astype(np.float16),
        offsets=np.cumsum([0, *(len(hypothesis.words) for hypothesis in hypotheses)], dtype=np.int64),
        grid=np.array(grid or (0, 0), dtype=np.int64),
    )


def _tell(metrics: dict[str, Any], hypotheses: list[Hypothesis]) -> None:
    cider = "undefined for one image" if metrics["cider"] is None else f"{metrics['cider']:.1f}"
    click.echo(
        f"BLEU-1..4 {metrics['bleu1']:.1f} / {metrics['bleu2']:.1f} / {metrics['bleu3']:.1f} / {metrics['bleu4']:.1f}, "
        f"CIDEr {cider}, ROUGE-L {metrics['rouge_l']:.1f}; the best caption that ignores the image "
        f'("{metrics["caption_blind"]}") scores BLEU-4 {metrics["bleu4_blind"]:.1f}.'
    )
    click.echo(metrics["signature"])
    if empty := sum(not hypothesis.words for hypothesis in hypotheses):
        said = "1 caption is" if empty == 1 else f"{empty} captions are"
        click.echo(f"{said} empty: the decoder ended at once. Perhaps it was trained too little.")
    unfinished = sum(not hypothesis.finished for hypothesis in hypotheses)
    if unfinished:
        said = "1 caption did not end" if unfinished == 1 else f"{unfinished} captions did not end"
        click.echo(f"{said} within evaluate.max_length words; what was said until there is kept.")
