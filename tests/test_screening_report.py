"""A run becomes a report: its figures are those of the rows, whatever columns there are and whatever photos are gone."""

import csv
import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skinray import storage
from skinray.cli import main
from skinray.config import ReportSettings
from skinray.errors import OutputExistsError, StorageError
from skinray.screening_report import drift_verdict, make_report

MODEL = "0123456789ab"
THRESHOLD = 0.5
BAD = {
    3: ("failed", "truncated", "ends early"),
    4: ("refused", "not_skin", "shows a door"),
    5: ("failed", "burned_in", "a name"),
}


def run_rows(photos: int, seed: int = 0, shift: float = 0.0) -> pd.DataFrame:
    """Rows as score writes them; the first 60 photos are of 6 patients with 5 lesions, two photos each."""
    generator = np.random.default_rng(seed)
    score = (1 / (1 + np.exp(-generator.normal(-1 + shift, 1.2, photos)))).astype(np.float32)
    rows = pd.DataFrame(
        {
            "image_id": [f"visit/photo{number:04d}.jpg" for number in range(photos)],
            "image_uri": [f"/nowhere/photo{number:04d}.jpg" for number in range(photos)],
            "width_px": pd.array([600] * photos, "Int32"),
            "height_px": pd.array([450] * photos, "Int32"),
            "status": "scored",
            "error_code": None,
            "error_detail": None,
            "malignancy_score": score,
            "flagged": pd.array(score >= THRESHOLD, "boolean"),
            "ita_degrees": generator.normal(40, 15, photos).astype(np.float32),
        }
    )
    for place, (status, code, detail) in BAD.items():
        rows.loc[place, ["status", "error_code", "error_detail"]] = [status, code, detail]
        rows.loc[place, ["malignancy_score", "flagged", "ita_degrees"]] = [np.nan, pd.NA, np.nan]
    return rows


