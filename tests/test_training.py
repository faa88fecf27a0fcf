import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skinray import storage
from skinray.bundle import load_bundle
from skinray.errors import ConfigError, DatasetError, OutputExistsError
from skinray.shards import PreparedDataset
from skinray.training import TrainedModel, run_identity, train
from skinray.training_config import AugmentationSettings, ModelSettings, TrainSettings
from tests.conftest import toy_settings

pytestmark = pytest.mark.ray


def weights_of(trained: TrainedModel) -> dict[str, Any]:
    model = load_bundle(trained.bundle_uri).load_model()
    return {variable.path: variable.numpy() for variable in model.variables}


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name].astype(float) - other[name].astype(float)).max()) for name in one)


def test_one_worker_and_two_reach_the_same_weights(prepared: PreparedDataset, tmp_path: Path) -> None:
    def run(num_workers: int, **changes: Any) -> dict[str, Any]:
        name = f"{num_workers}-{len(changes)}"
        # In float64, because rounding in float32 grows from step to step and would hide an error of the method.
        same = {"num_workers": num_workers, "precision": "float64", "augmentation": AugmentationSettings()}
        settings = toy_settings(prepared.uri, tmp_path / name, **same, **changes)
        return weights_of(train(settings))

    one, two = run(1), run(2)
    moving = [name for name in one if "moving_" in name]
    assert len(moving) == 8, "the comparison covers the BatchNorm statistics"
    assert largest_difference(one, two) <= 1e-5
    # The same measure tells other batches apart, so agreement is no accident.
    assert largest_difference(one, run(1, seed=1)) > 1e-2


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


def test_a_run_that_was_cut_off_goes_on_from_its_checkpoint(prepared: PreparedDataset, tmp_path: Path) -> None:
    settings = toy_settings(prepared.uri, tmp_path / "run")
    whole = train(settings)
    weights = weights_of(whole)
    # What a kill between the last epoch and the export leaves: checkpoints and the marker, no bundle and no manifest.
    (tmp_path / "run" / storage.MANIFEST_NAME).unlink()
    storage.delete_folder(whole.bundle_uri)
    marker = {"kind": "training", "settings": run_identity(settings, prepared)}
    storage.write_json(str(tmp_path / "run" / storage.INCOMPLETE_NAME), marker)
    again = train(settings)
    assert again.history == whole.history, "no epoch was trained a second time"
    assert largest_difference(weights_of(again), weights) == 0


def test_a_killed_worker_is_replaced_and_the_run_ends_as_if_nothing_had_been(prepared: PreparedDataset, tmp_path: Path) -> None:
    def settings(name: str) -> TrainSettings:
        return toy_settings(prepared.uri, tmp_path / name, epochs=4, precision="float64")

    undisturbed = train(settings("undisturbed"))
    killed: list[int] = []

    def kill_one() -> None:
        while not list((tmp_path / "disturbed" / "checkpoints").glob("checkpoint_*/state.json")):
            time.sleep(0.02)
        killed.append(training_workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    disturbed = train(settings("disturbed"))
    killer.join(timeout=10)
    assert killed
    assert [record["epoch"] for record in disturbed.history] == [1, 2, 3, 4]
    assert largest_difference(weights_of(disturbed), weights_of(undisturbed)) <= 1e-6
    losses = [[record["train_loss"] for record in run.history] for run in (disturbed, undisturbed)]
    assert np.allclose(*losses, rtol=1e-9)


def training_workers() -> list[int]:
    """The process ids of the training workers below this process."""
    parent_of: dict[int, int] = {}
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent_of[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if (entry / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                    found.append(int(entry.name))

    def ours(process: int) -> bool:
        while process in parent_of:
            process = parent_of[process]
            if process == os.getpid():
                return True
        return False

    return [process for process in found if ours(process)]


def test_more_workers_than_the_cluster_can_start_are_refused(prepared: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the cluster has 0"):
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
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    changes: dict[str, Any], error: type[Exception], words: str, prepared: PreparedDataset, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        train(toy_settings(prepared.uri, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_prepared_is_refused(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError, match="run skinray prepare"):
        train(TrainSettings(data=str(tmp_path / "photos"), output=str(tmp_path / "run")))
