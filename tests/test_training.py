import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from skinray import storage
from skinray.bundle import Bundle, load_bundle
from skinray.checkpoints import Progress, load_checkpoint
from skinray.classifier import Classifier
from skinray.errors import ConfigError, DatasetError, OutputExistsError, TrainingError
from skinray.images import decode_photo
from skinray.metrics import roc_auc
from skinray.shards import PreparedDataset, read_photo_bytes
from skinray.training import TrainedModel, _check_learnt, run_identity, train, with_absolute_paths
from skinray.training_config import AugmentationSettings, ModelSettings, TrainSettings, TransferSettings
from skinray.training_export import read_validation_predictions
from tests.conftest import drawing_settings, toy_settings

pytestmark = pytest.mark.ray


def weights_of(trained: TrainedModel) -> dict[str, Any]:
    model = load_bundle(trained.bundle_uri).load_model()
    return {variable.path: variable.numpy() for variable in model.variables}


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name].astype(float) - other[name].astype(float)).max()) for name in one)


def test_one_worker_and_two_reach_the_same_weights(
    prepared: PreparedDataset, trained_drawing: TrainedModel, tmp_path: Path
) -> None:
    one = weights_of(train(drawing_settings(prepared.uri, tmp_path / "run", num_workers=1)))
    moving = [name for name in one if "moving_" in name]
    assert len(moving) == 8, "the comparison covers the BatchNorm statistics"
    assert largest_difference(one, weights_of(trained_drawing)) <= 1e-5


def test_a_run_leaves_a_bundle_that_verifies_a_history_and_a_manifest(trained: TrainedModel, prepared: PreparedDataset) -> None:
    bundle = load_bundle(trained.bundle_uri)
    assert bundle.model_id == trained.model_id
    assert bundle.labels.codes == ("benign", "malignant")
    assert bundle.metadata["dataset"]["sha256"] == prepared.sha256
    run = Path(trained.bundle_uri).parent
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in history] == [1, 2]
    assert max(record["validation_auc"] for record in history) == trained.validation_auc
    assert storage.read_json(str(run / storage.MANIFEST_NAME))["model_id"] == trained.model_id
    assert not (run / storage.INCOMPLETE_NAME).exists()


def test_the_operating_points_keep_what_they_promise_on_validation(trained: TrainedModel) -> None:
    points = load_bundle(trained.bundle_uri).operating_points.points
    assert points["sensitivity_95"].sensitivity >= 0.95
    youden = points["youden"].sensitivity + points["youden"].specificity
    assert youden >= points["sensitivity_95"].sensitivity + points["sensitivity_95"].specificity


def test_a_finished_run_reruns_as_a_no_op(trained: TrainedModel, prepared: PreparedDataset) -> None:
    started = time.monotonic()
    again = train(toy_settings(prepared.uri, Path(trained.bundle_uri).parent))
    assert again == trained
    assert time.monotonic() - started < 5


def test_a_finished_run_is_not_replaced_by_one_with_other_settings(trained: TrainedModel, prepared: PreparedDataset) -> None:
    with pytest.raises(OutputExistsError, match="already exists"):
        train(toy_settings(prepared.uri, Path(trained.bundle_uri).parent, seed=5))
    assert load_bundle(trained.bundle_uri).model_id == trained.model_id


