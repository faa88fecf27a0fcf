"""From the best epoch of a run to its bundle: weights, thresholds, where they come from, what validation said.

<output>/bundle/             the best epoch by validation ROC-AUC
<output>/validation.parquet  what it says of the validation photos
"""

import io
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.special

import skinray
from skinray import storage
from skinray.bundle import Labels, OperatingPoint, OperatingPoints, save_bundle
from skinray.checkpoints import Progress
from skinray.metrics import binary_figures, malignancy, threshold_for_sensitivity, threshold_youden
from skinray.overfitting import gap_in_words, generalisation_gap
from skinray.photo_cache import TrainingPhotos
from skinray.reports import training_card
from skinray.shards import PreparedDataset
from skinray.telemetry import say
from skinray.training_config import TrainSettings

VALIDATION_NAME = "validation.parquet"


def export_bundle(
    settings: TrainSettings,
    dataset: PreparedDataset,
    photos: TrainingPhotos,
    validation_rows: npt.NDArray[np.int64],
    progress: Progress,
    best_weights: list[npt.NDArray[Any]],
    best_logits: npt.NDArray[np.float32],
) -> tuple[str, str]:
    """Writes the bundle and the validation predictions of a run.

    Args:
        settings: Of the run.
        dataset: What it was trained on.
        photos: Its photos.
        validation_rows: Which of them chose the epoch.
        progress: Where the run ended.
        best_weights: Of the best epoch, in the order of `model.get_weights()`.
        best_logits: Of the best epoch on `validation_rows`, float32 [N, C].

    Returns:
        The bundle's URI and its model_id.
    """
    from skinray.model import build_model, with_probabilities

    manifest = dataset.manifest
    model = build_model(settings.model, settings.preprocessing.image_size_px, len(manifest.classes))
    model.set_weights(best_weights)
    malignant = tuple(manifest.classes.index(code) for code in manifest.malignant)
    positive = np.isin(photos.labels[validation_rows], list(manifest.malignant))
    _write_validation_predictions(settings.output, photos, validation_rows, manifest.classes, best_logits)
    points = operating_points(positive, malignancy(best_logits, malignant))
    gap = generalisation_gap(progress.history)
    metadata = bundle_metadata(settings, dataset) | {
        "validation": {"photos": len(positive), "roc_auc": progress.best_auc, "epoch": progress.best_epoch},
        "gap": gap_in_words(gap),
    }
    bundle_uri = storage.join(settings.output, "bundle")
    model_id = save_bundle(
        bundle_uri,
        with_probabilities(model),
        settings.preprocessing,
        Labels(codes=manifest.classes, malignant=manifest.malignant),
        points,
        metadata,
        training_card(metadata, points),
    )
    say(f"train: {gap_in_words(gap)}")
    return bundle_uri, model_id


def _write_validation_predictions(
    output: str, photos: TrainingPhotos, rows: npt.NDArray[np.int64], classes: Sequence[str], logits: npt.NDArray[np.float32]
) -> None:
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    columns: dict[str, Any] = {
        "image_id": photos.image_ids[rows],
        "lesion_id": photos.lesion_ids[rows],
        "label": photos.labels[rows],
        **{f"prob_{code}": probabilities[:, number] for number, code in enumerate(classes)},
    }
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer)
    storage.write_bytes(storage.join(output, VALIDATION_NAME), buffer.getvalue())


def read_validation_predictions(bundle_uri: str) -> pd.DataFrame:
    """What the best epoch said of the validation photos: image_id, lesion_id ("" unknown), label, one prob_<code> a class."""
    run_uri = bundle_uri.removesuffix("/bundle")
    return pd.read_parquet(io.BytesIO(storage.read_bytes(storage.join(run_uri, VALIDATION_NAME))))


def bundle_metadata(settings: TrainSettings, dataset: PreparedDataset) -> dict[str, Any]:
    """What a bundle says of where it comes from: data, settings, code, versions."""
    manifest = dataset.manifest
    return {
        "task": "skin lesion classification",
        "intended_use": "research; not a medical device, its output is not a diagnosis",
        "network": settings.model.name,
        "classes": list(manifest.classes),
        "malignant": list(manifest.malignant),
        "dataset": {"sha256": dataset.sha256, "split_classes": manifest.split_classes, "settings": manifest.settings},
        "leaks": manifest.leaks,
        "training_settings": settings.recorded(),
        "code_commit": code_commit(),
        "versions": {name: version(name) for name in ("keras", "numpy", "pillow", "ray", "simplejpeg", "tensorflow")}
        | {"python": platform.python_version(), "skinray": skinray.__version__},
    }


def code_commit() -> str | None:
    """The commit of the code that runs, where it runs from a checkout or SKINRAY_COMMIT names it; None elsewhere."""
    if "SKINRAY_COMMIT" in os.environ:
        return os.environ["SKINRAY_COMMIT"]
    folder = Path(skinray.__file__).parent
    if not (folder.parent / ".git").exists():
        return None
    asked = subprocess.run(["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return asked.stdout.strip() or None


def operating_points(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> OperatingPoints:
    """Thresholds on the malignancy score that validation gives.

    Args:
        positive: bool [N], malignant.
        scores: float64 [N], 0 to 1.
    """
    thresholds = {
        "sensitivity_95": threshold_for_sensitivity(positive, scores, 0.95),
        "youden": threshold_youden(positive, scores),
    }
    points = {}
    for name, threshold in thresholds.items():
        # A hair lower, because the same photo may come out 1e-6 lower on another machine.
        lowered = max(0.0, threshold - 1e-5)
        figures = binary_figures(positive, scores, lowered)
        points[name] = OperatingPoint(
            threshold=lowered, sensitivity=figures["recall"], specificity=figures["specificity"], measured_on="validation"
        )
    return OperatingPoints(default="youden", points=points)
