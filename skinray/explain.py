"""Where in a photo a model sees what speaks for malignancy: Grad-CAM, for every network and for their ensembles.

Source: Selvaraju et al. 2017, arXiv:1610.02391. A map says which places the score hangs on, and not whether that is sound.
"""

from collections.abc import Iterator, Sequence

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from skinray.clinical import NO_CLINICAL
from skinray.model import LOGITS_LAYER, POOL_LAYER

Pixels = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]

_AT_ONCE = 16


def heat_maps(
    model: keras.Model, pixels: Pixels, malignant: Sequence[int], clinical: npt.NDArray[np.float32] | None = None
) -> Maps:
    """What speaks for malignancy, place by place.

    Args:
        model: A bundle's model.
        pixels: uint8 [N, size, size, 3].
        malignant: Positions of the malignant classes among the outputs.
        clinical: float32 [N, CLINICAL_WIDTH] for a model that takes it; None: nothing is known.

    Returns:
        float32 [N, size, size], 0 to 1, the hottest place of each photo at 1 (all 0 where nothing speaks for malignancy); as
        fine as the network's last feature map, smoothly enlarged.
    """
    size = pixels.shape[1]
    maps = [_member_maps(member, pixels, tuple(malignant), clinical) for member in _members(model)]
    # Members count alike, however large their gradients.
    enlarged = [tf.image.resize(_to_one(each)[..., np.newaxis], (size, size)).numpy()[..., 0] for each in maps]
    return _to_one(np.mean(enlarged, axis=0))


def _members(model: keras.Model) -> Iterator[keras.Model]:
    """The networks of which a bundle's model consists."""
    if any(layer.name == POOL_LAYER for layer in model.layers):
        yield model
        return
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _members(layer)


def _member_maps(
    model: keras.Model, pixels: Pixels, malignant: tuple[int, ...], clinical: npt.NDArray[np.float32] | None
) -> Maps:
    features = model.get_layer(POOL_LAYER).input
    inside = keras.Model(model.inputs, [features, model.get_layer(LOGITS_LAYER).output])
    classes = int(inside.outputs[1].shape[-1])
    benign = [position for position in range(classes) if position not in malignant]
    takes_clinical = len(model.inputs) == 2
    found = []
    for start in range(0, len(pixels), _AT_ONCE):
        photos = tf.constant(pixels[start : start + _AT_ONCE])
        given = [photos]
        if takes_clinical:
            known = np.repeat(NO_CLINICAL, len(photos), axis=0) if clinical is None else clinical[start : start + _AT_ONCE]
            given.append(tf.constant(known))
        with tf.GradientTape() as tape:
            maps, logits = inside(given if takes_clinical else photos, training=False)
            logits = tf.cast(logits, tf.float32)
            # The log odds of malignancy. A probability's gradient would vanish where the model is sure.
            odds = tf.reduce_logsumexp(tf.gather(logits, malignant, axis=1), 1) - tf.reduce_logsumexp(
                tf.gather(logits, benign, axis=1), 1
            )
        weights = tf.reduce_mean(tape.gradient(odds, maps), axis=(1, 2), keepdims=True)
        found.append(tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1)).numpy())
    return np.concatenate(found).astype(np.float32)


def _to_one(maps: Maps) -> Maps:
    highest = maps.max(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(maps, highest, out=np.zeros_like(maps), where=highest > 0), np.float32)


def overlay(pixels: Pixels, heat: Maps, strength: float = 0.55) -> Pixels:
    """A photo with its heat map over it.

    Args:
        pixels: uint8 [size, size, 3].
        heat: float32 [size, size], 0 to 1.
        strength: How much of the photo the hottest place hides.

    Returns:
        uint8 [size, size, 3].
    """
    import matplotlib

    colours = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    share = strength * heat[..., np.newaxis]
    return np.asarray(np.clip(pixels * (1 - share) + colours * share, 0, 255), np.uint8)
