"""An evaluation's artifacts -> one HTML page for whoever must decide about a model.

The page needs no network and runs no script. Labels and names come from the data and are escaped.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2

import skinray
from skinray.audit import leaks_in_words
from skinray.groups import LEAST_PHOTOS, in_short
from skinray.reports import overlap_remarks
from skinray.taxonomy import DIAGNOSES

_POINT_FIGURES = ("recall", "specificity", "precision", "f1")


@dataclass(frozen=True)
class ShownPhoto:
    """A photo of the page.

    Attributes:
        image_id: Its id.
        label: Its true class.
        score: Its malignancy score.
        photo: data: URI of its thumbnail; empty when it cannot be shown.
        heat: data: URI of the thumbnail with the heat map over it; empty without.
    """

    image_id: str
    label: str
    score: float
    photo: str
    heat: str


def evaluation_page(
    metrics: Mapping[str, Any],
    plots: Mapping[str, bytes],
    missed: Sequence[ShownPhoto],
    false_alarms: Sequence[ShownPhoto],
) -> str:
    """The page, as HTML.

    Args:
        metrics: What metrics.json holds.
        plots: Name -> PNG.
        missed: Malignant photos with the lowest scores, lowest first.
        false_alarms: Benign photos with the highest scores, highest first.
    """
    remarks = _remarks(metrics)
    leaky = bool(metrics["leaks"] or metrics["leaks_in_training"] or metrics["overlap_with_training"])
    default, malignant = metrics["default_operating_point"], metrics["malignant_photos"]
    point = metrics["operating_points"][default]
    below = round((1 - (point["recall"]["value"] or 0)) * malignant)
    page = _template().render(
        version=skinray.__version__,
        metrics=metrics,
        lesions=metrics["lesions"],
        headline=headline(metrics),
        remarks=remarks,
        tone="leak" if leaky or metrics["gate_failures"] else "doubt" if remarks else "",
        keys=_keys(metrics),
        prevalences=[share["prevalence"] for share in point["at_prevalence"][1:]],
        plots={name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in plots.items()},
        classes=_classes(metrics),
        least=LEAST_PHOTOS,
        missed=missed,
        false_alarms=false_alarms,
        missed_in_words=f"{below:,} of {malignant:,} malignant photos lie below {default}.",
        heat_in_words="Beside each photo: where the score comes from (Grad-CAM), not whether that is sound.",
        provenance=_provenance(metrics),
        settings=_settings(metrics),
    )
    return page.encode("utf-8", "replace").decode()


def headline(metrics: Mapping[str, Any]) -> str:
    """The evaluation in a sentence."""
    point = metrics["operating_points"][metrics["default_operating_point"]]
    found, alarms = point["recall"]["value"], point["specificity"]["value"]
    auc = metrics["figures"]["roc_auc"]
    external = ""
    if metrics["external"] and "roc_auc" in metrics["external"]["gaps"]:
        gap = metrics["external"]["gaps"]["roc_auc"]
        direction = "lower" if gap["gap"] >= 0 else "higher"
        external = f"ROC-AUC {abs(gap['gap']):.3f} {direction} than on its own test photos ({gap['internal']:.3f}). "
    return external + (
        f"At {metrics['default_operating_point']} this model finds {_of_hundred(found)} of 100 malignant photos and flags "
        f"{_of_hundred(1 - alarms)} of 100 benign ones (ROC-AUC {auc['value']:.3f}, {auc['low']:.3f} to {auc['high']:.3f})."
    )


def _of_hundred(share: float) -> str:
    return f"{100 * share:.0f}"


def _remarks(metrics: Mapping[str, Any]) -> list[str]:
    remarks = [f"does not pass its gate: {failure}" for failure in metrics["gate_failures"]]
    for name, where in (("leaks", "the data set"), ("leaks_in_training", "what it was trained on")):
        remarks += [f"{where} leaks: {words}; every figure here is too high" for words in leaks_in_words(metrics[name])]
    for what, count in (metrics["overlap_with_training"] or {}).items():
        remarks.append(f"{count:,} {what} were trained on, or the model was chosen on them; every figure here is too high")
    remarks += overlap_remarks(metrics)
    if metrics["left_out_for_overlap"]:
        remarks.append(f"{metrics['left_out_for_overlap']:,} photos that share something with the training data are left out")
    not_scored = {status: count for status, count in metrics["statuses"].items() if status != "scored" and count}
    remarks += [f"{count:,} photos {status}: they are in no figure" for status, count in not_scored.items()]
    contradicting = metrics["contradicting_labels"]
    if contradicting:
        remarks.append(f"the data set contradicts itself: {contradicting:,} photos or lesions stand under more than one label")
    return [*remarks, *in_short(metrics["warnings"])]


def _keys(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    names = {
        "roc_auc": "ROC-AUC, malignant against benign",
        "partial_auc": "of it above 80 % sensitivity (at most 0.2)",
        "pr_auc": "average precision",
        "class_balanced_accuracy": "balanced accuracy over classes, the most probable one taken",
        "by rarity.class_balanced_accuracy": "balanced accuracy over classes, the most probable one for its frequency taken",
        "ece": "expected calibration error",
        "brier": "Brier score",
    }
    figures = metrics["figures"]
    names["ece"] += f" ({metrics['ece_by_chance']:.3f} by chance alone)"
    keys = [
        {"value": f"{figures[name]['value']:.3f}", "name": f"{words}: {figures[name]['low']:.3f} to {figures[name]['high']:.3f}"}
        for name, words in names.items()
        if name in figures and figures[name]["value"] is not None
    ]
    keys.append({"value": f"{metrics['photos']:,}", "name": f"photos, {metrics['malignant_photos']:,} malignant"})
    lesions = metrics["lesions"]
    if lesions["roc_auc"]["value"] is not None:
        keys.append(
            {"value": f"{lesions['roc_auc']['value']:.3f}", "name": f"ROC-AUC by lesion ({lesions['lesions']:,} lesions)"}
        )
    return keys


def _classes(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a class, of more than two."""
    codes = metrics["confusion_matrix"]["codes"]
    if len(codes) == 2:
        return []
    figures, matrix = metrics["figures"], metrics["confusion_matrix"]["rows_true_columns_predicted"]
    return [
        {
            "code": code,
            "meaning": DIAGNOSES.get(code, ""),
            "photos": sum(matrix[number]),
            "figures": [
                *(figures[f"{name}_{code}"] for name in _POINT_FIGURES),
                figures[f"one against rest {code}.roc_auc"],
            ],
        }
        for number, code in enumerate(codes)
    ]


def _provenance(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    trained = metrics["trained"]
    return [
        ("model_id", metrics["model_id"]),
        ("bundle", metrics["bundle"]),
        ("network", trained["network"] or "unknown"),
        ("its thresholds' SHA-256", metrics["operating_points_sha256"]),
        ("its training data's SHA-256", (trained["dataset"] or {}).get("sha256", "unknown")),
        ("code it was trained with", trained["code_commit"] or "unknown"),
        ("data set", f"{metrics['dataset']}, {metrics['split']} split"),
        ("its SHA-256", metrics["dataset_sha256"]),
        ("photos by status", ", ".join(f"{count:,} {status}" for status, count in metrics["statuses"].items())),
        ("code that measured", metrics["code_commit"] or "unknown"),
    ]


def _settings(metrics: Mapping[str, Any]) -> dict[str, str]:
    both = {"training": metrics["trained"]["training_settings"], "evaluation": metrics["settings"]}
    return {name: json.dumps(settings, indent=1, ensure_ascii=False) for name, settings in both.items() if settings}


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(count="{:,}".format, percent=lambda share: f"{100 * share:g} %", number=_number)
    return environment.from_string((files("skinray") / "web" / "evaluation.html").read_text(encoding="utf-8"))


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"
