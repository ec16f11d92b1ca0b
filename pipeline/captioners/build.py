"""Every decoder by name.

Owns the list. A new decoder is one file, one line here, its reference test and a preset.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pipeline.captioners.adaptive import AdaptiveCaptioner
from pipeline.captioners.att2in2 import Att2in2Captioner
from pipeline.captioners.captioner import Captioner, DecoderShape
from pipeline.captioners.embedded import EmbeddedOptions
from pipeline.captioners.gru_dot import GruCaptioner, GruOptions
from pipeline.captioners.hard import HardCaptioner, HardOptions
from pipeline.captioners.projection import AdditiveAttention
from pipeline.captioners.soft import SoftCaptioner, SoftOptions
from pipeline.captioners.soft_gru import SoftGruCaptioner
from pipeline.captioners.topdown import TopDownCaptioner
from pipeline.settings import collect, refuse

_SMALL = 0.08

DECODERS: dict[str, tuple[Callable[..., Captioner], type]] = {
    "soft": (SoftCaptioner, SoftOptions),
    "adaptive": (AdaptiveCaptioner, EmbeddedOptions),
    "att2in2": (Att2in2Captioner, EmbeddedOptions),
    "topdown": (TopDownCaptioner, EmbeddedOptions),
    "soft_gru": (SoftGruCaptioner, SoftOptions),
    "hard": (HardCaptioner, HardOptions),
    "gru": (GruCaptioner, GruOptions),
}


def build_captioner(name: str, shape: DecoderShape, options: Mapping[str, Any]) -> Captioner:
    """A decoder with fresh weights from torch's global generator.

    Args:
        name: a key of `DECODERS`.
        shape: the sizes that every decoder has.
        options: the decoder's own, as in `train.decoder_options`.

    Raises:
        SettingsError: the name or an option does not fit.
    """
    problems: list[str] = []
    checked = check_decoder(name, options, problems)
    refuse(problems, "params.yaml")
    captioner: Captioner = DECODERS[name][0](shape, checked)
    return captioner


@torch.no_grad()
def start_small(captioner: Captioner) -> None:
    """Draw all weights evenly from within 0.08 of zero, and let biases be zero (Sutskever et al. 2014, section 3.4).

    Weights of layer normalisation stay as they are.
    """
    for layer in captioner.modules():
        if isinstance(layer, nn.Linear | nn.Embedding | nn.RNNCellBase):
            for name, weight in layer.named_parameters(recurse=False):
                if name.startswith("bias"):
                    weight.zero_()
                else:
                    weight.uniform_(-_SMALL, _SMALL)
        elif isinstance(layer, AdditiveAttention):
            layer.score.uniform_(-_SMALL, _SMALL)


def check_decoder(name: str, options: Any, problems: list[str]) -> Any:
    """The decoder's options as its dataclass; what does not fit is added to `problems`."""
    if name not in DECODERS:
        problems.append(f"train.decoder: expected {' or '.join(DECODERS)}, found {name!r}")
        return None
    kind, own = DECODERS[name][1], list[str]()
    checked = collect(kind, options, "train.decoder_options", own)
    if isinstance(options, Mapping) and options.keys() != {field.name for field in dataclasses.fields(kind)}:
        own[0] += f" (each decoder has options of its own; take them from a preset in params/ that has decoder: {name})"
    problems += own
    return checked
