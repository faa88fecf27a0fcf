"""The networks: uint8 RGB photos in, one probability a class out; `cnn_functional` may take age, sex and site besides.

Each takes photos as `skinray.images` makes them and the rest as `skinray.clinical` does; normalisation is inside, so that a
bundle cannot be fed wrongly. Training works on logits and on `skinray.normalization.synchronized` layers, a bundle holds
`with_probabilities` of the plain ones: nothing but Keras' own.
"""

import difflib
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import keras

from skinray import storage
from skinray.calibration import Calibration
from skinray.clinical import CLINICAL_WIDTH
from skinray.config import ModelName
from skinray.errors import ConfigError
from skinray.training_config import ModelSettings

LOGITS_LAYER = "logits"
# The layer that makes features of the last feature map [N, height, width, channels].
POOL_LAYER = "pool"


def build_model(settings: ModelSettings, image_size_px: int, num_classes: int) -> keras.Model:
    """Builds a network with random weights.

    Args:
        settings: Which network. Its dropout is no layer: training drops features itself, see `split_head`.
        image_size_px: Side of the photos, in pixels.
        num_classes: Classes to tell apart.

    Returns:
        uint8 [N, size, size, 3] -> float32 logits [N, num_classes]. With `settings.clinical_input` a list of two goes in:
        the photos, and float32 [N, CLINICAL_WIDTH] as `skinray.clinical` encodes it.
    """
    photo = keras.Input((image_size_px, image_size_px, 3), dtype="uint8", name="photo")
    inputs = [photo]
    from_scratch = _FROM_SCRATCH.get(settings.name)
    features = from_scratch(photo) if from_scratch else _pretrained(settings, photo)
    if settings.clinical_input:
        clinical = keras.Input((CLINICAL_WIDTH,), dtype="float32", name="clinical")
        inputs.append(clinical)
        features = _with_clinical(features, clinical)
    logits = keras.layers.Dense(num_classes, dtype=_head_dtype(), name=LOGITS_LAYER)(features)
    return keras.Model(inputs if len(inputs) > 1 else photo, logits, name=settings.name)


def _head_dtype() -> str:
    """The last layer's: float32 under every policy, because half precision makes scores coarse; float64 when all is."""
    return "float64" if keras.config.dtype_policy().compute_dtype == "float64" else "float32"


def with_probabilities(model: keras.Model, calibration: Calibration | None = None) -> keras.Model:
    """The same layers with a softmax on top: the same inputs -> float32 [N, classes] that add up to 1.

    Args:
        model: What `build_model` returned.
        calibration: What to do to the logits before; None: nothing.
    """
    logits = model.outputs[0]
    if calibration is not None:
        scale = keras.layers.Rescaling(1 / calibration.temperature, list(calibration.bias), dtype="float32", name="calibration")
        logits = scale(logits)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
    return keras.Model(model.inputs, probabilities, name=model.name)


def split_head(model: keras.Model) -> tuple[keras.Model, keras.layers.Layer]:
    """The two halves of a network, which share its weights.

    Args:
        model: What `build_model` returned.

    Returns:
        The inputs -> features [N, F]; and the layer that makes logits [N, classes] of features.
    """
    logits = model.get_layer(LOGITS_LAYER)
    return keras.Model(model.inputs, logits.input, name="features"), logits


def backbone_layer_names(model: keras.Model) -> list[str]:
    """The layers of the pretrained backbone, from the photo to the features.

    Raises:
        ConfigError: The network has none.
    """
    return [layer.name for layer in _backbone(model).layers if not isinstance(layer, keras.layers.InputLayer)]


def set_trainable(model: keras.Model, frozen_backbone: bool, from_layer: str | None, freeze_batch_norm: bool) -> None:
    """Says which layers of the backbone learn; those behind it always do.

    A BatchNorm layer that does not learn uses its stored statistics in training too, and leaves them as they are. A
    `tf.function` made before goes on with what held when it was traced.

    Args:
        model: What `build_model` returned.
        frozen_backbone: No layer of the backbone learns.
        from_layer: Else only this layer of `backbone_layer_names` and those after it do; None: all.
        freeze_batch_norm: Of these, BatchNorm layers do not.

    Raises:
        ConfigError: The backbone has no such layer, or the network no backbone. The model is left as it was.
    """
    asked = frozen_backbone or freeze_batch_norm or from_layer is not None
    if not asked and not _has_backbone(model):
        return
    names = backbone_layer_names(model)
    if from_layer is not None and from_layer not in names:
        close = difflib.get_close_matches(from_layer, names, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(names)}"
        raise ConfigError(f"transfer.from_layer {from_layer}: {model.name} has no such layer; {hint}")
    first = len(names) if frozen_backbone else names.index(from_layer) if from_layer is not None else 0
    backbone = _backbone(model)
    backbone.trainable = not frozen_backbone
    # Each layer for itself: Keras does nothing when a model is set to what it is, whatever its layers are.
    for number, name in enumerate(names):
        layer = backbone.get_layer(name)
        is_frozen_norm = freeze_batch_norm and isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = number >= first and not is_frozen_norm


