"""`freezeframe caption`: an image alone gets the caption it gets in the test split, or a warning says why not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.captioners.hypothesis import Hypothesis
from pipeline.captioners.trained import read_captioner
from pipeline.commands import caption as command
from pipeline.commands.caption import caption_images
from pipeline.errors import CacheError, DataError, ImageError, MissingError, SettingsError, WeightsError
from pipeline.features.reader import FeatureReader
from pipeline.files import Workspace
from pipeline.training.batches import Regions
from pipeline.training.view import View
from tests import tiny


def scored_images(workspace: Workspace) -> list[tuple[Path, str, float]]:
    """Each image of the test split with its caption and log-probability as evaluated."""
    entries = json.loads((workspace.evaluate_results / "captions.json").read_text(encoding="utf-8"))
    folder = workspace.dataset / "images"
    return [(folder / entry["image"], entry["caption"], entry["log_probability"]) for entry in entries]


def test_a_test_image_captioned_alone_gets_the_caption_it_was_scored_with(evaluated_once: Workspace) -> None:
    for path, caption, log_probability in scored_images(evaluated_once):
        found, warnings = caption_images(evaluated_once, [path], None)
        assert warnings == []
        assert found[0]["image"] == str(path)
        assert found[0]["caption"] == caption != ""
        assert found[0]["log_probability"] == pytest.approx(log_probability, abs=1e-4)


@pytest.fixture(scope="module")
def bytes_once(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace whose cache holds bytes, and whose decoder sees another grid than the cache's."""
    changes = {"encode__dtype": "uint8", "train__grid": 3, "train__epochs": 2}
    return tiny.evaluated(tiny.trained(tiny.encoded(tmp_path_factory.mktemp("bytes"), **changes), **changes))


def test_a_test_image_is_rounded_as_the_cache_rounded_it(bytes_once: Workspace) -> None:
    cache = FeatureReader(bytes_once.features)
    assert cache.dtype == np.uint8
    for path, caption, log_probability in scored_images(bytes_once):
        found, warnings = caption_images(bytes_once, [path], None)
        assert warnings == []
        assert found[0]["caption"] == caption != ""
        assert found[0]["log_probability"] == pytest.approx(log_probability, abs=1e-5)


@pytest.mark.parametrize("name", ["evaluated_once", "bytes_once"])
def test_a_decoder_sees_of_an_image_alone_what_the_cache_holds(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace: Workspace = request.getfixturevalue(name)
    seen: list[torch.Tensor] = []
    see = View.see

    def watched(view: View, stored: np.ndarray) -> torch.Tensor:
        seen.append(see(view, stored))
        return seen[-1]

    monkeypatch.setattr(View, "see", watched)
    reader, (path, _, _) = FeatureReader(workspace.features), scored_images(workspace)[0]
    caption_images(workspace, [path], None)
    config = read_captioner(workspace.captioner, torch.device("cpu")).config
    regions = Regions(reader, config.grid, torch.device("cpu"), torch.float32)
    cached = regions.ready(regions.start([reader.ids.index(path.name)]))
    assert len(seen) == 2
    assert torch.equal(seen[0], cached)


CONSENSUS = {"evaluate__consensus": {"neighbours": 5, "samples": 7, "temperature": 1.3, "likelihood": 0.2}}


def test_an_image_alone_gets_the_caption_that_consensus_chose_in_the_test_split(evaluated: Workspace) -> None:
    searched = [caption for _, caption, _ in scored_images(evaluated)]
    tiny.write_params(evaluated, **CONSENSUS)
    tiny.evaluated(evaluated, **CONSENSUS)
    assert [caption for _, caption, _ in scored_images(evaluated)] != searched
    for path, caption, log_probability in scored_images(evaluated):
        found, _ = caption_images(evaluated, [path], None)
        assert found[0]["caption"] == caption
        assert found[0]["log_probability"] == pytest.approx(log_probability, abs=1e-4)


def test_consensus_without_the_cache_says_what_needs_it(evaluated: Workspace) -> None:
    tiny.write_params(evaluated, **CONSENSUS)
    image = scored_images(evaluated)[0][0]
    shutil.rmtree(evaluated.features)
    with pytest.raises(
        MissingError, match=r"features\.zarr.* because evaluate\.consensus\.neighbours is 5; 0 captions"
    ):
        caption_images(evaluated, [image], None)


def test_a_captioner_of_boxes_refuses_new_images_with_the_reason(evaluated: Workspace) -> None:
    path = evaluated.captioner / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "grid": None}))
    with pytest.raises(CacheError, match=r"captioner was trained on boxes .*no encoder here can make such features"):
        caption_images(evaluated, [scored_images(evaluated)[0][0]], None)


