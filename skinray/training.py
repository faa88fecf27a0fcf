"""The training job: shards -> decoded photos in the object store -> workers in step -> the best epoch as a bundle.

<output>/checkpoints/      Ray Train's: the same command after a kill goes on from the last one
<output>/history.jsonl     one line an epoch
<output>/bundle/           the best epoch by validation ROC-AUC
<output>/_manifest.json    written last; a finished run reruns as a no-op
"""

import json
import os
import platform
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
from ray.train.tensorflow import TensorflowTrainer
from ray.util.queue import Queue

import skinray
from skinray import storage
from skinray.bundle import Labels, OperatingPoint, OperatingPoints, save_bundle
from skinray.errors import ConfigError, DatasetError, TrainingError
from skinray.firewall import check_no_leaks
from skinray.metrics import binary_figures, threshold_for_sensitivity, threshold_youden
from skinray.photos import cache_photos, list_shards
from skinray.reports import training_card
from skinray.shards import PreparedDataset, open_dataset
from skinray.telemetry import say
from skinray.training_config import STEERING, TrainSettings


@dataclass(frozen=True)
class TrainedModel:
    """What a run produced.

    Attributes:
        bundle_uri: Where the bundle lies.
        model_id: Its id.
        best_epoch: The epoch it holds, from 1.
        validation_auc: Its ROC-AUC on validation.
        history: One record an epoch.
    """

    bundle_uri: str
    model_id: str
    best_epoch: int
    validation_auc: float
    history: list[dict[str, Any]]


def train(settings: TrainSettings) -> TrainedModel:
    """Trains a classifier, or goes on with a run that was cut off, or returns what a finished run made.

    Args:
        settings: Data, network, workers.

    Returns:
        What the run produced.

    Raises:
        DatasetError: The data set is not published, or has too few photos for one step.
        LeakError: It has leaks, and they were not allowed.
        ConfigError: The backbone's weights cannot be had.
        TrainingError: A worker failed more often than `max_failures`.
        OutputExistsError: The output belongs to another run.
    """
    finished = _finished(settings)
    if finished:
        say(f"train: {settings.output} is finished already; nothing to do")
        return finished
    dataset = open_dataset(settings.data)
    check_no_leaks(dataset, settings.allow_leaks)
    _check_trainable(dataset, settings)
    _check_resources(settings)
    initial_weights = _initial_weights(settings, len(dataset.manifest.classes))
    storage.claim_folder(settings.output, "training", run_identity(settings, dataset), keep=True)
    checkpoint = _fit(settings, dataset, initial_weights)
    trained = _export(settings, dataset, checkpoint)
    manifest = {"kind": "skinray-training", "schema_version": 1, "identity": run_identity(settings, dataset), **trained.__dict__}
    storage.publish_folder(storage.normalize(settings.output), manifest)
    return trained


def run_identity(settings: TrainSettings, dataset: PreparedDataset) -> dict[str, Any]:
    """What makes two runs the same run: the settings that change the result, and the data."""
    recorded = {name: value for name, value in settings.recorded().items() if name not in STEERING}
    return {"settings": recorded, "dataset_sha256": dataset.sha256}


def _finished(settings: TrainSettings) -> TrainedModel | None:
    manifest_uri = storage.join(settings.output, storage.MANIFEST_NAME)
    if not storage.exists(manifest_uri):
        return None
    manifest = storage.read_json(manifest_uri)
    if manifest.get("identity") != json.loads(json.dumps(run_identity(settings, open_dataset(settings.data)))):
        return None  # claim_folder will refuse it with the right words
    return TrainedModel(**{name: manifest[name] for name in TrainedModel.__dataclass_fields__})


def _check_trainable(dataset: PreparedDataset, settings: TrainSettings) -> None:
    rows = dataset.rows("train")
    if rows < settings.global_batch_size:
        raise DatasetError(
            f"{dataset.uri} has {rows} training photos, fewer than one global batch of {settings.global_batch_size}"
        )
    for split, counts in dataset.manifest.split_classes.items():
        if split == "test":
            continue
        absent = [code for code, count in counts.items() if not count]
        if absent:
            raise DatasetError(f"{dataset.uri} has no {', '.join(absent)} photo in its {split} split; prepare with another split")


