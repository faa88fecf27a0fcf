"""The gap between training and validation: measured at the right epochs, judged by stated limits, said with its figures."""

import dataclasses
import json
import math
from typing import Any

import pytest

from skinray.overfitting import AUC_GAP, LOSS_RISE, best_epoch, gap_in_words, generalisation_gap


def epochs(**columns: list[Any]) -> list[dict[str, Any]]:
    """A history from its columns."""
    count = len(next(iter(columns.values())))
    return [{"epoch": row + 1} | {name: values[row] for name, values in columns.items()} for row in range(count)]


LEARNS = epochs(
    train_auc=[0.70, 0.80, 0.88, 0.91],
    validation_auc=[0.69, 0.79, 0.87, 0.89],
    train_balanced_accuracy=[0.60, 0.70, 0.78, 0.81],
    validation_balanced_accuracy=[0.60, 0.69, 0.77, 0.79],
    train_loss=[0.6, 0.5, 0.4, 0.35],
    validation_loss=[0.6, 0.5, 0.42, 0.40],
)


def changed(last: int = 1, **figures: Any) -> list[dict[str, Any]]:
    """The history that learns, with other figures in its last epochs."""
    return [*LEARNS[:-last], *(epoch | figures for epoch in LEARNS[-last:])]


def test_the_best_epoch_is_the_earlier_of_equals() -> None:
    assert best_epoch(epochs(validation_auc=[0.7, 0.9, 0.8, 0.9])) == 2


def test_an_epoch_without_a_validation_auc_is_not_the_best() -> None:
    history = epochs(validation_auc=[None, 0.6, math.nan])
    assert best_epoch([{"epoch": 0}, *history]) == 2


def test_what_learns_alike_on_both_sides_shows_no_sign() -> None:
    gap = generalisation_gap(LEARNS)
    assert gap.verdict == "no sign"
    words = gap_in_words(gap)
    assert words.startswith(
        "no sign of overfitting: at the last epoch training AUC is 0.910 and validation AUC 0.890, a gap of 0.020"
    )
    assert "Try" not in words


def test_training_figures_below_validation_show_no_sign() -> None:
    assert generalisation_gap(changed(train_auc=0.85, train_balanced_accuracy=0.70)).verdict == "no sign"


def test_the_figures_are_of_the_best_and_of_the_last_epoch() -> None:
    gap = generalisation_gap(changed(validation_auc=0.84, train_auc=0.97, validation_loss=0.5, train_loss=0.2))
    assert (gap.best.epoch, gap.last.epoch) == (3, 4)
    assert gap.best.auc_gap == pytest.approx(0.01)
    assert gap.last.auc_gap == pytest.approx(0.13)
    assert gap.lowest_loss_epoch == 3
    assert gap.validation_loss_rise == pytest.approx(0.5 / 0.42 - 1)
    words = gap_in_words(gap)
    assert words.startswith("overfits: at the last epoch training AUC is 0.970 and validation AUC 0.840, a gap of 0.130")
    assert "validation loss is 19 % above its lowest (epoch 3) while training loss fell" in words
    assert "The best epoch, which is kept, was 3 of 4 (AUC gap 0.010, balanced accuracy gap 0.010)" in words
    assert "augmentation" in words
    assert "early_stopping_epochs" in words


@pytest.mark.parametrize(("gap", "verdict"), [(AUC_GAP - 0.001, "no sign"), (AUC_GAP + 0.001, "overfits")])
def test_the_limit_of_the_auc(gap: float, verdict: str) -> None:
    assert generalisation_gap(changed(train_auc=0.89 + gap)).verdict == verdict


def test_a_wide_gap_at_the_best_epoch_alone_counts() -> None:
    history = changed(train_auc=0.86, validation_auc=0.85)
    history[2] = history[2] | {"train_auc": 0.94}
    gap = generalisation_gap(history)
    assert (gap.verdict, gap.best.epoch) == ("overfits", 3)


def test_classes_learnt_by_heart_count_though_the_auc_is_level() -> None:
    gap = generalisation_gap(changed(train_balanced_accuracy=0.95))
    assert gap.verdict == "overfits"
    assert "training balanced accuracy is 0.950 and validation balanced accuracy 0.790, a gap of 0.160" in gap_in_words(gap)


@pytest.mark.parametrize(("rise", "verdict"), [(LOSS_RISE - 0.01, "no sign"), (LOSS_RISE + 0.01, "overfits")])
def test_a_validation_loss_that_rises_while_the_training_loss_falls(rise: float, verdict: str) -> None:
    assert generalisation_gap(changed(validation_loss=0.42 * (1 + rise), train_loss=0.2)).verdict == verdict


def test_losses_that_rise_together_are_no_overfitting() -> None:
    gap = generalisation_gap(changed(validation_loss=0.9, train_loss=0.8))
    assert gap.verdict == "no sign"
    assert "above its lowest" not in gap_in_words(gap)


def test_who_learns_little_underfits_whatever_the_gap() -> None:
    history = epochs(train_auc=[0.55, 0.61], validation_auc=[0.52, 0.53])
    gap = generalisation_gap(history)
    assert gap.verdict == "underfits"
    assert gap_in_words(gap).startswith("underfits: at epoch 2 of 2 training AUC is 0.610 and validation AUC 0.530")


@pytest.mark.parametrize("nothing", [None, math.nan, "absent"])
def test_a_history_without_training_figures_tells_nothing(nothing: Any) -> None:
    history = epochs(train_loss=[0.5, 0.4], validation_loss=[0.5, 0.45], validation_auc=[0.8, 0.85])
    if nothing != "absent":
        history = [epoch | {"train_auc": nothing, "train_balanced_accuracy": nothing} for epoch in history]
    gap = generalisation_gap(history)
    assert gap.verdict == "unknown"
    assert "not known" in gap_in_words(gap)


def test_without_training_figures_the_losses_still_tell() -> None:
    gap = generalisation_gap(epochs(train_loss=[0.5, 0.3], validation_loss=[0.5, 0.7], validation_auc=[0.8, 0.79]))
    assert gap.verdict == "overfits"
    assert "40 % above its lowest (epoch 1)" in gap_in_words(gap)


def test_one_epoch_is_both_the_best_and_the_last() -> None:
    gap = generalisation_gap(LEARNS[:1])
    assert gap.best == gap.last
    assert gap.validation_loss_rise == 0
    gap_in_words(gap)


def test_no_epoch_is_an_error() -> None:
    with pytest.raises(ValueError, match="no epoch"):
        generalisation_gap([])


@pytest.mark.parametrize("history", [LEARNS, changed(train_auc=math.nan, validation_loss=math.nan), epochs(validation_auc=[0.5])])
def test_it_can_be_stored_as_json(history: list[dict[str, Any]]) -> None:
    gap = generalisation_gap(history)
    stored = json.loads(json.dumps(dataclasses.asdict(gap), allow_nan=False))
    assert stored["verdict"] == gap.verdict
    assert stored["best"]["epoch"] == gap.best.epoch
    assert "\n" not in gap_in_words(gap)
