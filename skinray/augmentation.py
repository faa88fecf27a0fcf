"""Random changes to training photos, made in the graph by Keras' own layers.

What is drawn for a photo depends on the run's seed, the step and the photo's place in the global batch alone: not on a state
that a restart would lose, and not on how many workers share the batch.
"""

import functools
from typing import Any

import keras
import tensorflow as tf

from skinray.training_config import AugmentationSettings

_LEVELS = (0.0, 255.0)


class Augmentation:
    """Changes photos at random.

    Args:
        settings: How much of what.
    """

    def __init__(self, settings: AugmentationSettings) -> None:
        self._settings = settings
        # Not in half precision, which knows 256 levels at best.
        self._dtype = "float64" if keras.config.dtype_policy().compute_dtype == "float64" else "float32"
        self._layers: list[Any] = []
        if settings.flip:
            # Not "horizontal_and_vertical", which draws once for both: it turns photos by 180 degrees and never mirrors them.
            self._layers += [keras.layers.RandomFlip(mode, dtype=self._dtype) for mode in ("horizontal", "vertical")]
        if settings.rotation_turns:
            self._layers.append(keras.layers.RandomRotation(settings.rotation_turns, fill_mode="reflect", dtype=self._dtype))
        if settings.zoom:
            self._layers.append(keras.layers.RandomZoom(settings.zoom, fill_mode="reflect", dtype=self._dtype))
        if settings.brightness:
            self._layers.append(keras.layers.RandomBrightness(settings.brightness, value_range=_LEVELS, dtype=self._dtype))
        if settings.contrast:
            self._layers.append(keras.layers.RandomContrast(settings.contrast, value_range=_LEVELS, dtype=self._dtype))

    def __call__(self, pixels: tf.Tensor, seed: tf.Tensor, replica: tf.Tensor | int = 0, replicas: int = 1) -> tf.Tensor:
        """Changes one replica's share of a global batch.

        Args:
            pixels: uint8 [N, size, size, 3], with N known when the graph is made.
            seed: int32 [2]: seed of the run, step.
            replica: Which share of the global batch this is, from 0.
            replicas: How many equal shares there are.

        Returns:
            float32 (float64 where all is) [N, size, size, 3], 0 to 255; the input itself when nothing is switched on.
        """
        settings = self._settings
        if not (self._layers or settings.saturation or settings.colour_cast or settings.vignette):
            return pixels
        photos = tf.cast(pixels, self._dtype)
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
        uniform = functools.partial(_own_uniform, draws, self._dtype, share * replicas, replica * share, share)
        if settings.saturation:
            photos = _saturated(photos, uniform([1, 1, 1], 1 - settings.saturation, 1 + settings.saturation))
        if settings.colour_cast:
            photos = tf.clip_by_value(photos * uniform([1, 1, 3], 1 - settings.colour_cast, 1 + settings.colour_cast), *_LEVELS)
        if settings.vignette:
            photos *= _vignettes(int(photos.shape[1]), uniform([6], 0.0, 1.0), settings.vignette)
        return photos


def _own_uniform(
    draws: "_Draws", dtype: str, whole: int, first: Any, share: int, shape: list[int], low: float, high: float
) -> tf.Tensor:
    """Uniform numbers for every photo of the global batch, of which a replica takes its own: float32 [share, *shape]."""
    drawn = tf.random.stateless_uniform([whole, *shape], draws.next(), low, high)
    return tf.cast(drawn[first : first + share], dtype)


def _saturated(photos: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Moves every pixel away from its own grey (above 1) or towards it (below); the grey is Rec. 601's luma."""
    grey = tf.tensordot(photos, tf.constant([0.299, 0.587, 0.114], photos.dtype), axes=1)[..., tf.newaxis]
    return tf.clip_by_value(grey + (photos - grey) * strength, *_LEVELS)


def _vignettes(size: int, drawn: tf.Tensor, probability: float) -> tf.Tensor:
    """What a dermatoscope's round field of view leaves of the light, float32 [N, size, size, 1], 0 to 1.

    Args:
        size: Side in pixels.
        drawn: float32 [N, 6], 0 to 1: whether there is one, radius, two of the centre, softness, darkness.
        probability: Share of photos that get one.
    """
    present, radius, across, down, softness, darkness = (drawn[:, number, tf.newaxis, tf.newaxis] for number in range(6))
    places = tf.cast(tf.linspace(-1.0, 1.0, size), drawn.dtype)
    # The circle cuts the corners and hardly the middle: 1.41 is the corners' distance, 1 the sides'.
    distance = tf.sqrt(
        (places[tf.newaxis, tf.newaxis, :] - 0.2 * (across - 0.5)) ** 2 + (places[:, tf.newaxis] - 0.2 * (down - 0.5)) ** 2
    )
    edge = 0.02 + 0.3 * softness
    inside = tf.clip_by_value((0.9 + 0.4 * radius - distance) / edge + 1.0, 0.0, 1.0)
    light = 1.0 - (1.0 - inside) * (0.5 + 0.5 * darkness)
    return tf.where(present < probability, light, tf.ones_like(light))[..., tf.newaxis]


class _Draws(keras.random.SeedGenerator):  # type: ignore[misc]  # keras has no types
    """A Keras seed generator without a variable: the n-th draw of a step is a hash of the step's seed and n."""

    def __init__(self, seed: tf.Tensor) -> None:
        # Not the base class's: it would make a variable, whose state differs between a killed run and its rerun.
        self._seed = seed
        self._drawn = 0

    def next(self, ordered: bool = True) -> tf.Tensor:  # noqa: ARG002, the base class has it
        self._drawn += 1
        return tf.random.experimental.stateless_fold_in(self._seed, self._drawn)
