"""The section `evaluate`: which models search, how captions are found, and what is captioned.

Owns its keys, their bounds, which of them exclude each other, and the words that name a search. Does not know how a
caption is found, nor whether a model is there, and loads no torch.
"""

from dataclasses import dataclass
from pathlib import PurePath, PureWindowsPath
from typing import Annotated, Literal

from pipeline.settings import Range


@dataclass(frozen=True)
class SearchOptions:
    """How captions are found; `params.yaml` explains each key."""

    method: Literal["beam", "sample"]
    beam: Annotated[int, Range(1, 100)]
    length_penalty: Annotated[float, Range(0, 5)]
    beam_groups: Annotated[int, Range(1, 100)]
    diversity: Annotated[float, Range(0, 100)]
    temperature: Annotated[float, Range(0.01, 100)]
    top_k: Annotated[int, Range(0, None)]
    top_p: Annotated[float, Range(1e-6, 1)]
    seed: Annotated[int, Range(0, 2**32 - 1)]
    block_ngrams: Annotated[int, Range(0, 1000)]
    max_length: Annotated[int, Range(1, 1000)]

    def named(self) -> str:
        """The search in words, as the signature has it: options that are off are not named."""
        parts = self._beam_named() if self.method == "beam" else self._sampling_named()
        if self.block_ngrams:
            parts.append(f"no {self.block_ngrams}-gram twice")
        return ", ".join((*parts, f"at most {self.max_length} words"))

    def _beam_named(self) -> list[str]:
        groups = f" in {self.beam_groups} groups of diversity {self.diversity:g}" if self.beam_groups > 1 else ""
        return [f"beam {self.beam}{groups}", f"length penalty {self.length_penalty:g}"]

    def _sampling_named(self) -> list[str]:
        parts = [f"sampled at temperature {self.temperature:g}"]
        parts += [f"of the {self.top_k} likeliest words"] if self.top_k else []
        parts += [f"of the nucleus {self.top_p:g}"] if self.top_p < 1 else []
        return [*parts, f"seed {self.seed}"]


@dataclass(frozen=True)
class ConsensusOptions:
    """Whether the captions of similar training images choose; `params.yaml` explains each key."""

    neighbours: Annotated[int, Range(0, 1000)]
    samples: Annotated[int, Range(1, 1000)]
    temperature: Annotated[float, Range(0.01, 100)]
    likelihood: Annotated[float, Range(0, 1000)]

    def named(self) -> str:
        """As the signature has it, behind the search that gives the first candidate."""
        return (
            f"that caption or one of {self.samples} sampled at temperature {self.temperature:g}, as the captions of "
            f"{self.neighbours} similar training images choose (likelihood {self.likelihood:g})"
        )


@dataclass(frozen=True)
class ModelOptions:
    """Whose captions they are; `params.yaml` explains the key."""

    models: list[str]


@dataclass(frozen=True)
class EvaluateSettings(SearchOptions, ModelOptions):  # in the order of params.yaml: the last base's keys come first
    """The section `evaluate`."""

    consensus: ConsensusOptions
    split: Literal["test", "validation"]
    java_scores: bool
    device: str

    def named(self) -> str:
        """See `SearchOptions.named`."""
        chosen = [self.consensus.named(), f"seed {self.seed}"] if self.consensus.neighbours else []
        return ", ".join([super().named(), *chosen])


def check_evaluate(settings: EvaluateSettings, place: str, problems: list[str]) -> None:
    """Add to `problems` what no evaluation can do; `check_search` has the arguments."""
    check_models(settings.models, f"{place}.models", problems)
    check_search(settings, place, problems)
    if settings.method == "sample" and settings.consensus.neighbours:
        problems.append(
            f"{place}.consensus.neighbours: {settings.consensus.neighbours} does not go with {place}.method sample, "
            "for consensus draws captions itself; set it to 0, or the method to beam"
        )


def check_models(names: list[str], place: str, problems: list[str]) -> None:
    """Add to `problems` names that are no folder's own name, that come twice, and that there are none."""
    if not names:
        problems.append(f"{place}: the list is empty; name at least one folder of models/, such as [captioner]")
    for name in names:
        own = name == PurePath(name).name == PureWindowsPath(name).name
        if not own or not name or name.startswith(".") or not name.isprintable():
            problems.append(f"{place}: expected the name of a folder of models/ and no path, found {name!r}")
    several = sorted({name for name in names if names.count(name) > 1})
    problems += [f"{place}: {name} is named {names.count(name)} times; each model is named once" for name in several]


def check_search(options: SearchOptions, place: str, problems: list[str]) -> None:
    """Add to `problems` what no search can do, and what the chosen method would not look at.

    Args:
        options: each of the right type; what is out of range is told elsewhere and passed over here.
        place: the section's path, such as `evaluate`.
        problems: where they are told.
    """
    beam, groups = options.beam, options.beam_groups
    if groups > 0 and beam % groups:
        problems.append(
            f"{place}.beam_groups: {groups} groups cannot share {place}.beam {beam} evenly; expected a divisor of it"
        )
    if options.method == "sample" and groups != 1:
        problems.append(
            f"{place}.beam_groups: {groups} has no effect where {place}.method is sample; set it to 1, or the method "
            "to beam"
        )
    for name, off in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0)):
        if options.method == "beam" and getattr(options, name) != off:
            problems.append(
                f"{place}.{name}: {getattr(options, name):g} has no effect where {place}.method is beam; set it to "
                f"{off:g}, or the method to sample"
            )
