"""BatchNorm over all replicas computes what Keras' own does, for one replica and for several, and can be turned into it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.conftest import free_port

if TYPE_CHECKING:
    import keras

Arrays = dict[str, npt.NDArray[Any]]
SHAPE = (8, 5, 6, 7)


def draws(dtype: str, mean: float = 0.5, shape: tuple[int, ...] = SHAPE) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Inputs whose two halves differ in mean and deviation, and the loss's gradient with regard to the outputs."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(mean, 1.0, shape)
    inputs[: shape[0] // 2] = (inputs[: shape[0] // 2] - mean) * 2 + mean - 1
    return inputs.astype(dtype), (rng.normal(size=shape) + 0.3).astype(dtype)


def layer_pair(dtype: str, **options: Any) -> tuple["keras.layers.Layer", "keras.layers.Layer"]:
    """Keras' own layer and ours with the same random weights."""
    import keras

    from skinray.normalization import SynchronizedBatchNormalization

    shape = options.pop("build_shape", SHAPE)
    own = keras.layers.BatchNormalization(dtype=dtype, momentum=0.9, name="norm", **options)
    ours = SynchronizedBatchNormalization.from_config(own.get_config())
    for layer in (own, ours):
        layer.build(shape)
    rng = np.random.default_rng(2)
    own.set_weights([rng.uniform(0.5, 2.0, weight.shape) for weight in own.get_weights()])
    ours.set_weights(own.get_weights())
    return own, ours


def trained(layer: "keras.layers.Layer", inputs: npt.NDArray[Any], upstream: npt.NDArray[Any], **call: Any) -> Arrays:
    """What a training pass gives and leaves, by name."""
    import tensorflow as tf

    @tf.function  # type: ignore[untyped-decorator]
    def step(values: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs = layer(values, training=True, **call)
            loss = tf.reduce_sum(tf.cast(outputs, upstream.dtype) * upstream)
        return outputs, tape.gradient(loss, [values, *layer.trainable_variables])

    outputs, gradients = step(tf.constant(inputs))
    names = ["inputs", *[variable.name for variable in layer.trainable_variables]]
    result = {"outputs": outputs, **{f"d_{name}": value for name, value in zip(names, gradients, strict=True)}}
    result |= {variable.name: variable.value for variable in layer.non_trainable_variables}
    return {name: np.asarray(tf.cast(value, tf.float64)) for name, value in result.items()}


def assert_alike(actual: Arrays, expected: Arrays, tolerance: float) -> None:
    """Each array within the tolerance of its largest value."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=tolerance * np.abs(value).max(), err_msg=name)


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Keras' own training pass must not run in our layer; it still does in Keras'."""
    import keras

    own_call = keras.layers.BatchNormalization.call

    def call(self: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        assert type(self) is keras.layers.BatchNormalization or not training, "Keras' own code ran"
        return own_call(self, inputs, training=training, mask=mask)

    monkeypatch.setattr(keras.layers.BatchNormalization, "call", call)
    return monkeypatch


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"scale": False, "center": False}, {"axis": 3}])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_a_training_pass_is_keras_own(
    no_fallback: pytest.MonkeyPatch, dtype: str, tolerance: float, options: dict[str, Any]
) -> None:
    own, ours = layer_pair(dtype, **options)
    inputs, upstream = draws(dtype)
    expected = trained(own, inputs, upstream)
    assert not np.allclose(expected["moving_variance"], ours.moving_variance.numpy()), "the statistics move"
    assert_alike(trained(ours, inputs, upstream), expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-7), ("float16", 2**-9)])
def test_half_precision_is_close_to_float32(no_fallback: pytest.MonkeyPatch, dtype: str, tolerance: float) -> None:
    import tensorflow as tf

    ours = layer_pair(f"mixed_{dtype}")[1]
    inputs, upstream = draws("float32")
    rounded = np.asarray(tf.cast(tf.cast(inputs, dtype), tf.float32))
    assert ours(tf.constant(rounded, dtype), training=False).dtype == dtype
    full = layer_pair("float32")[0]
    expected = trained(full, rounded, upstream)
    actual = trained(ours, tf.constant(rounded, dtype), upstream)
    assert_alike(actual, expected, tolerance)
    assert not np.array_equal(actual["outputs"], expected["outputs"])
    statistics = ("moving_mean", "moving_variance")
    assert_alike({name: actual[name] for name in statistics}, {name: expected[name] for name in statistics}, 1e-5)


