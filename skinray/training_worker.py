"""What each training worker runs: one synchronous step at a time under MultiWorkerMirroredStrategy.

`keras.Model.fit` cannot be used here: under two workers it fails (keras-team/keras#20585). The loop is the one that
TensorFlow documents for custom training: the loss is divided for the global batch, because gradients are summed over
replicas; the optimizer is applied inside the replica's step; BatchNorm is synchronized.

Photos come from blocks that were decoded once into Ray's object store; `skinray.feed` says which of them make up a step.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Full
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import ray
import ray.train
import scipy.special
import tensorflow as tf

from skinray.augmentation import Augmentation
from skinray.classifier import use_threads
from skinray.feed import WINDOW_ROWS, epoch_order, prefetched, worker_batches
from skinray.metrics import roc_auc
from skinray.model import build_model
from skinray.photos import CachedPhotos, CachedReader
from skinray.training_config import TrainSettings
from skinray.watchdog import Watchdog, abort_collectives

WEIGHTS, OPTIMIZER, BEST, STATE = "model.weights.h5", "optimizer.npz", "best.npz", "state.json"

Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]


@dataclass(frozen=True)
class WorkerPlan:
    """Everything that a worker needs, the same for all of them.

    Attributes:
        settings: Of the run.
        classes: Class codes in the order of the outputs.
        malignant: Positions of the malignant ones.
        class_weight: Factor on the loss of each class.
        train: Training photos.
        validation: Validation photos.
        initial_weights: The model's first weights, in the order of `model.get_weights()`.
        report: Queue that takes one dictionary an epoch, for the person who watches.
    """

    settings: TrainSettings
    classes: tuple[str, ...]
    malignant: tuple[int, ...]
    class_weight: tuple[float, ...]
    train: CachedPhotos
    validation: CachedPhotos
    initial_weights: "ray.ObjectRef[Any]"
    report: Any

    @property
    def precision(self) -> str:
        """What all computing is done in."""
        return "float32" if self.settings.precision == "auto" else self.settings.precision

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch: whole global batches only, the same for every worker."""
        whole = self.train.rows // self.settings.global_batch_size
        return min(whole, self.settings.steps_per_epoch or whole)

    def class_positions(self, photos: CachedPhotos) -> npt.NDArray[np.int32]:
        """The position of each photo's class among `classes`, int32 [rows]."""
        return np.array([self.classes.index(str(label)) for label in photos.labels], np.int32)


@dataclass(frozen=True)
class TrainingState:
    """How far training has come; stored in every checkpoint.

    Attributes:
        epoch: Epochs done.
        history: One record an epoch.
        best_auc: Best validation ROC-AUC so far.
        best_epoch: The epoch that reached it, from 1.
    """

    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_auc: float = 0.0
    best_epoch: int = 0

    def after(self, record: dict[str, Any]) -> "TrainingState":
        """The state one epoch later; an equal AUC does not replace the earlier epoch."""
        better = self.best_epoch == 0 or record["validation_auc"] > self.best_auc
        return TrainingState(
            epoch=record["epoch"],
            history=[*self.history, record],
            best_auc=record["validation_auc"] if better else self.best_auc,
            best_epoch=record["epoch"] if better else self.best_epoch,
        )


@dataclass(frozen=True)
class BestEpoch:
    """What the best epoch left: model weights in the order of `get_weights()`, and float32 logits [rows, C] on validation."""

    weights: list[npt.NDArray[Any]]
    logits: npt.NDArray[np.float32]