def _check_resources(settings: TrainSettings) -> None:
    """Refuses what the cluster cannot start; Ray Train would wait for it for ever, because a cluster may grow."""
    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    wanted = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
    for name, each in wanted.items():
        needed = each * settings.num_workers
        if needed > cluster.get(name, 0) and not _grows():
            raise ConfigError(
                f"{settings.num_workers} workers with {each} {name}s each need {needed}, the cluster has "
                f"{cluster.get(name, 0):g}: lower num_workers, cpus_per_worker or gpus_per_worker"
            )


def _grows() -> bool:
    """True on a cluster with an autoscaler, which starts machines for what is asked."""
    return "RAY_CLUSTER_NAME" in os.environ or os.path.exists(os.path.expanduser("~/ray_bootstrap_config.yaml"))


def _initial_weights(settings: TrainSettings, num_classes: int) -> list[npt.NDArray[Any]]:
    """Random weights with the backbone's pretrained ones in place; made once, so that every worker starts alike."""
    import keras

    from skinray.model import build_model, load_backbone_weights

    keras.utils.set_random_seed(settings.seed)
    model = build_model(settings.model, settings.preprocessing.image_size_px, num_classes)
    load_backbone_weights(model, settings.model)
    weights: list[npt.NDArray[Any]] = model.get_weights()
    return weights


def _fit(settings: TrainSettings, dataset: PreparedDataset, initial_weights: list[npt.NDArray[Any]]) -> ray.train.Checkpoint:
    from skinray.training_worker import WorkerPlan, train_worker

    manifest = dataset.manifest
    report = Queue(actor_options={"num_cpus": 0})
    plan = WorkerPlan(
        settings=settings,
        classes=manifest.classes,
        malignant=tuple(manifest.classes.index(code) for code in manifest.malignant),
        class_weight=tuple(
            manifest.class_weights[code] if settings.balance == "class_weights" else 1.0 for code in manifest.classes
        ),
        train=cache_photos(list_shards(dataset, ("train",)), settings.preprocessing, "decode train"),
        validation=cache_photos(list_shards(dataset, ("validation",)), settings.preprocessing, "decode validation"),
        initial_weights=ray.put(initial_weights),
        report=report,
    )
    say(
        f"train: {settings.model.name}, {plan.train.rows:,} photos, {settings.num_workers} workers, "
        f"{settings.epochs} epochs of {plan.steps_per_epoch} steps of {settings.global_batch_size}"
    )
    trainer = TensorflowTrainer(
        train_worker,
        train_loop_config={"plan": plan},
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker={"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=storage.path_of(settings.output),
            storage_filesystem=storage.arrow_filesystem(settings.output),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
        ),
    )
    with _epochs_said(report):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingError(_reason(error)) from error
    if result.checkpoint is None:
        raise TrainingError(f"{settings.output}: training ended without a checkpoint")
    checkpoint: ray.train.Checkpoint = result.checkpoint
    return checkpoint


