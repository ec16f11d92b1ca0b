"""`freezeframe use`: presets, paths and single settings into params.yaml, comments kept, or nothing at all."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.captioners.build import DECODERS
from pipeline.commands.settings import read_settings
from pipeline.commands.use import use
from pipeline.errors import FreezeframeError, MissingError, SettingsError
from pipeline.files import Workspace
from pipeline.settings import read_params
from tests.import_graph import ROOT


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A project folder, which is also the working directory, and photographs elsewhere."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "params", root / "params")
    shutil.copy(ROOT / "params.yaml", root / "params.yaml")
    (tmp_path / "photos").mkdir()
    (tmp_path / "captions.txt").write_text("a.jpg#0\tA dog\n")
    (tmp_path / "lists").mkdir()
    monkeypatch.chdir(root)
    return Workspace(root)


def run(workspace: Workspace, *presets: str, **options: Any) -> str:
    arguments = {"images": None, "captions": None, "splits": None, "assignments": (), **options}
    return use(workspace, presets, **arguments)


def own(workspace: Workspace, *presets: str, **options: Any) -> str:
    """With a data set of the user's."""
    return run(workspace, *presets, **{"images": "../photos", "captions": "../captions.txt", **options})


def params(workspace: Workspace) -> dict[str, Any]:
    return read_params(workspace.params)


def preset(name: str) -> dict[str, Any]:
    return read_params(ROOT / "params" / f"{name}.yaml")


def test_a_data_set_replaces_its_sections_and_real_photographs_get_a_real_system(workspace: Workspace) -> None:
    told = own(workspace, "flickr8k")
    found = params(workspace)
    assert found["tokenize"] == preset("flickr8k")["tokenize"]
    assert {key: found[key] for key in ("encode", "train", "evaluate", "report")} == preset("resnet101")
    assert found["data"]["format"] == preset("flickr8k")["data"]["format"]
    assert "params.yaml is set to flickr8k + resnet101." in told
    assert '"dvc repro" will run ingest and what follows from it' in told
    read_settings(workspace.params)


def test_paths_are_written_absolute_and_splits_default_to_the_captions(workspace: Workspace, tmp_path: Path) -> None:
    told = own(workspace, "own")
    data = params(workspace)["data"]
    assert data["images"] == str(tmp_path / "photos")
    assert data["captions"] == data["splits"] == str(tmp_path / "captions.txt")
    assert "Splits: the captions file's own, else 80/10/10" in told
    told = own(workspace, "own", splits="../lists")
    assert params(workspace)["data"]["splits"] == str(tmp_path / "lists")
    assert f"Splits: {tmp_path / 'lists'}" in told


def comments(path: Path) -> list[str]:
    return [line.split(" #", 1)[1].strip() for line in path.read_text(encoding="utf-8").splitlines() if " #" in line]


def test_every_comment_is_kept(workspace: Workspace) -> None:
    before = workspace.params.read_text(encoding="utf-8")
    own(workspace, "flickr8k", "efficientnet-lite2", assignments=["train.decoder_options.gate=false"])
    after = workspace.params.read_text(encoding="utf-8")
    assert comments(workspace.params) == comments(ROOT / "params.yaml")
    assert after.splitlines()[:2] == before.splitlines()[:2]


def test_going_to_a_data_set_and_back_gives_the_demonstration_again(workspace: Workspace) -> None:
    before = params(workspace)
    own(workspace, "flickr8k")
    told = run(workspace, "shapes")
    assert params(workspace) == before
    assert "params.yaml is set to shapes + demo." in told
    assert comments(workspace.params) == comments(ROOT / "params.yaml")


def test_a_system_that_was_chosen_stays_with_the_next_data_set(workspace: Workspace) -> None:
    own(workspace, "flickr8k", "resnet50")
    own(workspace, "flickr30k")
    assert params(workspace)["encode"] == preset("resnet50")["encode"]
    assert params(workspace)["tokenize"] == preset("flickr30k")["tokenize"]


def test_a_system_alone_leaves_the_data_set(workspace: Workspace) -> None:
    own(workspace, "flickr8k")
    data = params(workspace)["data"]
    told = run(workspace, "efficientnet-lite2")
    assert params(workspace)["data"] == data
    assert '"dvc repro" will run encode and what follows from it' in told


def test_a_decoder_goes_with_any_system_and_brings_its_own_options(workspace: Workspace) -> None:
    (workspace.root / "params" / "other.yaml").write_text("train: {decoder: soft, decoder_options: {gate: false}}\n")
    with pytest.raises(SettingsError, match=r"train\.decoder_options\.tie: missing"):
        own(workspace, "flickr8k", "other")  # an option of another decoder is not kept
    options = "{activation: tanh, gate: false, normalise: true, tie: false}"
    (workspace.root / "params" / "other.yaml").write_text(f"train: {{decoder: soft, decoder_options: {options}}}\n")
    assert "params.yaml is set to flickr8k + resnet101 + other." in own(workspace, "flickr8k", "other")
    found = params(workspace)["train"]
    assert (found["decoder_options"]["activation"], found["decoder_options"]["gate"]) == ("tanh", False)
    assert found["epochs"] == preset("resnet101")["train"]["epochs"]
    told = own(workspace, "flickr8k", "efficientnet-lite2", "other")
    assert "params.yaml is set to flickr8k + efficientnet-lite2 + other." in told