def test_a_large_mean_costs_no_accuracy(no_fallback: pytest.MonkeyPatch) -> None:
    inputs, upstream = draws("float32", mean=1000.0)
    expected = trained(layer_pair("float64")[0], inputs.astype(np.float64), upstream.astype(np.float64))
    # Near 1000, float32 numbers are 6e-5 apart: an error of the mean that gamma's gradient shows times the sum of `upstream`.
    assert_alike(trained(layer_pair("float32")[1], inputs, upstream), expected, 1e-3)


@pytest.mark.parametrize("kind", ["channels first", "dense", "mask", "renorm", "gpu"])
def test_what_the_kernels_do_not_fit_is_left_to_keras(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    import tensorflow as tf

    from skinray import normalization

    def fail(*args: Any) -> None:
        pytest.fail("our own code ran")

    monkeypatch.setattr(normalization, "_normalized_alone", fail)
    if kind == "gpu":
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind] if kind == "GPU" else [])
    inputs, upstream = draws("float64", shape=(32, 7) if kind == "dense" else SHAPE)
    special: dict[str, dict[str, Any]] = {
        "channels first": {"axis": 1},
        "renorm": {"renorm": True},
        "dense": {"build_shape": (32, 7)},
    }
    options = special.get(kind, {})
    own, ours = layer_pair("float64", **options)
    call = {"mask": tf.constant(np.random.default_rng(3).random(SHAPE[:3]) < 0.5)} if kind == "mask" else {}
    assert_alike(trained(ours, inputs, upstream, **call), trained(own, inputs, upstream, **call), 1e-10)


@pytest.mark.parametrize("frozen", [False, True], ids=["inference", "frozen"])
def test_outside_training_it_is_keras_own_and_learns_nothing(frozen: bool) -> None:
    own, ours = layer_pair("float32")
    own.trainable = ours.trainable = not frozen
    before = ours.get_weights()
    inputs, _ = draws("float32")
    outputs, expected = (np.asarray(layer(inputs, training=frozen)) for layer in (ours, own))
    assert np.array_equal(outputs, expected)
    assert abs(outputs.mean()) > 0.1, "not by the batch's own mean"
    assert all(np.array_equal(old, new) for old, new in zip(before, ours.get_weights(), strict=True))


MIRRORED = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from tests.test_normalization import draws, layer_pair
strategy = tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"])
results = {}
for case, dtype, mean, options in [
    ("float64", "float64", 0.5, {}),
    ("affine", "float64", 0.5, {"scale": False, "center": False}),
    ("float32", "float32", 0.5, {}),
    ("large", "float32", 1000.0, {}),
    ("bfloat16", "mixed_bfloat16", 0.5, {}),
    ("float16", "mixed_float16", 0.5, {}),
]:
    inputs, upstream = draws("float64" if dtype == "float64" else "float32", mean)
    with strategy.scope():
        own, ours = layer_pair(dtype, **options)
        own.synchronized = True
    for name, layer in (("ours", ours), ("keras", own)):
        def step(layer=layer, inputs=inputs, upstream=upstream):
            half = len(inputs) // 2
            start = tf.distribute.get_replica_context().replica_id_in_sync_group * half
            values = tf.constant(inputs)[start : start + half]
            with tf.GradientTape() as tape:
                tape.watch(values)
                outputs = layer(values, training=True)
                loss = tf.reduce_sum(tf.cast(outputs, upstream.dtype) * tf.constant(upstream)[start : start + half])
            gradients = tape.gradient(loss, [values, *layer.trainable_variables])
            return outputs, gradients
        outputs, gradients = tf.function(lambda: strategy.run(step))()
        names = ["inputs", *[variable.name for variable in layer.trainable_variables]]
        found = {"outputs": outputs, **{f"d_{name}": value for name, value in zip(names, gradients)}}
        found |= {variable.name: variable.value for variable in layer.non_trainable_variables}
        for quantity, value in found.items():
            parts = [tf.cast(part, tf.float64).numpy() for part in strategy.experimental_local_results(value)]
            results[f"{case}/{name}/{quantity}"] = np.stack(parts)
