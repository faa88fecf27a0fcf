"""Phases, losses and optimizers against their definitions; gradients summed before they are clipped."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from skinray.training_config import TrainSettings, with_changes


def settings(**changes: Any) -> TrainSettings:
    return with_changes(TrainSettings(data="d", output="o"), changes)


def losses(logits: Any, labels: Any, **changes: Any) -> Any:
    import tensorflow as tf

    from skinray.optimization import photo_losses

    return photo_losses(tf.constant(logits, tf.float64), tf.constant(labels, tf.int32), settings(**changes)).numpy()


def test_transfer_learning_has_two_phases_and_the_rest_one() -> None:
    from skinray.optimization import phases

    (only,) = phases(settings(epochs=4))
    assert (only.first_epoch, only.end_epoch, only.frozen_backbone) == (0, 4, False)
    changes = {"transfer.frozen_epochs": 1, "transfer.frozen_learning_rate": 0.01}
    first, second = phases(settings(epochs=4, **changes))
    assert (first.first_epoch, first.end_epoch, first.frozen_backbone, first.peak_learning_rate) == (0, 1, True, 0.01)
    assert (second.first_epoch, second.end_epoch, second.frozen_backbone) == (1, 4, False)
    assert [phase.frozen_backbone for phase in phases(settings(epochs=1, **changes))] == [True]


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 4), ("adam", 2), ("adamw", 2)])
def test_the_learning_rate_follows_the_global_batch_by_the_stated_rule(optimizer: str, factor: float) -> None:
    from skinray.optimization import phases

    small, large = (phases(settings(optimizer=optimizer, learning_rate=1e-3, global_batch_size=size))[0] for size in (32, 128))
    assert small.peak_learning_rate == 1e-3
    assert large.peak_learning_rate == pytest.approx(factor * 1e-3)


def test_the_learning_rate_warms_up_and_falls_to_zero_within_each_phase() -> None:
    from skinray.optimization import build_optimizer, phases

    run = settings(epochs=5, warmup_fraction=0.2, learning_rate=1e-3, **{"transfer.frozen_epochs": 1})
    for phase in phases(run):
        schedule = build_optimizer(run, phase, steps_per_epoch=10)._learning_rate
        steps = 10 * (phase.end_epoch - phase.first_epoch)
        rates = [float(schedule(step)) for step in range(steps + 1)]
        assert rates[0] == 0
        assert int(np.argmax(rates)) == steps // 5
        assert max(rates) == pytest.approx(phase.peak_learning_rate)
        assert rates[-1] == pytest.approx(0, abs=1e-9)


@hypothesis_settings(deadline=None, max_examples=25)
@given(st.integers(0, 9999), st.floats(0, 0.5), st.floats(0, 4))
def test_losses_are_those_of_their_formulas(seed: int, smoothing: float, gamma: float) -> None:
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(0, 3, (8, 3)), generator.integers(0, 3, 8)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    cross_entropy = losses(logits, labels, label_smoothing=smoothing)
    np.testing.assert_allclose(cross_entropy, -(targets * np.log(p)).sum(axis=1), rtol=1e-9)
    focal = losses(logits, labels, label_smoothing=smoothing, loss="focal", focal_gamma=gamma)
    np.testing.assert_allclose(focal, -(targets * (1 - p) ** gamma * np.log(p)).sum(axis=1), rtol=1e-4, atol=1e-6)


def test_the_focal_loss_is_finite_where_the_network_is_certain() -> None:
    import tensorflow as tf

    from skinray.optimization import photo_losses

    logits = tf.Variable([[80.0, -80.0], [-80.0, 80.0]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(photo_losses(logits, tf.constant([0, 0]), settings(loss="focal")))
    assert np.isfinite(loss.numpy())
    assert np.isfinite(tape.gradient(loss, logits).numpy()).all()


def test_the_average_of_constant_weights_is_those_and_follows_a_change_slowly() -> None:
    import keras
    import tensorflow as tf

    from skinray.optimization import WeightAverage

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.full((1, 1), 3.0)])
    average = WeightAverage(model, decay=0.9)
    for step in range(20):
        average.update(tf.constant(step))
    assert average.values()[0] == pytest.approx(3)
    model.set_weights([np.full((1, 1), 4.0)])
    average.update(tf.constant(1000))
    assert average.values()[0] == pytest.approx(3.1)


REPLICAS = """
import json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
count = int(sys.argv[1])
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
import numpy as np
from skinray.optimization import build_optimizer, phases, sum_over_replicas
from skinray.training_config import TrainSettings, with_changes
strategy = tf.distribute.MirroredStrategy([f"cpu:{number}" for number in range(count)])
def train(changes):
    settings, float16 = with_changes(TrainSettings(data="d", output="o"), changes), changes.get("precision") == "float16"
    with strategy.scope():
        import keras
        weights = [keras.Variable(np.ones((3, 2)), dtype="float32"), keras.Variable(np.ones(4), dtype="float32")]
        optimizer = build_optimizer(settings, phases(settings)[0], 1, float16)
        optimizer.build(weights)
    def step(values):
        share = tf.distribute.get_replica_context().replica_id_in_sync_group
        start = share * (24 // count)
        mine = values[start : start + 24 // count]  # this replica's part of 24 gradients that add up
        gradients = [tf.reduce_sum(mine) * tf.reshape(tf.range(6.0), (3, 2)), tf.reduce_sum(mine) * tf.range(4.0)]
        gradients = [optimizer.scale_loss(gradient) for gradient in gradients]
        optimizer.apply(sum_over_replicas(gradients), weights)
    run = tf.function(lambda values: strategy.run(step, args=(values,)))
    for number in range(3):
        run(tf.constant(np.random.default_rng(number).normal(size=24), tf.float32))
    if float16:
        before = [weight.numpy().copy() for weight in weights]
        run(tf.constant([np.inf] + [0.0] * 23, tf.float32))  # one replica alone sees the infinity
        assert all(np.array_equal(b, w.numpy()) for b, w in zip(before, weights)), "a step with an overflow is left out by all"
    local = [[value.numpy().tolist() for value in strategy.experimental_local_results(weight.value)] for weight in weights]
    assert all(value == parts[0] for parts in local for value in parts), "all replicas hold the same weights"
    return [parts[0] for parts in local]
print(json.dumps([train(changes) for changes in json.loads(sys.argv[2])]))
"""


def test_two_replicas_step_as_one() -> None:
    kinds: list[dict[str, Any]] = [
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 0.5},
        {"optimizer": "adamw", "clip_norm": 0.5, "weight_decay": 0.1},
        {"optimizer": "adam"},
        {"optimizer": "adamw", "precision": "float16"},
    ]
    command = [sys.executable, "-c", REPLICAS]
    changes = json.dumps([{"warmup_fraction": 0, "epochs": 10, **kind} for kind in kinds])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    runs = [subprocess.run([*command, str(count), changes], capture_output=True, text=True, env=environment) for count in (1, 2)]
    assert [run.returncode for run in runs] == [0, 0], runs[-1].stderr[-2000:]
    one, two = (json.loads(run.stdout.splitlines()[-1]) for run in runs)
    for kind, mine, other in zip(kinds, one, two, strict=True):
        for weights, weights_of_two in zip(mine, other, strict=True):
            np.testing.assert_allclose(weights, weights_of_two, atol=1e-6, err_msg=str(kind))
            assert not np.allclose(weights, 1), f"{kind}: something was learnt"
    assert not np.allclose(one[0][0], one[1][0]), "clipping changes the step"
