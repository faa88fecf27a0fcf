"""Random changes to training photos, made in the graph by Keras' own layers.

What is drawn for a photo depends on the run's seed, the step and the photo's place in the global batch alone: not on a state
that a restart would lose, and not on how many workers share the batch.
"""

from typing import Any

import keras
import tensorflow as tf

from skinray.training_config import AugmentationSettings


class Augmentation:
    """Changes photos at random.

    Args:
        settings: How much of what.
    """

    def __init__(self, settings: AugmentationSettings) -> None:
        levels = (0.0, 255.0)
        self._layers: list[Any] = []
        if settings.flip:
            # Not "horizontal_and_vertical", which draws once for both: it turns photos by 180 degrees and never mirrors them.
            self._layers += [keras.layers.RandomFlip("horizontal"), keras.layers.RandomFlip("vertical")]
        if settings.rotation_turns:
            self._layers.append(keras.layers.RandomRotation(settings.rotation_turns, fill_mode="reflect"))
        if settings.zoom:
            self._layers.append(keras.layers.RandomZoom(settings.zoom, fill_mode="reflect"))
        if settings.brightness:
            self._layers.append(keras.layers.RandomBrightness(settings.brightness, value_range=levels))
        if settings.contrast:
            self._layers.append(keras.layers.RandomContrast(settings.contrast, value_range=levels))

    def __call__(self, pixels: tf.Tensor, seed: tf.Tensor, replica: tf.Tensor | int = 0, replicas: int = 1) -> tf.Tensor:
        """Changes one replica's share of a global batch.

        Args:
            pixels: uint8 [N, size, size, 3], with N known when the graph is made.
            seed: int32 [2]: seed of the run, step.
            replica: Which share of the global batch this is, from 0.
            replicas: How many equal shares there are.

        Returns:
            float32 [N, size, size, 3], 0 to 255; the input itself when nothing is switched on.
        """
        if not self._layers:
            return pixels
        photos = tf.cast(pixels, tf.float32)
        share = int(photos.shape[0])
        # The draws of the whole global batch, of which each replica takes its own: a few numbers a photo. Only the shape is
        # looked at, so the zeros are never made.
        whole = tf.zeros([share * replicas, *photos.shape[1:]])
        draws = _Draws(seed)

        def own(drawn: Any) -> Any:
            of_photos = isinstance(drawn, tf.Tensor) and drawn.shape.rank and drawn.shape[0] == share * replicas
            return drawn[replica * share : (replica + 1) * share] if of_photos else drawn

        for layer in self._layers:
            drawn = layer.get_random_transformation(whole, training=True, seed=draws)
            transformation = {name: own(value) for name, value in drawn.items()}
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
        return tf.random.experimental.stateless_fold_in(self._seed, self._drawn)
