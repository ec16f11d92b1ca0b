"""The options of a decoder, and where dropout is. That the soft decoder equals the paper is in test_decoders.py."""

import pytest
import torch

from pipeline.captioners import soft
from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import dropped
from pipeline.errors import SettingsError
from tests.captioners.conftest import SHAPE, Make


def test_an_unknown_decoder_is_refused_with_the_choices() -> None:
    with pytest.raises(SettingsError, match=r"train\.decoder: expected .*soft.*, found 'hart'"):
        build_captioner("hart", SHAPE, {})


def test_wrong_options_are_all_told() -> None:
    with pytest.raises(SettingsError) as caught:
        build_captioner("soft", SHAPE, {"activation": "gelu", "gate": 1, "normalise": False})
    message = str(caught.value)
    assert "train.decoder_options.activation: expected relu or tanh, found 'gelu'" in message
    assert "train.decoder_options.gate: expected true or false, found 1" in message
    assert "train.decoder_options.tie: missing" in message


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    thinned = dropped(torch.ones(5000), 0.2, torch.Generator().manual_seed(1))
    assert thinned.unique().tolist() == [0.0, 1.25]
    assert float((thinned == 0).double().mean()) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("place", [0, 1])
def test_dropout_thins_the_words_and_what_is_scored(
    make: Make,
    regions: torch.Tensor,
    padded: tuple[torch.Tensor, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    place: int,
) -> None:
    captioner, _ = make()
    shares = []

    def emptied(values: torch.Tensor, share: float, _: torch.Generator | None) -> torch.Tensor:
        shares.append(share)
        return values * (len(shares) != place + 1)

    monkeypatch.setattr(soft, "dropped", emptied)
    found = captioner(regions, *padded, torch.Generator()).logits
    assert shares == [SHAPE.dropout] * 2
    monkeypatch.undo()
    with torch.no_grad():
        (captioner.embedding if place == 0 else captioner.output).weight.zero_()  # type: ignore[union-attr,operator]
    torch.testing.assert_close(found, captioner(regions, *padded, None).logits)
