"""The training job: shards -> decoded photos in the object store -> workers in step -> the best epoch as a bundle.

<output>/checkpoints/      Ray Train's: the same command after a kill goes on from the last one
<output>/history.jsonl     one line an epoch; beside it tensorboard/ and curves.png
<output>/validation.parquet  what the best epoch says of the validation photos
<output>/bundle/           the best epoch by validation ROC-AUC
<output>/_manifest.json    written last; a finished run reruns as a no-op
"""

import json
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

from skinray import outputs, storage
from skinray.checkpoints import Progress, drop_unusable_notes, load_checkpoint, newest_checkpoint
from skinray.division import divide
from skinray.errors import TrainingError
from skinray.firewall import check_no_leaks
from skinray.photo_cache import TrainingPhotos, gather_photos
from skinray.shards import PreparedDataset, open_dataset
from skinray.telemetry import say
from skinray.training_config import CHECKPOINTS, STEERING, TrainSettings
from skinray.training_export import divergence_in_words, export_bundle
from skinray.training_log import TrainingLog, read_history
from skinray.worker_group import check_room, run_workers, survived

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
class _Rows:
    """Which photos of the cache are learnt from and which choose the epoch: row numbers, int64, ascending."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]


def _rows_of(photos: TrainingPhotos, fold: int | None) -> _Rows:
    chosen = photos.splits == "validation" if fold is None else photos.folds == fold
    return _Rows(np.flatnonzero(~chosen), np.flatnonzero(chosen))


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
        ConfigError: The backbone's weights cannot be had, it has no such layer, or the cluster has no room for the workers.
        TrainingError: A worker failed more often than `max_failures`, or the loss became no number before an epoch had ended.
        OutputExistsError: The output belongs to another run.
    """
    settings = with_absolute_paths(settings)
    finished = _finished(settings)
    if finished:
        say(f"train: {settings.output} is finished already; nothing to do")
        return finished
    dataset = open_dataset(settings.data)
    check_can_start(settings, dataset, [settings.fold])
    initial_weights = initial_weights_of(settings, dataset)
    photos = gather_photos(dataset, ("train", "validation"), settings.preprocessing, settings.cache)
    rows = _rows_of(photos, settings.fold)
    outputs.claim_folder(settings.output, "training", run_identity(settings, dataset), keep=True)
    with _training_log(settings) as log:

        def take(record: dict[str, Any]) -> None:
            log.record(record)
            if on_epoch and record["kind"] == "epoch":
                on_epoch(record)

        _fit(settings, dataset, photos, rows, initial_weights, take)
        newest = newest_checkpoint(settings.checkpoints_uri)
        if newest is None:
            raise TrainingError(f"{settings.output}: training ended without a checkpoint")
        progress, arrays = load_checkpoint(storage.join(settings.checkpoints_uri, newest))
        log.complete(progress.history)
        _check_learnt(progress)
    exported = export_bundle(settings, dataset, photos, rows.validation, progress, arrays["best"], arrays["best_logits"][0])
    trained = TrainedModel(*exported, progress.best_epoch, progress.best_auc, progress.history)
    manifest = {"kind": "skinray-training", "schema_version": 1, "identity": run_identity(settings, dataset), **trained.__dict__}
    outputs.publish_folder(storage.normalize(settings.output), manifest)
    return trained


def check_can_start(settings: TrainSettings, dataset: PreparedDataset, folds: Sequence[int | None]) -> None:
    """What can be told of a run before its photos are decoded, its network is built and its output is claimed.

    Args:
        settings: Of the run.
        dataset: What it is to be trained on.
        folds: The fold that it validates on, or those that several runs do; None: the validation split.

    Raises:
        DatasetError: Too few photos for one step, or none of some class to learn from or to validate on.
        LeakError: The data set has leaks, and they were not allowed.
        ConfigError: The data set has no such fold, or the cluster no room for the workers.
    """
    check_no_leaks(dataset, settings.allow_leaks)
    divide(dataset, settings, folds)
    check_room(settings.num_workers, settings.cpus_per_worker, settings.gpus_per_worker)


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


def initial_weights_of(settings: TrainSettings, dataset: PreparedDataset) -> list[npt.NDArray[Any]]:
    """Random weights with the backbone's pretrained ones in place; made once, so that every worker starts alike.

    Raises:
        ConfigError: The pretrained ones cannot be had, or the backbone has no layer `transfer.from_layer`.
    """
    import keras

    from skinray.model import build_model, load_backbone_weights, set_trainable

    keras.utils.set_random_seed(settings.seed)
    model = build_model(settings.model, settings.preprocessing.image_size_px, len(dataset.manifest.classes))
    load_backbone_weights(model, settings.model)
    weights: list[npt.NDArray[Any]] = model.get_weights()
    # The workers do this; here it fails before photos are decoded and the output is claimed.
    set_trainable(model, frozen_backbone=False, from_layer=settings.transfer.from_layer, freeze_batch_norm=False)
    return weights


def _class_weight(labels: npt.NDArray[Any], classes: Sequence[str]) -> tuple[float, ...]:
    """The inverse of each class's share among the photos, divided by the number of classes: 1 where all are equally many."""
    return tuple(len(labels) / (len(classes) * np.count_nonzero(labels == code)) for code in classes)


def _fit(
    settings: TrainSettings,
    dataset: PreparedDataset,
    photos: TrainingPhotos,
    rows: _Rows,
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
        class_weight=_class_weight(photos.labels[rows.train], manifest.classes) if weighted else (1.0,) * len(manifest.classes),
        photos=photos,
        train_rows=rows.train,
        validation_rows=rows.validation,
        initial_weights=ray.put(initial_weights),
        report=report,
    )
    from skinray.optimization import phases

    rates = " then ".join(f"{phase.peak_learning_rate:.1e} ({phase.name})" for phase in phases(settings))
    say(
        f"train: {settings.model.name}, {len(rows.train):,} photos, {settings.num_workers} workers, {settings.epochs} epochs "
        f"of {plan.steps_per_epoch} steps of {settings.global_batch_size}, learning rate {rates}"
    )
    run = ray.train.RunConfig(
        name=CHECKPOINTS,
        storage_path=storage.path_of(settings.output),
        storage_filesystem=storage.arrow_filesystem(settings.output),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        failure_config=survived(settings.max_failures),
    )
    drop_unusable_notes(settings.checkpoints_uri)
    with _taken(report, take):
        try:
            run_workers(train_worker, {"plan": plan}, settings, run)
        except TrainingError as error:
            raise TrainingError(f"{error}; the same command goes on from the last checkpoint") from error


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


def _check_learnt(progress: Progress) -> None:
    """Says that a run diverged; one without an epoch to keep is an error."""
    if not progress.diverged:
        return
    if not progress.best_epoch:
        raise TrainingError(f"training failed: {divergence_in_words(progress)}")
    say(f"train: {divergence_in_words(progress)}; epoch {progress.best_epoch}, the best one before, is kept")


def _training_log(settings: TrainSettings) -> TrainingLog:
    name = storage.normalize(settings.output).rsplit("/", 1)[-1]
    return TrainingLog(
        settings.output, settings.recorded(), settings.tensorboard, settings.mlflow_uri, name, read_history(settings.output)
    )