np.savez(sys.argv[1], **results)
"""


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """Training passes over two logical CPUs: <case>/<ours or keras>/<quantity> -> one array a replica."""
    path = tmp_path_factory.mktemp("mirrored") / "results.npz"
    run_all([(MIRRORED, [str(path)], {})])
    with np.load(path) as stored:
        return dict(stored)


def run_all(scripts: list[tuple[str, list[str], dict[str, str]]]) -> None:
    """Runs scripts beside each other, each with its arguments and environment, and ends all of them when one fails."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **environment},
            cwd=Path(__file__).parents[1],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for script, arguments, environment in scripts
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def of_two(results: Arrays, prefix: str) -> Arrays:
    """What two replicas found, put together as one replica would have it; both must hold the same statistics."""
    whole = {}
    for name, parts in results.items():
        if name.startswith(f"{prefix}/"):
            quantity = name.removeprefix(f"{prefix}/")
            if quantity.startswith("moving"):
                assert np.array_equal(parts[0], parts[1])
                whole[quantity] = parts[0]
            else:
                whole[quantity] = np.concatenate(parts) if parts.ndim == 5 else parts.sum(axis=0)
    return whole


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [("float64", 1e-10), ("affine", 1e-10), ("float32", 1e-5), ("large", 1e-3), ("bfloat16", 2**-6), ("float16", 2**-9)],
)
def test_two_replicas_compute_as_one_over_the_whole_batch(mirrored: Arrays, case: str, tolerance: float) -> None:
    options = {"scale": False, "center": False} if case == "affine" else {}
    inputs, upstream = draws("float64" if case in ("float64", "affine") else "float32", 1000.0 if case == "large" else 0.5)
    expected = trained(layer_pair("float64", **options)[0], inputs.astype(np.float64), upstream.astype(np.float64))
    assert_alike(of_two(mirrored, f"{case}/ours"), expected, tolerance)


def test_each_replica_has_the_gradients_that_keras_synchronization_gives(mirrored: Arrays) -> None:
    quantities = [name.removeprefix("float64/ours/") for name in mirrored if name.startswith("float64/ours/")]
    ours, own = ({name: mirrored[f"float64/{kind}/{name}"] for name in quantities} for kind in ("ours", "keras"))
    assert_alike(ours, own, 1e-10)
    assert not np.allclose(ours["d_gamma"][0], ours["d_gamma"][1]), "each its own part of the sum"


def test_a_large_mean_is_what_keras_synchronization_cannot_take(mirrored: Arrays) -> None:
    inputs, _ = draws("float32", 1000.0)
    variance = inputs.astype(np.float64).var(axis=(0, 1, 2))
    before = layer_pair("float32")[0].moving_variance.numpy()
    ours, own = ((mirrored[f"large/{kind}/moving_variance"][0] - 0.9 * before) / 0.1 / variance - 1 for kind in ("ours", "keras"))
    assert np.abs(ours).max() < 3e-4
    assert np.abs(own).max() > 0.05


WORKERS = """
import json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
import tensorflow as tf
tf.config.threading.set_inter_op_parallelism_threads(2)
tf.config.threading.set_intra_op_parallelism_threads(1)
implementation = tf.distribute.experimental.CommunicationImplementation.RING
strategy = tf.distribute.MultiWorkerMirroredStrategy(
    communication_options=tf.distribute.experimental.CommunicationOptions(implementation=implementation))
import keras
from skinray.normalization import synchronized
from tests.test_normalization import network
keras.config.set_dtype_policy("float64")
with strategy.scope():
    model = synchronized(network())
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    optimizer.build(model.trainable_variables)
count = strategy.num_replicas_in_sync
rng = np.random.default_rng(5)
def losses(photos, labels):
    return keras.losses.sparse_categorical_crossentropy(labels, model(photos, training=True), from_logits=True)
def gradients(photos, labels):
    with tf.GradientTape() as tape:
        loss = tf.nn.compute_average_loss(losses(photos, labels), global_batch_size=8)
    return tape.gradient(loss, model.trainable_variables)
def apply(photos, labels):
    optimizer.apply(gradients(photos, labels), model.trainable_variables)
@tf.function
def run(step, photos, labels):
    return strategy.run(step, args=(photos, labels))
def collectives(step):
    graph = run.get_concrete_function(step, photos, labels).graph
    return sum(operation.type.startswith("CollectiveReduce") for operation in graph.get_operations())
for number in range(6):
    photos, labels = rng.normal(1.0, 2.0, (8, 12, 12, 3)), rng.integers(0, 3, 8)
    share = strategy.cluster_resolver.task_id or 0
    mine = slice(share * 8 // count, (share + 1) * 8 // count)
    photos, labels = tf.constant(photos[mine]), tf.constant(labels[mine])
    run(apply, photos, labels)
np.savez(sys.argv[1], *model.get_weights(), counts=[collectives(losses), collectives(gradients)])
"""


