import datetime
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from skinray import storage
from skinray.bundle import load_bundle
from skinray.cli import main
from skinray.config import EvaluateSettings, PrepareSettings, ScoreSettings, ServeSettings
from skinray.errors import ConfigError, LeakError, OutputExistsError
from skinray.evaluation import evaluate, read_own_gate
from skinray.preparation import prepare_dataset
from skinray.quality import QUALITY_FLAGS, QUALITY_MEASURES
from skinray.scoring import score_archive
from skinray.serving import start_serving, stop_serving
from skinray.shards import PreparedDataset
from skinray.synthetic import draw_dataset
from skinray.training import TrainedModel
from tests.conftest import free_port

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def evaluation(trained: TrainedModel, prepared: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluation") / "out"
    evaluate(EvaluateSettings(bundle=trained.bundle_uri, data=prepared.uri, output=str(output)))
    return output


@pytest.fixture(scope="module")
def served(trained: TrainedModel) -> Iterator[str]:
    yield start_serving(ServeSettings(bundle=trained.bundle_uri, port=free_port()))
    stop_serving()


def post(url: str, body: bytes, content_type: str = "application/octet-stream") -> tuple[int, dict[str, Any], dict[str, str]]:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": content_type}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers)


def rows_of(evaluation: Path) -> pd.DataFrame:
    return pd.read_parquet(evaluation / "predictions")


def test_evaluate_score_and_serve_give_the_same_probabilities(
    evaluation: Path, served: str, trained: TrainedModel, prepared: PreparedDataset, drawn_photos: Path, tmp_path: Path
) -> None:
    evaluated = rows_of(evaluation).set_index("image_id")
    assert len(evaluated) == prepared.rows("test")
    settings = ScoreSettings(
        bundle=trained.bundle_uri, input=str(drawn_photos), output=str(tmp_path), image_id="stem", batch_size=5
    )
    scored = pd.read_parquet(score_archive(settings, datetime.datetime.now(datetime.UTC)).uri).set_index("image_id")
    columns = [f"prob_{code}" for code in load_bundle(trained.bundle_uri).labels.codes]
    difference = (evaluated[columns] - scored.loc[evaluated.index, columns]).abs().to_numpy().max()
    assert difference <= 1e-5
    for image_id in evaluated.index[:10]:
        status, answer, _ = post(f"{served}v1/predict", (drawn_photos / "images" / f"{image_id}.jpg").read_bytes())
        assert status == 200
        assert answer["model_id"] == trained.model_id
        assert answer["image_sha256"] == evaluated.loc[image_id, "image_sha256"]
        assert answer["flagged"] == evaluated.loc[image_id, "flagged"]
        assert max(abs(answer[name] - evaluated.loc[image_id, name]) for name in columns) <= 1e-5


def test_the_figures_are_scikit_learns_on_the_predictions_written(evaluation: Path) -> None:
    metrics = storage.read_json(str(evaluation / "metrics.json"))
    rows = rows_of(evaluation)
    positive, flagged = rows["label"] == "malignant", rows["flagged"].astype(bool)
    scores = rows["malignancy_score"]
    expected = {
        "roc_auc": sklearn.metrics.roc_auc_score(positive, scores),
        "pr_auc": sklearn.metrics.average_precision_score(positive, scores),
        "brier": sklearn.metrics.brier_score_loss(positive, scores),
    }
    assert {name: metrics["figures"][name]["value"] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert metrics["figures"]["roc_auc"]["low"] < expected["roc_auc"] <= metrics["figures"]["roc_auc"]["high"]
    assert metrics["clusters"]["number"] < metrics["photos"], "photos of a patient are drawn together"
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(positive, flagged),
        "precision": sklearn.metrics.precision_score(positive, flagged),
        "recall": sklearn.metrics.recall_score(positive, flagged),
        "f1": sklearn.metrics.f1_score(positive, flagged),
    }
    point = metrics["operating_points"][metrics["default_operating_point"]]
    assert {name: point[name]["value"] for name in expected} == pytest.approx(expected)
    matrix = np.array(metrics["confusion_matrix"]["rows_true_columns_predicted"])
    assert matrix.tolist() == sklearn.metrics.confusion_matrix(positive, flagged).tolist()


def test_an_evaluation_leaves_plots_and_says_what_it_measured(
    evaluation: Path, trained: TrainedModel, prepared: PreparedDataset
) -> None:
    for name in ("roc.png", "precision_recall.png", "reliability.png", "confusion_matrix.png"):
        assert (evaluation / name).read_bytes().startswith(b"\x89PNG")
    metrics = storage.read_json(str(evaluation / "metrics.json"))
    assert (metrics["model_id"], metrics["dataset_sha256"]) == (trained.model_id, prepared.sha256)
    assert "not a medical device" in metrics["notice"]
    with pytest.raises(OutputExistsError):
        evaluate(EvaluateSettings(bundle=trained.bundle_uri, data=prepared.uri, output=str(evaluation)))


def test_an_evaluation_leaves_a_page_a_card_and_tables_that_agree(evaluation: Path, trained: TrainedModel) -> None:
    metrics = storage.read_json(str(evaluation / "metrics.json"))
    auc = metrics["figures"]["roc_auc"]
    page, card = (evaluation / "evaluation.html").read_text(), (evaluation / "model_card.md").read_text()
    for text in (page, card):
        assert f"{auc['low']:.3f} to {auc['high']:.3f}" in text
        assert trained.model_id in text
        assert "not a medical device" in text
    # Photos of both kinds of error, each with its heat map.
    malignant = metrics["malignant_photos"]
    assert page.count("data:image/jpeg") == 2 * (min(12, malignant) + min(12, metrics["photos"] - malignant))
    judged, lesions = pd.read_parquet(evaluation / "judged.parquet"), pd.read_parquet(evaluation / "lesions.parquet")
    assert len(judged) == metrics["photos"]
    assert lesions["photos"].sum() == metrics["photos"]
    assert judged["ita_degrees"].notna().mean() > 0.9
    assert judged[[*QUALITY_MEASURES, *QUALITY_FLAGS]].notna().all().all()
    assert (judged["malignancy_score_at_0.01"] < judged["malignancy_score"]).all(), "more photos are malignant here than 1 %"
    assert metrics["figures"]["ece"]["value"] < 0.25
    assert {group["attribute"] for group in metrics["groups"]} >= {"age", "sex", "site"}


def test_another_hospitals_photos_are_an_external_test_and_a_gate_that_fails_is_exit_code_3(
    evaluation: Path, trained: TrainedModel, ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_dataset(tmp_path / "photos", 60, seed=77)
    source = {"catalog": "csv", "source": str(tmp_path / "photos"), "output": str(tmp_path / "others")}
    columns = {"image": "image_id", "label": "label", "patient_id": "patient_id", "lesion_id": "lesion_id"}
    others = prepare_dataset(PrepareSettings(**source, csv=columns))
    (tmp_path / "gate.yaml").write_text("minimum: {roc_auc: 1.01}\n")
    asked = ["--bundle", trained.bundle_uri, "--data", others.uri, "--output", str(tmp_path / "out"), "--split", "all"]
    code = main(["evaluate", *asked, "--external", str(evaluation), "--gate", str(tmp_path / "gate.yaml")])
    told = capsys.readouterr()
    assert code == 3
    assert "GATE: roc_auc is" in told.err
    metrics = storage.read_json(str(tmp_path / "out" / "metrics.json"))
    internal = storage.read_json(str(evaluation / "metrics.json"))
    gap = metrics["external"]["gaps"]["roc_auc"]
    assert metrics["photos"] == 60
    assert gap["gap"] == pytest.approx(internal["figures"]["roc_auc"]["value"] - metrics["figures"]["roc_auc"]["value"])
    assert told.out.splitlines()[0].startswith("external gap: roc_auc")


def test_a_bundle_is_not_measured_on_all_of_its_own_data(
    trained: TrainedModel, prepared: PreparedDataset, tmp_path: Path
) -> None:
    settings = EvaluateSettings(bundle=trained.bundle_uri, data=prepared.uri, output=str(tmp_path / "out"), split="all")
    with pytest.raises(LeakError, match="photos"):
        evaluate(settings)
    assert not (tmp_path / "out").exists()


def test_a_gate_that_names_no_figure_is_refused_before_anything_is_scored(
    trained: TrainedModel, prepared: PreparedDataset, tmp_path: Path
) -> None:
    gate, out = tmp_path / "gate.yaml", tmp_path / "out"
    settings = EvaluateSettings(bundle=trained.bundle_uri, data=prepared.uri, output=str(out), gate=str(gate))
    for limits in ("{sensitvity_95.sensitivity: 0.9}", "{class_accuracy: 0.9}"):  # which two classes do not have
        gate.write_text(f"minimum: {limits}\n")
        with pytest.raises(ConfigError, match=r"the gate names .*; there are roc_auc, .*sensitivity_95\.sensitivity"):
            evaluate(settings)
        assert not out.exists()
    asked = ["--bundle", settings.bundle, "--data", settings.data, "--output", str(out), "--gate", str(gate)]
    assert main(["evaluate", *asked, "--dry-run"]) == 2
    gate.write_text("minimum: {sensitivity_95.sensitivity: 0.9, uncalibrated.ece: 0}\n")
    assert read_own_gate(settings, load_bundle(trained.bundle_uri)) is not None


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"", "application/octet-stream", 400, "empty"),
        (b"GIF? no, text", "image/gif", 415, "not_an_image"),
        (b"\xff\xd8\xff\xe0 cut", "image/jpeg", 422, "truncated"),
        (b"\0" * 20_000_001, "application/octet-stream", 413, "too_large"),
        (b"no boundary", "multipart/form-data", 400, "bad_form"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            400,
            "bad_form",
        ),
    ],
    ids=["empty", "text", "cut", "large", "no-boundary", "no-file"],
)
def test_a_bad_request_is_a_problem_that_says_what_is_wrong(
    served: str, body: bytes, content_type: str, status: int, code: str
) -> None:
    answered, problem, headers = post(f"{served}v1/predict", body, content_type)
    assert (answered, problem["status"], problem["error_code"]) == (status, status, code)
    assert headers["content-type"] == "application/problem+json"


