"""BatchNorm over all replicas, for CPUs: one collective forward, one backward, TensorFlow's fused kernels between them.

Keras computes a training pass from elementary operations, each of which reads and writes the whole activation, and
synchronizes it by three all-reduces a layer forward and two backward. MobileNet (192 px, 32 photos a step, two cores) trains at
31 photos a second so in one process, and at 23 as two workers of one core each; with `SynchronizedBatchNormalization` it is 50
and 32.

Models are built and stored with Keras' own layers and trained with these: `synchronized` and `plain` turn one kind of model
into the other.

Source: Ioffe & Szegedy 2015, Batch Normalization, https://arxiv.org/abs/1502.03167.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="skinray", name="SynchronizedBatchNormalization")
class SynchronizedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]  # keras has no types
    """Keras' BatchNormalization with `synchronized=True`, and a faster training pass.

    It has the same options, weights and results, up to rounding. All replicas must hold equally many values, as the shares of a
    global batch do; Keras would count them, with one more all-reduce. Keras' own code runs for inference, for frozen layers, and
    where the kernels do not fit: on GPUs, for masks and renorm, and for any input but [N, H, W, C].

    Args:
        options: What keras.layers.BatchNormalization takes, by name; `synchronized` is always true.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "synchronized": True})

    def plain_config(self) -> dict[str, Any]:
        """The config of an ordinary keras.layers.BatchNormalization that does the same within one replica."""
        return {**self.get_config(), "synchronized": False}

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Normalises, as keras.layers.BatchNormalization does."""
        if not (training and self.trainable) or mask is not None or not self._fits(inputs):
            return super().call(inputs, training=training, mask=mask)
        # Statistics are float32 at least, as in Keras. The kernels take bfloat16 inputs with them, in half the time that casting
        # these and float32 kernels need; float16 inputs would take 1.4 times that time, and are cast.
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        x = inputs if inputs.dtype == tf.bfloat16 else tf.cast(inputs, dtype)
        gamma = tf.cast(self.gamma, dtype) if self.scale else tf.ones(x.shape[-1], dtype)
        beta = tf.cast(self.beta, dtype) if self.center else tf.zeros(x.shape[-1], dtype)
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            outputs, mean, variance = _normalized_alone(x, gamma, beta, self.epsilon)
        else:
            outputs, mean, variance = _normalized_together(x, gamma, beta, self.epsilon, context)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(tf.cast(moving, dtype) * self.momentum + value * (1.0 - self.momentum))
        return tf.cast(outputs, self.compute_dtype)

    def _fits(self, inputs: tf.Tensor) -> bool:
        images = inputs.shape.rank == 4 and self.axis in (-1, 3)
        return images and not self.renorm and not tf.config.get_visible_devices("GPU")


# Keras writes a layer's class into a .weights.h5 file and not its name, and names layers after their class: under a name of its
# own this class could not load the weights of a network built with Keras' layers, nor the other way round.
SynchronizedBatchNormalization.__name__ = "BatchNormalization"


def synchronized(model: keras.Model) -> keras.Model:
    """A copy for training: every BatchNormalization, also in nested models, is a `SynchronizedBatchNormalization`.

    Args:
        model: Any that Keras can store and load. It is not changed, and shares no variable with the copy.

    Returns:
        The same network, not compiled, with the same weights in the same order and by the same names, frozen where it was.
    """
    return _copied(model, is_synchronized=True)


def plain(model: keras.Model) -> keras.Model:
    """A copy for storing: every BatchNormalization, also in nested models, is Keras' own and not synchronized.

    Args:
        model: Any that Keras can store and load. It is not changed, and shares no variable with the copy.

    Returns:
        The same network, not compiled, with the same weights in the same order and by the same names, frozen where it was.
    """
    return _copied(model, is_synchronized=False)


def _copied(model: keras.Model, is_synchronized: bool) -> keras.Model:
    # By the config and not by keras.models.clone_model, which gives inputs of models within models other names and leaves out
    # which of those models are frozen.
    kinds = (keras.layers.BatchNormalization, SynchronizedBatchNormalization)
    keys = ("module", "class_name", "registered_name")
    # Named, because Keras would count them, and name the layers that come next after that.
    own, ours = ({key: keras.saving.serialize_keras_object(kind(name="norm"))[key] for key in keys} for kind in kinds)

    def replaced(node: Any) -> Any:
        if isinstance(node, (list, tuple)):
            return type(node)(map(replaced, node))
        if not isinstance(node, dict):
            return node
        if {key: node.get(key) for key in keys} in (own, ours):
            config = {**node["config"], "synchronized": is_synchronized}
            return {**node, **(ours if is_synchronized else own), "config": config}
        return {key: replaced(value) for key, value in node.items() if key != "compile_config"}

    copy = keras.saving.deserialize_keras_object(replaced(keras.saving.serialize_keras_object(model)))
    copy.set_weights(model.get_weights())
    _copy_trainable(model, copy)
    return copy


def _copy_trainable(model: keras.layers.Layer, copy: keras.layers.Layer) -> None:
    """Freezes what is frozen, from the outside in, because setting a model sets all that is in it."""
    copy.trainable = model.trainable
    for layer, copied in zip(getattr(model, "layers", []), getattr(copy, "layers", []), strict=True):
        _copy_trainable(layer, copied)


def _normalized_alone(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The output, mean and variance of a single replica's batch."""
    if x.dtype == tf.float64:
        mean, variance = _moments(tf.stop_gradient(x))
        return _with_gradient(x, gamma, beta, mean, variance, epsilon, 1, lambda sums: sums), mean, variance
    outputs, mean, _, _, variance, _ = _train_kernel(x, gamma, beta, epsilon)
    return outputs, mean, variance


