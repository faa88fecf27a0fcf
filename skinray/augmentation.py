"""Random changes to training photos, made in the graph by Keras' own layers.

What is drawn depends on the run's seed, the step and the replica alone, and not on a state that a restart would lose.
"""

from typing import Any

import keras
import tensorflow as tf

from skinray.config import AugmentationSettings


class Augmentation:
    """Changes photos at random.

    Args:
        settings: How much of what.
    """

    def __init__(self, settings: AugmentationSettings) -> None:
        levels = (0.0, 255.0)
        self._layers: list[Any] = []
        if settings.flip:
            self._layers.append(keras.layers.RandomFlip("horizontal_and_vertical"))
        if settings.rotation_turns:
            self._layers.append(keras.layers.RandomRotation(settings.rotation_turns, fill_mode="reflect"))
        if settings.zoom:
            self._layers.append(keras.layers.RandomZoom(settings.zoom, fill_mode="reflect"))
        if settings.brightness:
            self._layers.append(keras.layers.RandomBrightness(settings.brightness, value_range=levels))
        if settings.contrast:
            self._layers.append(keras.layers.RandomContrast(settings.contrast, value_range=levels))

    def __call__(self, pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Changes a batch.

        Args:
            pixels: uint8 [N, size, size, 3].
            seed: int32 [3]: seed of the run, step, replica.

        Returns:
            float32 [N, size, size, 3], 0 to 255; the input itself when nothing is switched on.
        """
        if not self._layers:
            return pixels
        photos = tf.cast(pixels, tf.float32)
        draws = _Draws(seed)
        for layer in self._layers:
            transformation = layer.get_random_transformation(photos, training=True, seed=draws)
            photos = layer.transform_images(photos, transformation, training=True)
        return photos


class _Draws(keras.random.SeedGenerator):  # type: ignore[misc]  # keras has no types
    """A Keras seed generator without a variable: the n-th draw of a step is a hash of the step's seed and n."""

    def __init__(self, seed: tf.Tensor) -> None:
        # Not the base class's: it would make a variable, whose state differs between a killed run and its rerun.
        self._seed = seed
        self._drawn = 0

    def next(self, ordered: bool = True) -> tf.Tensor:  # noqa: ARG002, the base class has it
        self._drawn += 1
        folded = tf.random.experimental.stateless_fold_in(self._seed[:2], self._seed[2])
        return tf.random.experimental.stateless_fold_in(folded, self._drawn)