def test_a_photo_in_a_form_is_the_same_photo(served: str, drawn_photos: Path) -> None:
    photo = min((drawn_photos / "images").iterdir()).read_bytes()
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    _, as_form, _ = post(f"{served}v1/predict", head + photo + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")
    _, as_body, _ = post(f"{served}v1/predict", photo)
    assert as_form == as_body


def test_the_page_names_the_model_and_says_it_is_not_a_medical_device(served: str, trained: TrainedModel) -> None:
    with urllib.request.urlopen(served, timeout=30) as response:
        page = response.read().decode()
    assert trained.model_id in page
    assert "not a medical device" in page
    assert "{{" not in page
    assert "{%" not in page
    assert "http://" not in page
    assert "https://" not in page, "the page works without the internet"
    with urllib.request.urlopen(f"{served}openapi.json", timeout=30) as response:
        assert "multipart/form-data" in json.load(response)["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    with urllib.request.urlopen(f"{served}v1/model", timeout=30) as response:
        model = json.load(response)
    assert (model["labels"]["malignant"], model["takes_clinical"]) == (["malignant"], False)


def test_a_model_that_looks_at_the_photo_alone_asks_for_nothing_else(served: str, drawn_photos: Path) -> None:
    with urllib.request.urlopen(served, timeout=30) as response:
        page = response.read().decode()
    assert "fieldset" not in page
    assert 'name="age"' not in page
    photo = min((drawn_photos / "images").iterdir()).read_bytes()
    assert post(f"{served}v1/predict?age=50&sex=male&site=back", photo)[:2] == post(f"{served}v1/predict", photo)[:2]
    assert post(f"{served}v1/predict?age=500", photo)[0] == 422