def _normalized_together(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float, context: tf.distribute.ReplicaContext
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """This replica's output, and the mean and variance of all replicas' batches."""
    replicas = context.num_replicas_in_sync

    def summed(values: tf.Tensor) -> tf.Tensor:
        return context.all_reduce(tf.distribute.ReduceOp.SUM, values)

    moments = _moments(tf.stop_gradient(x))
    mean, variance = (tf.cast(moment, tf.float64) for moment in moments)
    # The variance of all is E[local variance + local mean^2] - mean^2. In float32 the difference would lose everything where
    # the mean is 4,000 times the deviation. In float64 its error, 2^-53 mean^2, stays below the 2^-52 mean^2 by which rounding
    # the inputs to float32 blurs their variance already. Taking a common shift off first would help as well, but the moving
    # mean is none: where machines round differently, replicas' moving means would come apart and never meet again.
    mean, square = tf.split(summed(tf.concat([mean, variance + tf.square(mean)], 0)) / replicas, 2)
    variance = tf.cast(tf.maximum(square - tf.square(mean), 0.0), gamma.dtype)
    mean = tf.cast(mean, gamma.dtype)
    return _with_gradient(x, gamma, beta, mean, variance, epsilon, replicas, summed), mean, variance


def _with_gradient(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    epsilon: float,
    replicas: int,
    summed: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Normalises with given moments, whose dependence on the inputs of all replicas the gradient knows.

    With x^ = (x - mean) / s, s = sqrt(variance + epsilon) and sums over all replicas' M values a channel (paper, section 3):
    dL/dx = gamma / s (dL/dy - sum(dL/dy) / M - x^ sum(dL/dy x^) / M).

    Gamma and beta get this replica's sums alone: a training loop sums the gradients of all weights over replicas, here as for
    any other layer. That is also what differentiating through Keras' all-reduces gives.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def normalized(
        x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            direct, d_gamma, d_beta = _fixed_moments_gradient(upstream, x, gamma, mean, variance, epsilon)
            all_gamma, all_beta = tf.split(summed(tf.concat([d_gamma, d_beta], 0)), 2)
            count = tf.cast(tf.size(x) // tf.shape(x)[-1], gamma.dtype) * replicas
            factor = -gamma * tf.math.rsqrt(variance + epsilon) / count
            through_moments = _normalize(x, factor * all_gamma, factor * all_beta, mean, variance, epsilon)
            return direct + through_moments, d_gamma, d_beta

        return _normalize(x, gamma, beta, mean, variance, epsilon), gradient

    return normalized(x, gamma, beta)


def _moments(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance over N, H and W; the variance is a mean of squares as Keras' is, not an unbiased estimate."""
    if x.dtype == tf.float64:
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        return mean, variance
    ones = tf.ones(x.shape[-1])
    # It writes an output that nobody reads, and is yet three times as fast as tf.nn.moments, which writes squares: 25 and 75 ms
    # for 32 x 96 x 96 x 64 values on two cores. Matrix products and depthwise kernels sum x and x^2 faster still, and lose the
    # variance where the mean is large.
    _, mean, _, _, variance, _ = _train_kernel(x, ones, ones, 1e-3)
    return mean, variance


def _train_kernel(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float) -> Any:
    """The fused kernel, which TensorFlow can differentiate.

    Its outputs 1 and 3 are the mean, 2 the variance with N - 1 in the denominator, and 4 that with N, on CPUs.
    """
    none = tf.zeros(0)
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=offset, mean=none, variance=none, epsilon=epsilon, is_training=True
    )


def _normalize(
    x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, epsilon: float
) -> tf.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * scale + offset in one pass over x.

    The mean is taken off first. Keras folds it into the offset, which is coarser where the mean is far above the deviation.
    """
    if x.dtype == tf.float64:
        return (x - mean) * (tf.math.rsqrt(variance + epsilon) * scale) + offset
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=epsilon, is_training=False
    )[0]


def _fixed_moments_gradient(
    upstream: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The gradients of `_normalize` with regard to x, scale and offset, with the moments taken as constants."""
    if x.dtype == tf.float64:
        inverse = tf.math.rsqrt(variance + epsilon)
        d_scale = tf.reduce_sum(upstream * (x - mean), [0, 1, 2]) * inverse
        return upstream * (scale * inverse), d_scale, tf.reduce_sum(upstream, [0, 1, 2])
    d_x, d_scale, d_offset, _, _ = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=upstream,
        x=x,
        scale=scale,
        reserve_space_1=mean,
        reserve_space_2=variance,
        reserve_space_3=tf.zeros(0),
        epsilon=epsilon,
        is_training=False,
    )
    return d_x, d_scale, d_offset