def train_worker(config: dict[str, Any]) -> None:
    """The training loop of one rank; all ranks run it in step.

    Args:
        config: {"plan": WorkerPlan}.
    """
    plan: WorkerPlan = config["plan"]
    settings = plan.settings
    use_threads(settings.cpus_per_worker)
    strategy = _strategy(settings)  # before any other TensorFlow operation
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    watchdog = Watchdog(settings.collective_timeout_s, abort_collectives)
    keras.config.set_dtype_policy(plan.precision)
    with strategy.scope():
        keras.utils.set_random_seed(settings.seed)
        model = build_model(settings.model, settings.preprocessing.image_size_px, len(plan.classes))
        model.set_weights(ray.get(plan.initial_weights))
        optimizer = build_optimizer(settings, plan.steps_per_epoch)
        optimizer.build(model.trainable_variables)
    state, best = _restore(model, optimizer)
    train_step = _train_step(strategy, model, optimizer, plan)
    predict = _distributed_predict(strategy, model, settings, len(plan.classes), rank, num_workers, watchdog)
    train_photos = CachedReader(plan.train, held_rows=2 * WINDOW_ROWS)
    train_labels = plan.class_positions(plan.train)
    validation_photos = CachedReader(plan.validation, held_rows=WINDOW_ROWS)
    validation_labels = plan.class_positions(plan.validation)

    def read(rows: npt.NDArray[np.int64]) -> Batch:
        return train_photos.read(rows), train_labels[rows]

    for epoch in range(state.epoch, settings.epochs):
        started = time.monotonic()
        order = epoch_order(plan.train.block_rows, settings.seed, epoch)
        rows = worker_batches(order, settings.global_batch_size, rank, num_workers, 0, plan.steps_per_epoch)
        loss, waited_s = _run_epoch(train_step, prefetched(map(read, rows)), epoch * plan.steps_per_epoch, watchdog)
        trained_s = time.monotonic() - started
        logits = predict(validation_photos, plan.validation.rows)
        auc = roc_auc(np.isin(validation_labels, plan.malignant), malignancy(logits, plan.malignant))
        record = {
            "epoch": epoch + 1,
            "epochs": settings.epochs,
            "train_loss": loss,
            "validation_loss": cross_entropy(logits, validation_labels),
            "validation_auc": auc,
            "images_per_s": plan.steps_per_epoch * settings.global_batch_size / trained_s,
            "step_s": trained_s / plan.steps_per_epoch,
            "data_wait_s": waited_s,
            "epoch_s": time.monotonic() - started,
        }
        state = state.after(record)
        if state.best_epoch == state.epoch:
            best = BestEpoch(weights=model.get_weights(), logits=logits)
        if rank == 0:
            _say(plan.report, record)
        _checkpoint(rank, model, optimizer, state, best, record)
        watchdog.beat()
    watchdog.stop()


def _say(report: Any, record: dict[str, Any]) -> None:
    """Tells the person who watches, if the queue is still there: its loss with a node must not end the training."""
    try:
        report.put(record, timeout=10)
    except (ray.exceptions.RayError, Full):
        logging.getLogger(__name__).warning("epoch %s could not be reported", record["epoch"])


def build_optimizer(settings: TrainSettings, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """The optimizer with its learning rate: a linear warm-up, then a cosine to zero."""
    steps = settings.epochs * steps_per_epoch
    warmup = round(settings.warmup_fraction * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else settings.learning_rate,
        decay_steps=max(1, steps - warmup),
        warmup_target=settings.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(schedule, momentum=0.9, weight_decay=settings.weight_decay or None)
    return keras.optimizers.AdamW(schedule, weight_decay=settings.weight_decay)


def _strategy(settings: TrainSettings) -> tf.distribute.Strategy:
    implementation = tf.distribute.experimental.CommunicationImplementation
    # Without timeout_seconds: TensorFlow 2.21 keeps a sleeping thread for every collective until its timeout has passed,
    # and BatchNorm alone makes over a hundred collectives a step. At 600 s, MobileNet's workers held 10,000 threads after
    # two minutes and were aborted after four, when a thread could not be made. `Watchdog` does this instead.
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=implementation.NCCL if settings.gpus_per_worker else implementation.RING
    )
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def _train_step(
    strategy: tf.distribute.Strategy, model: keras.Model, optimizer: keras.optimizers.Optimizer, plan: WorkerPlan
) -> Callable[[Batch, int], tf.Tensor]:
    """One synchronous step: this worker's share of a global batch in, the mean loss over all workers out."""
    settings = plan.settings
    with strategy.scope():
        augment = Augmentation(settings.augmentation)
    loss_of = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=settings.label_smoothing, reduction=None)
    class_weight = tf.constant(plan.class_weight, plan.precision)
    local_replicas = max(1, settings.gpus_per_worker)

    def replica_step(pixels: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        seed = tf.stack([settings.seed, step])
        photos = augment(pixels, seed, context.replica_id_in_sync_group, context.num_replicas_in_sync)
        with tf.GradientTape() as tape:
            logits = model(photos, training=True)
            losses = loss_of(tf.one_hot(labels, len(plan.classes), dtype=logits.dtype), logits)
            loss = tf.nn.compute_average_loss(
                losses, sample_weight=tf.gather(class_weight, labels), global_batch_size=settings.global_batch_size
            )
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    @tf.function  # type: ignore[untyped-decorator]
    def step_of_all(pixels: Any, labels: Any, step: tf.Tensor) -> tf.Tensor:
        losses = strategy.run(replica_step, args=(pixels, labels, step))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def run(batch: Batch, step: int) -> tf.Tensor:
        pixels, labels = (_per_replica(strategy, part, local_replicas) for part in batch)
        return step_of_all(pixels, labels, tf.constant(step, tf.int32))

    return run


def _per_replica(strategy: tf.distribute.Strategy, values: npt.NDArray[Any], local_replicas: int) -> Any:
    """Divides a worker's share evenly among its GPUs."""
    if local_replicas == 1:
        return tf.constant(values)
    parts = np.split(values, local_replicas)
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group % local_replicas])
    )


