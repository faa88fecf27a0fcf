"""Whether a bundle may be used: limits in a file, against what an evaluation measured."""

from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skinray import storage
from skinray.errors import ConfigError


class Gate(BaseModel):
    """Limits that an evaluation must keep; an acceptance file in YAML holds these settings.

    A figure is named as in metrics.json: roc_auc, ece, ..., or POINT.FIGURE at an operating point: sensitivity_95.specificity.

    Attributes:
        minimum: Figure -> least value.
        maximum: Figure -> largest value.
        largest_group_gap: By how much the best and the worst group of an attribute may differ in ROC-AUC, sensitivity and
            specificity, as far as groups are large enough to be measured; None: not looked at.
        judged_by: The figure itself, or the worse end of its 95 % interval.
        least_malignant_photos: Below this the evaluation is too small to pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum: dict[str, float] = Field(default_factory=dict)
    maximum: dict[str, float] = Field(default_factory=dict)
    largest_group_gap: float | None = Field(None, gt=0, le=1)
    judged_by: Literal["value", "interval"] = "value"
    least_malignant_photos: int = Field(0, ge=0)


def read_gate(uri: str) -> Gate:
    """Reads an acceptance file.

    Raises:
        ConfigError: It is not YAML, or no limits.
        StorageError: It cannot be read.
    """
    try:
        return Gate.model_validate(yaml.safe_load(storage.read_bytes(uri)) or {})
    except (yaml.YAMLError, ValidationError) as error:
        reason = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        raise ConfigError(f"gate {uri}: {'.'.join(map(str, reason['loc']))}: {reason['msg']}") from error


def failures(gate: Gate, metrics: Mapping[str, Any]) -> list[str]:
    """Every limit that is not kept, in words; empty when the bundle passes.

    Args:
        gate: The limits.
        metrics: What metrics.json holds.

    Raises:
        ConfigError: A limit is on a figure that the evaluation does not have.
    """
    found = []
    if metrics["malignant_photos"] < gate.least_malignant_photos:
        found.append(f"{metrics['malignant_photos']} malignant photos are fewer than {gate.least_malignant_photos}")
    for limits, end, kept, word in (
        (gate.minimum, "low", float.__ge__, "below"),
        (gate.maximum, "high", float.__le__, "above"),
    ):
        for name, limit in limits.items():
            figure = _figure(metrics, name)
            value = figure["value" if gate.judged_by == "value" else end]
            if value is None or not kept(float(value), float(limit)):
                what = name if gate.judged_by == "value" else f"{name}, {end} end of its interval,"
                found.append(f"{what} is {'not known' if value is None else f'{value:.3f}'}, {word} {limit:g}")
    if gate.largest_group_gap is not None:
        found += _gaps(metrics, gate.largest_group_gap)
    return found


def _figure(metrics: Mapping[str, Any], name: str) -> Mapping[str, float | None]:
    if name in metrics["figures"]:
        return dict(metrics["figures"][name])
    point, _, figure = name.partition(".")
    known = metrics["operating_points"].get(point, {}).get({"sensitivity": "recall"}.get(figure, figure))
    if isinstance(known, dict):
        return known
    points = [f"{point}.{each}" for point in metrics["operating_points"] for each in ("sensitivity", "specificity")]
    raise ConfigError(f"the gate names {name!r}; there are {', '.join([*metrics['figures'], *points])}")


def _gaps(metrics: Mapping[str, Any], largest: float) -> list[str]:
    found = []
    for attribute in dict.fromkeys(group["attribute"] for group in metrics["groups"]):
        groups = [group for group in metrics["groups"] if group["attribute"] == attribute]
        for figure in ("roc_auc", "recall", "specificity"):
            values = {group["name"]: group[figure]["value"] for group in groups if group[figure] is not None}
            if len(values) < 2:
                continue
            worst, best = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
            gap = values[best] - values[worst]
            if gap > largest:
                words = {"recall": "sensitivity", "roc_auc": "ROC-AUC"}.get(figure, figure)
                found.append(f"{words} by {attribute}: {worst} is {gap:.3f} below {best}, more than {largest:g}")
    return found
