"""A bundle passes when every limit is kept, and what is not kept is named with both numbers."""

from pathlib import Path
from typing import Any

import pytest

from skinray.errors import ConfigError
from skinray.gate import Gate, failures, read_gate


def figure(value: float | None, reach: float = 0.03) -> dict[str, float | None]:
    return {"value": value, "low": None if value is None else value - reach, "high": None if value is None else value + reach}


def metrics() -> dict[str, Any]:
    return {
        "malignant_photos": 147,
        "figures": {"roc_auc": figure(0.90), "ece": figure(0.04), "partial_auc": figure(None)},
        "operating_points": {"sensitivity_95": {"threshold": 0.1, "recall": figure(0.95), "specificity": figure(0.60)}},
        "groups": [
            {"attribute": "sex", "name": "male", "roc_auc": figure(0.92), "recall": figure(0.9), "specificity": None},
            {"attribute": "sex", "name": "female", "roc_auc": figure(0.86), "recall": figure(0.9), "specificity": None},
            {"attribute": "age", "name": "under 30", "roc_auc": None, "recall": None, "specificity": figure(0.5)},
        ],
    }


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"minimum": {"roc_auc": 0.90}}, []),
        ({"minimum": {"roc_auc": 0.91}}, ["roc_auc is 0.900, below 0.91"]),
        ({"minimum": {"roc_auc": 0.88}, "judged_by": "interval"}, ["roc_auc, low end of its interval, is 0.870, below 0.88"]),
        ({"maximum": {"ece": 0.05}}, []),
        ({"maximum": {"ece": 0.05}, "judged_by": "interval"}, ["ece, high end of its interval, is 0.070, above 0.05"]),
        ({"minimum": {"sensitivity_95.sensitivity": 0.95, "sensitivity_95.specificity": 0.6}}, []),
        ({"minimum": {"sensitivity_95.specificity": 0.7}}, ["sensitivity_95.specificity is 0.600, below 0.7"]),
        ({"minimum": {"partial_auc": 0.1}}, ["partial_auc is not known, below 0.1"]),
        ({"largest_group_gap": 0.05}, ["ROC-AUC by sex: female is 0.060 below male, more than 0.05"]),
        ({"largest_group_gap": 0.1}, []),
        ({"least_malignant_photos": 200}, ["147 malignant photos are fewer than 200"]),
    ],
)
def test_limits(limits: dict[str, Any], said: list[str]) -> None:
    assert failures(Gate(**limits), metrics()) == said


def test_a_figure_that_is_not_there_is_an_error_that_lists_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"'auroc'; there are roc_auc, ece, .*sensitivity_95\.sensitivity"):
        failures(Gate(minimum={"auroc": 0.9}), metrics())
    with pytest.raises(ValueError, match="minimun"):
        Gate.model_validate({"minimun": {"roc_auc": 0.9}})


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "jobs" / "gates").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_gate_that_comes_with_the_jobs_can_be_read(path: Path) -> None:
    gate = read_gate(str(path))
    assert gate.minimum
    assert f"--gate jobs/gates/{path.name}" in path.read_text()


@pytest.mark.parametrize(
    ("text", "words"), [("minimun: {roc_auc: 1}", "minimun"), ("minimum: [", "gate"), ("maximum: {ece: x}", "ece")]
)
def test_a_file_that_is_no_gate_says_where(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_gate(str(tmp_path / "gate.yaml"))