def _reason(error: BaseException) -> str:
    """The last line of the first worker's traceback: the exception itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(" ")]
    return f"training failed: {lines[-1] if lines else type(error).__name__}; the same command goes on from the last checkpoint"


@contextmanager
def _epochs_said(report: Queue) -> Iterator[None]:
    """While training runs, prints what the workers report: a line an epoch."""
    done = threading.Event()

    def listen() -> None:
        while not done.is_set():
            try:
                record = report.get(timeout=0.5)
            except Empty:
                continue
            say(epoch_line(record))

    thread = threading.Thread(target=listen, daemon=True, name="epochs")
    thread.start()
    try:
        yield
    finally:
        while thread.is_alive() and not report.empty():
            done.wait(0.1)
        done.set()
        thread.join(timeout=5)
        report.shutdown()


def epoch_line(record: dict[str, Any]) -> str:
    """One epoch for the person who watches."""
    remaining_s = (record["epochs"] - record["epoch"]) * record["epoch_s"]
    return (
        f"epoch {record['epoch']:>3} of {record['epochs']}: train loss {record['train_loss']:.4f}, "
        f"validation loss {record['validation_loss']:.4f}, validation AUC {record['validation_auc']:.4f}, "
        f"{record['images_per_s']:.1f} photos/s, step {record['step_s'] * 1000:.0f} ms, "
        f"waited {record['data_wait_s']:.1f} s for photos, {remaining_s:.0f} s left"
    )


def _export(settings: TrainSettings, dataset: PreparedDataset, checkpoint: ray.train.Checkpoint) -> TrainedModel:
    from skinray.model import build_model, with_probabilities
    from skinray.training_worker import STATE, malignancy, read_best

    manifest = dataset.manifest
    with checkpoint.as_directory() as folder:
        state = json.loads((Path(folder) / STATE).read_bytes())
        best = read_best(Path(folder))
    model = build_model(settings.model, settings.preprocessing.image_size_px, len(manifest.classes))
    model.set_weights(best.weights)
    malignant = tuple(manifest.classes.index(code) for code in manifest.malignant)
    scores = malignancy(best.logits, malignant)
    positive = _positives(dataset)
    points = _operating_points(positive, scores)
    metadata = {
        "task": "skin lesion classification",
        "intended_use": "research; not a medical device, its output is not a diagnosis",
        "network": settings.model.name,
        "classes": list(manifest.classes),
        "malignant": list(manifest.malignant),
        "validation": {"photos": len(positive), "roc_auc": state["best_auc"], "epoch": state["best_epoch"]},
        "dataset": {"sha256": dataset.sha256, "split_classes": manifest.split_classes, "settings": manifest.settings},
        "leaks": manifest.leaks,
        "training_settings": settings.recorded(),
        "code_commit": code_commit(),
        "versions": {name: version(name) for name in ("keras", "numpy", "pillow", "ray", "simplejpeg", "tensorflow")}
        | {"python": platform.python_version(), "skinray": skinray.__version__},
    }
    bundle_uri = storage.join(settings.output, "bundle")
    model_id = save_bundle(
        bundle_uri,
        with_probabilities(model),
        settings.preprocessing,
        Labels(codes=manifest.classes, malignant=manifest.malignant),
        points,
        metadata,
        training_card(metadata, points),
    )
    history = "".join(json.dumps(record) + "\n" for record in state["history"])
    storage.write_bytes(storage.join(settings.output, "history.jsonl"), history.encode())
    return TrainedModel(bundle_uri, model_id, state["best_epoch"], state["best_auc"], state["history"])


def code_commit() -> str | None:
    """The commit of the code that runs, where it runs from a checkout or SKINRAY_COMMIT names it; None elsewhere."""
    if "SKINRAY_COMMIT" in os.environ:
        return os.environ["SKINRAY_COMMIT"]
    folder = Path(skinray.__file__).parent
    if not (folder.parent / ".git").exists():
        return None
    asked = subprocess.run(["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return asked.stdout.strip() or None


def _positives(dataset: PreparedDataset) -> npt.NDArray[np.bool_]:
    """Which validation photos are malignant, bool [rows], in the order of the shards."""
    import pyarrow.parquet as pq

    labels: list[str] = []
    for file in dataset.files("validation"):
        uri = storage.join(dataset.uri, file.path)
        filesystem = storage.arrow_filesystem(uri)
        table = pq.read_table(storage.path_of(uri), filesystem=filesystem, columns=["label"], partitioning=None)
        labels += table["label"].to_pylist()
    return np.isin(labels, list(dataset.manifest.malignant))


def _operating_points(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> OperatingPoints:
    thresholds = {
        "sensitivity_95": threshold_for_sensitivity(positive, scores, 0.95),
        "youden": threshold_youden(positive, scores),
    }
    points = {}
    for name, threshold in thresholds.items():
        # A hair lower, because the same photo may come out 1e-6 lower on another machine.
        lowered = max(0.0, threshold - 1e-5)
        figures = binary_figures(positive, scores, lowered)
        points[name] = OperatingPoint(
            threshold=lowered, sensitivity=figures["recall"], specificity=figures["specificity"], measured_on="validation"
        )
    return OperatingPoints(default="youden", points=points)
