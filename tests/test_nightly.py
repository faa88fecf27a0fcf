"""A night scores what is new, reports on it, and leaves where it stands."""

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from skinray import storage
from skinray.cli import main
from skinray.config import NightlySettings, ScoreSettings
from skinray.errors import StorageError
from skinray.nightly import LATEST_NAME, _key, _not_reported, _reported_night, run_night
from skinray.published_runs import PublishedRun
from skinray.scoring_pipeline import RunSummary
from skinray.training import TrainedModel
from tests.test_screening_report import MODEL, run_rows
from tests.test_screening_report import published as published_run

pytestmark = pytest.mark.ray

REASON = "11.1% of the photos have no score, more than --max-bad-fraction 5.0%"
DAY = datetime.datetime(2026, 11, 21, 2, 0, tzinfo=datetime.UTC)


def test_nights_score_what_is_new_and_report_on_it(trained: TrainedModel, drawn_photos: Path, tmp_path: Path) -> None:
    archive, output = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    photos = sorted((drawn_photos / "images").iterdir())

    def night(day: int, **changes: Any) -> tuple[dict[str, Any], list[str]]:
        settings = {"bundle": trained.bundle_uri, "input": str(archive), "output": str(output), "thumbnails": 3, **changes}
        told = run_night(NightlySettings.model_validate(settings), DAY + datetime.timedelta(days=day))
        assert told.latest == json.loads((output / "latest.json").read_text())
        assert (output / "latest.html").read_bytes() == (Path(told.latest["report"]) / "report.html").read_bytes()
        return told.latest, told.limits_passed

    for path in photos[:40]:
        shutil.copy(path, archive)
    first, passed = night(0)
    assert (first["new"], first["statuses"], first["drift"], passed) == (40, {"scored": 40}, "no reference", [])
    assert Path(first["report"]).parent == output / "reports"

    # Cut off between its run and its report, the very first of all.
    shutil.rmtree(first["report"])
    for path in photos[40:48]:
        shutil.copy(path, archive)
    (archive / "broken.jpg").write_text("no photo")
    second, passed = night(1, max_bad_fraction=0.1)
    assert (second["new"], second["skipped"], second["drift"]) == (9, 40, "too few")
    assert len(passed) == 1
    assert "11.1% of the photos have no score" in passed[0]
    assert set(pd.read_parquet(second["run"])["image_id"]) == {path.name for path in [*photos[40:48], archive / "broken.jpg"]}
    report = json.loads((Path(second["report"]) / "report.json").read_text())
    assert report["drift"]["reference"]["uri"] == first["run"]
    assert report["without_score"][0]["listed"][0]["image_id"] == "broken.jpg"

    assert second["missed_reports"] == [first["report"]]

    # Cut off, and then nothing new: what was wrong was not said yet.
    shutil.rmtree(second["report"])
    third, passed = night(2, max_bad_fraction=0.1)
    assert (third["new"], third["skipped"], third["report"], third["missed_reports"]) == (0, 49, second["report"], [])
    assert "11.1% of the photos have no score" in passed[0]
    assert json.loads((Path(third["report"]) / "report.json").read_text()) == report

    # Cut off, and then something new: both get their reports.
    shutil.rmtree(second["report"])
    shutil.copy(photos[48], archive)
    fourth, passed = night(3)
    assert passed == [f"run {Path(second['run']).name.removeprefix('run_id=')}: {REASON}"]
    assert (fourth["new"], fourth["missed_reports"]) == (1, [second["report"]])
    assert json.loads((Path(second["report"]) / "report.json").read_text()) == report
    assert night(4)[1] == [], "said once"


def test_a_night_without_photos_or_reference_ends_before_it_scores(trained: TrainedModel, tmp_path: Path) -> None:
    settings = {"bundle": trained.bundle_uri, "input": str(tmp_path), "output": str(tmp_path / "out")}
    with pytest.raises(StorageError, match="does not exist"):
        run_night(NightlySettings.model_validate({**settings, "reference": str(tmp_path / "none")}), DAY)
    assert main(["nightly", *(word for name, value in settings.items() for word in (f"--{name}", value))]) == 1
    assert not (tmp_path / "out").exists()


def test_a_night_that_was_killed_behind_its_report_is_told_of_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = NightlySettings(bundle="b", input="i", output=str(tmp_path), thumbnails=0)
    write_json = storage.write_json

    def killed(uri: str, value: Any) -> None:
        if uri.endswith(LATEST_NAME):
            raise KeyboardInterrupt
        write_json(uri, value)

    def night() -> tuple[list[str], list[str]]:
        told = _reported_night(settings, DAY, RunSummary.of_nothing(0), MODEL)
        return told.limits_passed, told.latest["missed_reports"]

    published_run(tmp_path, run_rows(30), "first", 20)  # 10 % have no score
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            night()
    assert (tmp_path / "reports" / "first" / storage.MANIFEST_NAME).exists()
    published_run(tmp_path, run_rows(40), "second", 21)
    reason = "of the photos have no score, more than --max-bad-fraction 5.0%"
    assert night() == ([f"run first: 10.0% {reason}", f"7.5% {reason}"], [str(tmp_path / "reports" / "first")])
    assert night() == ([], [])
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["first", "second"]


def published(*runs: tuple[str, str, str]) -> list[PublishedRun]:
    """Runs by their names, verbs and models."""
    return [
        PublishedRun(f"/out/model_id={model_id}/scored_date=1/run_id={name}", {"verb": verb, "model_id": model_id}, "")
        for name, verb, model_id in runs
    ]


def test_runs_that_nobody_has_seen_are_reported_on() -> None:
    def missing(runs: list[PublishedRun], *reported: str) -> list[str]:
        """Of runs that a night finds, whose newest is its own or the last there was."""
        # Where they were when they were reported on, before all of it was moved.
        places = {_key(run.uri.replace("/out/", "s3://before/")): "" for run in runs if run.run_id in reported}
        return [run.run_id for run in _not_reported(runs, runs[-1] if runs else None, places)]

    by_hand, nights = ("a", "score", "m"), [(name, "nightly", "m") for name in "bcd"]
    assert missing([]) == []
    assert missing(published(by_hand, by_hand, nights[0])) == ["b"], "not what was there before the first night"
    assert missing(published(by_hand, *nights)) == ["b", "c", "d"], "the first was cut off, too"
    assert missing(published(*nights), "c", "d") == ["b"], "published later than those that began after it"
    assert missing(published(*nights), "b", "c", "d") == []
    assert missing(published(nights[0], by_hand, nights[1]), "b") == ["a", "c"], "what was scored by hand between nights"
    assert missing(published(nights[0], ("o", "nightly", "old"), ("p", "score", "old"), nights[1]), "b") == ["o", "c"]


def test_a_night_scores_as_score_does() -> None:
    night = NightlySettings(bundle="b", input="i", output="o")
    assert night.only_new
    assert set(ScoreSettings.model_fields) < set(NightlySettings.model_fields)