def test_a_change_within_a_nested_setting_is_a_change(workspace: Workspace) -> None:
    told = run(workspace, "demo", assignments=["train.self_critical.epochs=3"])
    assert '"dvc repro" will run train' in told


def test_the_same_again_says_that_nothing_changed(workspace: Workspace) -> None:
    own(workspace, "flickr8k")
    before = workspace.params.read_bytes()
    assert own(workspace, "flickr8k").endswith('"dvc repro" will run only what is left to run.')
    assert workspace.params.read_bytes() == before


def test_a_setting_that_changes_no_result_runs_nothing(workspace: Workspace) -> None:
    told = run(workspace, "demo", assignments=["train.cache=stream", "encode.workers=3"])
    assert told.endswith('"dvc repro" will run only what is left to run.')
    assert params(workspace)["train"]["cache"] == "stream"


def test_single_settings_win_over_presets_and_are_yaml(workspace: Workspace) -> None:
    assignments = [
        "train.learning_rate=1e-3",
        "train.epochs=7",
        "train.grid=native",
        "train.decoder_options.gate=false",
        "tokenize.max_words=null",
        "tokenize.captions_per_image=2",
    ]
    run(workspace, "demo", assignments=assignments)
    found = params(workspace)
    assert (found["train"]["learning_rate"], found["train"]["epochs"], found["train"]["grid"]) == (0.001, 7, "native")
    assert found["train"]["decoder_options"] == {**preset("demo")["train"]["decoder_options"], "gate": False}
    assert (found["tokenize"]["max_words"], found["tokenize"]["captions_per_image"]) == (None, 2)


