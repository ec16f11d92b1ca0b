"""Frozen backbones: any of torchvision or timm that has a spatial feature map.

Owns names, weights and preprocessing. The last spatial map is found in the traced graph (torchvision: what the last
pooling reads) or given by the library (timm: `forward_features`); an earlier one is a layer by name. Does not know how
a backbone is run fast.
"""

import difflib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torchvision import models

from pipeline.errors import DependencyError, WeightsError, installing
from pipeline.files import sha256
from pipeline.vision.images import Preprocessing
from pipeline.vision.maps import MAPS, Maps, freeze
from pipeline.vision.weights import fit, measure_batch_norm, read_state_dict, sha256_of_state

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHT_FILES = (".pth", ".pt", ".bin", ".safetensors")
TIMM = "timm/"


@dataclass(frozen=True)
class Backbone:
    """A frozen network and what must be known of it.

    Attributes:
        module: (B, 3, S, S) float32 to (B, C, rows, columns) float32; in eval mode, without gradients. Up to the layer
            asked for; nothing behind it is run.
        name: as torchvision names it, or `timm/` and timm's name.
        weights: their name as `encode.weights` takes it, or that of their file without its folder.
        weights_sha256: of the file, or of the random tensors; None for weights with a name. Of the whole backbone,
            whichever layer is asked for.
        preprocessing: what an image goes through before it.
        library: `torchvision` or `timm`.
        maps: all that the backbone could have been cut at; they share its weights.
    """

    module: nn.Module
    name: str
    weights: str
    weights_sha256: str | None
    preprocessing: Preprocessing
    library: Literal["torchvision", "timm"]
    maps: Maps


def build_backbone(name: str, weights: str, image_size: int, seed: int, layer: str | None = None) -> Backbone:
    """Build a backbone, load its weights and freeze it.

    Args:
        name: of torchvision, or of timm; `timm/NAME` where both know it.
        weights: `default`, a weights name, the path of a state dict, or `random`.
        image_size: S, the side of the square images, in pixels.
        seed: of random weights.
        layer: whose output is the map; None is the last map.

    Raises:
        WeightsError: unknown backbone or weights, weights that do not fit or cannot be fetched, no spatial map, no such
            layer.
        DependencyError: timm is asked for and not installed.
        MissingError: no file at the path.
    """
    library = _library(name)
    plain = name.removeprefix(TIMM)
    make = _torchvision if library == "torchvision" else _timm
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, weights_name, mean, std, interpolation = make(plain, weights, image_size)
    identity = None
    if names_a_file(weights):
        fit(model, read_state_dict(Path(weights)), Path(weights), plain)
        identity = sha256(Path(weights))
    maps = MAPS[library](model, plain, image_size)
    whole = freeze(maps.last())
    if weights == "random":
        measure_batch_norm(whole, image_size, seed)
        identity = sha256_of_state(whole)
    module = whole if layer is None else freeze(maps.layers().until(layer))
    preprocessing = Preprocessing(image_size, mean, std, interpolation)
    full_name = plain if library == "torchvision" else TIMM + plain
    return Backbone(module, full_name, weights_name, identity, preprocessing, library, maps)


def untrained_maps(name: str, image_size: int) -> Maps:
    """The maps of a backbone with whatever weights, for who has weights of their own; nothing is fetched.

    Raises:
        WeightsError, DependencyError: as `build_backbone`.
    """
    library = _library(name)
    plain = name.removeprefix(TIMM)
    with torch.random.fork_rng(devices=[]):
        model, *_ = (_torchvision if library == "torchvision" else _timm)(plain, "random", image_size)
    return MAPS[library](model, plain, image_size)


def names_a_file(weights: str) -> bool:
    """Whether `encode.weights` is the path of a state dict; else it is a name the library knows, or `random`."""
    return weights not in ("default", "random") and ("/" in weights or weights.endswith(WEIGHT_FILES))


