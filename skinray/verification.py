"""`skinray verify distributed`: the same SGD steps by one worker and by many, on this very cluster.

Every number of workers trains the same small network on the same photos from the same weights, through the same step as
`skinray train`, augmentation and dropout included. What is compared is every weight and every BatchNorm statistic of every
rank. It is done twice: in float64, where only an error of the method could make a difference and which decides; and in
float32, whose rounding differs with the order of a sum and grows from step to step, for information.
"""

import math
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import ray
import ray.train
from ray.util.queue import Queue

from skinray.feed import epoch_order
from skinray.telemetry import say
from skinray.training_config import AugmentationSettings, ModelSettings, TrainSettings, VerifySettings
from skinray.worker_group import check_room, run_workers, survived

_IMAGE_SIZE_PX = 48
_LEARNING_RATE = 0.01
_PHOTOS = 256
_TIMED_REDUCTIONS = 20

VerifiedPrecision = Literal["float64", "float32"]


@dataclass(frozen=True)
class Agreement:
    """How one number of workers compares with the first.

    Attributes:
        num_workers: How many.
        precision: What was computed in.
        weights: Largest difference of a weight to the first number's.
        statistics: Largest difference of a BatchNorm statistic to the first number's.
        ranks: Largest difference of anything between two ranks of this run.
        step_s: Median seconds a step.
        all_reduce_s: Median seconds to sum a gradient of this network over the workers, alone.
    """

    num_workers: int
    precision: VerifiedPrecision
    weights: float
    statistics: float
    ranks: float
    step_s: float
    all_reduce_s: float

    def passes(self, tolerance: float) -> bool:
        """True when nothing differs by more."""
        return max(self.weights, self.statistics, self.ranks) <= tolerance


def verify_distributed(settings: VerifySettings) -> list[Agreement]:
    """Trains with every number of workers and compares.

    Returns:
        One agreement for every number and precision; float64 decides.

    Raises:
        ConfigError: The cluster has no room for so many.
        TrainingError: A worker was lost.
    """
    check_room(max(settings.num_workers), settings.cpus_per_worker, settings.gpus_per_worker)
    found = []
    for precision in settings.precisions:
        reference: _Outcome | None = None
        for num_workers in settings.num_workers:
            say(f"verify: {num_workers} workers, {settings.steps} steps in {precision}")
            outcomes = _train(settings, num_workers, precision)
            reference = reference or outcomes[0]
            found.append(_compare(reference, outcomes, precision))
    return found


def agreement_table(agreements: list[Agreement], tolerance: float) -> str:
    """The agreements for a person."""
    lines = ["precision  workers  weights   BatchNorm  between ranks  step      of it all-reduce"]
    for each in agreements:
        lines.append(
            f"{each.precision:<10} {each.num_workers:>7}  {each.weights:<8.1e}  {each.statistics:<9.1e}  {each.ranks:<13.1e}  "
            f"{each.step_s * 1000:>5.0f} ms  {each.all_reduce_s * 1000:>6.1f} ms"
        )
    passed = all(each.passes(tolerance) for each in agreements if each.precision == "float64")
    verdict = "agree" if passed else "DO NOT agree"
    return "\n".join([*lines, f"In float64 all numbers of workers {verdict} within {tolerance:.0e}."])


@dataclass(frozen=True)
class _Outcome:
    """What one rank ended with."""

    rank: int
    weights: dict[str, npt.NDArray[Any]]
    step_s: float
    all_reduce_s: float


def _compare(reference: _Outcome, outcomes: list[_Outcome], precision: VerifiedPrecision) -> Agreement:
    def largest(one: _Outcome, other: _Outcome, statistics: bool | None = None) -> float:
        names = [name for name in one.weights if statistics is None or ("moving_" in name) == statistics]
        return max(float(np.abs(one.weights[name] - other.weights[name]).max()) for name in names)

    first = outcomes[0]
    return Agreement(
        num_workers=len(outcomes),
        precision=precision,
        weights=largest(reference, first, statistics=False),
        statistics=largest(reference, first, statistics=True),
        ranks=max(largest(first, other) for other in outcomes),
        step_s=max(outcome.step_s for outcome in outcomes),
        all_reduce_s=max(outcome.all_reduce_s for outcome in outcomes),
    )


