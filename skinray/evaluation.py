"""The evaluation job: a bundle on a split -> predictions, metrics.json and plots, through the scoring pipeline itself.

<output>/predictions/part-...parquet   one row a photo, with its true label
<output>/judged.parquet                the scored ones, with what the data set knows of patient and lesion, and the score
                                       corrected to every stated --prevalence
<output>/lesions.parquet               one row a lesion: its score, and how far it is from the same patient's others
<output>/metrics.json                  the figures, and what they were measured on
<output>/evaluation.html               the report, one page; its plots lie beside it
<output>/_manifest.json                written last
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from skinray import outputs, storage
from skinray.block_files import drop_blocks
from skinray.bundle import Bundle, Labels, calibration_of, load_bundle
from skinray.calibration import Calibration, at_prevalence
from skinray.config import SPLITS, EvaluateSettings, SplitName
from skinray.errors import ConfigError, DatasetError
from skinray.evaluation_report import write_report
from skinray.firewall import check_no_leaks, check_no_overlap, find_overlap
from skinray.gate import Gate, failures, read_gate
from skinray.listing import list_dataset
from skinray.measurement import measure_predictions, named_figures
from skinray.patients import broken_promises, lesion_table, measure_lesions
from skinray.provenance import code_commit
from skinray.reports import NOT_A_DEVICE
from skinray.scoring_pipeline import RunSummary, write_predictions
from skinray.shards import PreparedDataset, open_dataset, read_photos

METRICS_NAME = "metrics.json"
JUDGED_NAME = "judged.parquet"
LESIONS_NAME = "lesions.parquet"
# What every data set's labels have in common.
_MALIGNANT_OR_BENIGN = Labels(codes=("benign", "malignant"), malignant=("malignant",))


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Scores a split of a prepared data set and measures the bundle on it.

    Args:
        settings: Bundle, data set, split.

    Returns:
        What `metrics.json` holds.

    Raises:
        BundleError: The bundle does not verify.
        ConfigError: The bundle and the data set do not tell the same classes apart, or a gate names a figure that there is not.
        DatasetError: The split has only malignant or only benign photos.
        LeakError: The data set has leaks, or shares photos with the training data, and that was not allowed; or what they share
            is to be left out, and the training data is not there any more.
        OutputExistsError: The output is already there.
    """
    bundle = load_bundle(settings.bundle)
    gate = read_own_gate(settings, bundle)
    internal = _internal_metrics(settings, bundle)
    dataset = open_dataset(settings.data)
    check_no_leaks(dataset, settings.allow_leaks)
    check_comparable(bundle, dataset, settings)
    overlap = find_overlap(bundle, dataset, settings.split)
    left_out = overlap.image_ids if overlap and settings.leave_out_overlap else frozenset()
    check_no_overlap(overlap, bundle, dataset, settings.split, settings.allow_leaks, settings.leave_out_overlap)
    _check_both_kinds(dataset, settings, left_out)
    output = storage.normalize(settings.output)
    outputs.claim_folder(output, "evaluation", settings.recorded())
    predictions_uri = storage.join(output, "predictions", f"model_id={bundle.model_id}")
    summary, files = write_predictions(bundle, list_dataset(dataset, splits_of(settings)), settings, predictions_uri)
    rows = read_rows(predictions_uri, [file["path"] for file in files])
    drop_blocks(predictions_uri)
    scored = rows[(rows["status"] == "scored") & ~rows["image_id"].isin(left_out)]
    judged = _described(scored.reset_index(drop=True), dataset)
    labels, calibration, frequencies = _measured_as(bundle, settings)
    if settings.external:
        judged = _malignant_or_benign(judged)
    calibrated_at = _malignant_share(bundle)
    for prevalence in settings.prevalence:
        judged[f"malignancy_score_at_{prevalence:g}"] = at_prevalence(
            judged["malignancy_score"].to_numpy(np.float64), calibrated_at, prevalence
        )
    lesions = lesion_table(judged, labels.malignant)
    metrics = _provenance(bundle, dataset, settings, summary) | {
        "overlap_with_training": None if overlap is None else {} if settings.leave_out_overlap else overlap.counts,
        "left_out_for_overlap": len(left_out),
        "namesakes_in_training": overlap.namesakes if overlap else 0,
    }
    metrics |= measure_predictions(
        judged, labels, bundle.operating_points, calibration, frequencies, settings.prevalence, calibrated_at
    )
    metrics["lesions"] = measure_lesions(lesions, bundle.operating_points)
    metrics["warnings"] += broken_promises(metrics["lesions"])
    metrics["external"] = _external_gap(metrics, internal) if internal else None
    metrics["gate_failures"] = failures(gate, metrics) if gate else []
    for name, table in ((JUDGED_NAME, judged), (LESIONS_NAME, lesions)):
        storage.write_parquet(storage.join(output, name), table)
    storage.write_json(storage.join(output, METRICS_NAME), metrics)
    write_report(judged, metrics, bundle, dataset, output)
    outputs.publish_folder(
        output, {"kind": "skinray-evaluation", "schema_version": 1, "model_id": bundle.model_id, "settings": settings.recorded()}
    )
    return metrics


def read_own_gate(settings: EvaluateSettings, bundle: Bundle) -> Gate | None:
    """The limits that were asked for, of figures that the evaluation will have; None without any.

    Raises:
        ConfigError: There are no such limits, or no such figures.
    """
    if settings.gate is None:
        return None
    gate = read_gate(settings.gate)
    labels, calibration, frequencies = _measured_as(bundle, settings)
    failures(gate, named_figures(labels, bundle.operating_points, calibration, frequencies))
    return gate


