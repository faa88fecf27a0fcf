"""How a training step changes the weights: phases and their learning rates, losses, optimizers, averaged weights.

Everything here is the same for one worker and for many: a loss is a sum over a replica's photos, divided for the global
batch; gradients are summed over the replicas once, packed; only then are they checked, clipped and applied.
"""

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from skinray.training_config import TrainSettings


@dataclass(frozen=True)
class Phase:
    """Epochs that train the same layers, with an optimizer of their own.

    Attributes:
        name: For the person who watches.
        first_epoch: From 0.
        end_epoch: The epoch after its last.
        peak_learning_rate: At this run's global batch.
        frozen_backbone: True when only the layers after the backbone learn.
    """

    name: str
    first_epoch: int
    end_epoch: int
    peak_learning_rate: float
    frozen_backbone: bool


def phases(settings: TrainSettings) -> list[Phase]:
    """The phases of a run, in order: one, or two for transfer learning."""
    frozen_epochs = settings.transfer.frozen_epochs
    frozen_rate, rate = settings.peak_learning_rates
    found = []
    if frozen_epochs:
        found.append(Phase("frozen backbone", 0, frozen_epochs, frozen_rate, frozen_backbone=True))
    if frozen_epochs < settings.epochs:
        name = "fine-tuning" if frozen_epochs else "training"
        found.append(Phase(name, frozen_epochs, settings.epochs, rate, frozen_backbone=False))
    return found


def build_optimizer(
    settings: TrainSettings, phase: Phase, steps_per_epoch: int, float16: bool = False
) -> keras.optimizers.Optimizer:
    """The optimizer of one phase; its learning rate warms up linearly, then falls to zero as a cosine.

    Args:
        settings: Of the run.
        phase: Its epochs and its peak.
        steps_per_epoch: Steps of one epoch.
        float16: Scale the loss dynamically, so that small gradients do not vanish.

    Returns:
        An optimizer for gradients that are summed over the replicas already.
    """
    steps = (phase.end_epoch - phase.first_epoch) * steps_per_epoch
    warmup = round(settings.warmup_fraction * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else phase.peak_learning_rate,
        decay_steps=max(1, steps - warmup),
        warmup_target=phase.peak_learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    common: dict[str, Any] = {"learning_rate": schedule, "global_clipnorm": settings.clip_norm, "name": settings.optimizer}
    if settings.optimizer == "sgd":
        optimizer = _SGD(momentum=0.9, weight_decay=settings.weight_decay or None, **common)
    elif settings.optimizer == "adam":
        optimizer = _Adam(**common)
    else:
        optimizer = _AdamW(weight_decay=settings.weight_decay, **common)
    return keras.optimizers.LossScaleOptimizer(optimizer) if float16 else optimizer


def current_learning_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """The learning rate of the next step."""
    return float(getattr(optimizer, "inner_optimizer", optimizer).learning_rate)


def sum_over_replicas(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sums gradients over all replicas in one collective, packed into one vector; called by every replica."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return gradients
    packed = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, packed)
    parts = tf.split(total, [gradient.shape.num_elements() for gradient in gradients])
    return [tf.reshape(part, gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]


class _OnSummedGradients:
    """Keras sums gradients over the replicas after it has clipped and checked each replica's own share.

    Clipping a share is not clipping the sum, and a replica that finds a non-finite number alone would skip a step alone.
    Here the sum comes first, by `sum_over_replicas`, and Keras' own is left out.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars


class _AdamW(_OnSummedGradients, keras.optimizers.AdamW):  # type: ignore[misc]  # keras has no types
    pass


class _Adam(_OnSummedGradients, keras.optimizers.Adam):  # type: ignore[misc]
    pass


class _SGD(_OnSummedGradients, keras.optimizers.SGD):  # type: ignore[misc]
    pass


def photo_losses(logits: tf.Tensor, labels: tf.Tensor, settings: TrainSettings) -> tf.Tensor:
    """The loss of each photo, before class weights.

    Args:
        logits: Float [N, C].
        labels: int32 [N], positions of the true classes.
        settings: `loss`, `focal_gamma`, `label_smoothing`.

    Returns:
        [N], in nats, in the logits' type.

    Source: focal loss, Lin et al. 2017, "Focal Loss for Dense Object Detection"; label smoothing, Szegedy et al. 2016.
    """
    classes = logits.shape[-1]
    smoothing = settings.label_smoothing
    targets = tf.one_hot(
        labels, classes, on_value=1 - smoothing + smoothing / classes, off_value=smoothing / classes, dtype=logits.dtype
    )
    log_probabilities = tf.nn.log_softmax(logits)
    if settings.loss == "focal":
        # (1 - p)^gamma by way of its logarithm, whose gradient is finite at p = 1.
        log_others = tf.math.log1p(-tf.exp(tf.minimum(log_probabilities, -1e-6)))
        log_probabilities *= tf.exp(settings.focal_gamma * log_others)
    return -tf.reduce_sum(targets * log_probabilities, axis=-1)


class WeightAverage:
    """An exponential moving average of all of a model's weights, BatchNorm statistics included.

    The first steps weigh more, min(decay, (1 + n) / (10 + n)), so that the average forgets where it began.

    Args:
        model: Whose weights; every worker averages its own copy, and the copies are equal.
        decay: Share of the average that stays, a step.

    Source: Polyak and Juditsky 1992; the rule for the first steps is tf.train.ExponentialMovingAverage's.
    """

    def __init__(self, model: keras.Model, decay: float) -> None:
        self._model, self._decay = model, decay
        self.variables = [tf.Variable(weight, trainable=False) for weight in model.get_weights()]

    @tf.function  # type: ignore[untyped-decorator]
    def update(self, step: tf.Tensor) -> None:
        """Takes in the weights after step number `step`, an int32 scalar from 0."""
        number = tf.cast(step, tf.float32)
        share = 1 - tf.minimum(self._decay, (1 + number) / (10 + number))
        for average, weight in zip(self.variables, self._model.weights, strict=True):
            average.assign_add((tf.convert_to_tensor(weight.value) - average) * tf.cast(share, average.dtype))

    def values(self) -> list[Any]:
        """The averaged weights in the order of `model.get_weights()`."""
        return [variable.numpy() for variable in self.variables]