def described(rows: pd.DataFrame) -> pd.DataFrame:
    """The same with what later runs know besides."""
    number = np.arange(len(rows))
    known = number < 60
    return rows.assign(
        patient_id=np.where(known, np.char.add("p", (number // 10).astype(str)), None),
        lesion_id=np.where(known, np.char.add("l", (number // 2).astype(str)), None),
        age=np.where(number % 7 == 0, np.nan, 20.0 + number % 60),
        sex=np.where(number % 3 == 0, "male", "female"),
        site=np.where(number % 4 == 0, "back", "left big toe"),
        blurred=pd.array(number % 10 == 0, "boolean"),
        marked=pd.array(number % 5 == 0, "boolean"),
    )


def published(root: Path, rows: pd.DataFrame, run_id: str = "night", day: int = 20, model_id: str = MODEL) -> str:
    """A run's folder, in two files."""
    folder = root / f"model_id={model_id}" / f"scored_date=2026-11-{day}" / f"run_id={run_id}"
    folder.mkdir(parents=True)
    files, half = [], len(rows) // 2
    table = pa.Table.from_pandas(rows, preserve_index=False)
    types = {"malignancy_score": pa.float32(), "flagged": pa.bool_(), "ita_degrees": pa.float32()}
    fields = [field if field.type != pa.null() else field.with_type(types.get(field.name, pa.string())) for field in table.schema]
    table = table.cast(pa.schema(fields))
    for number, part in enumerate((table.slice(0, half), table.slice(half))):
        path = f"part-{number:05d}.parquet"
        pq.write_table(part, folder / path)
        files.append({"path": path, "rows": len(part)})
    manifest = {
        "kind": "skinray-predictions",
        "schema_version": 1,
        "model_id": model_id,
        "operating_point": "youden",
        "threshold": THRESHOLD,
        "started_at": f"2026-11-{day}T01:00:00+00:00",
        "rows": len(rows),
        "statuses": {name: int(count) for name, count in rows["status"].value_counts().items()},
        "errors": {name: int(count) for name, count in rows["error_code"].value_counts().items()},
        "flagged": int(rows["flagged"].sum()),
        "seconds": 60.0,
        "files": files,
        "resumed_rows": 0,
        "skipped_rows": 7,
        "settings": {"input": "/archive"},
    }
    (folder / "_manifest.json").write_text(json.dumps(manifest))
    return str(folder)


def report_of(predictions: object, output: Path, **changes: Any) -> dict[str, Any]:
    return make_report(ReportSettings(predictions=str(predictions), output=str(output), **changes))


def test_the_figures_are_those_of_the_rows(tmp_path: Path) -> None:
    rows = described(run_rows(200))
    report = report_of(published(tmp_path / "runs", rows), tmp_path / "out")
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    flagged = int(rows["flagged"].sum())
    assert report["counts"] == {
        "listed": 200, "scored": 197, "refused": 1, "failed": 2, "flagged": flagged, "resumed": 0, "skipped": 7
    }  # fmt: skip
    assert report["flagged_share"]["value"] == flagged / 197
    by_name = {(group["attribute"], group["name"]): group for group in report["groups"]}
    men = rows[(rows["sex"] == "male") & (rows["status"] == "scored")]
    assert by_name["sex", "male"]["photos"] == len(men)
    assert by_name["sex", "male"]["flagged"] == men["flagged"].sum()
    assert by_name["sex", "male"]["median_score"] == pytest.approx(men["malignancy_score"].median())
    assert by_name["quality", "blurred"]["photos"] == rows["blurred"].sum()
    assert {name for attribute, name in by_name if attribute == "site"} == {"torso", "unknown"}
    for attribute in ("age", "sex", "site", "estimated skin tone", "quality"):
        of_it = [group["photos"] for (of, _), group in by_name.items() if of == attribute]
        assert sum(of_it) in (197, 2 * 197)
    assert "unknown" in {name for attribute, name in by_name if attribute == "age"}


def test_the_worklist_has_every_flagged_photo_the_highest_first(tmp_path: Path) -> None:
    rows = described(run_rows(300))
    rows.loc[[10, 20], "image_id"] = ["=cmd|'/c calc'!A0", 'a,b"\nc']
    rows.loc[[10, 20], "malignancy_score"] = np.array([0.998, 0.999], np.float32)
    rows.loc[[10, 20], "flagged"] = True
    report = report_of(published(tmp_path / "runs", rows), tmp_path / "out", thumbnails=2)
    with (tmp_path / "out" / "worklist.csv").open(newline="") as file:
        worklist = list(csv.DictReader(file))
    assert list(worklist[0]) == ["image_id", "image_uri", "patient_id", "lesion_id", "malignancy_score", "flags"]
    assert len(worklist) == rows["flagged"].sum() == report["worklist"]["photos"]
    scores = [float(row["malignancy_score"]) for row in worklist]
    assert scores == sorted(scores, reverse=True)
    assert worklist[0]["image_id"] == 'a,b"\nc'
    assert worklist[1]["image_id"] == "'=cmd|'/c calc'!A0", "no formula for a spreadsheet"
    assert worklist[1]["flags"] == "blurred; marked"
    assert worklist[1]["patient_id"] == "p1"
    assert [row["image_id"] for row in report["worklist"]["listed"][:2]] == list(rows.loc[[20, 10], "image_id"])


def test_every_photo_without_a_score_is_in_a_table(tmp_path: Path) -> None:
    rows = run_rows(100)
    rows.loc[20:39, ["status", "error_code", "error_detail"]] = ["refused", "not_skin", "=1+1"]
    rows.loc[20:39, ["malignancy_score", "flagged"]] = [np.nan, pd.NA]
    report_of(published(tmp_path / "runs", rows), tmp_path / "out")
    with (tmp_path / "out" / "without_score.csv").open(newline="") as file:
        bad = list(csv.DictReader(file))
    assert [row["image_id"] for row in bad] == rows["image_id"][rows["status"] != "scored"].tolist()
    assert bad[-1] == {
        "image_id": "visit/photo0039.jpg",
        "image_uri": "/nowhere/photo0039.jpg",
        "status": "refused",
        "error_code": "not_skin",
        "error_detail": "'=1+1",
    }
    assert "more, in without_score.csv" in (tmp_path / "out" / "report.html").read_text()


def test_patients_stand_by_their_highest_score_with_the_lesion_that_differs(tmp_path: Path) -> None:
    rows = described(run_rows(200))
    rows["malignancy_score"] = rows["malignancy_score"].clip(upper=np.float32(0.9))
    rows.loc[rows["patient_id"] == "p2", "malignancy_score"] = np.float32(0.05)
    rows.loc[25, "malignancy_score"] = np.float32(0.95)  # lesion l12
    report = report_of(published(tmp_path / "runs", rows), tmp_path / "out")
    patients = report["patients"]
    assert (patients["patients"], patients["photos_without"]) == (6, 140)
    first = patients["listed"][0]
    assert first["patient_id"] == "p2"
    assert (first["photos"], first["lesions"]) == (10, 5)
    assert first["odd_lesion"]["lesion"] == "l12"
    assert first["odd_lesion"]["image_id"] == rows.loc[25, "image_id"]
    assert first["odd_lesion"]["spreads"] > 5
    expected = rows.dropna(subset="patient_id").groupby("patient_id")["malignancy_score"].max().sort_values(ascending=False)
    assert [patient["patient_id"] for patient in patients["listed"]] == list(expected.index)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "spreads above the others" in html
    assert "knows of no patients" not in html


def test_a_run_that_knows_little_says_so(tmp_path: Path) -> None:
    rows = run_rows(100).drop(columns=["ita_degrees", "width_px"]).assign(patient_id=None, lesion_id="")
    report = report_of(published(tmp_path / "runs", rows), tmp_path / "out")
    assert report["patients"] is None
    assert report["groups"] == []
    assert drift_verdict(report) == "no reference"
    html = (tmp_path / "out" / "report.html").read_text()
    assert "This run knows of no patients" in html
    assert "first published run of this model" in html


def test_a_run_in_which_nothing_has_a_score_has_a_report(tmp_path: Path) -> None:
    rows = run_rows(40)
    rows[["status", "error_code", "error_detail"]] = ["failed", "missing", "gone"]
    rows[["malignancy_score", "flagged", "ita_degrees"]] = [np.nan, pd.NA, np.nan]
    report = report_of(published(tmp_path / "runs", rows), tmp_path / "out")
    assert report["counts"]["scored"] == 0 == report["worklist"]["photos"]
    assert report["without_score"][0]["photos"] == 40
    assert "No photo of this run has a score" in (tmp_path / "out" / "report.html").read_text()


def test_the_newest_run_is_compared_with_the_first_of_its_model(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    first = published(root, run_rows(400, seed=1), "first", 18)
    published(root, run_rows(400, seed=9, shift=5), "other", 17, model_id="ffffffffffff")
    published(root, run_rows(400, seed=2), "calm", 19)
    newest = published(root, run_rows(400, seed=3, shift=1.5), "wild", 20)
    report = report_of(root, tmp_path / "out")
    assert report["run"]["uri"] == newest
    assert report["drift"]["reference"]["uri"] == first
    assert drift_verdict(report) == "large"
    assert report["drift"]["flagged"]["change"] == "higher"
    assert report["drift"]["measures"]["ita_degrees"]["verdict"] == "none"
    assert "Large drift" in (tmp_path / "out" / "report.html").read_text()
    calm = report_of(root / f"model_id={MODEL}" / "scored_date=2026-11-19" / "run_id=calm", tmp_path / "calm")
    assert drift_verdict(calm) == "none"
    other = report_of(newest, tmp_path / "other", reference=str(root / "model_id=ffffffffffff"))
    assert drift_verdict(other) == "no reference"
    assert "whose scores mean something else" in other["drift"]["why_none"]


def test_photos_of_few_lesions_are_few(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    published(root, run_rows(400, seed=1), "first", 18)
    published(root, run_rows(400, seed=3, shift=1.5).assign(lesion_id=[f"l{number // 20}" for number in range(400)]), "wild", 20)
    assert drift_verdict(report_of(root, tmp_path / "out")) == "too few"


def test_lesions_that_are_numbered_anew_with_each_patient_are_told_apart(tmp_path: Path) -> None:
    rows = described(run_rows(400, seed=3, shift=1.5))
    patients = [f"p{number // 10}" for number in range(400)]
    own = rows.assign(patient_id=patients, lesion_id=[f"{number // 2 % 5} of p{number // 10}" for number in range(400)])
    anew = own.assign(lesion_id=own["lesion_id"].str[0])
    published(tmp_path / "runs", run_rows(400, seed=1), "first", 18)
    reports = [
        report_of(published(tmp_path / "runs", each, name, 20), tmp_path / name) for name, each in (("own", own), ("anew", anew))
    ]
    assert [drift_verdict(report) for report in reports] == ["large", "large"]
    assert reports[0]["drift"] == reports[1]["drift"]
    assert reports[0]["patients"] == reports[1]["patients"]


def test_an_evaluation_is_a_reference_too(tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    run_rows(300, seed=5).query("status == 'scored'").to_parquet(evaluation / "judged.parquet")
    metrics = {"model_id": MODEL, "split": "test", "statuses": {"scored": 297, "failed": 3}}
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    (evaluation / "_manifest.json").write_text('{"kind": "skinray-evaluation"}')
    run = published(tmp_path / "runs", run_rows(300, seed=6))
    report = report_of(run, tmp_path / "out", reference=str(evaluation))
    assert drift_verdict(report) == "none"
    assert report["drift"]["score"]["reference_photos"] == 297
    assert report["drift"]["without_score"]["reference"]["value"] == pytest.approx(0.01)


def test_a_large_drift_ends_with_3_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    published(root, run_rows(300, seed=1), "first", 18)
    published(root, run_rows(300, seed=2, shift=2), "wild", 19)
    report = ["report", "--predictions", str(root), "--thumbnails", "0", "--output"]
    assert main([*report, str(tmp_path / "a")]) == 0
    captured = capsys.readouterr()
    assert "Large drift" in captured.out
    assert main([*report, str(tmp_path / "b"), "--fail-on-drift"]) == 3


def test_pictures_are_shown_where_they_can_be(tmp_path: Path, drawn_photos: Path) -> None:
    rows = run_rows(60)
    real = sorted((drawn_photos / "images").iterdir())[:4]
    rows["malignancy_score"] = rows["malignancy_score"].clip(upper=np.float32(0.9))
    shard = tmp_path / "part-00000.parquet"
    pq.write_table(pa.table({"image_id": ["of a shard"], "image_bytes": [real[1].read_bytes()]}), shard)
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    shown = {
        10: ("file #1", str(real[0])),
        11: ("of a shard", f"{shard}#of a shard"),
        12: ("gone from its shard", f"{shard}#gone from its shard"),
        13: ("no photo", str(text)),
        14: ("elsewhere", "ftp://host/photo.jpg"),
        15: ("no shard", f"{tmp_path}/none.parquet#no shard"),
        16: ("of a tar", f"{tmp_path}/night.TAR#visit/of a tar.png"),
    }
    with tarfile.open(tmp_path / "night.TAR", "w") as archive:
        archive.add(real[0], "visit/of a tar.png")
    for place, (image_id, uri) in shown.items():
        rows.loc[place, ["image_id", "image_uri"]] = [image_id, uri]
        rows.loc[place, ["malignancy_score", "flagged"]] = [np.float32(0.95), True]
    rows.loc[4, "image_uri"] = str(real[2])  # refused: shown
    rows.loc[5, "image_uri"] = str(real[3])  # failed for a name in the picture: never shown
    run = published(tmp_path / "runs", rows)
    report_of(run, tmp_path / "out", thumbnails=7)
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("data:image/jpeg;base64,") == 4
    assert html.count("cannot be shown") == 4
    report_of(run, tmp_path / "none", thumbnails=0)
    assert "data:image/jpeg" not in (tmp_path / "none" / "report.html").read_text()


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = published(tmp_path / "runs", described(run_rows(100)))

    def made() -> dict[str, str]:
        report_of(run, tmp_path / "out")
        found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
        shutil.rmtree(tmp_path / "out")
        return found

    assert made() == made()


def test_what_is_not_there_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    run = published(tmp_path / "runs", run_rows(50))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="no published run"):
        report_of(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(StorageError, match="does not exist"):
        report_of(run, tmp_path / "out", reference=str(tmp_path / "none"))
    assert not (tmp_path / "out").exists()
    (Path(run) / "part-00001.parquet").unlink()
    with pytest.raises(StorageError, match="cannot read the predictions"):
        report_of(run, tmp_path / "out")


def test_a_report_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    run = published(tmp_path / "runs", run_rows(50))
    report_of(run, tmp_path / "out")
    with pytest.raises(OutputExistsError):
        report_of(run, tmp_path / "out")


@pytest.mark.s3
def test_a_report_of_an_object_store(tmp_path: Path, s3_bucket: str, drawn_photos: Path) -> None:
    photo = next((drawn_photos / "images").iterdir())
    storage.write_bytes(f"{s3_bucket}/archive/photo.jpg", photo.read_bytes())
    rows = run_rows(50)
    rows.loc[7, ["image_uri", "malignancy_score", "flagged"]] = [f"{s3_bucket}/archive/photo.jpg", np.float32(0.99), True]
    local = Path(published(tmp_path / "runs", rows))
    storage.upload_folder(tmp_path / "runs", f"{s3_bucket}/runs")
    report = make_report(ReportSettings(predictions=f"{s3_bucket}/runs", output=f"{s3_bucket}/out", thumbnails=2))
    assert report["run"]["run_id"] == local.name.removeprefix("run_id=")
    assert storage.read_bytes(f"{s3_bucket}/out/report.html").count(b"data:image/jpeg") == 1
