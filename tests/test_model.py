"""The networks: every one builds and takes bytes of colour; the right pretrained weights, or one line that says why not."""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skinray.clinical import CLINICAL_WIDTH, NO_CLINICAL, encode_clinical
from skinray.config import ModelName
from skinray.errors import ConfigError, StorageError
from skinray.model import (
    LOGITS_LAYER,
    backbone_layer_names,
    build_model,
    load_backbone_weights,
    set_trainable,
    split_head,
    with_probabilities,
)
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


def outputs(model: "keras.Model", inputs: Any, training: bool = False) -> NDArray[np.float32]:
    import keras

    result: NDArray[np.float32] = keras.ops.convert_to_numpy(model(inputs, training=training))
    return result


@pytest.fixture(scope="module")
def with_clinical() -> "keras.Model":
    """The functional network with its second input, and random weights."""
    import keras

    keras.utils.set_random_seed(3)
    return build_model(settings_of("cnn_functional", clinical_input=True), SIZE_PX, 3)


def known(count: int = 3) -> NDArray[np.float32]:
    rng = np.random.default_rng(count)
    return encode_clinical(
        rng.uniform(1, 99, count), rng.choice(["male", "female", ""], count), rng.choice(["back", "face"], count)
    )


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
    # It looks at the variables when it is made, which may have been before, or would be of use to others afterwards.
    monkeypatch.setattr("urllib.request._opener", None)
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
def test_every_batch_normalization_is_keras_own_and_plain(models: dict[str, "keras.Model"], name: ModelName) -> None:
    import keras

    layers = [layer for layer in all_layers(models[name]) if isinstance(layer, keras.layers.BatchNormalization)]
    assert (len(layers) > 0) == (name != "vgg16")
    assert [layer.name for layer in layers if layer.synchronized or type(layer) is not keras.layers.BatchNormalization] == []
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


@pytest.mark.parametrize("name", NAMES)
def test_no_network_drops_features_itself(models: dict[str, "keras.Model"], name: ModelName) -> None:
    import keras

    # Training does, with masks that do not depend on how many workers there are.
    kinds = (keras.layers.Dropout, keras.layers.SpatialDropout2D, keras.layers.GaussianDropout, keras.layers.AlphaDropout)
    model = build_model(settings_of(name, dropout=0.9), SIZE_PX, 7)
    assert [layer.name for layer in all_layers(model) if isinstance(layer, kinds)] == []
    assert [weights.shape for weights in model.get_weights()] == [weights.shape for weights in models[name].get_weights()]


# The head


@pytest.mark.parametrize("name", NAMES)
def test_the_halves_of_a_network_are_the_network(models: dict[str, "keras.Model"], name: ModelName) -> None:
    import keras

    model = models[name]
    features, logits = split_head(model)
    assert logits is model.get_layer(LOGITS_LAYER)
    assert len(features.output_shape) == 2
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(logits(features(photos()))), outputs(model, photos()))
    mine = {id(weight) for weight in [*features.weights, *logits.weights]}
    assert mine == {id(weight) for weight in model.weights}


def test_the_half_with_two_inputs_takes_both(with_clinical: "keras.Model") -> None:
    import keras

    features, logits = split_head(with_clinical)
    assert [one.name for one in features.inputs] == ["photo", "clinical"]
    inputs = [photos(), known()]
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(logits(features(inputs))), outputs(with_clinical, inputs))


# The functional network


