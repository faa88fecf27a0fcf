"""One synchronous step of all replicas, and exact inference by all of them.

`keras.Model.fit` cannot be used here: under two workers it fails (keras-team/keras#20585). The step is the one that
TensorFlow documents for custom training: the loss is divided for the global batch, because gradients are summed over
replicas; the optimizer is applied inside the replica's step; BatchNorm is synchronized. What is drawn at random for a photo
(augmentation, dropout, clinical values withheld) follows from the seed, the step and its place in the global batch.

Steps are not looped inside the graph, because it would not pay: a call costs the host 1.3 ms with 32 photos of 224 px, most of
it their copy (one core of a Xeon), and on GPUs steps are queued ahead of it. A ResNet-50 step of these takes 100 times as long.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from skinray.augmentation import Augmentation
from skinray.model import split_head
from skinray.optimization import photo_losses, sum_over_replicas
from skinray.photo_reader import PhotoReader
from skinray.replicas import Replicas
from skinray.training_config import TrainSettings

# Share of photos whose age, sex and site are withheld while training, so that the network does well without them too.
CLINICAL_WITHHELD = 0.2
# Numbers of the draws, apart from augmentation's, which count from 1.
_DROPOUT, _WITHHOLD = 1 << 20, 1 << 21


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch.

    Attributes:
        pixels: uint8 [N, size, size, 3].
        clinical: float32 [N, CLINICAL_WIDTH].
        labels: int32 [N].
    """

    pixels: npt.NDArray[np.uint8]
    clinical: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]


# (this worker's part of the loss, a scalar; this worker's logits, [N, C]); the parts of all workers add up to the loss
StepOutcome = tuple[tf.Tensor, tf.Tensor]


def build_train_step(
    replicas: Replicas,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    settings: TrainSettings,
    class_weight: tuple[float, ...],
) -> Callable[[Batch, int], StepOutcome]:
    """One synchronous step.

    Args:
        replicas: This worker's place.
        model: uint8 photos -> logits; its `trainable_variables` at this moment are what is trained.
        optimizer: Built for these variables; takes gradients that are summed over the replicas.
        settings: Loss, augmentation, dropout, seed.
        class_weight: Factor on the loss of each class.

    Returns:
        A function of this worker's batch and the number of the step, from 0 over the whole run.
    """
    strategy = replicas.strategy
    with strategy.scope():
        augment = Augmentation(settings.augmentation)
    features_of, head = split_head(model)
    variables = list(model.trainable_variables)
    takes_clinical = len(model.inputs) == 2

    def replica_step(pixels: tf.Tensor, clinical: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> StepOutcome:
        context = tf.distribute.get_replica_context()
        share, count = context.replica_id_in_sync_group, context.num_replicas_in_sync
        seed = tf.stack([settings.seed, step])
        photos = augment(pixels, seed, share, count)
        if takes_clinical:
            clinical *= _kept(clinical.shape[0], 1, CLINICAL_WITHHELD, seed, _WITHHOLD, share, count)
        with tf.GradientTape() as tape:
            features = features_of([photos, clinical] if takes_clinical else photos, training=True)
            if settings.model.dropout:
                kept = _kept(features.shape[0], features.shape[1], settings.model.dropout, seed, _DROPOUT, share, count)
                features *= tf.cast(kept / (1 - settings.model.dropout), features.dtype)
            logits = head(features)
            weights = tf.gather(tf.constant(class_weight, logits.dtype), labels)
            loss = tf.reduce_sum(photo_losses(logits, labels, settings) * weights) / settings.global_batch_size
            scaled = optimizer.scale_loss(loss)
        optimizer.apply(sum_over_replicas(tape.gradient(scaled, variables)), variables)
        return loss, logits

    @tf.function  # type: ignore[untyped-decorator]
    def step_of_all(pixels: tf.Tensor, clinical: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> StepOutcome:
        outcome: StepOutcome = strategy.run(replica_step, args=(pixels, clinical, labels, step))
        return outcome

    def run(batch: Batch, step: int) -> StepOutcome:
        parts = (replicas.feed(part) for part in (batch.pixels, batch.clinical, batch.labels))
        losses, logits = step_of_all(*parts, tf.constant(step, tf.int32))
        local: tf.Tensor = tf.add_n(strategy.experimental_local_results(losses))
        return local, replicas.collect(logits)

    return run


def _kept(photos: int, width: int, rate: float, seed: tf.Tensor, number: int, share: tf.Tensor | int, shares: int) -> tf.Tensor:
    """Which values of a replica's photos stay: float32 [photos, width], 0 with the probability `rate`, else 1."""
    drawn = tf.random.stateless_uniform([photos * shares, width], tf.random.experimental.stateless_fold_in(seed, number))
    return tf.cast(drawn[share * photos : (share + 1) * photos] >= rate, tf.float32)


def build_predict(
    replicas: Replicas, model: keras.Model, batch_size: int, beat: Callable[[], None]
) -> Callable[[PhotoReader, npt.NDArray[np.float32], npt.NDArray[np.int64]], npt.NDArray[np.float32]]:
    """Exact distributed inference: every row once, whatever the number of workers; all ranks get all logits.

    Args:
        replicas: This worker's place.
        model: uint8 photos -> logits.
        batch_size: Photos that one worker takes at a time.
        beat: Called before every batch.

    Returns:
        A function of photos, their clinical values float32 [rows, CLINICAL_WIDTH] and the row numbers int64 [N] -> float32
        [N, C]. All workers must call it.
    """
    takes_clinical = len(model.inputs) == 2

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def forward(pixels: tf.Tensor, clinical: tf.Tensor) -> tf.Tensor:
        return tf.cast(model([pixels, clinical] if takes_clinical else pixels, training=False), tf.float32)

    def predict(photos: PhotoReader, clinical: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        logits = np.zeros((len(rows), model.outputs[0].shape[-1]), np.float32)
        mine = np.arange(replicas.rank, len(rows), replicas.num_workers)
        photos.expect(rows[mine])
        for start in range(0, len(mine), batch_size):
            places = mine[start : start + batch_size]
            beat()
            taken = rows[np.resize(places, batch_size)]  # a short last batch repeats its rows: one shape, one graph
            made = forward(tf.constant(photos.read(taken)), tf.constant(clinical[taken]))
            logits[places] = made.numpy()[: len(places)]
        return replicas.sum(logits)

    return predict