def _library(name: str) -> Literal["torchvision", "timm"]:
    if not name.startswith(TIMM) and name in models.list_models(module=models):
        return "torchvision"
    if importlib.util.find_spec("timm") is None:
        if name.startswith(TIMM):
            raise DependencyError(f"encode.backbone {name} needs timm: {installing('timm')}")
        near = _nearest(name, models.list_models(module=models))
        raise WeightsError(
            f"encode.backbone {name} is no backbone of torchvision; {near}. timm, which knows many more, is not "
            f"installed: {installing('timm')}"
        )
    import timm

    plain = name.removeprefix(TIMM)
    if timm.is_model(plain.partition(".")[0]):
        return "timm"
    known = [*models.list_models(module=models), *timm.list_models()]
    raise WeightsError(f"encode.backbone {name} is known to neither torchvision nor timm; {_nearest(plain, known)}.")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, sorted(set(known)), n=5)
    return f"nearest: {', '.join(close)}" if close else "resnet50 or tf_efficientnet_lite2 would be such names"


# What a library gives: the whole model, the weights' name, mean, std, interpolation.
Triple = tuple[float, float, float]
Made = tuple[nn.Module, str, Triple, Triple, Literal["bilinear", "bicubic"]]


def _torchvision(name: str, weights: str, image_size: int) -> Made:
    options: dict[str, Any] = {}
    if name in ("inception_v3", "googlenet"):  # its published weights expect inputs scaled inside the model
        options = {"transform_input": weights != "random", "init_weights": True}
    if name == "maxvit_t":
        options = {"input_size": (image_size, image_size)}
    choices = models.get_model_weights(name)
    if names_a_file(weights) or weights == "random":
        model = models.get_model(name, weights=None, **options)
        label, chosen = (Path(weights).name, choices.DEFAULT)
    else:
        chosen = choices.DEFAULT if weights == "default" else _chosen(weights, name, list(choices.__members__), choices)
        model = _fetched(lambda: models.get_model(name, weights=chosen), f"{name} {chosen.name}", chosen.url)
        label = chosen.name
    if weights == "random":
        return model, label, IMAGENET_MEAN, IMAGENET_STD, "bilinear"
    transform = chosen.transforms()
    return model, label, _triple(transform.mean), _triple(transform.std), _interpolation(transform.interpolation.value)


def _timm(name: str, weights: str, image_size: int) -> Made:
    import timm

    base, _, tag = name.partition(".")
    named = not names_a_file(weights) and weights != "random"
    if named and weights != "default":
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
        tag = _chosen(weights, name, tags, {known: known for known in tags})
    full = f"{base}.{tag}" if tag else base

    def create() -> nn.Module:
        options: dict[str, Any] = {"pretrained": named, "num_classes": 0}
        try:  # transformers want to know the size; convolutions refuse to hear of it
            return timm.create_model(full, img_size=image_size, **options)
        except TypeError:
            return timm.create_model(full, **options)

    model = _fetched(create, full, "the Hugging Face hub") if named else create()
    if weights == "random":
        return model, "random", IMAGENET_MEAN, IMAGENET_STD, "bilinear"
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    label = (config["tag"] or "default") if named else Path(weights).name
    return model, label, _triple(config["mean"]), _triple(config["std"]), _interpolation(config["interpolation"])


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return red, green, blue


def _interpolation(name: str) -> Literal["bilinear", "bicubic"]:
    return "bilinear" if name == "bilinear" else "bicubic"


def _chosen(weights: str, name: str, known: list[str], choices: Any) -> Any:
    if weights not in known:
        raise WeightsError(
            f"encode.weights {weights} is no weights name of {name}; the choices are {', '.join(known) or 'none'}, "
            f"default, random, or the path of a state dict (it ends in {', '.join(WEIGHT_FILES)} or holds a /)."
        )
    return choices[weights]


def _fetched(create: Callable[[], nn.Module], what: str, source: str) -> nn.Module:
    """Run what may download; offline, say what to do.

    Besides OSError, the hub's client raises RuntimeError and, of its network library, an error without a builtin kind.
    """
    try:
        return create()
    except (OSError, RuntimeError) as error:
        raise _offline(what, source, error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpcore", "huggingface_hub", "requests"):
            raise
        raise _offline(what, source, error) from error


def _offline(what: str, source: str, error: Exception) -> WeightsError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return WeightsError(
        f"The weights {what} could not be fetched from {source}: {reason}. Connect to the network and run again, "
        "or copy the state dict to this machine and give its path in encode.weights."
    )
