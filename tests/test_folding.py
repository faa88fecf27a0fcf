"""Folding: fewer layers, the same answers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skinray.clinical import CLINICAL_WIDTH
from skinray.training_config import ModelSettings

if TYPE_CHECKING:
    import keras

SIZE_PX = 32


def network(name: Any, clinical: bool = False) -> "keras.Model":
    """Of logits, because probabilities of a network of noise are 0 and 1."""
    from skinray.model import build_model

    return build_model(ModelSettings(name=name, mobilenet_alpha=0.25, clinical_input=clinical), SIZE_PX, 3)


def lively(model: "keras.Model") -> "keras.Model":
    """Statistics of the photos themselves, and scales and shifts that differ."""
    rng = np.random.default_rng(3)
    norms = norms_of(model)
    for norm in norms:
        norm.momentum = 0.0
    model(inputs_of(model), training=True)
    for norm in norms:
        norm.gamma.assign(norm.gamma * rng.uniform(0.7, 1.3, norm.gamma.shape))
        norm.beta.assign(rng.uniform(-0.3, 0.3, norm.beta.shape))
    return model


def inputs_of(model: "keras.Model") -> list[NDArray[Any]]:
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (6, SIZE_PX, SIZE_PX, 3), np.uint8)
    return [photos, rng.normal(size=(6, CLINICAL_WIDTH)).astype(np.float32)][: len(model.inputs)]


def norms_of(model: "keras.Model") -> list[Any]:
    import keras

    inner = [norm for layer in model.layers if isinstance(layer, keras.Model) for norm in norms_of(layer)]
    return inner + [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]


def answer(model: "keras.Model") -> NDArray[np.float32]:
    given = inputs_of(model)
    return np.asarray(model(given if len(given) > 1 else given[0], training=False))


def flipped() -> "keras.Model":
    from skinray.ensemble import flipped

    return flipped(network("mobilenet"))


def averaged() -> "keras.Model":
    from skinray.ensemble import averaged

    return averaged([network("cnn_sequential"), network("cnn_sequential")])


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda: network("resnet50"), 0),
        (lambda: network("vgg16"), 0),
        (lambda: network("mobilenet"), 0),
        (lambda: network("cnn_sequential"), 0),
        # One convolution that looks at two scales, with a norm for each.
        (lambda: network("cnn_functional", clinical=True), 2),
        (flipped, 0),
        (averaged, 0),
    ],
)
def test_every_network_says_what_it_said(build: Callable[[], "keras.Model"], left: int) -> None:
    from skinray.folding import folded

    model = lively(build())
    before = answer(model)
    largest = np.abs(before).max()
    assert before.std(axis=0).max() > 0.01 * largest  # else equal answers mean nothing
    result = folded(model)
    assert len(norms_of(result)) == left
    np.testing.assert_allclose(answer(result), before, atol=1e-4 * largest)
    np.testing.assert_array_equal(answer(model), before)


@pytest.mark.parametrize(
    "build",
    [
        lambda: network("resnet50"),
        lambda: network("vgg16"),
        lambda: network("mobilenet"),
        lambda: network("cnn_sequential"),
        lambda: network("cnn_functional", clinical=True),
        flipped,
    ],
)
def test_feature_maps_are_bfloat16_and_the_ends_are_not(build: Callable[[], "keras.Model"]) -> None:
    import keras

    from skinray.folding import folded

    keras.utils.set_random_seed(0)
    model = lively(build())
    before = answer(model)
    result = folded(model, "bfloat16")
    computed = {layer.compute_dtype: set() for layer in layers_of(result)}  # type: ignore[var-annotated]
    for layer in layers_of(result):
        computed[layer.compute_dtype].add(type(layer).__name__)
    assert "Conv2D" in computed["bfloat16"]
    assert not computed["float32"] & {"Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU", "Activation", "Add"}
    assert not computed["bfloat16"] & {"Rescaling", "GlobalAveragePooling2D", "Dense", "Softmax"}
    assert {layer.compute_dtype for layer in layers_of(result) if layer.name == "clinical_join"} <= {"float32"}
    assert all(weight.dtype == layer.compute_dtype for layer in layers_of(result) for weight in layer.weights)
    after = answer(result)
    assert after.dtype == np.float32
    # Networks of noise make more of it than trained ones: MobileNet's logits move by a quarter of the largest.
    assert not np.array_equal(after, before)
    assert np.corrcoef(after.ravel(), before.ravel())[0, 1] > 0.9
    np.testing.assert_array_equal(answer(model), before)


def layers_of(model: "keras.Model") -> list[Any]:
    import keras

    inner = [layer for each in model.layers if isinstance(each, keras.Model) for layer in layers_of(each)]
    return inner + [layer for layer in model.layers if not isinstance(layer, keras.Model)]


def small(layers: Callable[[Any], Any]) -> "keras.Model":
    import keras

    photo = keras.Input((SIZE_PX, SIZE_PX, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 255)(photo)
    return keras.Model(photo, keras.layers.GlobalAveragePooling2D()(layers(scaled)))


@pytest.mark.parametrize("norm", [{}, {"scale": False}, {"center": False}, {"epsilon": 0.1}])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["plain", "depthwise"])
def test_every_kind_of_pair_is_folded(kind: str, bias: bool, norm: dict[str, Any]) -> None:
    import keras

    from skinray.folding import folded

    depthwise = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=bias, bias_initializer="random_normal")
    plain = keras.layers.Conv2D(5, 3, padding="same", use_bias=bias, bias_initializer="random_normal")
    convolution = depthwise if kind == "depthwise" else plain
    model = small(lambda scaled: keras.layers.BatchNormalization(**norm)(convolution(scaled)))
    (layer,) = norms_of(model)
    rng = np.random.default_rng(5)
    layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    result = folded(model)
    assert not norms_of(result)
    np.testing.assert_allclose(answer(result), answer(model), rtol=1e-4, atol=1e-6)


def after_activation(scaled: Any) -> Any:
    import keras

    return keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, activation="relu")(scaled))


def beside_another(scaled: Any) -> Any:
    import keras

    features = keras.layers.Conv2D(4, 3)(scaled)
    return keras.layers.Add()([keras.layers.BatchNormalization()(features), features])


def shared(scaled: Any) -> Any:
    import keras

    convolution, norm = keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()
    return keras.layers.Add()([norm(convolution(scaled)), norm(convolution(-scaled))])


def of_the_photo(scaled: Any) -> Any:
    import keras

    return keras.layers.BatchNormalization()(scaled)


@pytest.mark.parametrize("layers", [after_activation, beside_another, shared, of_the_photo])
def test_what_is_no_such_pair_is_left_as_it_is(layers: Callable[[Any], Any]) -> None:
    from skinray.folding import folded

    model = lively(small(layers))
    result = folded(model)
    assert len(norms_of(result)) == 1
    np.testing.assert_array_equal(answer(result), answer(model))
