"""Predictions of photos whose truth is known -> every figure of an evaluation, with intervals; neither Ray nor TensorFlow."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.special

from skinray.bundle import Labels, OperatingPoints
from skinray.calibration import Calibration, at_prevalence, expected_calibration_error_by_chance, predictive_values
from skinray.counts import CalibrationCounts, ClassCounts, Measure, ScoreCounts, ThresholdCounts
from skinray.groups import GROUPS, Group, attributes_of, group_measures, in_short, judged_groups
from skinray.intervals import Clusters, Resampled, resample
from skinray.metrics import confusion_matrix
from skinray.patients import lesions_of

Floats = npt.NDArray[np.float64]


def measure_predictions(
    rows: pd.DataFrame,
    labels: Labels,
    points: OperatingPoints,
    calibration: Calibration | None = None,
    frequencies: Mapping[str, float] | None = None,
    prevalences: tuple[float, ...] = (),
    calibrated_at: float | None = None,
    rounds: int = 1000,
) -> dict[str, Any]:
    """Everything that `metrics.json` says of how good the predictions are.

    Args:
        rows: One row a scored photo: image_id, label, prob_CODE of each class, malignancy_score; patient_id, lesion_id and group
            (missing where unknown); age (years), sex, site, skin_type and source; ita_degrees.
        labels: What the probabilities are of.
        points: Thresholds on the malignancy score.
        calibration: What is part of the model, so that the figures without it can be told too.
        frequencies: How often each class occurred in training; with them, figures of more than two classes are also told for
            the class that is most probable for its frequency ("by rarity."), which balanced accuracy asks for.
        prevalences: Shares of malignant lesions for which to say what a flag means, beside the share among the photos.
        calibrated_at: Share of malignant photos where the probabilities are right; None: that of these photos.
        rounds: Draws for the intervals.

    Returns:
        JSON values; a figure is {"value", "low", "high"}, the ends of its 95 % interval, null where there is none:

        figures            roc_auc, pr_auc, partial_auc (above 80 % sensitivity, at most 0.2), brier, ece; "uncalibrated." before
                           those of the network alone. Of more than two classes also class_accuracy, class_balanced_accuracy,
                           macro_f1, macro_roc_auc, recall_CODE, precision_CODE, specificity_CODE, f1_CODE and
                           "one against rest CODE.roc_auc"; "by rarity." before those of the most probable class for its frequency
        ece_by_chance      number; what ece would be on average, were the probabilities right
        operating_points   name -> threshold, rule, accuracy, balanced_accuracy, precision, recall, specificity, f1, and
                           at_prevalence: what a flag means there, and the risk of a photo that scores the threshold
        confusion_matrix   rows are true classes, columns predicted ones: at the default operating point of two, else the most
                           probable one
        groups             attribute, name, photos, malignant_photos, roc_auc, recall and specificity of each
        warnings           groups that are judged worse than all photos, in words
        clusters           by what intervals are drawn, and how many of them there are
    """
    positive = rows["label"].isin(list(labels.malignant)).to_numpy(bool)
    scores = rows["malignancy_score"].to_numpy(np.float64)
    by, ids = clusters_of(rows)
    clusters = Clusters(ids)
    predicted = _predicted(rows, labels, points.points[points.default].threshold)
    flagged = {name: scores >= point.threshold for name, point in points.points.items()}
    measures = [
        Measure("", ScoreCounts(positive, scores)),
        Measure("", CalibrationCounts(positive, scores)),
        *(Measure(f"at {name}", ThresholdCounts(positive, each)) for name, each in flagged.items()),
        *_class_measures(rows, labels, predicted, frequencies),
    ]
    if calibration is not None:
        measures.append(Measure("uncalibrated", CalibrationCounts(positive, uncalibrated_scores(rows, labels, calibration))))
    attributes = attributes_of(rows)
    measures += group_measures(attributes, positive, scores, flagged[points.default])
    found = resample(measures, clusters, rounds)
    if len(labels.codes) > 2:
        found |= _macro(found, labels)
    overall = {"roc_auc": found["roc_auc"]} | {name: found[f"at {points.default}.{name}"] for name in ("recall", "specificity")}
    groups = judged_groups(attributes, positive, found, overall)
    share = float(positive.mean())
    return {
        "photos": len(rows),
        "malignant_photos": int(positive.sum()),
        "clusters": {"by": by, "number": clusters.number},
        "figures": {name: each.estimate().recorded() for name, each in found.items() if not name.startswith(("at ", GROUPS))},
        "ece_by_chance": expected_calibration_error_by_chance(scores),
        "default_operating_point": points.default,
        "operating_points": {
            name: _point(name, point.threshold, point.rule, found, (share, *prevalences), calibrated_at or share)
            for name, point in points.points.items()
        },
        "confusion_matrix": {
            "codes": list(labels.codes),
            "rows_true_columns_predicted": confusion_matrix(
                list(rows["label"]), list(np.array(labels.codes)[predicted]), labels.codes
            ).tolist(),
        },
        "groups": [_group(group) for group in groups],
        "warnings": [warning for group in groups for warning in group.warnings()],
    }


def named_figures(
    labels: Labels, points: OperatingPoints, calibration: Calibration | None, frequencies: Mapping[str, float] | None
) -> dict[str, Any]:
    """What `measure_predictions` will return for such arguments, of stand-ins for photos: names to check before hours of scoring.

    Args:
        labels, points, calibration, frequencies: As `measure_predictions` takes them.
    """
    codes = [*labels.codes, *labels.codes]
    known = dict.fromkeys(("patient_id", "lesion_id", "group", "sex", "site", "skin_type", "source"))
    rows = pd.DataFrame({"image_id": [f"stand-in {number}" for number in range(len(codes))], "label": codes, **known})
    rows = rows.assign(**{f"prob_{code}": 1 / len(labels.codes) for code in labels.codes}, age=np.nan, ita_degrees=np.nan)
    scores = np.full(len(rows), len(labels.malignant) / len(labels.codes))
    return measure_predictions(rows.assign(malignancy_score=scores), labels, points, calibration, frequencies, rounds=1)


def figures_in_words(metrics: Mapping[str, Any]) -> list[str]:
    """The headline of an evaluation for a person, one line a figure.

    Args:
        metrics: What `measure_predictions` returned.
    """

    def told(name: str, figure: Mapping[str, float | None]) -> str:
        if figure["value"] is None:
            return f"{name:<18} none"
        return f"{name:<18} {figure['value']:.3f}  ({figure['low']:.3f} to {figure['high']:.3f})"

    default = metrics["default_operating_point"]
    point, figures = metrics["operating_points"][default], metrics["figures"]
    clusters = metrics["clusters"]
    external = metrics.get("external") or {"gaps": {}}
    return [
        *(
            f"external gap: {name} {gap['external']:.3f} here, {gap['internal']:.3f} on {external['evaluation_of']}: "
            f"{gap['gap']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})"
            for name, gap in external["gaps"].items()
        ),
        f"{metrics['photos']:,} photos, {metrics['malignant_photos']:,} malignant; 95 % intervals drawn by {clusters['by']} "
        f"({clusters['number']:,})",
        *(told(name, figures[name]) for name in ("roc_auc", "pr_auc", "partial_auc", "brier", "ece") if name in figures),
        f"at {default}, score {point['threshold']:.3f}:",
        *(told(f"  {name}", point[name]) for name in ("recall", "specificity", "precision", "f1", "accuracy")),
        *(f"warning: {warning}" for warning in in_short(metrics["warnings"])),
    ]


def clusters_of(rows: pd.DataFrame) -> tuple[str, npt.NDArray[np.str_]]:
    """What is drawn for intervals: patients, where all are known; else what prepare kept together, or lesions.

    Args:
        rows: With patient_id, lesion_id and group, each missing where unknown; and image_id.

    Returns:
        In words; and the cluster of each photo, str [N]. A photo of which nothing is known stands for itself.
    """
    patients = rows["patient_id"]
    if patients.notna().all() and (patients != "").all():
        return "patient", patients.to_numpy(str)
    known = rows["group"].where(rows["group"].notna() & (rows["group"] != ""), lesions_of(rows))
    return "patient, lesion or picture", known.to_numpy(str)


def _predicted(rows: pd.DataFrame, labels: Labels, threshold: float) -> npt.NDArray[np.int64]:
    """The class of each photo, as its position: by the operating point when there are two, else the most probable one."""
    if len(labels.codes) == 2:
        malignant = labels.codes.index(labels.malignant[0])
        return np.where(rows["malignancy_score"].to_numpy(np.float64) >= threshold, malignant, 1 - malignant)
    return np.asarray(rows[[f"prob_{code}" for code in labels.codes]].to_numpy().argmax(axis=1), np.int64)


def _class_measures(
    rows: pd.DataFrame, labels: Labels, predicted: npt.NDArray[np.int64], frequencies: Mapping[str, float] | None
) -> list[Measure]:
    """Of more than two classes: with two, everything stands at the operating points."""
    if len(labels.codes) == 2:
        return []
    position = {code: number for number, code in enumerate(labels.codes)}
    truth = rows["label"].map(position).to_numpy(np.int64)
    measures = [Measure("", ClassCounts(truth, predicted, labels.codes))]
    if frequencies:
        weighed = rows[[f"prob_{code}" for code in labels.codes]].to_numpy() / [frequencies[code] for code in labels.codes]
        measures.append(Measure("by rarity", ClassCounts(truth, weighed.argmax(axis=1), labels.codes)))
    for code in labels.codes:
        probabilities = rows[f"prob_{code}"].to_numpy(np.float64)
        measures.append(Measure(f"one against rest {code}", ScoreCounts((rows["label"] == code).to_numpy(bool), probabilities)))
    return measures


def _macro(found: Mapping[str, Resampled], labels: Labels) -> dict[str, Resampled]:
    """The mean over the classes that occur."""
    each = [found[f"one against rest {code}.roc_auc"] for code in labels.codes]
    known = [one for one in each if not np.isnan(one.value)]
    draws = np.array([one.draws for one in known])
    return {"macro_roc_auc": Resampled(float(np.mean([one.value for one in known])), draws.mean(axis=0))}


def uncalibrated_scores(rows: pd.DataFrame, labels: Labels, calibration: Calibration) -> Floats:
    """The malignancy scores that the network alone would have given, float64 [N]: what calibration does can be undone.

    Args:
        rows: With prob_CODE of each class.
        labels: What the probabilities are of.
        calibration: What is part of the model.
    """
    probabilities = rows[[f"prob_{code}" for code in labels.codes]].to_numpy(np.float64)
    logits = (np.log(np.maximum(probabilities, 1e-12)) - np.array(calibration.bias)) * calibration.temperature
    malignant = [labels.codes.index(code) for code in labels.malignant]
    return np.asarray(scipy.special.softmax(logits, axis=1)[:, malignant].sum(axis=1))


def _point(
    name: str,
    threshold: float,
    rule: str,
    found: Mapping[str, Resampled],
    prevalences: tuple[float, ...],
    calibrated_at: float,
) -> dict[str, Any]:
    start = f"at {name}."
    figures = {figure.removeprefix(start): each.estimate() for figure, each in found.items() if figure.startswith(start)}
    sensitivity, specificity = figures["recall"].value, figures["specificity"].value
    return {
        "threshold": threshold,
        "rule": rule,
        **{figure: estimate.recorded() for figure, estimate in figures.items()},
        "at_prevalence": [
            {
                "prevalence": prevalence,
                **_numbers(predictive_values(sensitivity, specificity, prevalence)),
                "risk_at_threshold": float(at_prevalence(np.array([threshold]), calibrated_at, prevalence)[0]),
            }
            for prevalence in prevalences
        ],
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "attribute": group.attribute,
        "name": group.name,
        "photos": group.photos,
        "malignant_photos": group.malignant,
        **{figure: None if estimate is None else estimate.recorded() for figure, estimate in group.figures.items()},
    }


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}
