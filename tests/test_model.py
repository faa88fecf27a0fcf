"""The networks: every one builds and takes bytes of colour; the right pretrained weights, or one line that says why not."""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skinray.config import ModelName
from skinray.errors import ConfigError, StorageError
from skinray.model import build_model, load_backbone_weights, with_probabilities
from skinray.training_config import ModelSettings

if TYPE_CHECKING:
    import keras

SIZE_PX = 32
NAMES: tuple[ModelName, ...] = ("resnet50", "vgg16", "mobilenet", "cnn_sequential", "cnn_functional")
PRETRAINED: tuple[ModelName, ...] = ("resnet50", "vgg16", "mobilenet")


def settings_of(name: ModelName, **changes: Any) -> ModelSettings:
    return ModelSettings(name=name, mobilenet_alpha=0.25, **changes)


def photos(count: int = 3, size_px: int = SIZE_PX) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, size_px, size_px, 3), np.uint8)


def outputs(model: "keras.Model", pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    import keras

    result: NDArray[np.float32] = keras.ops.convert_to_numpy(model(pixels, training=False))
    return result


def all_layers(model: "keras.Model") -> list["keras.layers.Layer"]:
    import keras

    layers: list[keras.layers.Layer] = []
    for layer in model.layers:
        layers += [layer, *all_layers(layer)] if isinstance(layer, keras.Model) else [layer]
    return layers


@pytest.fixture(scope="module")
def models() -> dict[str, "keras.Model"]:
    """One network of each kind, with random weights, for tests that change nothing."""
    import keras

    keras.utils.set_random_seed(1)
    return {name: build_model(settings_of(name), SIZE_PX, 7) for name in NAMES}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No download succeeds, and none from before is at hand."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("keras.src.utils.file_utils.config.keras_home", lambda: str(tmp_path / "keras"))


def refusal(model: "keras.Model", settings: ModelSettings) -> str:
    with pytest.raises(ConfigError) as caught:
        load_backbone_weights(model, settings)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert "model.weights" in message
    return message


# Every network


@pytest.mark.parametrize("name", NAMES)
def test_every_network_takes_uint8_and_gives_logits(models: dict[str, "keras.Model"], name: ModelName) -> None:
    model = models[name]
    assert (model.name, model.input_shape, model.output_shape) == (name, (None, SIZE_PX, SIZE_PX, 3), (None, 7))
    assert model.inputs[0].dtype == "uint8"
    logits = outputs(model, photos())
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_add_up_to_1_and_are_the_softmax_of_the_logits(models: dict[str, "keras.Model"], name: ModelName) -> None:
    probabilities = outputs(with_probabilities(models[name]), photos())
    logits = outputs(models[name], photos())
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_share_the_weights_they_were_trained_with(name: ModelName) -> None:
    model = build_model(settings_of(name), SIZE_PX, 2)
    probabilities = with_probabilities(model)
    before = outputs(probabilities, photos())
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([kernel, bias + np.array([0, 5], np.float32)])
    after = outputs(probabilities, photos())
    assert (after[:, 1] > before[:, 1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_batch_normalization_is_synchronized(models: dict[str, "keras.Model"], name: ModelName) -> None:
    import keras

    layers = [layer for layer in all_layers(models[name]) if isinstance(layer, keras.layers.BatchNormalization)]
    assert (len(layers) > 0) == (name != "vgg16")
    assert [layer.name for layer in layers if not layer.synchronized] == []
    if name == "resnet50":
        assert len(layers) == 53


@pytest.mark.parametrize("name", PRETRAINED)
def test_every_application_has_the_weights_of_the_one_it_is_made_of(models: dict[str, "keras.Model"], name: ModelName) -> None:
    import keras

    plain = {
        "resnet50": lambda: keras.applications.ResNet50(include_top=False, weights=None, input_shape=(SIZE_PX, SIZE_PX, 3)),
        "vgg16": lambda: keras.applications.VGG16(include_top=False, weights=None, input_shape=(SIZE_PX, SIZE_PX, 3)),
        "mobilenet": lambda: keras.applications.MobileNet(
            include_top=False, weights=None, input_shape=(SIZE_PX, SIZE_PX, 3), alpha=0.25
        ),
    }[name]()
    backbone = models[name].get_layer("backbone")
    assert [weights.shape for weights in backbone.get_weights()] == [weights.shape for weights in plain.get_weights()]


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_normalisation_inside_is_that_of_keras_applications(models: dict[str, "keras.Model"], name: ModelName) -> None:
    import keras

    module = getattr(keras.applications, name)
    model = models[name]
    inside = keras.Model(model.inputs, model.get_layer("normalise").output)
    pixels = np.concatenate(
        [photos(), np.zeros((1, SIZE_PX, SIZE_PX, 3), np.uint8), np.full((1, SIZE_PX, SIZE_PX, 3), 255, np.uint8)]
    )
    np.testing.assert_allclose(outputs(inside, pixels), module.preprocess_input(pixels.astype(np.float32)), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_network_gives_identical_outputs(models: dict[str, "keras.Model"], name: ModelName, tmp_path: Path) -> None:
    import keras

    model = with_probabilities(models[name])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    np.testing.assert_array_equal(outputs(loaded, photos()), outputs(model, photos()))


def test_names_inside_do_not_depend_on_what_was_built_before() -> None:
    first, second = (build_model(settings_of("cnn_sequential"), SIZE_PX, 2) for _ in range(2))
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert [weight.path for weight in first.weights] == [weight.path for weight in second.weights]
    one, two = (build_model(settings_of("mobilenet"), SIZE_PX, 2) for _ in range(2))
    assert [weight.path for weight in one.weights] == [weight.path for weight in two.weights]


def test_dropout_works_in_training_only() -> None:
    import keras

    pixels = photos()
    model = build_model(settings_of("cnn_sequential", dropout=0.5), SIZE_PX, 2)
    np.testing.assert_array_equal(outputs(model, pixels), outputs(model, pixels))
    features = keras.Model(model.inputs, model.get_layer("dropout").output)
    assert (keras.ops.convert_to_numpy(features(pixels, training=True)) == 0).any()
    assert "dropout" not in [layer.name for layer in build_model(settings_of("cnn_sequential", dropout=0), SIZE_PX, 2).layers]


# Weights from elsewhere


@pytest.mark.parametrize("weights", [None, "none"])
@pytest.mark.parametrize("name", ["mobilenet", "cnn_sequential"])
def test_no_weights_change_nothing(name: ModelName, weights: str | None) -> None:
    model = build_model(settings_of(name), SIZE_PX, 2)
    before = model.get_weights()
    load_backbone_weights(model, settings_of(name, weights=weights))
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.fixture
def saved_backbone(tmp_path: Path) -> tuple[Path, list[NDArray[np.float32]]]:
    """The weights of a plain keras.applications network, as Keras users save them."""
    import keras

    plain = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(SIZE_PX, SIZE_PX, 3), alpha=0.25)
    plain.save_weights(tmp_path / "mine.weights.h5")
    return tmp_path / "mine.weights.h5", plain.get_weights()


def check_backbone_alone_changed(path: str, expected: list[NDArray[np.float32]]) -> None:
    model = build_model(settings_of("mobilenet"), SIZE_PX, 2)
    head = model.get_layer("logits").get_weights()
    load_backbone_weights(model, settings_of("mobilenet", weights=path))
    for one, two in zip(model.get_layer("backbone").get_weights(), expected, strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(model.get_layer("logits").get_weights(), head, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_weights_file_goes_to_the_backbone_alone(saved_backbone: tuple[Path, list[NDArray[np.float32]]]) -> None:
    path, expected = saved_backbone
    check_backbone_alone_changed(str(path), expected)


@pytest.mark.s3
def test_a_weights_file_may_lie_in_a_bucket(saved_backbone: tuple[Path, list[NDArray[np.float32]]], s3_bucket: str) -> None:
    from skinray import storage

    path, expected = saved_backbone
    storage.write_bytes(f"{s3_bucket}/mine.weights.h5", path.read_bytes())
    check_backbone_alone_changed(f"{s3_bucket}/mine.weights.h5", expected)


@pytest.mark.data
def test_the_real_imagenet_weights_go_to_the_backbone_alone(real_data: Path) -> None:
    import keras

    path = real_data.parent / "weights" / "mobilenet_0.25_imagenet_notop.weights.h5"
    plain = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(64, 64, 3), alpha=0.25)
    before = plain.get_weights()
    plain.load_weights(path)
    assert not all(np.array_equal(one, two) for one, two in zip(before, plain.get_weights(), strict=True))
    check_backbone_alone_changed(str(path), plain.get_weights())


def test_weights_of_another_width_are_refused(saved_backbone: tuple[Path, list[NDArray[np.float32]]]) -> None:
    path, _ = saved_backbone
    settings = ModelSettings(name="mobilenet", mobilenet_alpha=0.5, weights=str(path))
    model = build_model(settings, SIZE_PX, 2)
    message = refusal(model, settings)
    assert str(path) in message
    assert "does not fit mobilenet" in message


def test_weights_of_another_network_are_refused(
    models: dict[str, "keras.Model"], saved_backbone: tuple[Path, list[NDArray[np.float32]]]
) -> None:
    path, _ = saved_backbone
    assert "does not fit vgg16" in refusal(models["vgg16"], settings_of("vgg16", weights=str(path)))


def test_refused_weights_leave_the_network_as_it_was(saved_backbone: tuple[Path, list[NDArray[np.float32]]]) -> None:
    path, _ = saved_backbone
    settings = ModelSettings(name="mobilenet", mobilenet_alpha=0.5, weights=str(path))
    model = build_model(settings, SIZE_PX, 2)
    before = model.get_weights()
    refusal(model, settings)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def zipped() -> bytes:
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "b")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", zipped()], ids=["empty", "HTML", "zip"])
def test_a_file_that_holds_no_weights_is_refused(models: dict[str, "keras.Model"], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.weights.h5"
    path.write_bytes(content)
    assert str(path) in refusal(models["mobilenet"], settings_of("mobilenet", weights=str(path)))


def test_half_a_weights_file_is_refused(saved_backbone: tuple[Path, list[NDArray[np.float32]]]) -> None:
    path, _ = saved_backbone
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    settings = settings_of("mobilenet", weights=str(path))
    assert str(path) in refusal(build_model(settings, SIZE_PX, 2), settings)


@pytest.mark.parametrize("weights", ["model.keras", "weights.h5", "Imagenet", "s3://bucket/weights/"])
def test_another_ending_is_refused(models: dict[str, "keras.Model"], weights: str) -> None:
    message = refusal(models["mobilenet"], settings_of("mobilenet", weights=weights))
    assert message == f"model.weights {weights}: give none, imagenet or a file that ends in .weights.h5"


@pytest.mark.parametrize("weights", ["imagenet", "mine.weights.h5"])
@pytest.mark.parametrize("name", ["cnn_sequential", "cnn_functional"])
def test_our_own_networks_have_no_pretrained_weights(models: dict[str, "keras.Model"], name: ModelName, weights: str) -> None:
    assert f"{weights}: {name} has no pretrained weights" in refusal(models[name], settings_of(name, weights=weights))


def test_a_missing_weights_file_is_named(models: dict[str, "keras.Model"], tmp_path: Path) -> None:
    path = str(tmp_path / "nope.weights.h5")
    with pytest.raises((ConfigError, StorageError)) as caught:
        load_backbone_weights(models["mobilenet"], settings_of("mobilenet", weights=path))
    assert path in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["mobilenet", "resnet50"])
def test_imagenet_weights_without_internet_are_refused_with_the_way_out(
    models: dict[str, "keras.Model"], name: ModelName, offline: None
) -> None:
    message = refusal(models[name], settings_of(name, weights="imagenet"))
    assert "the download failed" in message
    assert "give a local or s3:// .weights.h5 file instead" in message
