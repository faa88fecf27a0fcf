"""The evaluation job: a bundle on a split -> predictions, metrics.json and plots, through the scoring pipeline itself.

<output>/predictions/part-...parquet   one row a photo, with its true label
<output>/metrics.json                  the figures, and what they were measured on
<output>/roc.png, confusion_matrix.png
<output>/_manifest.json                written last
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from skinray import storage
from skinray.bundle import Bundle, load_bundle
from skinray.config import EvaluateSettings
from skinray.errors import ConfigError, DatasetError
from skinray.firewall import check_no_leaks, check_no_overlap
from skinray.metrics import binary_figures, clustered_bootstrap, confusion_matrix, roc_auc
from skinray.photos import list_shards
from skinray.predictions import threshold_of
from skinray.reports import NOT_A_DEVICE, confusion_plot, roc_plot
from skinray.scoring import RunSummary, write_predictions
from skinray.shards import PreparedDataset, open_dataset, read_photos

METRICS_NAME = "metrics.json"


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Scores a split of a prepared data set and measures the bundle on it.

    Args:
        settings: Bundle, data set, split.

    Returns:
        What `metrics.json` holds.

    Raises:
        BundleError: The bundle does not verify.
        ConfigError: The bundle and the data set do not tell the same classes apart.
        DatasetError: The split has only malignant or only benign photos.
        LeakError: The data set has leaks, or shares photos with the training data, and that was not allowed.
        OutputExistsError: The output is already there.
    """
    bundle = load_bundle(settings.bundle)
    dataset = open_dataset(settings.data)
    check_no_leaks(dataset, settings.allow_leaks)
    check_comparable(bundle, dataset, settings)
    overlap = check_no_overlap(bundle, dataset, settings.split, settings.allow_leaks)
    output = storage.normalize(settings.output)
    storage.claim_folder(output, "evaluation", settings.recorded())
    predictions_uri = storage.join(output, "predictions", f"model_id={bundle.model_id}")
    summary, files = write_predictions(bundle, list_shards(dataset, (settings.split,)), settings, predictions_uri)
    rows = _read_rows(predictions_uri, [file["path"] for file in files])
    scored = rows[rows["status"] == "scored"]
    metrics = _measure(scored, bundle) | _interval(scored, dataset, bundle)
    metrics |= _provenance(bundle, dataset, settings, summary) | {"overlap_with_training": overlap}
    storage.write_json(storage.join(output, METRICS_NAME), metrics)
    _write_plots(scored, metrics, bundle, settings, output)
    storage.publish_folder(
        output, {"kind": "skinray-evaluation", "schema_version": 1, "model_id": bundle.model_id, "settings": settings.recorded()}
    )
    return metrics


def _read_rows(uri: str, paths: list[str]) -> pd.DataFrame:
    filesystem = storage.arrow_filesystem(uri)
    tables = [pq.read_table(storage.path_of(storage.join(uri, path)), filesystem=filesystem, partitioning=None) for path in paths]
    rows: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return rows


def check_comparable(bundle: Bundle, dataset: PreparedDataset, settings: EvaluateSettings) -> None:
    """Raises when the bundle cannot be measured on the split."""
    codes = dataset.manifest.classes
    if set(codes) != set(bundle.labels.codes):
        raise ConfigError(
            f"bundle {settings.bundle} tells {', '.join(bundle.labels.codes)} apart, data set {settings.data} {', '.join(codes)}"
        )
    counts = dataset.manifest.split_classes[settings.split]
    malignant = sum(counts[code] for code in bundle.labels.malignant)
    if malignant in (0, sum(counts.values())):
        found = f"{malignant} malignant of {sum(counts.values())} photos in {settings.split}"
        raise DatasetError(f"{settings.data} has {found}: nothing to tell apart")


def _measure(rows: pd.DataFrame, bundle: Bundle) -> dict[str, Any]:
    labels = bundle.labels
    positive = rows["label"].isin(list(labels.malignant)).to_numpy()
    scores = rows["malignancy_score"].to_numpy(np.float64)
    point = bundle.operating_points.default
    figures = binary_figures(positive, scores, threshold_of(bundle, point))
    predicted = _predicted(rows, bundle)
    return {
        **figures,
        "operating_point": point,
        "threshold": threshold_of(bundle, point),
        "operating_points": {
            name: binary_figures(positive, scores, stored.threshold) for name, stored in bundle.operating_points.points.items()
        },
        "class_accuracy": float(np.mean(predicted == rows["label"].to_numpy())),
        "confusion_matrix": {
            "codes": list(labels.codes),
            "rows_true_columns_predicted": confusion_matrix(list(rows["label"]), list(predicted), labels.codes).tolist(),
        },
        "photos": len(rows),
        "malignant_photos": int(positive.sum()),
    }


def _interval(rows: pd.DataFrame, dataset: PreparedDataset, bundle: Bundle) -> dict[str, Any]:
    """The 95 % interval of the ROC-AUC; drawn are the groups that prepare made: photos of a patient, a lesion or a picture."""
    photos = read_photos(dataset)
    group_of = dict(zip(photos["image_id"], photos["group"], strict=True))
    groups = np.array([group_of[image_id] for image_id in rows["image_id"]])
    positive = rows["label"].isin(list(bundle.labels.malignant)).to_numpy()
    scores = rows["malignancy_score"].to_numpy(np.float64)
    low, high = clustered_bootstrap(groups, lambda drawn: roc_auc(positive[drawn], scores[drawn]))
    return {"roc_auc_interval": [low, high], "groups": len(np.unique(groups))}


def _predicted(rows: pd.DataFrame, bundle: Bundle) -> Any:
    """The class of each photo: by the operating point when there are two, else the most probable one."""
    codes = np.array(bundle.labels.codes)
    if len(codes) == 2:
        malignant = bundle.labels.malignant[0]
        benign = next(code for code in bundle.labels.codes if code != malignant)
        return np.where(rows["flagged"].to_numpy(bool), malignant, benign)
    return codes[rows[[f"prob_{code}" for code in codes]].to_numpy().argmax(axis=1)]


def _provenance(bundle: Bundle, dataset: PreparedDataset, settings: EvaluateSettings, summary: RunSummary) -> dict[str, Any]:
    return {
        "notice": NOT_A_DEVICE,
        "model_id": bundle.model_id,
        "bundle": bundle.uri,
        "dataset": dataset.uri,
        "dataset_sha256": dataset.sha256,
        "leaks": dataset.manifest.leaks,
        "leaks_in_training": bundle.metadata.get("leaks", {}),
        "split": settings.split,
        "statuses": summary.statuses,
    }


def _write_plots(rows: pd.DataFrame, metrics: dict[str, Any], bundle: Bundle, settings: EvaluateSettings, output: str) -> None:
    positive = rows["label"].isin(list(bundle.labels.malignant)).to_numpy()
    title = f"model {bundle.model_id}, {settings.split} split, {len(rows):,} photos"
    roc = roc_plot(positive, rows["malignancy_score"].to_numpy(np.float64), title)
    storage.write_bytes(storage.join(output, "roc.png"), roc)
    matrix = np.array(metrics["confusion_matrix"]["rows_true_columns_predicted"])
    storage.write_bytes(storage.join(output, "confusion_matrix.png"), confusion_plot(matrix, bundle.labels.codes, title))