def _run_epoch(
    train_step: Callable[[Batch, int], tf.Tensor], batches: Iterator[Batch], first_step: int, watchdog: Watchdog
) -> tuple[float, float]:
    """Runs every step of an epoch: the mean loss, and the seconds that steps waited for photos."""
    losses = []
    waited_s = 0.0
    asked = time.monotonic()
    for offset, batch in enumerate(batches):
        waited_s += time.monotonic() - asked
        losses.append(train_step(batch, first_step + offset))
        watchdog.beat()
        asked = time.monotonic()
    return float(np.mean([loss.numpy() for loss in losses])), waited_s


def _distributed_predict(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    settings: TrainSettings,
    num_classes: int,
    rank: int,
    num_workers: int,
    watchdog: Watchdog,
) -> Callable[[CachedReader, int], npt.NDArray[np.float32]]:
    """Exact distributed inference: every row once, whatever the number of workers; all ranks get all logits."""
    size = settings.preprocessing.image_size_px
    batch_size = settings.global_batch_size // num_workers

    @tf.function(input_signature=[tf.TensorSpec((batch_size, size, size, 3), tf.uint8)])  # type: ignore[untyped-decorator]
    def forward(pixels: tf.Tensor) -> tf.Tensor:
        return model(pixels, training=False)

    @tf.function  # type: ignore[untyped-decorator]
    def sum_over_workers(values: Any) -> tf.Tensor:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

    def predict(photos: CachedReader, count: int) -> npt.NDArray[np.float32]:
        mine = np.arange(rank, count, num_workers)
        logits = np.zeros((count, num_classes), np.float32)
        for start in range(0, len(mine), batch_size):
            rows = mine[start : start + batch_size]
            padded = np.resize(rows, batch_size)  # a short last batch repeats its rows
            watchdog.beat()
            logits[rows] = forward(tf.constant(photos.read(padded))).numpy()[: len(rows)]
        # Each row is zero on all workers but one, so the sum is that one's value, exactly.
        local_replicas = max(1, settings.gpus_per_worker)
        nothing = np.zeros_like(logits)
        whole: Any = strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(logits if context.replica_id_in_sync_group % local_replicas == 0 else nothing)
        )
        return np.asarray(sum_over_workers(whole))

    return predict


def malignancy(logits: npt.NDArray[np.float32], malignant: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """The summed softmax probability of the malignant classes, float64 [N]."""
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    return np.asarray(probabilities[:, list(malignant)].sum(axis=1))


def cross_entropy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> float:
    """The mean negative log-likelihood of the labels, in nats."""
    return -float(scipy.special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def _restore(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> tuple[TrainingState, BestEpoch | None]:
    """Goes on from the run's last checkpoint when it has one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return TrainingState(), None
    with checkpoint.as_directory() as folder:
        path = Path(folder)
        model.load_weights(path / WEIGHTS)
        with np.load(path / OPTIMIZER) as stored:
            for variable, name in zip(optimizer.variables, stored.files, strict=True):
                variable.assign(stored[name])
        state = TrainingState(**json.loads((path / STATE).read_bytes()))
        return state, read_best(path)


def read_best(folder: Path) -> BestEpoch:
    """The best epoch's weights and validation logits from a checkpoint's folder."""
    with np.load(folder / BEST) as stored:
        weights = [stored[name] for name in stored.files if name != "logits"]
        return BestEpoch(weights=weights, logits=stored["logits"])


def _checkpoint(
    rank: int,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    state: TrainingState,
    best: BestEpoch | None,
    record: dict[str, Any],
) -> None:
    """Reports an epoch; all ranks must, and rank 0 adds the checkpoint."""
    if rank != 0 or best is None:
        ray.train.report(record)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        model.save_weights(path / WEIGHTS)
        optimizer_values = {f"{number:05d}": np.asarray(variable) for number, variable in enumerate(optimizer.variables)}
        np.savez(path / OPTIMIZER, **optimizer_values)  # type: ignore[arg-type]
        best_weights = {f"{number:05d}": weight for number, weight in enumerate(best.weights)}
        np.savez(path / BEST, logits=best.logits, **best_weights)  # type: ignore[arg-type]
        (path / STATE).write_text(json.dumps(asdict(state)))
        ray.train.report(record, checkpoint=ray.train.Checkpoint.from_directory(folder))
