"""From the best epoch of a run to its bundle: weights, thresholds, where they come from, what validation said.

<output>/bundle/             the best epoch by validation ROC-AUC
<output>/validation.parquet  what it says of the validation photos
"""

import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.special

from skinray import storage
from skinray.bundle import Labels, save_bundle
from skinray.calibration import Calibration, fit_calibration
from skinray.checkpoints import Progress
from skinray.metrics import malignancy
from skinray.operating_points import choose_operating_points
from skinray.overfitting import gap_in_words, generalisation_gap
from skinray.photo_cache import TrainingPhotos
from skinray.provenance import code_commit, versions
from skinray.reports import model_card
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
    calibration = _calibration(settings, manifest.classes, photos.labels, validation_rows, best_logits)
    logits = calibration.applied(best_logits)
    _write_validation_predictions(settings.output, photos, validation_rows, manifest.classes, logits)
    lesions = lesions_or_photos(photos.lesion_ids[validation_rows], photos.image_ids[validation_rows])
    points = choose_operating_points(positive, malignancy(logits, malignant), lesions, "validation")
    gap = gap_in_words(generalisation_gap(progress.history))
    metadata = bundle_metadata(settings, dataset) | {
        "validation": {"photos": len(positive), "roc_auc": progress.best_auc, "epoch": progress.best_epoch},
        "gap": f"{divergence_in_words(progress)}. Before that: {gap}" if progress.diverged else gap,
        "calibration": asdict(calibration),
    }
    bundle_uri = storage.join(settings.output, "bundle")
    model_id = save_bundle(
        bundle_uri,
        with_probabilities(model, calibration),
        settings.preprocessing,
        Labels(codes=manifest.classes, malignant=manifest.malignant),
        points,
        metadata,
        model_card(metadata, points),
    )
    say(f"train: {gap}")
    return bundle_uri, model_id


def divergence_in_words(progress: Progress) -> str:
    """What became of a run that diverged, and what to do."""
    return f"the loss is not a number since epoch {progress.epoch + 1}: lower learning_rate or set clip_norm"


def _calibration(
    settings: TrainSettings,
    classes: Sequence[str],
    labels: npt.NDArray[np.str_],
    validation_rows: npt.NDArray[np.int64],
    logits: npt.NDArray[np.float32],
) -> Calibration:
    """Fitted on validation; class weights and balanced sampling made the network see every class equally often."""
    position = {code: number for number, code in enumerate(classes)}
    counts = np.array([np.count_nonzero(labels == code) for code in classes])
    expected = np.zeros(len(classes)) if settings.balance == "none" else np.log(counts / counts.sum())
    return fit_calibration(logits, np.array([position[str(label)] for label in labels[validation_rows]]), expected)


def lesions_or_photos(lesion_ids: npt.NDArray[np.str_], image_ids: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """The lesion of each photo, str [N]; a photo without one stands for itself."""
    return np.where(lesion_ids != "", lesion_ids, np.char.add("photo ", image_ids))


def _write_validation_predictions(
    output: str, photos: TrainingPhotos, rows: npt.NDArray[np.int64], classes: Sequence[str], logits: npt.NDArray[np.float64]
) -> None:
    probabilities = scipy.special.softmax(logits, axis=1)
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
        "versions": versions(),
    }