def network() -> "keras.Model":
    """A small CNN with three BatchNorm layers, one of them in a model within the model, whose weights a seed makes."""
    import keras

    keras.utils.set_random_seed(4)
    inner_inputs = keras.Input((6, 6, 4))
    features = keras.layers.Conv2D(6, 3, padding="same", use_bias=False, name="inner_conv")(inner_inputs)
    features = keras.layers.BatchNormalization(name="inner_norm")(features)
    inner = keras.Model(inner_inputs, keras.layers.ReLU(name="inner_relu")(features), name="backbone")
    inputs = keras.Input((12, 12, 3), name="photo")
    features = keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="conv")(inputs)
    features = keras.layers.BatchNormalization(momentum=0.9, name="norm")(features)
    features = inner(keras.layers.ReLU(name="relu")(features))
    features = keras.layers.Conv2D(5, 1, use_bias=False, name="last_conv")(features)
    features = keras.layers.ReLU(name="last_relu")(keras.layers.BatchNormalization(scale=False, name="last_norm")(features))
    features = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(features), name="net")


def test_two_workers_train_as_one_with_two_collectives_a_layer(tmp_path: Path) -> None:
    hosts = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    task = [json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}) for index in range(2)]
    paths = [tmp_path / f"{name}.npz" for name in ("alone", "first", "second")]
    environments = [{}, {"TF_CONFIG": task[0]}, {"TF_CONFIG": task[1]}]
    run_all([(WORKERS, [str(path)], environment) for path, environment in zip(paths, environments, strict=True)])
    alone, first, second = (dict(np.load(path)) for path in paths)
    assert alone.pop("counts").tolist() == [0, 0]
    assert first.pop("counts").tolist() == second.pop("counts").tolist() == [3, 6]
    assert_alike(first, alone, 1e-9)
    assert all(np.array_equal(value, second[name]) for name, value in first.items())
    untrained = network().get_weights()
    assert not any(np.allclose(old, alone[f"arr_{number}"]) for number, old in enumerate(untrained)), "all weights moved"


@pytest.fixture(scope="module")
def mobilenet() -> "keras.Model":
    """A network around a nested MobileNet, with operations that are no layers and random moving statistics."""
    import keras

    keras.utils.set_random_seed(6)
    backbone = keras.applications.MobileNet(alpha=0.25, weights=None, include_top=False, input_shape=(64, 64, 3))
    backbone.name = "backbone"
    inputs = keras.Input((64, 64, 3), dtype="uint8", name="photo")
    features = keras.ops.flip(keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(inputs), axis=-1)
    features = keras.layers.GlobalAveragePooling2D(name="pool")(backbone(features))
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(features), name="mobilenet")
    rng = np.random.default_rng(7)
    model.set_weights([weight + rng.uniform(0, 0.1, weight.shape).astype(weight.dtype) for weight in model.get_weights()])
    return model


def norms(model: "keras.Model") -> list["keras.layers.BatchNormalization"]:
    import keras

    found = []
    for layer in model.layers:
        found += norms(layer) if isinstance(layer, keras.Model) else [layer]
    return [layer for layer in found if isinstance(layer, keras.layers.BatchNormalization)]


def paths(model: "keras.Model") -> list[str]:
    return [variable.path for variable in model.weights]


def assert_same_weights(actual: "keras.Model", expected: "keras.Model") -> None:
    assert paths(actual) == paths(expected)
    assert all(np.array_equal(mine, other) for mine, other in zip(actual.get_weights(), expected.get_weights(), strict=True))
    assert not {id(weight) for weight in actual.weights} & {id(weight) for weight in expected.weights}


def test_a_model_and_its_nested_backbone_go_there_and_back(mobilenet: "keras.Model") -> None:
    import keras

    from skinray.normalization import SynchronizedBatchNormalization, plain, synchronized

    photos = np.random.default_rng(8).integers(0, 256, (2, 64, 64, 3), np.uint8)
    there = synchronized(mobilenet)
    back = plain(there)
    assert len(norms(mobilenet)) == 27
    assert {type(layer) for layer in norms(there)} == {SynchronizedBatchNormalization}
    assert {type(layer) for layer in norms(back)} == {keras.layers.BatchNormalization}
    assert {layer.synchronized for layer in norms(there)} == {True}
    for copy in (there, back):
        assert copy.name == mobilenet.name
        assert [layer.name for layer in copy.layers] == [layer.name for layer in mobilenet.layers]
        backbones = [model.get_layer("backbone") for model in (copy, mobilenet)]
        assert [layer.name for layer in backbones[0].layers] == [layer.name for layer in backbones[1].layers]
        assert copy.input.dtype == "uint8"
        assert_same_weights(copy, mobilenet)
        outputs, expected = (np.asarray(model(photos, training=False)) for model in (copy, mobilenet))
        np.testing.assert_array_equal(outputs, expected)
    assert json.dumps(back.get_config(), default=str) == json.dumps(mobilenet.get_config(), default=str)


