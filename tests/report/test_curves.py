from pathlib import Path

import pytest

from pipeline.errors import DataError, MissingError
from pipeline.report import curves


def write(folder: Path, name: str, text: str) -> None:
    path = folder / "plots" / "metrics" / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_series_of_one_quantity_share_a_chart_and_known_ones_come_first(tmp_path: Path) -> None:
    write(tmp_path, "extra/alpha", "step\talpha\n0\t1\n")
    write(tmp_path, "validation/loss", "step\tloss\n0\t3\n1\t2.5\n")
    write(tmp_path, "train/loss", "step\tloss\n0\t4\n1\t2\n2\tnan\n")
    loss, alpha = curves.read_charts(tmp_path)
    assert (loss.title, alpha.title) == ("Loss", "Alpha")
    assert [(series.name, series.first, series.last) for series in loss.series] == [
        ("train", "4", "2"),
        ("validation", "3", "2.5"),
    ]
    assert loss.epochs == ("1", "2")


def test_what_the_metrics_epsilon_leaves_of_no_match_is_drawn_as_none(tmp_path: Path) -> None:
    write(tmp_path, "validation/bleu4", "step\tbleu4\n0\t4.37e-12\n1\t9e-12\n")
    write(tmp_path, "train/learning_rate", "step\tlearning_rate\n0\t3e-8\n")
    bleu4, rate = curves.read_charts(tmp_path)
    assert (bleu4.series[0].first, bleu4.series[0].last, rate.series[0].last) == ("0", "0", "3e-08")
    assert next(label for _, label in bleu4.up) == "0"


def test_the_kept_epoch_is_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"kept_epoch": 17, "step": 24}', encoding="utf-8")
    assert curves.read_kept(tmp_path) == 17


@pytest.mark.parametrize("text", ["{}", "[3]", '{"kept_epoch": 0}', '{"kept_epoch": "3"}'])
def test_metrics_without_the_kept_epoch_name_the_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"does not say which epoch was kept .*dvc repro -f train"):
        curves.read_kept(tmp_path)


def test_points_lie_where_the_axes_say() -> None:
    chart = curves.draw("loss", {"train": [(0, 2), (4, 6), (8, 4)]})
    points = [tuple(map(float, pair.split(","))) for pair in chart.series[0].path.split()]
    up, across = {label: y for y, label in chart.up}, {label: x for x, label in chart.across}
    assert points == [(across["0"], up["2"]), (across["4"], up["6"]), (across["8"], up["4"])]
    assert up["6"] == curves.TOP
    assert up["2"] == curves.HEIGHT - curves.BOTTOM
    assert across["8"] == curves.WIDTH - curves.RIGHT
    assert chart.series[0].end == points[-1]


@pytest.mark.parametrize("points", [[(3.0, 0.0)], [(0.0, 5.0), (1.0, 5.0)], [(0.0, -2e-7), (1.0, 4e-7)]])
def test_flat_single_and_tiny_series_stay_inside_the_plot(points: curves.Points) -> None:
    chart = curves.draw("learning_rate", {"train": points})
    for pair in chart.series[0].path.split():
        x, y = map(float, pair.split(","))
        assert curves.LEFT <= x <= curves.WIDTH - curves.RIGHT
        assert curves.TOP <= y <= curves.HEIGHT - curves.BOTTOM
    assert len({label for _, label in chart.up}) == len(chart.up) >= 2


def test_epoch_ticks_are_whole() -> None:
    chart = curves.draw("loss", {"train": [(0, 1), (2, 3)]})
    assert [label for _, label in chart.across] == ["0", "1", "2"]


@pytest.mark.parametrize("text", ["step\tother\n0\t1\n", "step\tloss\n0\tmuch\n", "step\tloss\n0\n"])
def test_a_table_of_another_kind_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    write(tmp_path, "train/loss", text)
    with pytest.raises(DataError, match=r'loss\.tsv, line 2: expected the columns "step" and "loss"'):
        curves.read_charts(tmp_path)


def test_no_training_results_name_the_stage(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="dvc repro train"):
        curves.read_charts(tmp_path)
