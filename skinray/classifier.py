"""Bundle + photos (+ age, sex and site) -> probabilities: the one predictor that evaluation, scoring and serving share."""

import contextlib
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skinray.bundle import Bundle
from skinray.clinical import CLINICAL_WIDTH, NO_CLINICAL
from skinray.errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16"]


# Of more threads all share one pass: more passes than two have not been measured, and each has a batch of its own in memory.
_MOST_PASSES = 2


def passes_at_once(threads: int) -> int:
    """How many forward passes should run at once on so many threads of a CPU: one a thread where they are few.

    The threads of one pass wait for each other after every layer, and all of them for the one that something else held up.
    ResNet-50 in bfloat16 on two cores: 184 photos/s in two passes of one thread, 173 in one of two, and single photos, one after
    the other, 45/s in place of 27.
    """
    return threads if threads <= _MOST_PASSES else 1


def use_threads(threads: int, passes: int = 1) -> None:
    """Tells TensorFlow how many cores this process may use; without effect once TensorFlow has started computing.

    Args:
        threads: Of all passes together.
        passes: Forward passes that run at once, called from as many Python threads.
    """
    threads = max(1, threads // passes)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with _without("sklearn", "matplotlib"):
        import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(passes)
    except RuntimeError:
        return  # already running, as in a test process that classified before: same answers, another speed


def compute_on_cpu() -> None:
    """Hides GPUs from this process, which has been given none; Ray leaves all of the machine's visible to it.

    Must be called before TensorFlow starts computing where there are any.
    """
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")


@contextlib.contextmanager
def _without(*packages: str) -> Iterator[None]:
    """Lets Keras do without what it imports and does not need to classify: of 4 s that it takes to start, 1 s is theirs."""
    absent = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None there is Python's way to say: not installed
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


# Those whose probabilities bfloat16 was seen to move by less than 0.02: ResNet-50, trained for two epochs, by 0.008 (ROC-AUC
# by 0.0009, 799 photos). Those of two trained MobileNets it moves by up to 0.05 and 0.12 (799 photos; ROC-AUC by 0.0004 at most).
_BEARS_BFLOAT16 = frozenset({"resnet50"})


def resolved_precision(precision: Precision, networks: Collection[str]) -> Precision:
    """What `auto` is for a model of some networks on this machine: float32, or bfloat16 where that is faster and changes little.

    That is for ResNet-50 on a CPU that multiplies bfloat16 natively: four times as fast there (175 against 39 photos/s on two
    cores with AMX), on others slower. On a GPU float32 is computed in TensorFloat-32 where there is that, which is TensorFlow's
    own choice.
    """
    if precision != "auto":
        return precision
    return "bfloat16" if _BEARS_BFLOAT16.issuperset(networks) and _multiplies_bfloat16() else "float32"


def _multiplies_bfloat16() -> bool:
    """True for x86 CPUs with avx512_bf16 or amx_bf16; without them bfloat16 is slower than float32."""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


class Classifier:
    """Runs photos through a bundle's model.

    Args:
        bundle: The verified bundle.
        batch_size: Most photos in one forward pass.
        embeddings: Also give what the network's last layer but the head says, see `classified`.
        precision: See `resolved_precision`.

    Raises:
        ConfigError: Embeddings are wanted of several models in one, which have several.
    """

    def __init__(self, bundle: Bundle, batch_size: int = 32, embeddings: bool = False, precision: Precision = "auto") -> None:
        import tensorflow as tf

        from skinray.folding import folded

        self.bundle = bundle
        self.batch_size = batch_size
        self.precision = resolved_precision(precision, bundle.networks)
        size = bundle.preprocessing.image_size_px
        self._model = folded(_with_embeddings(bundle) if embeddings else bundle.load_model(), self.precision)
        # Any number of rows: one trace serves the last batch of a block and a single photo over HTTP alike.
        signature = [tf.TensorSpec((None, size, size, 3), tf.uint8), tf.TensorSpec((None, CLINICAL_WIDTH), tf.float32)]
        self._forward = _graph(self._model, signature[: len(self._model.inputs)])
        self.probabilities(np.zeros((1, size, size, 3), np.uint8))  # so that the first photo is not the slow one

    @property
    def takes_clinical(self) -> bool:
        """True when the model looks at age, sex and site too."""
        return self.bundle.takes_clinical

    def probabilities(
        self, pixels: npt.NDArray[np.uint8], clinical: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Classifies photos: the first of what `classified` gives."""
        return self.classified(pixels, clinical)[0]

    def classified(
        self, pixels: npt.NDArray[np.uint8], clinical: npt.NDArray[np.float32] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Classifies photos.

        Args:
            pixels: uint8 [N, size, size, 3] RGB, as `skinray.images.decode_photo` makes them; N may be 0.
            clinical: float32 [N, CLINICAL_WIDTH], as `skinray.clinical.encode_clinical` makes it; None: nothing is known.
                Has no effect unless the model `takes_clinical`.

        Returns:
            float32 [N, C], rows add up to 1, in the order of the bundle's label codes; and, when they are wanted, the
            embeddings, float32 [N, D]: the average of the network's last feature maps, from which its head judges.

        Raises:
            ValueError: `clinical` has another shape.
        """
        import tensorflow as tf

        inputs: list[npt.NDArray[Any]] = [pixels]
        if clinical is not None and clinical.shape != (len(pixels), CLINICAL_WIDTH):
            raise ValueError(f"clinical is {clinical.shape}, not ({len(pixels)}, {CLINICAL_WIDTH}), for {len(pixels)} photos")
        if self.takes_clinical:
            inputs.append(np.repeat(NO_CLINICAL, len(pixels), axis=0) if clinical is None else clinical)
        results = [np.empty((len(pixels), int(output.shape[-1])), np.float32) for output in self._forward.outputs]
        for start in range(0, len(pixels), self.batch_size):
            batch = slice(start, start + self.batch_size)
            for result, output in zip(results, self._forward(*(tf.constant(part[batch]) for part in inputs)), strict=True):
                result[batch] = output.numpy()
        return results


def _graph(model: Any, signature: list[Any]) -> Any:
    """The model as one graph: inputs -> list of outputs. It does not keep the model's weights alive.

    XLA is as fast as this for ResNet-50, but was 15 times slower for MobileNet (one reading each, busy machine).
    """
    import tensorflow as tf

    def forward(*inputs: Any) -> list[Any]:
        outputs: list[Any] = tf.nest.flatten(model(inputs[0] if len(inputs) == 1 else list(inputs), training=False))
        return outputs

    return tf.function(forward, input_signature=signature).get_concrete_function()


def _with_embeddings(bundle: Bundle) -> Any:
    import keras

    from skinray.model import POOL_LAYER

    model = bundle.load_model()
    if not any(layer.name == POOL_LAYER for layer in model.layers):
        raise ConfigError(f"bundle {bundle.uri} averages several answers, which have no embedding in common; take a member")
    return keras.Model(model.inputs, [model.output, model.get_layer(POOL_LAYER).output])