WRONG: dict[str, tuple[tuple[str, ...], dict[str, Any], type[FreezeframeError], str]] = {
    "unknown preset": (("flickr9k",), {}, SettingsError, r'no preset "flickr9k"\. Presets: .*coco, demo, .*flickr8k'),
    "unknown section": (("demo",), {"assignments": ["trian.epochs=3"]}, SettingsError, r"is no setting; expected sect"),
    "no value": (("demo",), {"assignments": ["train.epochs"]}, SettingsError, r'"train\.epochs" is no setting'),
    "no key": (("demo",), {"assignments": ["train=3"]}, SettingsError, r'"train=3" is no setting'),
    "unknown key": (("demo",), {"assignments": ["train.epoch=3"]}, SettingsError, r"did you mean epochs\?"),
    "unknown nested": (
        ("demo",), {"assignments": ["train.options.gate=1"]}, SettingsError, r"there is no train\.options",
    ),
    "deeper than there is": (
        ("demo",), {"assignments": ["train.epochs.x=1"]}, SettingsError, r"there is no train\.epochs\.",
    ),
    "unknown option": (
        ("demo",), {"assignments": ["train.decoder_options.gaet=true"]}, SettingsError, r"options\.gaet: unknown",
    ),
    "wrong type": (("demo",), {"assignments": ["train.epochs=2.5"]}, SettingsError, r"train\.epochs: expected a whole"),
    "impossible": (("demo",), {"assignments": ["train.dropout=1"]}, SettingsError, r"train\.dropout: 1\.0 is out of"),
    "unknown choice": (("demo",), {"assignments": ["train.decoder=sfot"]}, SettingsError, r"decoder: expected soft"),
    "not YAML": (("demo",), {"assignments": ["train.epochs=[1"]}, SettingsError, r"the value is not valid YAML"),
    "no text": (("demo",), {"assignments": ["train.device=\x07"]}, SettingsError, r"not valid YAML: .*U\+0007"),
    "no date": (("demo",), {"assignments": ["train.seed=2001-99-99"]}, SettingsError, r"not valid YAML: .*month"),
    "no images given": (("flickr8k",), {}, SettingsError, r"add --images DIR and --captions FILE"),
    "no such folder": (
        ("own",), {"images": "nowhere", "captions": "../captions.txt"}, MissingError, r"nowhere does not exist; --im",
    ),
    "no such captions": (
        ("own",), {"images": "../photos", "captions": "gone.txt"}, MissingError, r"gone\.txt does not exist; --cap",
    ),
    "no such splits": (
        ("own",), {"images": "../photos", "captions": "../captions.txt", "splits": "gone"}, MissingError,
        r"gone does not exist; --splits",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("presets", "options", "kind", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_leaves_params_as_they_were(
    workspace: Workspace, presets: tuple[str, ...], options: dict[str, Any], kind: type[FreezeframeError], message: str
) -> None:
    before = workspace.params.read_bytes()
    with pytest.raises(kind, match=message):
        run(workspace, *presets, **options)
    assert workspace.params.read_bytes() == before


def test_images_without_captions_are_told(workspace: Workspace) -> None:
    with pytest.raises(SettingsError, match="--captions FILE"):
        run(workspace, "flickr8k", images="../photos")


def test_several_mistakes_are_told_at_once(workspace: Workspace) -> None:
    with pytest.raises(SettingsError) as caught:
        run(workspace, "demo", assignments=["train.epochs=0", "encode.batch_size=many"])
    assert "2 settings do not fit in the presets and settings asked for" in str(caught.value)


def test_broken_params_are_told_with_line_and_column(workspace: Workspace) -> None:
    workspace.params.write_text("data:\n  format: [a\ntrain: 3\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"params\.yaml is not valid YAML: .* at line \d, column \d"):
        run(workspace, "demo")


def test_params_that_lost_a_section_or_its_keys_are_told(workspace: Workspace) -> None:
    whole = workspace.params.read_text(encoding="utf-8")
    workspace.params.write_text("data: {}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"params\.yaml lacks the section tokenize.*git checkout params\.yaml"):
        run(workspace, "demo")
    workspace.params.write_text(whole.replace("  format:", "  fromat:"), encoding="utf-8")
    with pytest.raises(SettingsError, match=r"data\.fromat: unknown key; did you mean format\?"):
        run(workspace, "demo")


@pytest.mark.parametrize("kept", [{}, {"decoder_options": None}, {"decoder_options": 3}], ids=str)
def test_a_decoder_brings_its_options_where_there_were_none(workspace: Workspace, kept: dict[str, Any]) -> None:
    document = params(workspace)
    del document["train"]["decoder_options"]
    document["train"] |= kept
    YAML(typ="safe", pure=True).dump(document, workspace.params)
    run(workspace, "hard")
    assert params(workspace)["train"]["decoder_options"] == preset("hard")["train"]["decoder_options"]


@pytest.mark.parametrize("path", [".", ".."])
def test_the_projects_own_folder_is_refused_as_data(workspace: Workspace, path: str) -> None:
    with pytest.raises(SettingsError, match="is the project's own folder"):
        own(workspace, "own", splits=path)


def test_weights_by_path_are_found_from_a_queued_experiments_folder(workspace: Workspace) -> None:
    (workspace.root / "weights.pth").write_bytes(b"any")
    own(workspace, "own", assignments=("encode.weights=weights.pth",))
    assert params(workspace)["encode"]["weights"] == str(workspace.root / "weights.pth")
    own(workspace, "own", assignments=("encode.weights=default",))
    assert params(workspace)["encode"]["weights"] == "default"


@pytest.mark.parametrize("path", ["/nowhere.pth", "weights/resnet", "gone.safetensors", "gone.pt", "gone.bin"])
def test_a_path_of_weights_where_nothing_is_is_refused(workspace: Workspace, path: str) -> None:
    before = workspace.params.read_bytes()
    with pytest.raises(
        MissingError, match=rf"^encode\.weights: {path} does not exist; give the path of a state dict, "
    ):
        run(workspace, "demo", assignments=[f"encode.weights={path}"])
    assert workspace.params.read_bytes() == before


@pytest.mark.parametrize(
    "name",
    ["IMAGENET1K_V2", "in1k", "a1_in1k", "fb_swsl_ig1b_ft_in1k", "tf_efficientnet_lite2.in1k", "sw_in12k_ft_in1k_384"],
)
def test_a_name_of_weights_is_no_path(workspace: Workspace, name: str) -> None:
    run(workspace, "demo", assignments=[f"encode.weights={name}"])
    assert params(workspace)["encode"]["weights"] == name


def test_weights_that_have_gone_since_are_in_nobodys_way(workspace: Workspace) -> None:
    (workspace.root / "weights.pth").write_bytes(b"any")
    own(workspace, "own", assignments=("encode.weights=weights.pth",))
    (workspace.root / "weights.pth").unlink()
    run(workspace, "hard")  # the cache may be there, and another decoder needs no weights
    assert params(workspace)["encode"]["weights"] == str(workspace.root / "weights.pth")


def test_a_decoder_without_its_options_is_told_where_they_are(workspace: Workspace) -> None:
    message = (
        r"train\.decoder_options\.gate: unknown key; known: activation, normalise \(each decoder has options of its "
        r"own; take them from a preset in params/ that has decoder: topdown\)\n"
    )
    with pytest.raises(SettingsError, match=message):
        run(workspace, "demo", assignments=["train.decoder=topdown"])
    with pytest.raises(SettingsError, match=r"^1 setting does .*\n.*normalise: expected true or false, found 3$"):
        run(workspace, "topdown", assignments=["train.decoder_options.normalise=3"])


def test_every_decoder_has_a_preset() -> None:
    sections = [read_params(path).get("train", {}) for path in (ROOT / "params").glob("*.yaml")]
    assert {section["decoder"] for section in sections if section} == set(DECODERS)