def test_a_captioner_of_imported_features_refuses_new_images(evaluated: Workspace) -> None:
    path = evaluated.captioner / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "encoding": {"backbone": "imported", "dtype": "float32"}}))
    with pytest.raises(CacheError, match=r"trained on regions that another program made .*no encoder here"):
        caption_images(evaluated, [scored_images(evaluated)[0][0]], None)


def test_an_image_of_which_nothing_is_said_is_warned_of(
    evaluated_once: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, *_ = (path for path, *_ in scored_images(evaluated_once))
    silent = Hypothesis((), -0.5, np.zeros((0, 4), np.float32), True)
    monkeypatch.setattr(command, "find_captions", lambda *_: [silent])
    found, (warning,) = caption_images(evaluated_once, [image], None)
    assert found[0]["caption"] == ""
    assert warning.startswith(f"{image} has no caption: the decoder ended at once.")


def test_several_images_come_in_their_order(evaluated_once: Workspace) -> None:
    known = scored_images(evaluated_once)[::-1]
    found, _ = caption_images(evaluated_once, [path for path, _, _ in known], None)
    assert [entry["caption"] for entry in found] == [caption for _, caption, _ in known]


def test_an_image_sampled_alone_gets_the_caption_it_was_scored_with(evaluated: Workspace) -> None:
    drawn = {"evaluate__method": "sample", "evaluate__temperature": 1.5, "evaluate__seed": 6}
    tiny.write_params(evaluated, **drawn)
    tiny.evaluated(evaluated, **drawn)
    for path, caption, log_probability in scored_images(evaluated):
        found, _ = caption_images(evaluated, [path], None)
        assert found[0]["caption"] == caption
        assert found[0]["log_probability"] == pytest.approx(log_probability, abs=1e-4)


def test_attention_is_drawn_as_a_png(evaluated_once: Workspace, tmp_path: Path) -> None:
    paths = [path for path, _, _ in scored_images(evaluated_once)]
    caption_images(evaluated_once, paths[:1], tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as figure:
        assert figure.format == "PNG"
        assert min(figure.size) > 100
        assert len(np.unique(np.asarray(figure.convert("L")))) > 50
    caption_images(evaluated_once, paths[:2], tmp_path / "several.png")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"one.png", f"several-{paths[0].stem}.png", f"several-{paths[1].stem}.png"}


def test_a_figure_replaces_no_file(evaluated_once: Workspace, tmp_path: Path) -> None:
    photo = Path(shutil.copy(scored_images(evaluated_once)[0][0], tmp_path / "photo.png"))
    before = photo.read_bytes()
    with pytest.raises(DataError, match=r"photo\.png is there already, and figures replace nothing"):
        caption_images(evaluated_once, [photo], photo)
    assert photo.read_bytes() == before


def test_images_of_one_name_get_a_figure_each(evaluated_once: Workspace, tmp_path: Path) -> None:
    first, second = (path for path, _, _ in scored_images(evaluated_once)[:2])
    (tmp_path / "other").mkdir()
    same = tmp_path / "other" / first.with_suffix(".jpg").name
    same.write_bytes(second.read_bytes())
    caption_images(evaluated_once, [first, same, second], tmp_path / "figure.png")
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {
        f"figure-{place}-{name}.png" for place, name in enumerate((first.stem, first.stem, second.stem), 1)
    }


def test_figures_of_other_kinds_are_written_by_their_ending_and_others_refused_at_once(
    evaluated_once: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = scored_images(evaluated_once)[0][0]
    for name, first in (("a.pdf", b"%PDF-"), ("a.svg", b"<svg ")):
        caption_images(evaluated_once, [image], tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(first)
    monkeypatch.setattr("pipeline.commands.caption.read_models", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(DataError, match=r"a\.jpg ends in \.jpg; figures are written as"):
        caption_images(evaluated_once, [image], tmp_path / "a.jpg")


def test_several_models_caption_an_image_alone_as_in_the_test_split(evaluated: Workspace, tmp_path: Path) -> None:
    kept = evaluated.captioner.rename(evaluated.root / "kept")
    tiny.trained(evaluated, train__seed=1, train__grid=3)
    evaluated.captioner.rename(evaluated.models / "finer")
    kept.rename(evaluated.captioner)
    models = {"evaluate__models": ["captioner", "finer"]}
    tiny.write_params(evaluated, **models)
    tiny.evaluated(evaluated, **models)
    for path, caption, log_probability in scored_images(evaluated):
        found, warnings = caption_images(evaluated, [path], tmp_path / f"{path.stem}.png")
        assert (found[0]["caption"], warnings) == (caption, [])
        assert found[0]["log_probability"] == pytest.approx(log_probability, abs=1e-4)


def test_a_machine_that_encodes_otherwise_is_warned_of(evaluated: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = evaluated.captioner / "config.json"
    config = json.loads(path.read_text())
    config["encoding"] |= {"engine": "openvino", "precision": "bfloat16"}  # as if trained on such a machine
    path.write_text(json.dumps(config))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)  # where OpenVINO is not installed
    monkeypatch.setattr("pipeline.hardware.cpu_flags", lambda: frozenset({"avx2"}))
    image, caption, _ = scored_images(evaluated)[0]
    found, warnings = caption_images(evaluated, [image], None)
    assert found[0]["caption"] == caption  # here the difference is too small to matter
    assert any("engine 'openvino'; new images are encoded with 'torch'" in warning for warning in warnings)
    assert any("precision 'bfloat16'; new images are encoded with 'float32'" in warning for warning in warnings)


def test_settings_of_another_encoder_do_not_matter_to_the_captioner(evaluated: Workspace) -> None:
    tiny.write_params(evaluated, encode__backbone="resnet34", encode__image_size=96, encode__seed=9)
    image, caption, _ = scored_images(evaluated)[1]
    assert caption_images(evaluated, [image], None)[0][0]["caption"] == caption


def test_weights_that_are_not_those_of_the_captioner_are_refused(evaluated: Workspace) -> None:
    path = evaluated.captioner / "config.json"
    config = json.loads(path.read_text())
    config["encoding"] |= {"weights": "mine.pth", "weights_sha256": "0" * 64, "seed": None}
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"state dict mine\.pth .*Give the path of that file in encode\.weights"):
        caption_images(evaluated, [scored_images(evaluated)[0][0]], None)


def test_an_image_that_is_not_there_is_named(evaluated_once: Workspace, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"gone\.jpg does not exist"):
        caption_images(evaluated_once, [tmp_path / "gone.jpg"], None)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "the file is empty"), (b"hello\n", "not an image of a known kind")]
)
def test_what_is_no_image_is_named(evaluated_once: Workspace, tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "odd.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=rf"odd\.jpg cannot be decoded: {reason}"):
        caption_images(evaluated_once, [tmp_path / "odd.jpg"], tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_a_bad_image_behind_many_good_ones_is_told_before_any_figure_is_drawn(
    evaluated_once: Workspace, tmp_path: Path
) -> None:
    good = scored_images(evaluated_once)[0][0]
    paths = [tmp_path / f"{number}.png" for number in range(19)]
    for path in paths:
        path.write_bytes(good.read_bytes())
    paths[-1].write_bytes(good.read_bytes()[:-40])
    with pytest.raises(ImageError, match=r"18\.png cannot be decoded"):
        caption_images(evaluated_once, paths, tmp_path / "figure.svg")
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_without_a_captioner_the_stage_is_named(evaluated: Workspace) -> None:
    evaluated.captioner.rename(evaluated.root / "away")
    with pytest.raises(MissingError, match='Run "dvc repro train"'):
        caption_images(evaluated, [scored_images(evaluated)[0][0]], None)


def test_settings_that_do_not_fit_are_told(evaluated: Workspace) -> None:
    evaluated.params.write_text(evaluated.params.read_text().replace("beam: 3", "beam: 0"))
    with pytest.raises(SettingsError, match=r"evaluate\.beam: 0 is out of range"):
        caption_images(evaluated, [scored_images(evaluated)[0][0]], None)
