"""Everything once, on drawn lesions, on this machine: draw, prepare, train, evaluate, score, serve.

It is the tour for a newcomer and the end-to-end test: each stage is the same call that its verb makes, and the last one
shows that HTTP and Parquet give the same answer.
"""

import datetime
import json
import os
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skinray import storage
from skinray.config import DemoSettings, EvaluateSettings, PrepareSettings, ScoreSettings, ServeSettings
from skinray.errors import ConfigError, OutputExistsError, SkinrayError
from skinray.evaluation import evaluate
from skinray.images import Preprocessing
from skinray.preparation import prepare_dataset
from skinray.reports import NOT_A_DEVICE
from skinray.scoring import score_archive
from skinray.scoring_pipeline import RunSummary
from skinray.serving import ask_this_machine, start_serving, stop_serving
from skinray.synthetic import BROKEN_KINDS, break_file, draw_dataset
from skinray.telemetry import say
from skinray.training import TrainedModel, train
from skinray.training_config import ModelSettings, TrainSettings

ARCHIVE_PHOTOS = 1000
BROKEN_FILES = 20
LARGEST_DIFFERENCE = 1e-5


def run_demo(settings: DemoSettings) -> int:
    """Runs all stages and prints a table of what was made.

    Returns:
        0; an error is raised when a stage fails or HTTP and Parquet disagree.
    """
    if storage.is_remote(settings.output):
        raise ConfigError(f"--output {settings.output}: the demo writes to a local folder")
    output = Path(storage.normalize(settings.output))
    if output.exists():
        raise OutputExistsError(f"output {output} already exists: choose another --output, or remove it first")
    started = time.monotonic()
    stages = _Stages(output)

    with stages.timed("draw"):
        say(f"drawing {settings.photos} photos to learn from and {ARCHIVE_PHOTOS} to score")
        draw_dataset(output / "photos", settings.photos, settings.seed, workers=os.cpu_count() or 1)
        _draw_archive(output / "archive", settings.seed + 1)
    stages.note(
        "draw", f"{settings.photos} photos and an archive of {ARCHIVE_PHOTOS}, {BROKEN_FILES} of them broken", output / "photos"
    )

    with stages.timed("prepare"):
        dataset = prepare_dataset(
            PrepareSettings(
                catalog="synthetic", source=str(output / "photos"), output=str(output / "dataset"), seed=settings.seed
            )
        )
    splits = ", ".join(f"{sum(counts.values())} {split}" for split, counts in dataset.manifest.split_classes.items())
    stages.note("prepare", f"{splits}; no patient, lesion or duplicate on two sides", dataset.uri)

    with stages.timed("train"):
        trained = train(_train_settings(settings, output))
    stages.note(
        "train", f"2 workers, best epoch {trained.best_epoch}, validation AUC {trained.validation_auc:.3f}", trained.bundle_uri
    )

    with stages.timed("evaluate"):
        metrics = evaluate(
            EvaluateSettings(bundle=trained.bundle_uri, data=dataset.uri, output=str(output / "evaluation"), split="test")
        )
    point = metrics["operating_points"][metrics["default_operating_point"]]
    told = {"roc_auc": metrics["figures"]["roc_auc"], **{name: point[name] for name in ("accuracy", "precision", "recall", "f1")}}
    figures = ", ".join(f"{name} {figure['value']:.3f}" for name, figure in told.items())
    stages.note("evaluate", f"test {figures}", output / "evaluation")

    with stages.timed("score"):
        summary = score_archive(
            ScoreSettings(bundle=trained.bundle_uri, input=str(output / "archive"), output=str(output / "predictions")),
            datetime.datetime.now(datetime.UTC),
        )
    statuses = ", ".join(f"{count} {status}" for status, count in summary.statuses.items())
    stages.note("score", f"{summary.rows} rows: {statuses}; {summary.flagged} flagged", summary.uri)

    with stages.timed("serve"):
        difference = _serve_one(trained, summary, output / "archive")
    stages.note("serve", f"HTTP and Parquet differ by {difference:.1e}", "stopped again")

    print(stages.table())
    print(f"{time.monotonic() - started:.0f} s in all. {NOT_A_DEVICE}")
    return 0


def _train_settings(settings: DemoSettings, output: Path) -> TrainSettings:
    return TrainSettings(
        data=str(output / "dataset"),
        output=str(output / "training"),
        model=ModelSettings(name="cnn_sequential"),
        preprocessing=Preprocessing(image_size_px=96),
        num_workers=2,
        epochs=settings.epochs,
        learning_rate=3e-3,
        seed=settings.seed,
    )


def _draw_archive(folder: Path, seed: int) -> None:
    """Draws photos that no other stage sees, and breaks some of them in every known way."""
    draw_dataset(folder, ARCHIVE_PHOTOS, seed, workers=os.cpu_count() or 1)
    (folder / "metadata.csv").unlink()
    paths = sorted((folder / "images").iterdir())
    chosen = np.random.default_rng(seed).choice(len(paths), BROKEN_FILES, replace=False)
    for number, position in enumerate(chosen):
        path = paths[position]
        path.write_bytes(break_file(path.read_bytes(), BROKEN_KINDS[number % len(BROKEN_KINDS)]))


def _serve_one(trained: TrainedModel, summary: RunSummary, archive: Path) -> float:
    """Posts one photo of the archive and compares the answer with its row; returns the largest difference."""
    row = _first_scored(summary)
    address = start_serving(ServeSettings(bundle=trained.bundle_uri, port=_free_port()))
    try:
        body = (archive / row["image_id"]).read_bytes()
        request = urllib.request.Request(f"{address}v1/predict", data=body, headers={"Content-Type": "image/jpeg"})
        with ask_this_machine(request, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
    finally:
        stop_serving()
    columns = [name for name in answer if name.startswith("prob_")]
    difference = float(max(abs(answer[name] - float(row[name])) for name in columns))
    scores = f"{answer['malignancy_score']:.6f} over HTTP, {row['malignancy_score']:.6f} in Parquet"
    say(f"serve: {row['image_id']}: malignancy score {scores}")
    if answer["model_id"] != trained.model_id or difference > LARGEST_DIFFERENCE:
        raise SkinrayError(
            f"HTTP and Parquet differ by {difference:.1e} for {row['image_id']}, more than {LARGEST_DIFFERENCE:.0e}"
        )
    return difference


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_scored(summary: RunSummary) -> dict[str, Any]:
    rows = pd.read_parquet(summary.uri, filters=[("status", "==", "scored")])
    return {str(name): value for name, value in rows.sort_values("image_id").iloc[0].items()}


class _Stages:
    """What each stage made and how long it took, for the closing table."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._rows: list[tuple[str, str, str, str]] = []
        self._seconds = 0.0

    def timed(self, name: str) -> "_Stages":
        say(f"--- {name}")
        return self

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._seconds = time.monotonic() - self._started

    def note(self, name: str, made: str, where: str | Path) -> None:
        self._rows.append((name, f"{self._seconds:.0f} s", made, str(where).replace(f"{self._output}/", "")))

    def table(self) -> str:
        """The closing table as text; places are below the output folder."""
        made_width = max(len(row[2]) for row in self._rows)
        lines = [f"{name:<9} {took:>6}  {made:<{made_width}}  {where}" for name, took, made, where in self._rows]
        return "\n".join(["", f"made in {self._output}", *lines, ""])
