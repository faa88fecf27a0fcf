"""What each training worker runs: the epochs, from wherever the last checkpoint left them.

All ranks run the same code in step: they take their slices of the same global batches, know the same validation figures,
and so decide alike when to checkpoint, to change phase and to stop. Rank 0 writes and tells.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Full
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import ray
import ray.train
import tensorflow as tf
from ray.train.collective import broadcast_from_rank_zero

from skinray import storage
from skinray.checkpoints import Progress, checkpoint_name, load_checkpoint, newest_checkpoint, save_checkpoint
from skinray.classifier import use_threads
from skinray.clinical import encode_clinical
from skinray.feed import WINDOW_ROWS, blocks_of, epoch_order, prefetched, worker_batches
from skinray.metrics import balanced_accuracy, cross_entropy, malignancy, roc_auc
from skinray.model import build_model, set_trainable
from skinray.normalization import synchronized
from skinray.optimization import Phase, WeightAverage, build_optimizer, current_learning_rate, phases
from skinray.photo_cache import TrainingPhotos
from skinray.photo_reader import PhotoReader
from skinray.replicas import Precision, Replicas, dtype_policy, fastest_precision
from skinray.step_timing import CheckpointClock, Meter
from skinray.training_config import TrainSettings
from skinray.training_step import Batch, StepOutcome, build_predict, build_train_step
from skinray.watchdog import Watchdog, abort_collectives

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WorkerPlan:
    """Everything that a worker needs, the same for all of them.

    Attributes:
        settings: Of the run.
        classes: Class codes in the order of the outputs.
        malignant: Positions of the malignant ones.
        class_weight: Factor on the loss of each class.
        photos: All photos of the run.
        train_rows: Row numbers of those to learn from, int64, ascending.
        validation_rows: Row numbers of those to choose the epoch by, int64, ascending.
        initial_weights: The model's first weights, in the order of `model.get_weights()`.
        report: Queue that takes dictionaries for the person who watches.
    """

    settings: TrainSettings
    classes: tuple[str, ...]
    malignant: tuple[int, ...]
    class_weight: tuple[float, ...]
    photos: TrainingPhotos
    train_rows: npt.NDArray[np.int64]
    validation_rows: npt.NDArray[np.int64]
    initial_weights: "ray.ObjectRef[Any]"
    report: Any

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch: whole global batches only, the same for every worker."""
        whole = len(self.train_rows) // self.settings.global_batch_size
        return min(whole, self.settings.steps_per_epoch or whole)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """The position of each photo's class among `classes`, int32 [rows of photos]."""
        position = {code: number for number, code in enumerate(self.classes)}
        return np.array([position[str(label)] for label in self.photos.labels], np.int32)


def train_worker(config: dict[str, Any]) -> None:
    """The training loop of one rank.

    Args:
        config: {"plan": WorkerPlan}.
    """
    plan: WorkerPlan = config["plan"]
    settings = plan.settings
    use_threads(settings.cpus_per_worker)
    context = ray.train.get_context()
    replicas = Replicas(context.get_world_rank(), context.get_world_size(), settings.gpus_per_worker)
    watchdog = Watchdog(settings.collective_timeout_s, abort_collectives)
    precision = settings.precision if settings.precision != "auto" else broadcast_from_rank_zero(fastest_precision())
    _Run(plan, replicas, watchdog.beat, precision).to_the_end()
    watchdog.stop()


