"""State dicts: read from a file, held against a backbone, or random with measured statistics.

Owns what fits and what does not. Does not know which backbones exist, nor where named weights come from.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.errors import WeightsError
from pipeline.files import require

# Classifiers and the helpers of training: absent from a backbone, so it does not matter whether they fit.
HEADS = ("fc.", "classifier.", "head.", "heads.", "aux1.", "aux2.", "AuxLogits.", "last_linear.")
NOISE_IMAGES, NOISE_BATCH = 48, 16


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict, saved by torch or by safetensors.

    Raises:
        MissingError: it is not there.
        WeightsError: it is damaged, holds code, or is no mapping of names to tensors.
    """
    require(path)
    loaded = _load(path)
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(
            f"{path} holds {_kind(loaded)}; expected a state dict, names to tensors. "
            "Save one with torch.save(model.state_dict(), path)."
        )
    return dict(loaded)


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{path} is not a safetensors file: {error}. Fetch it again.") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged file makes it meet
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as a state dict: {reason} Only tensors are accepted (weights_only); "
            "fetch the file again, or save one with torch.save(model.state_dict(), path)."
        ) from error


def _kind(value: Any) -> str:
    return "a mapping with other values than tensors" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def fit(model: nn.Module, state: Mapping[str, Tensor], path: Path, backbone: str) -> None:
    """Put a state dict into a model, half floats as float32; its classifier may be absent or another one.

    Raises:
        WeightsError: keys are missing or unexpected, or shapes differ; ten of each are named.
    """
    wanted = _essential(model.state_dict())
    given = _essential(state)
    counted = {key for key in wanted if not key.endswith("num_batches_tracked")}  # older files lack these
    problems = {
        "missing": [key for key in counted if key not in given],
        "unexpected": [key for key in given if key not in wanted],
        "of another shape": [
            f"{key} {tuple(given[key].shape)} instead of {tuple(value.shape)}"
            for key, value in wanted.items()
            if key in given and given[key].shape != value.shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(_named(sorted(keys), word) for word, keys in problems.items() if keys)
        raise WeightsError(
            f"The state dict {path} does not fit {backbone}: {told}. "
            "Name the backbone it was saved from in encode.backbone, or give its own weights in encode.weights."
        )
    model.load_state_dict(given, strict=False)


def _essential(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(HEADS)}


def _named(keys: list[str], word: str) -> str:
    more = ", ..." if len(keys) > 10 else ""
    return f"{len(keys)} {word} ({', '.join(keys[:10])}{more})"


def weights_like(fields: Mapping[str, Any], given: str) -> str:
    """What to load so that the weights are those of a cache.

    Args:
        fields: of the cache's fingerprint.
        given: `encode.weights`: where this machine has a state dict, if they came from one.

    Raises:
        WeightsError: they came from a state dict of another name.
    """
    if fields["weights_sha256"] is None or fields["weights"] == "random":
        return str(fields["weights"])
    if Path(given).name != fields["weights"]:
        raise WeightsError(
            f"The features were made with the state dict {fields['weights']} (SHA-256 {fields['weights_sha256']}), but "
            f"encode.weights is {given}. Give the path of that file in encode.weights."
        )
    return given


def require_weights(fields: Mapping[str, Any], loaded: str, found: str | None) -> None:
    """Refuse weights that are not those of a cache.

    Args:
        fields: of the cache's fingerprint.
        loaded: what was loaded.
        found: its SHA-256; None for weights with a name.

    Raises:
        WeightsError: another SHA-256.
    """
    if found != fields["weights_sha256"]:
        raise WeightsError(
            f"The weights {loaded} are not those that the features were made with: expected SHA-256 "
            f"{fields['weights_sha256']}, found {found}. Give the path of the right {fields['weights']} in "
            "encode.weights."
        )


def measure_batch_norm(model: nn.Module, image_size: int, seed: int) -> None:
    """Set the batch norms' statistics to those of seeded noise, averaged over 48 images.

    Random weights with statistics left at 0 and 1 saturate: every region becomes almost the same vector.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    with torch.no_grad():
        for _ in range(NOISE_IMAGES // NOISE_BATCH if norms else 0):
            model(torch.randn(NOISE_BATCH, 3, image_size, image_size, generator=generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def sha256_of_state(model: nn.Module) -> str:
    """The SHA-256 of all parameters and buffers, names included."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