def _has_backbone(model: keras.Model) -> bool:
    return any(layer.name == _BACKBONE for layer in model.layers)


def _backbone(model: keras.Model) -> keras.Model:
    if not _has_backbone(model):
        raise ConfigError(f"transfer: {model.name} has no pretrained backbone; {', '.join(_APPLICATIONS)} have one")
    return model.get_layer(_BACKBONE)


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
    backbone = _backbone(model)
    if settings.weights == "imagenet":
        backbone.set_weights(_imagenet_weights(settings))
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
_IMAGENET_ALPHAS = (0.25, 0.5, 0.75, 1.0)


def _application(settings: ModelSettings, image_size_px: int, weights: str | None) -> keras.Model:
    options: dict[str, Any] = {"include_top": False, "weights": weights, "input_shape": (image_size_px, image_size_px, 3)}
    if settings.name == "mobilenet":
        options["alpha"] = settings.mobilenet_alpha
    return _APPLICATIONS[settings.name](**options)


def _imagenet_weights(settings: ModelSettings) -> list[Any]:
    if settings.name == "mobilenet" and settings.mobilenet_alpha not in _IMAGENET_ALPHAS:
        widths = ", ".join(map(str, _IMAGENET_ALPHAS))
        raise ConfigError(f"model.mobilenet_alpha {settings.mobilenet_alpha}: model.weights imagenet exist for {widths}")
    try:
        # They are the same for every size of photo; for another than their own, MobileNet would warn.
        weights: list[Any] = _application(settings, 224, "imagenet").get_weights()
    except Exception as error:  # Keras raises a bare Exception when the download fails
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"model.weights imagenet: the download failed ({reason}); give a local or s3:// .weights.h5 file instead"
        ) from error
    return weights


def _pretrained(settings: ModelSettings, inputs: Any) -> Any:
    size = int(inputs.shape[1])
    backbone = _application(settings, size, None)
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
    return keras.layers.GlobalAveragePooling2D(name=POOL_LAYER)(backbone(normalised))


def _convolution(features: Any, filters: int, kernel: int, name: str, stride: int = 1) -> Any:
    features = keras.layers.Conv2D(filters, kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_conv")(features)
    return _normalised(features, name)


def _normalised(features: Any, name: str) -> Any:
    features = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(features)
    return keras.layers.ReLU(name=f"{name}_relu")(features)


def _cnn_sequential(inputs: Any) -> Any:
    """Four convolutions that halve the size one after the other, the first by its stride and the others by pooling."""
    features = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(inputs)
    features = _convolution(features, 16, 3, "block1", stride=2)
    for number, filters in enumerate((32, 64, 96), start=2):
        features = _convolution(features, filters, 3, f"block{number}")
        features = keras.layers.MaxPooling2D(name=f"block{number}_pool")(features)
    return keras.layers.GlobalAveragePooling2D(name=POOL_LAYER)(features)


def _cnn_functional(inputs: Any) -> Any:
    """One convolution looks at the photo at two scales; then blocks whose parallel branches look near and far.

    The two scales share the convolution and not its BatchNorm: they differ in their statistics, and one that took turns
    would in prediction use an average that fits neither.
    """
    photo = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(inputs)
    half = keras.layers.AveragePooling2D(2, padding="same", name="half_size")(photo)
    edges = keras.layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="edges")
    features = _normalised(edges(photo), "edges_full")
    for number, filters in enumerate((16, 32, 64), start=1):
        near = _convolution(features, filters, 3, f"block{number}_near")
        far = _convolution(features, filters // 2, 1, f"block{number}_narrow")
        far = _convolution(far, filters, 5, f"block{number}_far")
        features = keras.layers.Concatenate(name=f"block{number}_join")([near, far])
        # "same", so that sizes of any remainder come to the same at both scales.
        features = keras.layers.MaxPooling2D(padding="same", name=f"block{number}_pool")(features)
        if number == 1:
            features = keras.layers.Concatenate(name="scales_join")([features, _normalised(edges(half), "edges_half")])
    return keras.layers.GlobalAveragePooling2D(name=POOL_LAYER)(features)


def _with_clinical(features: Any, clinical: Any) -> Any:
    """What is known of the lesion joins the features of its photo."""
    known = keras.layers.Dense(32, activation="relu", name="clinical_dense")(clinical)
    return keras.layers.Concatenate(name="clinical_join")([features, known])


_FROM_SCRATCH: Mapping[ModelName, Callable[[Any], Any]] = {
    "cnn_sequential": _cnn_sequential,
    "cnn_functional": _cnn_functional,
}