def _measured_as(bundle: Bundle, settings: EvaluateSettings) -> tuple[Labels, Calibration | None, dict[str, float] | None]:
    """What is told apart; where that is what the bundle was trained for, also its calibration and the classes' frequencies."""
    labels = _MALIGNANT_OR_BENIGN if settings.external else bundle.labels
    if labels != bundle.labels:
        return labels, None, None
    return labels, calibration_of(bundle), bundle.metadata["dataset"]["split_classes"]["train"]


def read_rows(uri: str, paths: list[str]) -> pd.DataFrame:
    """The prediction rows of some files below a folder, in the order of the files."""
    filesystem = storage.arrow_filesystem(uri)
    tables = [pq.read_table(storage.path_of(storage.join(uri, path)), filesystem=filesystem, partitioning=None) for path in paths]
    rows: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return rows


def splits_of(settings: EvaluateSettings) -> tuple[SplitName, ...]:
    """The splits that are scored."""
    return SPLITS if settings.split == "all" else (settings.split,)


def check_comparable(bundle: Bundle, dataset: PreparedDataset, settings: EvaluateSettings) -> None:
    """Raises when the bundle cannot be measured on the split."""
    codes, ours = dataset.manifest.classes, bundle.labels.codes
    if not settings.external and set(codes) != set(ours):
        raise ConfigError(
            f"bundle {settings.bundle} tells {', '.join(ours)} apart, data set {settings.data} {', '.join(codes)}: "
            "--external compares malignant and benign alone"
        )
    _check_both_kinds(dataset, settings, frozenset())


def _check_both_kinds(dataset: PreparedDataset, settings: EvaluateSettings, left_out: frozenset[str]) -> None:
    photos = read_photos(dataset)
    measured = photos[photos["split"].isin(splits_of(settings)) & ~photos["image_id"].isin(left_out)]
    malignant = int(measured["label"].isin(list(dataset.manifest.malignant)).sum())
    if malignant in (0, len(measured)):
        found = f"{malignant} malignant of {len(measured)} photos in {settings.split}"
        shared = f", {len(left_out):,} shared with the training data apart" if left_out else ""
        raise DatasetError(f"{settings.data} has {found}{shared}: nothing to tell apart")


def _internal_metrics(settings: EvaluateSettings, bundle: Bundle) -> dict[str, Any] | None:
    if not settings.external:
        return None
    metrics: dict[str, Any] = storage.read_json(storage.join(settings.external, METRICS_NAME))
    if metrics["model_id"] != bundle.model_id:
        raise ConfigError(f"{settings.external} is about model {metrics['model_id']}, not about {bundle.model_id}")
    return metrics


def _malignant_or_benign(judged: pd.DataFrame) -> pd.DataFrame:
    """The same photos, told apart by malignancy alone."""
    scores = judged["malignancy_score"].astype(float)
    return judged.assign(
        label=np.where(judged["malignant"], "malignant", "benign"), prob_malignant=scores, prob_benign=1 - scores
    )


def _external_gap(metrics: dict[str, Any], internal: dict[str, Any]) -> dict[str, Any]:
    """Internal minus external, of the figures that both have; the intervals are those of two independent samples."""
    gaps = {}
    for name in ("roc_auc", "pr_auc", "partial_auc"):
        ours, theirs = internal["figures"][name], metrics["figures"][name]
        if ours["value"] is None or theirs["value"] is None:
            continue
        value = ours["value"] - theirs["value"]
        reach = math.hypot(ours["high"] - ours["low"], theirs["high"] - theirs["low"]) / 2
        gaps[name] = {
            "internal": ours["value"],
            "external": theirs["value"],
            "gap": value,
            "low": value - reach,
            "high": value + reach,
        }
    return {"evaluation_of": internal["dataset"], "gaps": gaps}


def _malignant_share(bundle: Bundle) -> float:
    """Of the photos on which the bundle was calibrated."""
    counts = bundle.metadata["dataset"]["split_classes"]["validation"]
    return float(sum(counts[code] for code in bundle.labels.malignant) / sum(counts.values()))


def _described(rows: pd.DataFrame, dataset: PreparedDataset) -> pd.DataFrame:
    """Prediction rows with what the data set knows of their patients and lesions."""
    columns = ["image_id", "patient_id", "lesion_id", "group", "age", "sex", "site", "skin_type", "source"]
    known = read_photos(dataset).reindex(columns=columns)  # a data set prepared before knows no skin types
    rows = rows.drop(columns=[name for name in columns[1:] if name in rows])  # the data set knows them all
    return rows.merge(known, on="image_id", how="left", validate="one_to_one").assign(
        malignant=rows["label"].isin(list(dataset.manifest.malignant))
    )


def _provenance(bundle: Bundle, dataset: PreparedDataset, settings: EvaluateSettings, summary: RunSummary) -> dict[str, Any]:
    return {
        "notice": NOT_A_DEVICE,
        "model_id": bundle.model_id,
        "bundle": bundle.uri,
        "operating_points_sha256": storage.sha256_of((bundle.folder / "operating_points.json").read_bytes()),
        "trained": {
            name: bundle.metadata.get(name) for name in ("network", "training_settings", "dataset", "code_commit", "versions")
        },
        "settings": settings.recorded(),
        "code_commit": code_commit(),
        "dataset": dataset.uri,
        "dataset_sha256": dataset.sha256,
        "leaks": dataset.manifest.leaks,
        "contradicting_labels": sum(
            dataset.manifest.findings.get(name, 0) for name in ("conflicts_duplicates", "conflicts_lesion")
        ),
        "leaks_in_training": bundle.metadata.get("leaks", {}),
        "split": settings.split,
        "statuses": summary.statuses,
    }
