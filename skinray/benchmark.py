"""What this machine can do, what this pipeline does, and what the script that a Keras user would write does, in one run.

This is the stage "score"; `skinray.benchmark_prepare` and `skinray.benchmark_train` measure the others.

Single rates mean little on a shared machine, so the rates are taken in turn, several times, and the medians and their
ratios are what to quote.

    decode    decode and resize on all cores, nothing else running
    forward   the classifier on decoded photos, all cores, nothing else running; before and after each pipeline
    ceiling   both sharing the cores: 1 / (1 / decode + 1 / forward); no pipeline on these cores can be faster
    keras     tf.data, `model.predict` in float32, pandas to Parquet: one process, all cores
    pipeline  `skinray score` from the first photo classified to the last row written; start-up is stated apart, and what
              was decoded in it is charged at the decode rate, as if it had been done afterwards

Fewer than 3,200 photos are cut into blocks of fewer than 32, and classified in as small batches.
"""

import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image

from skinray import file_listing, storage
from skinray.benchmark_prepare import benchmark_prepare
from skinray.benchmark_prepare import table as prepare_table
from skinray.benchmark_train import benchmark_train
from skinray.benchmark_train import table as train_table
from skinray.bundle import Labels, OperatingPoint, OperatingPoints, load_bundle, save_bundle
from skinray.config import BenchmarkSettings, ClassifySettings
from skinray.drawing import WIDTH_PX
from skinray.errors import ScoringError, StorageError
from skinray.images import Preprocessing, decode_photo
from skinray.listing import list_photos
from skinray.ray_session import ray_session
from skinray.scoring_pipeline import Extras, write_predictions
from skinray.synthetic import draw_dataset
from skinray.telemetry import say
from skinray.training_config import ModelSettings

_MOST_DRAWN = 1000
_MOST_FOR_START_UP = 256


