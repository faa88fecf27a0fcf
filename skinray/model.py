"""The networks: uint8 RGB photos in, one probability a class out.

Each takes photos as `skinray.images` makes them; normalisation is inside, so that a bundle cannot be fed wrongly. All
BatchNorm layers are synchronized: under several workers, plain ones drift apart in their moving statistics and the
saved model is then none that was validated. Training works on logits, a bundle holds `with_probabilities` of the same
layers.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import keras

from skinray import storage
from skinray.config import ModelName
from skinray.errors import ConfigError
from skinray.training_config import ModelSettings

LOGITS_LAYER = "logits"


def build_model(settings: ModelSettings, image_size_px: int, num_classes: int) -> keras.Model:
    """Builds a network with random weights.

    Args:
        settings: Which network.
        image_size_px: Side of the photos, in pixels.
        num_classes: Classes to tell apart.

    Returns:
        uint8 [N, size, size, 3] -> float32 logits [N, num_classes].
    """
    inputs = keras.Input((image_size_px, image_size_px, 3), dtype="uint8", name="photo")
    from_scratch = _FROM_SCRATCH.get(settings.name)
    features = from_scratch(inputs) if from_scratch else _pretrained(settings, inputs)
    if settings.dropout:
        features = keras.layers.Dropout(settings.dropout, name="dropout")(features)
    logits = keras.layers.Dense(num_classes, dtype=_head_dtype(), name=LOGITS_LAYER)(features)
    return keras.Model(inputs, logits, name=settings.name)


def _head_dtype() -> str:
    """The last layer's: float32 under every policy, because half precision makes scores coarse; float64 when all is."""
    return "float64" if keras.config.dtype_policy().compute_dtype == "float64" else "float32"


def with_probabilities(model: keras.Model) -> keras.Model:
    """The same layers with a softmax on top: uint8 [N, size, size, 3] -> float32 [N, classes] that add up to 1."""
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(model.outputs[0])
    return keras.Model(model.inputs, probabilities, name=model.name)


def load_backbone_weights(model: keras.Model, settings: ModelSettings) -> None:
    """Loads the backbone's weights as the settings say; nothing happens for none.

    Args:
        model: What `build_model` returned.
        settings: `weights` is None or "none", "imagenet", or a local or s3:// `.weights.h5` file of the
            `keras.applications` network without its top.

    Raises:
        ConfigError: The weights cannot be had, or are another network's.
    """
    if settings.weights in (None, "none"):
        return
    if settings.name not in _APPLICATIONS:
        raise ConfigError(f"model.weights {settings.weights}: {settings.name} has no pretrained weights; use none")
    backbone = model.get_layer(_BACKBONE)
    if settings.weights == "imagenet":
        backbone.set_weights(_imagenet_weights(settings, model.input_shape[1]))
        return
    if not settings.weights.endswith(".weights.h5"):
        raise ConfigError(f"model.weights {settings.weights}: give none, imagenet or a file that ends in .weights.h5")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "backbone.weights.h5")
        with open(path, "wb") as file:
            file.write(storage.read_bytes(settings.weights))
        try:
            backbone.load_weights(path)
        except (ValueError, OSError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"model.weights {settings.weights} does not fit {settings.name}: {reason}") from error


_BACKBONE = "backbone"
_APPLICATIONS: Mapping[ModelName, Callable[..., keras.Model]] = {
    "resnet50": keras.applications.ResNet50,
    "vgg16": keras.applications.VGG16,
    "mobilenet": keras.applications.MobileNet,
}


def _application(settings: ModelSettings, image_size_px: int, weights: str | None) -> keras.Model:
    options: dict[str, Any] = {"include_top": False, "weights": weights, "input_shape": (image_size_px, image_size_px, 3)}
    if settings.name == "mobilenet":
        options["alpha"] = settings.mobilenet_alpha
    return _APPLICATIONS[settings.name](**options)


def _imagenet_weights(settings: ModelSettings, image_size_px: int) -> list[Any]:
    try:
        weights: list[Any] = _application(settings, image_size_px, "imagenet").get_weights()
    except Exception as error:  # Keras raises a bare Exception when the download fails
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"model.weights imagenet: the download failed ({reason}); give a local or s3:// .weights.h5 file instead"
        ) from error
    return weights


def _pretrained(settings: ModelSettings, inputs: Any) -> Any:
    size = int(inputs.shape[1])
    plain = _application(settings, size, None)
    backbone = keras.models.clone_model(plain, clone_function=_synchronized)
    # A name of our own: keras.applications numbers its models by what was built before in the process.
    backbone.name = _BACKBONE
    if settings.name == "mobilenet":
        normalised = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(inputs)
    else:
        # ResNet-50 and VGG16 were trained on BGR with ImageNet's mean taken off, in levels of 0-255
        # (keras.applications' "caffe" preprocessing).
        as_float = keras.layers.Rescaling(1.0, name="as_float")(inputs)
        bgr = keras.ops.flip(as_float, axis=-1)
        normalised = keras.layers.Rescaling(1.0, offset=[-103.939, -116.779, -123.68], name="normalise")(bgr)
    return keras.layers.GlobalAveragePooling2D(name="pool")(backbone(normalised))


def _synchronized(layer: keras.layers.Layer) -> keras.layers.Layer:
    config = layer.get_config()
    if isinstance(layer, keras.layers.BatchNormalization):
        config["synchronized"] = True
    return layer.__class__.from_config(config)


def _convolution(features: Any, filters: int, kernel: int, name: str, stride: int = 1) -> Any:
    features = keras.layers.Conv2D(filters, kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_conv")(features)
    features = keras.layers.BatchNormalization(synchronized=True, momentum=0.9, name=f"{name}_norm")(features)
    return keras.layers.ReLU(name=f"{name}_relu")(features)


def _cnn_sequential(inputs: Any) -> Any:
    """Four convolutions that halve the size one after the other, the first by its stride and the others by pooling."""
    features = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(inputs)
    features = _convolution(features, 16, 3, "block1", stride=2)
    for number, filters in enumerate((32, 64, 96), start=2):
        features = _convolution(features, filters, 3, f"block{number}")
        features = keras.layers.MaxPooling2D(name=f"block{number}_pool")(features)
    return keras.layers.GlobalAveragePooling2D(name="pool")(features)


def _cnn_functional(inputs: Any) -> Any:
    """Three blocks whose parallel branches look at a fine and a coarse neighbourhood."""
    features = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(inputs)
    features = _convolution(features, 16, 3, "stem", stride=2)
    for number, filters in enumerate((16, 32, 64), start=1):
        fine = _convolution(features, filters, 3, f"block{number}_fine")
        coarse = _convolution(features, filters // 2, 1, f"block{number}_narrow")
        coarse = _convolution(coarse, filters, 5, f"block{number}_coarse")
        features = keras.layers.Concatenate(name=f"block{number}_join")([fine, coarse])
        features = keras.layers.MaxPooling2D(name=f"block{number}_pool")(features)
    return keras.layers.GlobalAveragePooling2D(name="pool")(features)


_FROM_SCRATCH: Mapping[ModelName, Callable[[Any], Any]] = {
    "cnn_sequential": _cnn_sequential,
    "cnn_functional": _cnn_functional,
}