def test_a_stored_plain_model_holds_only_keras_layers(mobilenet: "keras.Model", tmp_path: Path) -> None:
    import keras

    from skinray.normalization import plain, synchronized

    path = tmp_path / "model.keras"
    plain(synchronized(mobilenet)).save(path)
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json").decode()
    assert "skinray" not in config
    assert '"synchronized": true' not in config
    assert_same_weights(keras.models.load_model(path), mobilenet)


def test_a_stored_synchronized_model_is_one_again(tmp_path: Path) -> None:
    import keras

    from skinray.normalization import SynchronizedBatchNormalization, synchronized

    model = synchronized(network())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert {type(layer) for layer in norms(loaded)} == {SynchronizedBatchNormalization}
    assert_same_weights(loaded, model)


@pytest.mark.parametrize("kind", ["synchronized", "plain"])
def test_weight_files_fit_both_kinds_of_model(tmp_path: Path, kind: str) -> None:
    from skinray.normalization import synchronized

    model, other = network(), synchronized(network())
    if kind == "synchronized":
        model, other = other, model
    other.set_weights([weight * 0 for weight in other.get_weights()])
    model.save_weights(tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")
    assert_same_weights(other, model)


@pytest.mark.parametrize("structure", ["dict", "list"])
def test_several_inputs_and_outputs_keep_their_names_and_order(structure: str) -> None:
    import keras

    from skinray.normalization import synchronized

    inputs = {"zoom": keras.Input((8, 8, 3), name="zoom", dtype="uint8"), "age": keras.Input((2,), name="age")}
    features = keras.layers.BatchNormalization(name="norm")(keras.layers.Rescaling(1 / 255)(inputs["zoom"]))
    joined = keras.layers.Concatenate()([keras.layers.GlobalAveragePooling2D()(features), inputs["age"]])
    outputs = {"b": keras.layers.Dense(2, name="b")(joined), "a": keras.layers.Dense(1, name="a")(joined)}
    model = keras.Model(*((inputs, outputs) if structure == "dict" else (list(inputs.values()), list(outputs.values()))))
    copy = synchronized(model)
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in copy.inputs] == [
        (tensor.name, tensor.dtype, tensor.shape) for tensor in model.inputs
    ]
    rng = np.random.default_rng(9)
    values: Any = {"zoom": rng.integers(0, 256, (3, 8, 8, 3), np.uint8), "age": rng.normal(size=(3, 2)).astype(np.float32)}
    if structure == "list":
        values = list(values.values())
    mine, other = copy(values, training=False), model(values, training=False)
    assert type(mine) is type(other)
    for key in other if structure == "dict" else range(2):
        np.testing.assert_array_equal(np.asarray(mine[key]), np.asarray(other[key]))


def test_what_is_frozen_stays_frozen() -> None:
    from skinray.normalization import synchronized

    model = network()
    model.get_layer("backbone").trainable = False
    model.get_layer("backbone").get_layer("inner_conv").trainable = True
    model.get_layer("norm").trainable = False
    copy = synchronized(model)
    assert [variable.path for variable in copy.trainable_variables] == [variable.path for variable in model.trainable_variables]
    for layer, copied in zip(model.get_layer("backbone").layers, copy.get_layer("backbone").layers, strict=True):
        assert layer.trainable == copied.trainable


def test_options_survive_and_the_plain_config_is_keras_own() -> None:
    import keras

    from skinray.normalization import SynchronizedBatchNormalization

    options: dict[str, Any] = {"momentum": 0.8, "epsilon": 1e-4, "scale": False, "beta_regularizer": "l2", "name": "norm"}
    own = keras.layers.BatchNormalization(**options)
    ours = SynchronizedBatchNormalization.from_config(own.get_config())
    assert ours.get_config() == {**own.get_config(), "synchronized": True}
    assert ours.plain_config() == own.get_config()
    assert SynchronizedBatchNormalization(synchronized=False).synchronized
