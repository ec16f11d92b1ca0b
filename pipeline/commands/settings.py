"""All sections of `params.yaml` at once.

Owns which dataclass describes which section, so that everything wrong is told before the first stage starts. Does not
know what any setting does.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.captioners.build import check_decoder
from pipeline.captioners.options import EvaluateSettings, check_evaluate
from pipeline.datasets.dataset import DataSettings
from pipeline.language.vocabulary import TokenizeSettings
from pipeline.report.page import ReportSettings
from pipeline.settings import collect, read_params, refuse
from pipeline.training.settings import TrainSettings
from pipeline.vision.encoder import EncodeSettings

SECTIONS: dict[str, type] = {
    "data": DataSettings,
    "tokenize": TokenizeSettings,
    "encode": EncodeSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "report": ReportSettings,
}


def read_settings(path: Path) -> dict[str, Any]:
    """Every section of a `params.yaml` as its dataclass.

    Raises:
        SettingsError: lists everything that does not fit, of all sections.
    """
    return check_settings(read_params(path), path)


def check_settings(document: Mapping[str, Any], source: Path | str) -> dict[str, Any]:
    """The same for sections already read."""
    problems = [f"{name}: unknown section; known: {', '.join(SECTIONS)}" for name in document if name not in SECTIONS]
    settings = {name: collect(kind, document.get(name), name, problems) for name, kind in SECTIONS.items()}
    train = settings["train"]
    if train is not None and isinstance(train.decoder, str) and isinstance(train.decoder_options, dict):
        check_decoder(train.decoder, train.decoder_options, problems)
    if settings["evaluate"] is not None and not any(problem.startswith("evaluate.") for problem in problems):
        check_evaluate(settings["evaluate"], "evaluate", problems)
    problems += _devices(settings)
    refuse(problems, source)
    return settings


def _devices(settings: Mapping[str, Any]) -> Iterator[str]:
    """Names that are no device of any machine; whether this one has it is asked by who needs it."""
    for name, section in settings.items():
        device = getattr(section, "device", None)
        if isinstance(device, str) and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            yield f"{name}.device: expected auto, cpu, cuda or cuda:NUMBER, found {device!r}"
