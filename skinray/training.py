"""The training job: shards -> decoded photos in the object store -> workers in step -> the best epoch as a bundle.

<output>/checkpoints/      Ray Train's: the same command after a kill goes on from the last one
<output>/history.jsonl     one line an epoch; beside it tensorboard/ and curves.png
<output>/validation.parquet  what the best epoch says of the validation photos
<output>/bundle/           the best epoch by validation ROC-AUC
<output>/_manifest.json    written last; a finished run reruns as a no-op
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import ray
import ray.train
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from skinray import storage
from skinray.checkpoints import load_checkpoint, newest_checkpoint
from skinray.errors import ConfigError, DatasetError, TrainingError
from skinray.firewall import check_no_leaks
from skinray.photo_cache import TrainingPhotos, gather_photos
from skinray.shards import PreparedDataset, open_dataset
from skinray.telemetry import say
from skinray.training_config import CHECKPOINTS, STEERING, TrainSettings
from skinray.training_export import export_bundle
from skinray.training_log import HISTORY, TrainingLog
from skinray.worker_group import run_workers

AnyTrainSettings = TypeVar("AnyTrainSettings", bound=TrainSettings)


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


@dataclass(frozen=True)
class _Division:
    """Which photos of the cache are learnt from and which choose the epoch: row numbers, int64, ascending."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]


def _divide(photos: TrainingPhotos, fold: int | None) -> _Division:
    chosen = photos.splits == "validation" if fold is None else photos.folds == fold
    return _Division(np.flatnonzero(~chosen), np.flatnonzero(chosen))