def test_one_convolution_looks_at_the_photo_at_two_scales(models: dict[str, "keras.Model"]) -> None:
    import keras

    model = models["cnn_functional"]
    edges = model.get_layer("edges")
    scales = [keras.Model(model.inputs, model.get_layer(name).input) for name in ("edges_full_norm", "edges_half_norm")]
    assert [scale.output_shape[1:3] for scale in scales] == [(SIZE_PX // 2,) * 2, (SIZE_PX // 4,) * 2]
    before = [outputs(scale, photos()) for scale in scales]
    kernel = edges.get_weights()
    edges.set_weights([2 * weights for weights in kernel])
    for scale, values in zip(scales, before, strict=True):
        np.testing.assert_allclose(outputs(scale, photos()), 2 * values, rtol=1e-5, atol=1e-5)
    edges.set_weights(kernel)


def test_both_scales_count(models: dict[str, "keras.Model"]) -> None:
    model = models["cnn_functional"]
    expected = outputs(model, photos())
    for scale in ("full", "half"):
        norm = model.get_layer(f"edges_{scale}_norm")
        weights = norm.get_weights()
        norm.set_weights([np.zeros_like(part) if number < 2 else part for number, part in enumerate(weights)])
        assert np.abs(outputs(model, photos()) - expected).max() > 1e-5
        norm.set_weights(weights)
    np.testing.assert_array_equal(outputs(model, photos()), expected)


@pytest.mark.parametrize("size_px", [*range(16, 34), 225])
def test_the_scales_fit_at_every_size(size_px: int) -> None:
    model = build_model(settings_of("cnn_functional"), size_px, 2)
    assert outputs(model, photos(1, size_px)).shape == (1, 2)


def test_the_second_input_is_there_when_it_was_asked_for(models: dict[str, "keras.Model"], with_clinical: "keras.Model") -> None:
    assert len(models["cnn_functional"].inputs) == 1
    assert [(one.name, one.dtype, one.shape) for one in with_clinical.inputs] == [
        ("photo", "uint8", (None, SIZE_PX, SIZE_PX, 3)),
        ("clinical", "float32", (None, CLINICAL_WIDTH)),
    ]
    assert outputs(with_clinical, [photos(), known()]).shape == (3, 3)


def test_what_is_known_changes_the_answer_and_what_is_not_is_an_answer_of_its_own(with_clinical: "keras.Model") -> None:
    pixels = np.repeat(photos(1), 5, axis=0)
    clinical = np.concatenate(
        [
            NO_CLINICAL,
            encode_clinical([50], [None], [None]),
            encode_clinical([np.nan], ["female"], [None]),
            encode_clinical([np.nan], ["male"], [None]),
            encode_clinical([np.nan], [None], ["face"]),
        ]
    )
    answers = outputs(with_clinical, [pixels, clinical])
    apart = np.abs(answers[:, np.newaxis] - answers[np.newaxis]).max(axis=2)
    assert apart[~np.eye(5, dtype=bool)].min() > 1e-3


def test_two_inputs_keep_their_probabilities_and_survive_saving(with_clinical: "keras.Model", tmp_path: Path) -> None:
    import keras

    inputs = [photos(), known()]
    model = with_probabilities(with_clinical)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    assert [one.name for one in loaded.inputs] == ["photo", "clinical"]
    np.testing.assert_array_equal(outputs(loaded, inputs), outputs(model, inputs))
    np.testing.assert_allclose(outputs(model, inputs).sum(axis=1), 1, atol=1e-6)


# What learns


def learning(model: "keras.Model") -> set[str]:
    return {variable.path for variable in model.trainable_variables}


@pytest.fixture
def transferable() -> "keras.Model":
    """A small pretrained network that a test may freeze."""
    return build_model(settings_of("mobilenet"), SIZE_PX, 2)


@pytest.mark.parametrize("name", PRETRAINED)
def test_backbone_layers_are_those_of_keras_applications_in_order(models: dict[str, "keras.Model"], name: ModelName) -> None:
    names = backbone_layer_names(models[name])
    ends = {
        "resnet50": ("conv1_pad", "conv5_block3_out", 174),
        "vgg16": ("block1_conv1", "block5_pool", 18),
        "mobilenet": ("conv1", "conv_pw_13_relu", 85),
    }
    assert (names[0], names[-1], len(names)) == ends[name]
    assert len(set(names)) == len(names)


def test_a_frozen_backbone_leaves_the_last_layer_to_learn(transferable: "keras.Model") -> None:
    set_trainable(transferable, frozen_backbone=True, from_layer=None, freeze_batch_norm=False)
    assert learning(transferable) == {"logits/kernel", "logits/bias"}


def test_layers_from_one_on_learn(transferable: "keras.Model") -> None:
    everything = learning(transferable)
    set_trainable(transferable, frozen_backbone=False, from_layer="conv_pw_12", freeze_batch_norm=False)
    names = backbone_layer_names(transferable)
    expected = {*names[names.index("conv_pw_12") :], "logits"}
    assert learning(transferable) == {path for path in everything if path.split("/")[-2] in expected}
    assert "conv_pw_12/kernel" in {"/".join(path.split("/")[-2:]) for path in learning(transferable)}
    assert not any("conv_dw_12" in path for path in learning(transferable))


def test_from_the_first_layer_on_everything_learns(transferable: "keras.Model") -> None:
    everything = learning(transferable)
    set_trainable(transferable, False, backbone_layer_names(transferable)[0], False)
    assert learning(transferable) == everything


def test_batch_norm_can_be_frozen_in_layers_that_learn(transferable: "keras.Model") -> None:
    import keras

    set_trainable(transferable, frozen_backbone=False, from_layer=None, freeze_batch_norm=True)
    norms = [layer for layer in all_layers(transferable) if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 27
    assert not any(layer.trainable for layer in norms)
    assert len(learning(transferable)) == len(norms) + 2
    statistics = [weights.copy() for layer in norms for weights in layer.get_weights()]
    # A layer that is frozen computes in training what it does in prediction, and moves no statistics.
    np.testing.assert_array_equal(outputs(transferable, photos(), training=True), outputs(transferable, photos()))
    for before, after in zip(statistics, [weights for layer in norms for weights in layer.get_weights()], strict=True):
        np.testing.assert_array_equal(before, after)


def test_each_call_begins_anew(transferable: "keras.Model") -> None:
    everything = learning(transferable)
    for frozen, layer, norms in [(True, None, True), (False, "conv_pw_13", True), (True, "conv_pw_2", False)]:
        set_trainable(transferable, frozen, layer, norms)
        assert learning(transferable) < everything
        set_trainable(transferable, False, None, False)
        assert learning(transferable) == everything


def test_what_is_frozen_does_not_move_in_a_step(transferable: "keras.Model") -> None:
    import keras
    import tensorflow as tf

    # With the statistics of some photos, because an untrained network's last features are next to nothing.
    for layer in all_layers(transferable):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    outputs(transferable, photos(8), training=True)
    set_trainable(transferable, frozen_backbone=False, from_layer="conv_pw_13", freeze_batch_norm=False)
    before = {weight.path: weight.numpy().copy() for weight in transferable.weights}
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(transferable(photos(8), training=True) - 1.0))
    gradients = tape.gradient(loss, transferable.trainable_variables)
    keras.optimizers.SGD(0.1).apply(gradients, transferable.trainable_variables)
    moved = {weight.path.split("/")[-2] for weight in transferable.weights if (weight.numpy() != before[weight.path]).any()}
    assert moved == {"conv_pw_13", "conv_pw_13_bn", "logits"}


@pytest.mark.parametrize(
    ("name", "layer", "hint"),
    [
        ("mobilenet", "conv_pw_14", "did you mean conv_pw_4 or "),
        ("resnet50", "conv5_block1_1_cnov", "did you mean conv5_block1_1_conv or "),
        ("vgg16", "Block5", "it has block1_conv1, "),
        ("vgg16", "", "it has block1_conv1, "),
    ],
)
@pytest.mark.parametrize("frozen", [True, False], ids=["in the frozen epochs already", "later"])
def test_an_unknown_layer_is_refused_with_those_that_are_close(
    models: dict[str, "keras.Model"], name: ModelName, layer: str, hint: str, frozen: bool
) -> None:
    everything = learning(models[name])
    with pytest.raises(ConfigError) as caught:
        set_trainable(models[name], frozen, layer, True)
    assert str(caught.value).startswith(f"transfer.from_layer {layer}: {name} has no such layer; ".replace("  ", " "))
    assert hint in str(caught.value)
    assert learning(models[name]) == everything


@pytest.mark.parametrize("name", ["cnn_sequential", "cnn_functional"])
@pytest.mark.parametrize(("frozen", "layer", "norms"), [(True, None, False), (False, "pool", False), (False, None, True)])
def test_our_own_networks_have_no_backbone_to_freeze(
    models: dict[str, "keras.Model"], name: ModelName, frozen: bool, layer: str | None, norms: bool
) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no pretrained backbone; resnet50, vgg16, mobilenet have one"):
        set_trainable(models[name], frozen, layer, norms)
    with pytest.raises(ConfigError, match=f"{name} has no pretrained backbone"):
        backbone_layer_names(models[name])
    everything = learning(models[name])
    set_trainable(models[name], False, None, False)
    assert learning(models[name]) == everything


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


def plain_application(name: ModelName, alpha: float) -> "keras.Model":
    import keras

    options = {"alpha": alpha} if name == "mobilenet" else {}
    application = {"vgg16": keras.applications.VGG16, "mobilenet": keras.applications.MobileNet}[name]
    return application(include_top=False, weights=None, input_shape=(SIZE_PX, SIZE_PX, 3), **options)


@pytest.mark.parametrize(("name", "alpha"), [("mobilenet", 0.5), ("mobilenet", 1.0), ("mobilenet", 0.33), ("vgg16", 1.0)])
def test_a_weights_file_fits_every_width_and_network(name: ModelName, alpha: float, tmp_path: Path) -> None:
    plain = plain_application(name, alpha)
    path = tmp_path / "mine.weights.h5"
    plain.save_weights(path)
    settings = ModelSettings(name=name, mobilenet_alpha=alpha, weights=str(path))
    model = build_model(settings, SIZE_PX, 2)
    load_backbone_weights(model, settings)
    for one, two in zip(model.get_layer("backbone").get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("name", "alpha", "asked"),
    [
        ("mobilenet", 0.25, "mobilenet_2_5_224_tf_no_top.h5"),
        ("mobilenet", 0.75, "mobilenet_7_5_224_tf_no_top.h5"),
        ("vgg16", 1.0, "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ],
)
def test_imagenet_weights_are_those_of_the_network_and_its_width(
    name: ModelName, alpha: float, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = plain_application(name, alpha)
    plain.save_weights(tmp_path / "downloaded.weights.h5")
    downloads: list[str] = []

    def download(file_name: str, *_: object, **__: object) -> str:
        downloads.append(file_name)
        return str(tmp_path / "downloaded.weights.h5")

    monkeypatch.setattr(f"keras.src.applications.{name}.file_utils.get_file", download)
    settings = ModelSettings(name=name, mobilenet_alpha=alpha, weights="imagenet")
    model = build_model(settings, SIZE_PX, 2)
    load_backbone_weights(model, settings)
    assert downloads == [asked]
    for one, two in zip(model.get_layer("backbone").get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_imagenet_weights_exist_for_some_widths_only(models: dict[str, "keras.Model"], offline: None) -> None:
    message = refusal(models["mobilenet"], ModelSettings(name="mobilenet", mobilenet_alpha=0.3, weights="imagenet"))
    assert message == "model.mobilenet_alpha 0.3: model.weights imagenet exist for 0.25, 0.5, 0.75, 1.0"


@pytest.mark.parametrize("name", ["mobilenet", "resnet50"])
def test_imagenet_weights_without_internet_are_refused_with_the_way_out(
    models: dict[str, "keras.Model"], name: ModelName, offline: None
) -> None:
    message = refusal(models[name], settings_of(name, weights="imagenet"))
    assert "the download failed" in message
    assert "give a local or s3:// .weights.h5 file instead" in message