def test_a_run_that_was_cut_off_goes_on_from_its_checkpoint(
    trained: TrainedModel, prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With relative paths, which workers must not look up in the working folders that Ray gives them.
    monkeypatch.chdir(tmp_path)
    # What a kill between the last epoch and the export leaves: checkpoints and the marker, no bundle and no manifest. Of the
    # last checkpoint Ray Train had taken no note.
    shutil.copytree(Path(trained.bundle_uri).parent, tmp_path / "run")
    settings = toy_settings(os.path.relpath(prepared.uri), Path("run"))
    (tmp_path / "run" / storage.MANIFEST_NAME).unlink()
    shutil.rmtree(tmp_path / "run" / "bundle")
    snapshot = tmp_path / "run" / "checkpoints" / "checkpoint_manager_snapshot.json"
    noted = json.loads(snapshot.read_text())
    noted["checkpoint_results"].pop()
    noted["checkpoint_report_indices"].pop()
    noted["latest_checkpoint_result"] = noted["checkpoint_results"][-1]
    snapshot.write_text(json.dumps(noted))
    # The record of an epoch, which comes after its checkpoint, had not been written.
    history = tmp_path / "run" / "history.jsonl"
    complete = history.read_text()
    history.write_text(complete.splitlines(keepends=True)[0])
    marker = {"kind": "training", "settings": run_identity(with_absolute_paths(settings), prepared)}
    storage.write_json(str(tmp_path / "run" / storage.INCOMPLETE_NAME), marker)
    again = train(settings)
    assert again.history == trained.history, "no epoch was trained a second time"
    assert history.read_text() == complete
    assert largest_difference(weights_of(again), weights_of(trained)) == 0
    assert load_bundle(again.bundle_uri).metadata["training_settings"]["data"] == prepared.uri, "found again from anywhere"


def test_paths_mean_the_same_from_every_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = toy_settings("data", Path("run"), model=ModelSettings(name="mobilenet", weights="x.weights.h5"), mlflow_uri="ml")
    absolute = with_absolute_paths(settings)
    paths = (absolute.data, absolute.output, absolute.model.weights, absolute.mlflow_uri)
    assert paths == tuple(str(tmp_path / name) for name in ("data", "run", "x.weights.h5", "ml"))
    assert with_absolute_paths(absolute) == absolute
    elsewhere = toy_settings(
        "s3://b/data", Path("/run"), model=ModelSettings(name="mobilenet", weights="imagenet"), mlflow_uri="http://127.0.0.1:5000"
    )
    assert with_absolute_paths(elsewhere) == elsewhere


def test_transfer_learning_trains_the_new_layers_first(prepared: PreparedDataset, tmp_path: Path) -> None:
    """Frozen layers keep their weights bit by bit; of the others every one moves."""
    from skinray.model import build_model, load_backbone_weights

    weights = tmp_path / "first.weights.h5"
    model = ModelSettings(name="mobilenet", mobilenet_alpha=0.25, dropout=0)
    first = build_model(model, 48, 2).get_layer("backbone")
    first.save_weights(weights)
    model = model.model_copy(update={"weights": str(weights)})
    start = build_model(model, 48, 2)
    load_backbone_weights(start, model)
    transfer = TransferSettings(frozen_epochs=1, from_layer="conv_pw_12", batch_norm="frozen")
    trained = train(toy_settings(prepared.uri, tmp_path / "run", model=model, transfer=transfer, num_workers=1))
    assert [record["phase"] for record in trained.history] == ["frozen backbone", "fine-tuning"]
    moved: dict[int, set[str]] = {}
    for state in (tmp_path / "run" / "checkpoints").glob("checkpoint_*/state.json"):
        progress, arrays = load_checkpoint(str(state.parent))
        pairs = zip(start.weights, start.get_weights(), arrays["model"], strict=True)
        moved[progress.epoch] = {variable.path for variable, before, now in pairs if not np.array_equal(before, now)}
    assert {path.split("/")[0] for path in moved[1]} == {"logits"}
    layers = {path.split("/")[-2] for path in moved[2]} - {"logits"}
    assert {"conv_pw_12", "conv_dw_13", "conv_pw_13"} <= layers <= {
        "conv_pw_12", "conv_pw_12_bn", "conv_dw_13", "conv_dw_13_bn", "conv_pw_13", "conv_pw_13_bn",
    }  # fmt: skip
    assert not [path for path in moved[2] if "moving_" in path], "frozen BatchNorm keeps its statistics"


def test_a_fold_that_the_data_has_not_is_refused(prepared: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folds 0 to 4"):
        train(toy_settings(prepared.uri, tmp_path / "other", fold=5))


def check_what_was_said_of_validation(bundle: Bundle, dataset: PreparedDataset) -> None:
    """Thresholds hold for the bundle only when its own answers are what they were chosen on."""
    unseen = read_validation_predictions(bundle.uri)
    stored = read_photo_bytes(dataset, unseen["image_id"].tolist())
    photos = [decode_photo(stored[name], bundle.preprocessing).pixels for name in unseen["image_id"]]
    answers = Classifier(bundle).probabilities(np.stack(photos))
    np.testing.assert_allclose(answers[:, 1], unseen["prob_malignant"], atol=1e-5)


def test_a_run_that_diverges_keeps_its_best_epoch_and_is_not_repeated(
    prepared: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModelSettings(name="mobilenet", mobilenet_alpha=0.25)
    # Fine while the backbone is frozen; not a number within the second epoch.
    changes = {"transfer": TransferSettings(frozen_epochs=1), "learning_rate": 1e30, "warmup_fraction": 0, "optimizer": "sgd"}
    trained = train(toy_settings(prepared.uri, tmp_path / "run", model=model, epochs=4, steps_per_epoch=4, **changes))
    assert [record["epoch"] for record in trained.history] == [trained.best_epoch] == [1]
    words = "the loss is not a number since epoch 2: lower learning_rate or set clip_norm"
    said = capsys.readouterr().err
    assert said.count("train: mobilenet") == said.count(words) == 1
    bundle = load_bundle(trained.bundle_uri)
    assert bundle.metadata["gap"].startswith(words)
    assert all(np.isfinite(weight).all() for weight in bundle.load_model().get_weights())


def test_a_run_that_diverges_in_its_first_epoch_is_an_error() -> None:
    with pytest.raises(TrainingError, match="since epoch 1: lower learning_rate or set clip_norm"):
        _check_learnt(Progress().diverged_at(3))
    _check_learnt(Progress())


def test_every_way_of_training_learns(prepared: PreparedDataset, tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [
        {
            "balance": "sampling",
            "optimizer": "adam",
            "clip_norm": 1.0,
            "loss": "focal",
            "label_smoothing": 0.1,
            "precision": "bfloat16",
            "cache": "none",
            "num_workers": 1,
            "epochs": 9,
            "early_stopping_epochs": 1,
        },
        {
            "model": ModelSettings(name="cnn_functional", clinical_input=True, dropout=0.2),
            "augmentation": AugmentationSettings(saturation=0.2, colour_cast=0.1, vignette=0.5),
            "weight_averaging": 0.9,
        },
    ]
    for number, way in enumerate(ways):
        trained = train(toy_settings(prepared.uri, tmp_path / str(number), **way))
        losses = [record["train_loss"] for record in trained.history]
        assert losses[1] < losses[0], way
        if "early_stopping_epochs" in way:
            assert len(losses) == min(9, trained.best_epoch + 1), "ends an epoch after the best one"
        bundle = load_bundle(trained.bundle_uri)
        assert bundle.takes_clinical == ("model" in way)
        if way.get("precision") == "bfloat16":
            check_what_was_said_of_validation(bundle, prepared)
        assert all(np.isfinite(weight).all() for weight in bundle.load_model().get_weights())


def test_a_run_leaves_curves_events_and_what_was_said_of_validation(trained: TrainedModel) -> None:
    run = Path(trained.bundle_uri).parent
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").glob("events.*"))
    unseen = pd.read_parquet(run / "validation.parquet")
    positive = unseen["label"].to_numpy() == "malignant"
    assert roc_auc(positive, unseen["prob_malignant"].to_numpy()) == pytest.approx(trained.validation_auc)
    assert "gap" in load_bundle(trained.bundle_uri).metadata


def test_more_workers_than_the_cluster_can_start_are_refused(prepared: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 GPUs each: the cluster has room for 0"):
        train(toy_settings(prepared.uri, tmp_path / "run", gpus_per_worker=1))
    with pytest.raises(ConfigError, match="lower num_workers"):
        train(toy_settings(prepared.uri, tmp_path / "run", num_workers=8))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": ModelSettings(name="mobilenet", weights="/nowhere/x.weights.h5")}, Exception, "/nowhere/x.weights.h5"),
        ({"model": ModelSettings(name="cnn_sequential", weights="imagenet")}, ConfigError, "imagenet"),
        ({"global_batch_size": 1024}, DatasetError, "1024"),
        (
            {
                "model": ModelSettings(name="mobilenet", mobilenet_alpha=0.25),
                "transfer": TransferSettings(from_layer="conv_pw_14"),
            },
            ConfigError,
            "conv_pw_13",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    changes: dict[str, Any],
    error: type[Exception],
    words: str,
    prepared: PreparedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("skinray.training.gather_photos", lambda *_: pytest.fail("photos were decoded first"))
    with pytest.raises(error, match=words):
        train(toy_settings(prepared.uri, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_prepared_is_refused(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError, match="run skinray prepare"):
        train(TrainSettings(data=str(tmp_path / "photos"), output=str(tmp_path / "run")))