def train(settings: TrainSettings, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> TrainedModel:
    """Trains a classifier, or goes on with a run that was cut off, or returns what a finished run made.

    Args:
        settings: Data, network, workers.
        on_epoch: Called with the record of every epoch that this process trains, in a thread of its own.

    Returns:
        What the run produced.

    Raises:
        DatasetError: The data set is not published, or has too few photos for one step.
        LeakError: It has leaks, and they were not allowed.
        ConfigError: The backbone's weights cannot be had.
        TrainingError: A worker failed more often than `max_failures`.
        OutputExistsError: The output belongs to another run.
    """
    settings = with_absolute_paths(settings)
    finished = _finished(settings)
    if finished:
        say(f"train: {settings.output} is finished already; nothing to do")
        return finished
    dataset = open_dataset(settings.data)
    check_no_leaks(dataset, settings.allow_leaks)
    _check_trainable(dataset, settings)
    _check_resources(settings)
    initial_weights = _initial_weights(settings, len(dataset.manifest.classes))
    photos = gather_photos(dataset, ("train", "validation"), settings.preprocessing, settings.cache)
    division = _divide(photos, settings.fold)
    _check_division(division, photos, settings)
    storage.claim_folder(settings.output, "training", run_identity(settings, dataset), keep=True)
    with _training_log(settings) as log:

        def take(record: dict[str, Any]) -> None:
            log.record(record)
            if on_epoch and record["kind"] == "epoch":
                on_epoch(record)

        _fit(settings, dataset, photos, division, initial_weights, take)
    newest = newest_checkpoint(settings.checkpoints_uri)
    if newest is None:
        raise TrainingError(f"{settings.output}: training ended without a checkpoint")
    progress, arrays = load_checkpoint(storage.join(settings.checkpoints_uri, newest))
    exported = export_bundle(settings, dataset, photos, division.validation, progress, arrays["best"], arrays["best_logits"][0])
    trained = TrainedModel(*exported, progress.best_epoch, progress.best_auc, progress.history)
    manifest = {"kind": "skinray-training", "schema_version": 1, "identity": run_identity(settings, dataset), **trained.__dict__}
    storage.publish_folder(storage.normalize(settings.output), manifest)
    return trained


def with_absolute_paths(settings: AnyTrainSettings) -> AnyTrainSettings:
    """The settings with local paths made absolute: Ray gives every worker and every trial a working folder of its own."""
    mlflow_uri = settings.mlflow_uri
    if mlflow_uri is not None and ":" not in mlflow_uri and mlflow_uri != "databricks":  # a folder, not a server
        mlflow_uri = storage.normalize(mlflow_uri)
    return settings.model_copy(
        update={
            "data": storage.normalize(settings.data),
            "output": storage.normalize(settings.output),
            "model": settings.model.model_copy(update={"weights": absolute_weights(settings.model.weights)}),
            "mlflow_uri": mlflow_uri,
        }
    )


def absolute_weights(weights: str | None) -> str | None:
    """`model.weights` with a local file made absolute."""
    return weights if weights in (None, "none", "imagenet") else storage.normalize(weights)


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
    """Refuses from the manifest what could not be trained, before a photo is read."""
    rows = dataset.rows("train") if settings.fold is None else dataset.rows("train") + dataset.rows("validation")
    if rows < settings.global_batch_size:
        raise DatasetError(
            f"{dataset.uri} has {rows} training photos, fewer than one global batch of {settings.global_batch_size}"
        )
    folds = dataset.manifest.settings["folds"]
    if settings.fold is not None and settings.fold >= folds:
        raise ConfigError(f"fold {settings.fold}: {dataset.uri} has the folds 0 to {folds - 1}")
    for split, counts in dataset.manifest.split_classes.items():
        absent = [code for code, count in counts.items() if not count]
        if absent and split != "test":
            raise DatasetError(f"{dataset.uri} has no {', '.join(absent)} photo in its {split} split; prepare with another split")


def _check_division(division: _Division, photos: TrainingPhotos, settings: TrainSettings) -> None:
    for name, rows in (("learn from", division.train), ("validate on", division.validation)):
        absent = set(photos.labels) - set(photos.labels[rows])
        if absent:
            raise DatasetError(f"fold {settings.fold}: no {', '.join(sorted(absent))} photo to {name}; prepare with fewer folds")
    if len(division.train) < settings.global_batch_size:
        raise DatasetError(f"fold {settings.fold}: {len(division.train)} training photos are fewer than one global batch")


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


def _class_weight(labels: npt.NDArray[Any], classes: Sequence[str]) -> tuple[float, ...]:
    """The inverse of each class's share among the photos, divided by the number of classes: 1 where all are equally many."""
    return tuple(len(labels) / (len(classes) * np.count_nonzero(labels == code)) for code in classes)


def _fit(
    settings: TrainSettings,
    dataset: PreparedDataset,
    photos: TrainingPhotos,
    division: _Division,
    initial_weights: list[npt.NDArray[Any]],
    take: Callable[[dict[str, Any]], None],
) -> None:
    from skinray.training_worker import WorkerPlan, train_worker

    manifest = dataset.manifest
    weighted = settings.balance == "class_weights"
    # On this machine, so that the loss of another one does not end the run; soft affinity puts it elsewhere now and then.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    report = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    plan = WorkerPlan(
        settings=settings,
        classes=manifest.classes,
        malignant=tuple(manifest.classes.index(code) for code in manifest.malignant),
        class_weight=_class_weight(photos.labels[division.train], manifest.classes)
        if weighted
        else (1.0,) * len(manifest.classes),
        photos=photos,
        train_rows=division.train,
        validation_rows=division.validation,
        initial_weights=ray.put(initial_weights),
        report=report,
    )
    from skinray.optimization import phases

    rates = " then ".join(f"{phase.peak_learning_rate:.1e} ({phase.name})" for phase in phases(settings))
    say(
        f"train: {settings.model.name}, {len(division.train):,} photos, {settings.num_workers} workers, {settings.epochs} epochs "
        f"of {plan.steps_per_epoch} steps of {settings.global_batch_size}, learning rate {rates}"
    )
    scaling = ray.train.ScalingConfig(
        num_workers=settings.num_workers,
        use_gpu=settings.gpus_per_worker > 0,
        resources_per_worker={"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker},
    )
    run = ray.train.RunConfig(
        name=CHECKPOINTS,
        storage_path=storage.path_of(settings.output),
        storage_filesystem=storage.arrow_filesystem(settings.output),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
    )
    with _taken(report, take):
        try:
            run_workers(train_worker, {"plan": plan}, scaling, run)
        except ray.train.TrainingFailedError as error:
            raise TrainingError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """The last line of the first worker's traceback: the exception itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(" ")]
    return f"training failed: {lines[-1] if lines else type(error).__name__}; the same command goes on from the last checkpoint"


@contextmanager
def _taken(report: Queue, take: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """While training runs, hands on what the workers report; an error in that is raised at the end."""
    done = threading.Event()
    errors: list[Exception] = []

    def listen() -> None:
        while not done.is_set():
            try:
                take(report.get(timeout=0.5))
            except Empty:
                continue
            except Exception as error:
                errors.append(error)
                say(f"train: {type(error).__name__}: {error}")

    thread = threading.Thread(target=listen, daemon=True, name="reports")
    thread.start()
    try:
        yield
    finally:
        while thread.is_alive() and not report.empty():
            done.wait(0.1)
        done.set()
        thread.join(timeout=60)
        report.shutdown()
    if errors:
        raise errors[0]


def _training_log(settings: TrainSettings) -> TrainingLog:
    history_uri = storage.join(settings.output, HISTORY)
    lines = storage.read_bytes(history_uri).splitlines() if storage.exists(history_uri) else []
    history = [json.loads(line) for line in lines]
    name = storage.normalize(settings.output).rsplit("/", 1)[-1]
    return TrainingLog(settings.output, settings.recorded(), settings.tensorboard, settings.mlflow_uri, name, history)
