"""Heat maps follow the definition and come from every network; test_demo.py has what a trained one looks at."""

from typing import Any

import numpy as np
import pytest

from skinray.training_config import ModelSettings


def build(name: Any, classes: int = 2, size: int = 64, **changes: Any) -> Any:
    import keras

    from skinray.calibration import Calibration
    from skinray.model import build_model, with_probabilities

    keras.utils.set_random_seed(3)
    model = build_model(ModelSettings(name=name, **changes), size, classes)
    return with_probabilities(model, Calibration(1.5, tuple(np.linspace(-0.2, 0.2, classes))))


def random_photos(count: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cnn_sequential", {}),
        ("cnn_functional", {"clinical_input": True}),
        ("mobilenet", {"mobilenet_alpha": 0.25}),
        ("resnet50", {}),
        ("vgg16", {}),
    ],
)
def test_every_network_has_a_map_of_every_photo(name: str, changes: dict[str, Any]) -> None:
    from skinray.explain import heat_maps

    model = build(name, classes=3, **changes)
    photos = random_photos(3)
    maps = heat_maps(model, photos, [1, 2])
    assert maps.shape == (3, 64, 64)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    assert set(np.round(maps.max(axis=(1, 2)), 5)) <= {0.0, 1.0}
    np.testing.assert_allclose(heat_maps(model, photos[1:2], [1, 2])[0], maps[1], atol=1e-4)


def test_without_hidden_layers_the_map_is_the_class_activation_map() -> None:
    """Behind a mean over places and a single layer, Grad-CAM is that layer's weights times the features (Zhou et al. 2016)."""
    import keras
    import tensorflow as tf

    from skinray.explain import heat_maps

    model, photos = build("cnn_sequential"), random_photos(4)
    features = keras.Model(model.inputs, model.get_layer("pool").input)(photos, training=False).numpy()
    kernel = model.get_layer("logits").get_weights()[0]
    expected = np.maximum(features @ (kernel[:, 1] - kernel[:, 0]), 0)
    expected = tf.image.resize(expected[..., np.newaxis], (64, 64)).numpy()[..., 0]
    highest = expected.max(axis=(1, 2), keepdims=True)
    expected = np.divide(expected, highest, out=np.zeros_like(expected), where=highest > 0)
    np.testing.assert_allclose(heat_maps(model, photos, [1]), expected, atol=1e-4)


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    from skinray.ensemble import averaged
    from skinray.explain import heat_maps

    photos = random_photos(2)
    members = [build("cnn_sequential"), build("cnn_functional")]
    apart = [heat_maps(member, photos, [1]) for member in members]
    together = heat_maps(averaged(members), photos, [1])
    for whole, mean in zip(together, np.mean(apart, axis=0), strict=True):
        assert np.corrcoef(whole.ravel(), mean.ravel())[0, 1] > 0.95


def test_an_overlay_is_the_photo_where_there_is_no_heat() -> None:
    from skinray.explain import overlay

    photo = random_photos(1)[0]
    heat = np.zeros((64, 64), np.float32)
    np.testing.assert_array_equal(overlay(photo, heat), photo)
    heat[10, 10] = 1
    changed = overlay(photo, heat)
    assert (changed[10, 10] != photo[10, 10]).any()
    assert (
        np.delete(changed.reshape(-1, 3), 10 * 64 + 10, axis=0) == np.delete(photo.reshape(-1, 3), 10 * 64 + 10, axis=0)
    ).all()