def run_benchmark(settings: BenchmarkSettings) -> int:
    """Measures, prints a table and, when asked, writes the figures as JSON.

    Returns:
        0.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if settings.stage == "prepare":
            with ray_session():
                figures = benchmark_prepare(settings, _photos(settings, folder / "photos"), folder)
            print(prepare_table(figures))
        elif settings.stage == "train":
            with ray_session():
                figures = benchmark_train(settings, folder)
            print(train_table(settings, figures))
        else:
            photos = _photos(settings, folder / "photos")
            bundle_uri = settings.bundle or _random_bundle(settings, folder / "bundle")
            with ray_session():
                figures = benchmark_score(settings, photos, bundle_uri, folder)
            # Not before: beside another Ray on the same machine, Ray itself takes four seconds longer to start.
            figures |= benchmark_start_up(photos, bundle_uri, folder)
            print(_table(settings, figures))
    if settings.json_file:
        storage.write_json(settings.json_file, figures)
    return 0


def benchmark_score(settings: BenchmarkSettings, photos: Path, bundle_uri: str, folder: Path) -> dict[str, Any]:
    """Takes every rate in turn, `rounds` times.

    Args:
        settings: How many photos, which network.
        photos: Folder of JPEG files.
        bundle_uri: What classifies them.
        folder: For what the runs write.

    Returns:
        Medians in images a second, their ratios, and every single reading under `readings`.
    """
    paths = [str(path) for path in sorted(photos.iterdir())]
    bundle = load_bundle(bundle_uri)
    cores = int(max(node["Resources"].get("CPU", 0) for node in ray.nodes()))  # type: ignore[no-untyped-call]
    size, batch = bundle.preprocessing.image_size_px, settings.batch_size
    numbers = itertools.count()

    def alone(measure: Callable[..., float], *arguments: Any) -> float:
        # max_calls: a fresh process every time, because TensorFlow's threads are set once a process.
        task = ray.remote(num_cpus=cores, max_calls=1)(measure)
        rate: float = ray.get(task.remote(*arguments))
        return rate

    readings: dict[str, list[float]] = {name: [] for name in ("decode", "forward", "keras", "pipeline")}

    def pipeline() -> float:
        classify = ClassifySettings(batch_size=batch)
        listing = list_photos(str(photos), 192, "path")
        summary, _ = write_predictions(bundle, listing, classify, str(folder / f"run{next(numbers)}"), Extras(refuse=True))
        head_start_s = summary.head_start_rows / readings["decode"][-1]
        return summary.rows / (summary.seconds - summary.start_up_seconds + head_start_s)

    measures: dict[str, Callable[[], float]] = {
        "decode": lambda: _decode_rate(paths, size, cores),
        "forward": lambda: alone(_forward_rate, bundle_uri, size, batch, cores, settings.photos // 2),
        "pipeline": pipeline,
        "keras": lambda: alone(_keras_rate, bundle_uri, paths, size, batch, str(folder / "keras.parquet")),
    }
    for number in range(settings.rounds):
        # The network's rate on both sides of the pipeline's, because a machine that slows down slows all of them.
        for name in ("decode", "forward", "pipeline", "forward", "keras"):
            readings[name].append(measures[name]())
            say(f"round {number + 1} of {settings.rounds}: {name} {readings[name][-1]:.1f} images/s")
    forwards = [statistics.mean(readings["forward"][start : start + 2]) for start in range(0, 2 * settings.rounds, 2)]
    ceilings = [1 / (1 / decode + 1 / forward) for decode, forward in zip(readings["decode"], forwards, strict=True)]
    median = {name: statistics.median(values) for name, values in readings.items()}
    rounds = list(zip(readings["pipeline"], ceilings, readings["keras"], strict=True))
    return {
        "decode_images_per_s": median["decode"],
        "forward_images_per_s": median["forward"],
        "ceiling_images_per_s": statistics.median(ceilings),
        "keras_images_per_s": median["keras"],
        "pipeline_images_per_s": median["pipeline"],
        "ratio_to_ceiling": statistics.median(pipeline / ceiling for pipeline, ceiling, _ in rounds),
        "ratio_to_keras": statistics.median(pipeline / keras for pipeline, _, keras in rounds),
        "largest_difference_to_keras": alone(_largest_difference, bundle_uri, paths[:batch]),
        "cores": cores,
        "readings": readings,
        "settings": settings.recorded(),
    }


def benchmark_start_up(photos: Path, bundle_uri: str, folder: Path) -> dict[str, Any]:
    """Takes what passes between the command `skinray score` and its first photo, on a Ray of its own, once.

    Args:
        photos: Folder of JPEG files.
        bundle_uri: What classifies them.
        folder: For what the command writes.

    Returns:
        Seconds, and their parts in words -> seconds.

    Raises:
        ScoringError: The command failed.
    """
    few = folder / "few"
    few.mkdir()
    for path in sorted(photos.iterdir())[:_MOST_FOR_START_UP]:
        (few / path.name).symlink_to(path)
    command = [sys.executable, "-c", "from skinray.cli import main; raise SystemExit(main())", "score"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    asked = [*command, "--bundle", bundle_uri, "--input", str(few), "--output", str(folder / "scores")]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True)
    told = re.search(r"^start-up .* to the first photo: (.*)$", done.stdout, re.MULTILINE)
    if told is None:
        raise ScoringError(f"skinray score ended with {done.returncode}: {done.stderr[-500:]}")
    parts = {name: float(seconds) for name, _, seconds in (part.rpartition(" ") for part in told[1].split(", "))}
    return {"start_up_s": sum(parts.values()), "start_up_parts": parts}


def _largest_difference(bundle_uri: str, paths: list[str]) -> float:
    """Between a probability of the classifier and of the plain Keras model in float32, for the same pixels."""
    from skinray.classifier import Classifier

    bundle = load_bundle(bundle_uri)
    model = bundle.load_model()
    pixels = np.stack([decode_photo(Path(path).read_bytes(), bundle.preprocessing).pixels for path in paths])
    exact = np.asarray(model(pixels, training=False))
    return float(np.abs(Classifier(bundle).probabilities(pixels) - exact).max())


def _photos(settings: BenchmarkSettings, folder: Path) -> Path:
    if settings.input is None:
        drawn = min(settings.photos, _MOST_DRAWN) if settings.stage == "prepare" else settings.photos
        say(f"drawing {drawn} photos")
        draw_dataset(folder, drawn, seed=0, workers=os.cpu_count() or 1)
        if settings.photo_width_px != WIDTH_PX:
            for photo in (folder / "images").iterdir():
                _enlarge(photo, settings.photo_width_px)
        return folder / "images"
    found = [path for path in file_listing.list_files(settings.input) if path.lower().endswith((".jpg", ".jpeg"))]
    if not found:
        raise StorageError(f"{settings.input} holds no JPEG photos")
    folder.mkdir(parents=True)
    # Prepare repeats them itself, under their class.
    again = itertools.cycle(found) if settings.stage == "score" else found
    for number, path in zip(range(settings.photos), again):
        (folder / f"{number:07d}.jpg").write_bytes(storage.read_bytes(storage.join(settings.input, path)))
    return folder


def _enlarge(path: Path, width_px: int) -> None:
    with Image.open(path) as photo:
        photo.resize((width_px, width_px * photo.height // photo.width)).save(path, quality=90)


def _random_bundle(settings: BenchmarkSettings, folder: Path) -> str:
    from skinray.model import build_model, with_probabilities

    preprocessing = Preprocessing(image_size_px=settings.image_size_px)
    model = build_model(ModelSettings(name=settings.model), settings.image_size_px, 2)
    point = OperatingPoint(threshold=0.5, sensitivity=0.0, specificity=0.0, measured_on="nothing: random weights")
    save_bundle(
        str(folder),
        with_probabilities(model),
        preprocessing,
        Labels(codes=("benign", "malignant"), malignant=("malignant",)),
        OperatingPoints(default="none", points={"none": point}),
        {"network": settings.model, "note": "random weights, for measuring speed"},
        "Random weights, for measuring speed.",
    )
    return str(folder)


def _decode_rate(paths: list[str], size_px: int, cores: int) -> float:
    task = ray.remote(num_cpus=1)(_decode_all)
    parts = [paths[number::cores] for number in range(cores)]
    ray.get([task.remote(part[:4], size_px) for part in parts])  # starts the processes and their imports
    # The slowest part bounds them all; each measures itself, without the scheduling around it.
    return len(paths) / max(ray.get([task.remote(part, size_px) for part in parts]))


def _decode_all(paths: list[str], size_px: int) -> float:
    preprocessing = Preprocessing(image_size_px=size_px)
    started = time.perf_counter()
    for path in paths:
        decode_photo(Path(path).read_bytes(), preprocessing)
    return time.perf_counter() - started


def _forward_rate(bundle_uri: str, size_px: int, batch_size: int, cores: int, photos: int) -> float:
    from skinray.classifier import Classifier, passes_at_once, use_threads

    passes = passes_at_once(cores)
    use_threads(cores, passes)
    classifier = Classifier(load_bundle(bundle_uri), batch_size)
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size, size_px, size_px, 3), dtype=np.uint8)
    batches = max(2 * passes, photos // batch_size)
    with ThreadPoolExecutor(passes) as threads:
        list(threads.map(classifier.probabilities, [pixels] * passes))
        started = time.perf_counter()
        list(threads.map(classifier.probabilities, [pixels] * batches))
        return batches * batch_size / (time.perf_counter() - started)


def _keras_rate(bundle_uri: str, paths: list[str], size_px: int, batch_size: int, output: str) -> float:
    """The script that a Keras user would write, from the second batch on: its start-up is not counted either."""
    import pandas as pd
    import tensorflow as tf

    model = load_bundle(bundle_uri).load_model()

    def read(path: Any) -> Any:
        photo = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.cast(tf.image.resize(photo, (size_px, size_px)), tf.uint8)

    def dataset(files: list[str]) -> Any:
        return tf.data.Dataset.from_tensor_slices(files).map(read, tf.data.AUTOTUNE).batch(batch_size).prefetch(tf.data.AUTOTUNE)

    model.predict(dataset(paths[:batch_size]), verbose=0)
    started = time.perf_counter()
    probabilities = model.predict(dataset(paths), verbose=0)
    pd.DataFrame({"path": paths, "benign": probabilities[:, 0], "malignant": probabilities[:, 1]}).to_parquet(output)
    return len(paths) / (time.perf_counter() - started)


def _table(settings: BenchmarkSettings, figures: dict[str, Any]) -> str:
    rows = [(name, figures[f"{name}_images_per_s"]) for name in ("decode", "forward", "ceiling", "keras", "pipeline")]
    network = settings.bundle or f"{settings.model} at {settings.image_size_px}"
    what = f"{network}, {settings.photos} photos, {figures['cores']} cores"
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in figures["start_up_parts"].items())
    lines = [f"{what}, median of {settings.rounds}"]
    lines += [f"  {name:<9} {rate:>9.1f} images/s" for name, rate in rows]
    lines += [
        f"  pipeline / ceiling {figures['ratio_to_ceiling']:.2f}",
        f"  pipeline / keras   {figures['ratio_to_keras']:.2f}",
        f"  largest difference of a probability to Keras in float32 {figures['largest_difference_to_keras']:.1e}",
        f"  start-up {figures['start_up_s']:.1f} s from the command to the first photo: {parts}",
    ]
    return "\n".join(lines)