class _DivergedError(Exception):
    """What the network computes is not a number any more; raised by all ranks alike.

    Args:
        steps: Done of the running epoch.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.steps = steps


class _Run:
    """One rank's part of a run: its model, how far it has come, and the steps that take it further."""

    def __init__(self, plan: WorkerPlan, replicas: Replicas, beat: Callable[[], None], precision: Precision) -> None:
        settings = plan.settings
        self.plan, self.settings, self.replicas, self.beat = plan, settings, replicas, beat
        self._float16 = precision == "float16"
        # What is validated and kept. Not in half precision: the bundle is run in float32, in which logits, and with them
        # thresholds, are others (MobileNet's malignancy score differs by up to 0.08).
        self.kept = self._built(precision if precision == "float64" else "float32")
        with replicas.strategy.scope():
            keras.utils.set_random_seed(settings.seed)
            self.model = synchronized(self._built(precision))
            self.model.set_weights(ray.get(plan.initial_weights))
        self.average = WeightAverage(self.model, settings.weight_averaging) if settings.weight_averaging else None
        self.labels = plan.labels
        self.clinical = encode_clinical(plan.photos.age, plan.photos.sex, plan.photos.site)
        self.photos = PhotoReader(plan.photos, held_rows=2 * WINDOW_ROWS)
        self.progress = Progress()
        self.best: list[npt.NDArray[Any]] = []  # weights of the best epoch
        self.best_logits = np.empty((0, 0), np.float32)  # its logits on validation
        steps = plan.steps_per_epoch
        # Of the running epoch, in the order of its steps, this worker's part alone; other workers' places are zero.
        self.losses = np.zeros(steps, np.float64)
        self.logits = np.zeros((steps * settings.global_batch_size, len(plan.classes)), np.float32)
        self.phase: Phase | None = None
        self.optimizer: keras.optimizers.Optimizer = None
        self.train_step: Callable[[Batch, int], StepOutcome] | None = None
        share = settings.global_batch_size // replicas.num_workers
        self.predict = build_predict(replicas, self.kept, share, beat)
        self._restore()

    def _built(self, precision: Precision) -> keras.Model:
        keras.config.set_dtype_policy(dtype_policy(precision))
        return build_model(self.settings.model, self.settings.preprocessing.image_size_px, len(self.plan.classes))

    def to_the_end(self) -> None:
        """Runs what is left of the epochs, or up to where the loss is not a number any more."""
        try:
            self._run_epochs()
        except _DivergedError as diverged:
            self.progress = self.progress.diverged_at(diverged.steps)
            self._checkpoint({"epoch": self.progress.epoch, "step": diverged.steps})

    def _run_epochs(self) -> None:
        settings = self.settings
        while not self.progress.is_over(settings.epochs, settings.early_stopping_epochs):
            self._enter_phase()
            trained = self._train_epoch()
            validated, logits = self._validate()
            record = trained | validated | {"epoch_s": trained["train_s"] + validated["validation_s"]}
            self.progress = self.progress.after(record)
            record |= {"best_auc": self.progress.best_auc, "best_epoch": self.progress.best_epoch}
            if self.progress.best_epoch == self.progress.epoch:
                self.best, self.best_logits = self.kept.get_weights(), logits
            self.losses[:], self.logits[:] = 0, 0
            self._tell(record)
            self._checkpoint(record)

    def _enter_phase(self) -> None:
        """At a phase's first epoch, or after a restart: says which layers learn, and makes their optimizer and step."""
        phase = next(phase for phase in phases(self.settings) if self.progress.epoch < phase.end_epoch)
        if phase == self.phase:
            return
        transfer = self.settings.transfer
        if self.settings.model.has_backbone:
            set_trainable(self.model, phase.frozen_backbone, transfer.from_layer, transfer.batch_norm == "frozen")
        with self.replicas.strategy.scope():
            self.optimizer = build_optimizer(self.settings, phase, self.plan.steps_per_epoch, self._float16)
            self.optimizer.build(self.model.trainable_variables)
        self.train_step = build_train_step(self.replicas, self.model, self.optimizer, self.settings, self.plan.class_weight)
        self.phase = phase

    def _epoch_rows(self) -> npt.NDArray[np.int64]:
        blocks = blocks_of(self.plan.train_rows, self.plan.photos.block_rows)
        balanced_by = self.labels if self.settings.balance == "sampling" else None
        return epoch_order(blocks, self.settings.seed, self.progress.epoch, balanced_by)

    def _batches(self, order: npt.NDArray[np.int64]) -> Iterator[Batch]:
        replicas, batch_size = self.replicas, self.settings.global_batch_size
        first, steps = self.progress.step, self.plan.steps_per_epoch
        taken = list(worker_batches(order, batch_size, replicas.rank, replicas.num_workers, first, steps))
        self.photos.expect(order[first * batch_size : steps * batch_size])
        return (Batch(self.photos.read(rows), self.clinical[rows], self.labels[rows]) for rows in taken)

    def _train_epoch(self) -> dict[str, Any]:
        """The steps of an epoch that are left: what they cost and how well the photos were told apart while learning."""
        assert self.phase is not None
        assert self.train_step is not None
        epoch, first, steps = self.progress.epoch, self.progress.step, self.plan.steps_per_epoch
        order = self._epoch_rows()
        share = self.settings.global_batch_size // self.replicas.num_workers
        clock = CheckpointClock(self.settings, self.replicas.rank, first)
        meter = Meter(self.settings.global_batch_size)
        pending: list[tuple[int, StepOutcome]] = []
        for step, batch in enumerate(meter.waited_for(prefetched(self._batches(order))), start=first):
            number = epoch * steps + step
            pending.append((step, self.train_step(batch, number)))
            if self.average:
                self.average.update(tf.constant(number, tf.int32))
            self.beat()
            last = step + 1 == steps
            due = not last and clock.due(step + 1)
            if last or due or meter.is_silent or len(pending) >= 100:
                self._take_in(pending, share)
                self._tell(self._step_record(step + 1, meter), often=True)
            if due:
                self._check_loss(step)
                self.progress = self.progress.at_step(step + 1)
                self._checkpoint({"epoch": epoch, "step": step + 1})
        train_s = meter.elapsed_s
        self._check_loss(steps - 1)
        losses, logits = self.replicas.sum(self.losses), self.replicas.sum(self.logits)
        losses = losses[np.isfinite(losses)]  # without steps that overflowed in float16, which its optimizer skipped
        known = np.isfinite(logits).all(axis=1)
        seen = order[: len(logits)][known]
        return {
            "kind": "epoch",
            "epoch": epoch + 1,
            "epochs": self.settings.epochs,
            "phase": self.phase.name,
            "steps": steps,
            "resumed_at_step": first,
            "workers": self.replicas.num_workers,
            "learning_rate": current_learning_rate(self.optimizer),
            "train_loss": float(losses.mean()),
            **{f"train_{name}": value for name, value in self._figures(logits[known], self.labels[seen]).items()},
            "images_per_s": meter.images_per_s,
            "step_s": train_s / max(1, meter.steps),
            "data_wait_s": meter.wait_s,
            "train_s": train_s,
        }

    def _check_loss(self, step: int) -> None:
        """Raises _DivergedError when the loss of a step over all workers, which is the newest, is not a number.

        In float16 one of the steps before may have been none without harm; otherwise none becomes a number again.
        """
        if not np.isfinite(self.replicas.sum(self.losses[step : step + 1])).all():
            raise _DivergedError(step + 1)

    def _take_in(self, pending: list[tuple[int, StepOutcome]], share: int) -> None:
        """Fetches what steps have computed; until then they may still be running on a GPU."""
        batch_size, offset = self.settings.global_batch_size, self.replicas.rank * share
        for step, (loss, logits) in pending:
            self.losses[step] = float(loss)
            start = step * batch_size + offset
            self.logits[start : start + share] = logits.numpy()
        pending.clear()

    def _step_record(self, done: int, meter: Meter) -> dict[str, Any]:
        assert self.phase is not None
        recent = self.losses[max(0, done - 20) : done]
        return {
            "kind": "steps",
            "epoch": self.progress.epoch + 1,
            "epochs": self.settings.epochs,
            "step": done,
            "steps_per_epoch": self.plan.steps_per_epoch,
            "phase": self.phase.name,
            "loss": float(recent.mean()) * self.replicas.num_workers,  # this worker's photos stand for all
            "learning_rate": current_learning_rate(self.optimizer),
            "images_per_s": meter.images_per_s,
            "step_s": meter.elapsed_s / max(1, meter.steps),
            "data_wait_s": meter.wait_s / max(1, meter.steps),
        }

    def _validate(self) -> tuple[dict[str, Any], Logits]:
        """Measures the weights that would be kept, on every validation photo once."""
        started = time.monotonic()
        self.kept.set_weights(self.average.values() if self.average else self.model.get_weights())
        rows = self.plan.validation_rows
        logits = self.predict(self.photos, self.clinical, rows)
        if not np.isfinite(logits).all():  # these are the sum of all workers' parts
            raise _DivergedError(self.plan.steps_per_epoch)
        figures = self._figures(logits, self.labels[rows]) | {"loss": cross_entropy(logits, self.labels[rows])}
        record = {f"validation_{name}": value for name, value in figures.items()}
        return record | {"validation_s": time.monotonic() - started}, logits

    def _figures(self, logits: Logits, labels: npt.NDArray[np.int32]) -> dict[str, float]:
        auc = roc_auc(np.isin(labels, self.plan.malignant), malignancy(logits, self.plan.malignant))
        return {"auc": auc, "balanced_accuracy": balanced_accuracy(labels, logits.argmax(axis=1))}

    def _tell(self, record: dict[str, Any], often: bool = False) -> None:
        """Tells the person who watches, if the queue is still there: its loss with a node must not end the training."""
        if self.replicas.rank != 0:
            return
        try:
            self.plan.report.put(record, timeout=10)
        except (ray.exceptions.RayError, Full):
            if not often:
                logging.getLogger(__name__).warning("epoch %s could not be reported", record["epoch"])

    def _checkpoint(self, metrics: dict[str, Any]) -> None:
        """Reports; all ranks must, and rank 0 adds the checkpoint."""
        losses, logits = self.replicas.sum(self.losses), self.replicas.sum(self.logits)
        if self.replicas.rank != 0:
            ray.train.report(metrics)
            return
        arrays = {
            "model": self.model.get_weights(),
            "optimizer": [np.asarray(variable) for variable in self.optimizer.variables],
            "average": self.average.values() if self.average else [],
            "best": self.best,
            "best_logits": [self.best_logits],
            "epoch_losses": [losses],
            "epoch_logits": [logits],
        }
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), self.progress, arrays)
            stored = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=stored, checkpoint_dir_name=checkpoint_name(self.progress))
        self.beat()

    def _restore(self) -> None:
        """Goes on from the run's last checkpoint when it has one; rank 0 says which that is, for all."""
        folder = self.settings.checkpoints_uri
        newest = broadcast_from_rank_zero(newest_checkpoint(folder) if self.replicas.rank == 0 else None)
        if newest is None:
            return
        self.progress, arrays = load_checkpoint(storage.join(folder, newest))
        self.model.set_weights(arrays["model"])
        if self.average:
            for variable, value in zip(self.average.variables, arrays["average"], strict=True):
                variable.assign(value)
        self.best, self.best_logits = arrays.get("best", []), arrays["best_logits"][0]
        if self.replicas.rank == 0:  # the parts of all workers were added up; one of them goes on with the sum
            self.losses[:], self.logits[:] = arrays["epoch_losses"][0], arrays["epoch_logits"][0]
        if self.progress.is_over(self.settings.epochs, self.settings.early_stopping_epochs):
            return
        self._enter_phase()
        assert self.phase is not None
        if (self.progress.epoch, self.progress.step) != (self.phase.first_epoch, 0):  # else it is the phase before's
            for variable, value in zip(self.optimizer.variables, arrays["optimizer"], strict=True):
                variable.assign(value)
