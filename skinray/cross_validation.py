"""Cross-validation: a run a fold -> the spread of every figure, and the runs' models averaged into one bundle.

<output>/fold=0/ ...           a training run each; the same command goes on where it was cut off
<output>/bundle/               the mean of their probabilities; thresholds from the photos that each model had not seen
<output>/cross_validation.json figures by fold, their means and intervals
<output>/_manifest.json        written last
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from skinray import outputs, storage
from skinray.bundle import Labels, load_bundle, save_bundle
from skinray.counts import Measure, ScoreCounts
from skinray.division import all_folds
from skinray.intervals import Clusters, estimates
from skinray.metrics import balanced_accuracy, binary_figures, roc_auc
from skinray.operating_points import choose_operating_points
from skinray.reports import model_card
from skinray.shards import PreparedDataset, open_dataset
from skinray.telemetry import say
from skinray.training import (
    TrainedModel,
    check_can_start,
    initial_weights_of,
    run_identity,
    train,
    with_absolute_paths,
)
from skinray.training_config import CrossValidateSettings, with_changes
from skinray.training_export import bundle_metadata, lesions_or_photos, read_validation_predictions

RESULTS_NAME = "cross_validation.json"


@dataclass(frozen=True)
class CrossValidation:
    """What cross-validation found.

    Attributes:
        bundle_uri: The averaged model's bundle.
        model_id: Its id.
        folds: One dictionary of figures a fold.
        summary: Figure -> mean, low and high.
        pooled: Figures over all photos, each scored by the model that had not seen it.
    """

    bundle_uri: str
    model_id: str
    folds: list[dict[str, Any]]
    summary: dict[str, dict[str, float]]
    pooled: dict[str, Any]


def cross_validate(settings: CrossValidateSettings) -> CrossValidation:
    """Trains every fold, or goes on with what was cut off, or returns what was found before.

    Raises:
        DatasetError: A fold lacks a class, or leaves too few photos for one step.
        What `train` raises.
    """
    settings = with_absolute_paths(settings)
    dataset = open_dataset(settings.data)
    finished = _finished(settings, dataset)
    if finished:
        say(f"cross-validate: {settings.output} is finished already; nothing to do")
        return finished
    # All folds before the first is trained: the last one may be hours away.
    check_can_start(settings, dataset, all_folds(dataset))
    initial_weights_of(
        settings, dataset
    )  # each fold's run makes them; here what cannot be had fails before the output is claimed
    identity = run_identity(settings, dataset)
    outputs.claim_folder(settings.output, "cross-validation", identity, keep=True)
    runs = []
    for fold in all_folds(dataset):
        say(f"--- fold {fold}")
        runs.append(train(with_changes(settings, {"fold": fold, "output": storage.join(settings.output, f"fold={fold}")})))
    predictions = [read_validation_predictions(run.bundle_uri) for run in runs]
    malignant = list(dataset.manifest.malignant)
    folds = [{"fold": fold, **_figures(rows, malignant)} for fold, rows in enumerate(predictions)]
    unseen = pd.concat(predictions, ignore_index=True)
    found = CrossValidation(
        bundle_uri=storage.join(settings.output, "bundle"),
        model_id="",
        folds=folds,
        summary={name: mean_interval([fold[name] for fold in folds]) for name in folds[0] if name not in ("fold", "photos")},
        pooled=_pooled(unseen, malignant),
    )
    found = CrossValidation(**{**found.__dict__, "model_id": _save_ensemble(settings, dataset, runs, unseen, found)})
    storage.write_json(storage.join(settings.output, RESULTS_NAME), found.__dict__)
    manifest = {"kind": "skinray-cross-validation", "schema_version": 1, "identity": identity, **found.__dict__}
    outputs.publish_folder(storage.normalize(settings.output), manifest)
    return found


def _finished(settings: CrossValidateSettings, dataset: PreparedDataset) -> CrossValidation | None:
    manifest_uri = storage.join(settings.output, storage.MANIFEST_NAME)
    if not storage.exists(manifest_uri):
        return None
    manifest = storage.read_json(manifest_uri)
    if manifest.get("identity") != json.loads(json.dumps(run_identity(settings, dataset))):
        return None  # claim_folder will refuse it with the right words
    return CrossValidation(**{name: manifest[name] for name in CrossValidation.__dataclass_fields__})


def _figures(rows: pd.DataFrame, malignant: list[str]) -> dict[str, Any]:
    """Figures of one model on the photos of its fold."""
    positive, scores = _positive_and_scores(rows, malignant)
    probabilities = [str(name) for name in rows if str(name).startswith("prob_")]
    codes = [name.removeprefix("prob_") for name in probabilities]
    labels = rows["label"].map(codes.index).to_numpy(np.int64)
    # Probabilities are calibrated. Divided by how frequent each class is, they say which class a photo resembles most, and a
    # missed malignant photo weighs as much more than a false alarm as it is rarer.
    shares = np.bincount(labels, minlength=len(codes)) / len(labels)
    predicted = (rows[probabilities].to_numpy() / np.maximum(shares, 1e-9)).argmax(axis=1)
    at_prior = binary_figures(positive, scores, float(positive.mean()))
    return {
        "photos": len(rows),
        "roc_auc": roc_auc(positive, scores),
        "accuracy": float(np.mean(labels == predicted)),
        "balanced_accuracy": balanced_accuracy(labels, predicted),
        "sensitivity": at_prior["recall"],
        "specificity": at_prior["specificity"],
    }


def _pooled(rows: pd.DataFrame, malignant: list[str]) -> dict[str, Any]:
    positive, scores = _positive_and_scores(rows, malignant)
    found = estimates([Measure("", ScoreCounts(positive, scores))], Clusters(_lesions(rows)))["roc_auc"]
    return {"photos": len(rows), "roc_auc": found.value, "roc_auc_interval": [found.low, found.high]}


def _lesions(rows: pd.DataFrame) -> npt.NDArray[np.str_]:
    # Photos of one lesion are no independent evidence.
    return lesions_or_photos(rows["lesion_id"].to_numpy(str), rows["image_id"].to_numpy(str))


def _positive_and_scores(rows: pd.DataFrame, malignant: list[str]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    positive = rows["label"].isin(malignant).to_numpy(bool)
    return positive, rows[[f"prob_{code}" for code in malignant]].sum(axis=1).to_numpy(np.float64)


def mean_interval(values: list[float], confidence: float = 0.95) -> dict[str, float]:
    """The mean of a figure over the folds, and an interval for it.

    Folds share most of their training photos, so their spread alone is too small; its variance is multiplied by
    1/K + n_validation/n_train instead of 1/K.

    Args:
        values: One a fold, at least two.
        confidence: Of the interval.

    Returns:
        mean, low, high.

    Source: Nadeau and Bengio 2003, "Inference for the Generalization Error", the corrected resampled t-test.
    """
    count = len(values)
    mean = float(np.mean(values))
    spread = float(np.std(values, ddof=1)) * (1 / count + 1 / (count - 1)) ** 0.5
    reach = float(scipy.stats.t.ppf((1 + confidence) / 2, count - 1)) * spread
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def _save_ensemble(
    settings: CrossValidateSettings,
    dataset: PreparedDataset,
    runs: list[TrainedModel],
    unseen: pd.DataFrame,
    found: CrossValidation,
) -> str:
    from skinray.ensemble import averaged

    manifest = dataset.manifest
    positive, scores = _positive_and_scores(unseen, list(manifest.malignant))
    # Thresholds of single models on photos that they had not seen; the mean of several models is a little more certain, and
    # what was shown for their scores is not shown for its.
    points = choose_operating_points(positive, scores, _lesions(unseen), "the folds' validation", own_scores=False)
    metadata = bundle_metadata(settings, dataset) | {
        "validation": {"photos": len(unseen), "roc_auc": found.pooled["roc_auc"], "epoch": None},
        "ensemble": {"members": [run.model_id for run in runs], "cross_validation": found.summary},
    }
    return save_bundle(
        found.bundle_uri,
        averaged([load_bundle(run.bundle_uri).load_model() for run in runs]),
        settings.preprocessing,
        Labels(codes=manifest.classes, malignant=manifest.malignant),
        points,
        metadata,
        model_card(metadata, points),
    )
