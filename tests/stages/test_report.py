from pathlib import Path

import pytest

from pipeline.errors import ImageError, MissingError
from pipeline.report.page import ReportSettings
from pipeline.settings import load_section
from stages import report
from tests.report import sample


def test_report_writes_one_file_and_says_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = sample.write(tmp_path / "run")
    report.run(workspace, ReportSettings(4), "pictures")
    said = capsys.readouterr().out
    assert "4 of 6 captions" in said
    assert "1 image that ingest left out" in said
    assert str(workspace.report) in said
    assert [path.name for path in (tmp_path / "run" / "results").iterdir() if path.is_file()] == ["report.html"]


def test_images_are_found_by_absolute_path_and_beside_the_list_if_drawn(tmp_path: Path) -> None:
    away = sample.write(tmp_path / "run")
    report.run(away, ReportSettings(1), str(tmp_path / "run" / "pictures"))
    drawn = sample.write(tmp_path / "drawn", drawn=True)
    report.run(drawn, ReportSettings(1), "no/such/folder")
    assert drawn.report.exists()


def test_an_older_page_survives_a_failure(tmp_path: Path) -> None:
    workspace = sample.write(tmp_path / "run")
    workspace.report.write_text("older", encoding="utf-8")
    (tmp_path / "run" / "pictures" / "2.png").write_text("no image", encoding="utf-8")
    with pytest.raises(ImageError, match=r"2\.png"):
        report.run(workspace, ReportSettings(6), "pictures")
    assert workspace.report.read_text(encoding="utf-8") == "older"


def test_report_before_evaluate_names_the_stage(tmp_path: Path) -> None:
    workspace = sample.write(tmp_path / "run")
    (workspace.evaluate_results / "metrics.json").unlink()
    with pytest.raises(MissingError, match="dvc repro evaluate"):
        report.run(workspace, ReportSettings(6), "pictures")


def test_settings_of_the_project_are_those_of_the_stage() -> None:
    assert load_section(Path(__file__).parents[2] / "params.yaml", "report", ReportSettings).gallery >= 1