def _train(settings: VerifySettings, num_workers: int, precision: VerifiedPrecision) -> list[_Outcome]:
    report = Queue(actor_options={"num_cpus": 0})
    run = TrainSettings(
        data="",
        output="",
        model=ModelSettings(name="cnn_sequential", dropout=0.2),
        augmentation=AugmentationSettings(saturation=0.2, colour_cast=0.1, vignette=0.5),
        num_workers=num_workers,
        cpus_per_worker=settings.cpus_per_worker,
        gpus_per_worker=settings.gpus_per_worker,
        epochs=1,
        global_batch_size=settings.global_batch_size,
        optimizer="sgd",
        learning_rate=_LEARNING_RATE,
        warmup_fraction=0,
        precision=precision,
        seed=settings.seed,
    )
    with tempfile.TemporaryDirectory() as folder:  # nothing is stored in it but Ray Train's own notes
        run_workers(
            _verify_worker,
            {"settings": run, "steps": settings.steps, "report": report},
            run,
            ray.train.RunConfig(name="verify", storage_path=folder, failure_config=survived(0)),
        )
    outcomes = [report.get(timeout=60) for _ in range(num_workers)]
    report.shutdown()
    return sorted(outcomes, key=lambda outcome: outcome.rank)


def _verify_worker(config: dict[str, Any]) -> None:
    """One rank: takes its slices of the same global batches, whatever the number of workers."""
    settings: TrainSettings = config["settings"]
    from skinray.classifier import use_threads

    use_threads(settings.cpus_per_worker)
    import keras
    import tensorflow as tf

    from skinray.clinical import CLINICAL_WIDTH
    from skinray.feed import worker_batches
    from skinray.model import build_model
    from skinray.normalization import synchronized
    from skinray.optimization import build_optimizer, phases, sum_over_replicas
    from skinray.replicas import Replicas
    from skinray.training_step import Batch, build_train_step

    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    replicas = Replicas(rank, num_workers, settings.gpus_per_worker)
    keras.config.set_dtype_policy(settings.precision)
    with replicas.strategy.scope():
        keras.utils.set_random_seed(settings.seed)
        model = synchronized(build_model(settings.model, _IMAGE_SIZE_PX, 2))
        optimizer = build_optimizer(settings, phases(settings)[0], config["steps"])
        optimizer.build(model.trainable_variables)
    step = build_train_step(replicas, model, optimizer, settings, class_weight=(0.7, 1.8))
    photos, labels = _photos(settings.seed)
    order = _order(config["steps"] * settings.global_batch_size, settings.seed)
    seconds = []
    for number, rows in enumerate(worker_batches(order, settings.global_batch_size, rank, num_workers, 0, config["steps"])):
        started = time.monotonic()
        loss, _ = step(Batch(photos[rows], np.zeros((len(rows), CLINICAL_WIDTH), np.float32), labels[rows]), number)
        loss.numpy()
        seconds.append(time.monotonic() - started)

    @tf.function  # type: ignore[untyped-decorator]
    def reduce() -> None:
        gradients = [tf.zeros_like(variable.value) for variable in model.trainable_variables]
        replicas.strategy.run(lambda: sum_over_replicas(gradients))

    reductions = []
    for _ in range(_TIMED_REDUCTIONS + 1):
        started = time.monotonic()
        reduce()
        reductions.append(time.monotonic() - started)
    weights = {variable.path: np.asarray(variable) for variable in model.variables}
    outcome = _Outcome(rank, weights, float(np.median(seconds[1:] or seconds)), float(np.median(reductions[1:])))
    config["report"].put(outcome, timeout=60)
    ray.train.report({})


def _order(rows: int, seed: int) -> npt.NDArray[np.int64]:
    """The photos of so many places in a row, int64 [rows]: epoch after epoch, each in an order of its own."""
    epochs = math.ceil(rows / _PHOTOS)
    return np.concatenate([epoch_order([np.arange(_PHOTOS)], seed, epoch) for epoch in range(epochs)])[:rows]


def _photos(seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Discs on noise, light or dark by class: enough to learn from, and the same on every rank."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, _PHOTOS).astype(np.int32)
    photos = generator.integers(120, 200, (_PHOTOS, _IMAGE_SIZE_PX, _IMAGE_SIZE_PX, 3))
    across, down = np.mgrid[:_IMAGE_SIZE_PX, :_IMAGE_SIZE_PX]
    middles = generator.integers(16, _IMAGE_SIZE_PX - 16, (_PHOTOS, 2))
    for photo, label, (x, y) in zip(photos, labels, middles, strict=True):
        photo[(across - x) ** 2 + (down - y) ** 2 < 100] -= 40 + 40 * label
    return photos.astype(np.uint8), labels
