"""What a training step costs here, beside the same step in plain Keras and beside the script that a Keras user would write.

    ceiling   `fit` of the same network in one process on all cores: photos decoded before and held in memory, the same global
              batch, optimizer and precision; no pipeline, no workers, nothing written
    keras     the script: tf.data reads and decodes the files for every epoch, `fit` in float32, one process, all cores
    pipeline  `skinray train`: a worker a core, which sum their gradients and synchronize their BatchNorm

All without augmentation, from the second epoch on: the first one holds the making of the graph.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from skinray import storage
from skinray.config import BenchmarkSettings, PrepareSettings
from skinray.images import Preprocessing, decode_photo
from skinray.preparation import prepare_dataset
from skinray.synthetic import draw_dataset
from skinray.telemetry import say
from skinray.training import train
from skinray.training_config import AugmentationSettings, ModelSettings, TrainSettings

_NO_AUGMENTATION = AugmentationSettings(flip=False, rotation_turns=0, zoom=0, brightness=0, contrast=0)
_LEARNING_RATE = 1e-4


def benchmark_train(settings: BenchmarkSettings, folder: Path) -> dict[str, Any]:
    """Takes every rate in turn, `rounds` times.

    Args:
        settings: Which network, how many photos a measurement, the global batch.
        folder: For what the runs write.

    Returns:
        Medians in images a second, their ratios, the share of a step that waited for photos, and every reading under `readings`.
    """
    cores = int(max(node["Resources"].get("CPU", 0) for node in ray.nodes()))  # type: ignore[no-untyped-call]
    batch, steps = settings.batch_size, max(2, settings.photos // settings.batch_size)
    drawn = max(240, round(steps * batch / 0.65))  # enough for the training split
    say(f"drawing {drawn} photos")
    draw_dataset(folder / "drawn", drawn, seed=0, workers=os.cpu_count() or 1)
    dataset = prepare_dataset(PrepareSettings(catalog="synthetic", source=str(folder / "drawn"), output=str(folder / "dataset")))
    paths = [str(path) for path in sorted((folder / "drawn" / "images").iterdir())][: steps * batch]
    numbers = itertools.count()
    waits: list[float] = []

    def alone(measure: Callable[..., float], *arguments: Any) -> float:
        # max_calls: a fresh process every time, because TensorFlow's threads are set once a process.
        rate: float = ray.get(ray.remote(num_cpus=cores, max_calls=1)(measure).remote(*arguments))
        return rate

    def pipeline() -> float:
        run = TrainSettings(
            data=dataset.uri,
            output=str(folder / f"run{next(numbers)}"),
            model=ModelSettings(name=settings.model, dropout=0),
            preprocessing=Preprocessing(image_size_px=settings.image_size_px),
            augmentation=_NO_AUGMENTATION,
            num_workers=cores,
            global_batch_size=batch,
            learning_rate=_LEARNING_RATE,
            balance="none",
            epochs=2,
            steps_per_epoch=steps,
            tensorboard=False,
        )
        record = train(run).history[-1]
        waits.append(record["data_wait_s"] / record["train_s"])
        storage.delete_folder(run.output)
        return float(record["images_per_s"])

    measures: dict[str, Callable[[], float]] = {
        "ceiling": lambda: alone(_in_memory_rate, settings.model, paths, settings.image_size_px, batch, cores),
        "keras": lambda: alone(_script_rate, settings.model, paths, settings.image_size_px, batch),
        "pipeline": pipeline,
    }
    readings: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(settings.rounds):
        for name, measure in measures.items():
            readings[name].append(measure())
            say(f"round {number + 1} of {settings.rounds}: {name} {readings[name][-1]:.1f} images/s")
    # Round by round, because a machine that slows down slows all of them.
    rounds = list(zip(readings["pipeline"], readings["ceiling"], readings["keras"], strict=True))
    return {
        **{f"{name}_images_per_s": statistics.median(values) for name, values in readings.items()},
        "ratio_to_ceiling": statistics.median(pipeline / ceiling for pipeline, ceiling, _ in rounds),
        "ratio_to_keras": statistics.median(pipeline / keras for pipeline, _, keras in rounds),
        "data_wait_share": statistics.median(waits),
        "workers": cores,
        "cores": cores,
        "readings": readings,
        "settings": settings.recorded(),
    }


def _in_memory_rate(model_name: Any, paths: list[str], size_px: int, batch_size: int, cores: int) -> float:
    from skinray.classifier import use_threads
    from skinray.replicas import dtype_policy, fastest_precision

    use_threads(cores)
    import keras
    import numpy as np

    keras.config.set_dtype_policy(dtype_policy(fastest_precision()))
    preprocessing = Preprocessing(image_size_px=size_px)
    photos = np.stack([decode_photo(Path(path).read_bytes(), preprocessing).pixels for path in paths])
    model = _compiled(model_name, size_px)
    return _second_epoch_rate(
        lambda watch: model.fit(photos, _labels(len(paths)), batch_size, 2, 0, callbacks=[watch]), len(paths)
    )


def _script_rate(model_name: Any, paths: list[str], size_px: int, batch_size: int) -> float:
    import tensorflow as tf

    def read(path: Any, label: Any) -> Any:
        photo = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.cast(tf.image.resize(photo, (size_px, size_px)), tf.uint8), label

    listed = tf.data.Dataset.from_tensor_slices((paths, _labels(len(paths)))).shuffle(len(paths), seed=0)
    photos = listed.map(read, tf.data.AUTOTUNE).batch(batch_size).prefetch(tf.data.AUTOTUNE)
    model = _compiled(model_name, size_px)
    return _second_epoch_rate(lambda watch: model.fit(photos, epochs=2, verbose=0, callbacks=[watch]), len(paths))


def _labels(count: int) -> Any:
    import numpy as np

    return np.arange(count) % 2


def _compiled(model_name: Any, size_px: int) -> Any:
    import keras

    from skinray.model import build_model

    model = build_model(ModelSettings(name=model_name, dropout=0), size_px, 2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(_LEARNING_RATE, weight_decay=1e-4), loss, jit_compile=False)
    return model


def _second_epoch_rate(fit: Callable[[Any], Any], photos: int) -> float:
    import keras

    began, ended = list[float](), list[float]()
    fit(
        keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: began.append(time.perf_counter()), on_epoch_end=lambda *_: ended.append(time.perf_counter())
        )
    )
    return photos / (ended[-1] - began[-1])


def table(settings: BenchmarkSettings, figures: dict[str, Any]) -> str:
    """The figures for a person."""
    what = (
        f"training {settings.model} at {settings.image_size_px}, global batch {settings.batch_size}, {figures['workers']} workers"
    )
    lines = [f"{what}, {figures['cores']} cores, median of {settings.rounds}"]
    lines += [f"  {name:<9} {figures[f'{name}_images_per_s']:>9.1f} images/s" for name in ("ceiling", "keras", "pipeline")]
    return "\n".join(
        [
            *lines,
            f"  pipeline / ceiling {figures['ratio_to_ceiling']:.2f}",
            f"  pipeline / keras   {figures['ratio_to_keras']:.2f}",
            f"  waited for photos  {figures['data_wait_share']:.1%} of the time",
        ]
    )
