"""Every decoder by name.

Owns the list. A new decoder is one file, one line here, its reference test and a preset.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.captioners.captioner import Captioner, DecoderShape
from pipeline.captioners.soft import SoftCaptioner, SoftOptions
from pipeline.settings import collect, refuse

DECODERS: dict[str, tuple[Callable[..., Captioner], type]] = {
    "soft": (SoftCaptioner, SoftOptions),
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


def check_decoder(name: str, options: Any, problems: list[str]) -> Any:
    """The decoder's options as its dataclass; what does not fit is added to `problems`."""
    if name not in DECODERS:
        problems.append(f"train.decoder: expected {' or '.join(DECODERS)}, found {name!r}")
        return None
    return collect(DECODERS[name][1], options, "train.decoder_options", problems)
