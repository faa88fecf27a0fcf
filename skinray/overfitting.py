"""Does a model know its training photos better than new ones? What a run's history says about it, in words.

Training figures are measured on the augmented photos while they are learnt from, with dropout and with the weights of the
middle of an epoch, so they are lower than the same model's on unchanged photos: the true gap is rather larger than the
measured one. Losses are compared over epochs only, never training with validation: the training loss may be weighted,
focal or smoothed, and the validation loss never is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["overfits", "underfits", "no sign", "unknown"]

# Twice the standard error (0.025, after Hanley and McNeil 1982) of an AUC of 0.9 on 400 photos, 74 of them malignant, which
# is HAM10000's validation split of 4,000 photos: a smaller gap may be chance.
AUC_GAP = 0.05
# Twice as much, because every class weighs alike in it: the rare ones, with a few dozen photos, swing by several points.
BALANCED_ACCURACY_GAP = 0.10
# From one epoch to the next the validation loss swings by a few per cent; who rises by more has grown too sure of itself.
LOSS_RISE = 0.10
# Hosmer and Lemeshow call an AUC from 0.7 on acceptable. Who does not reach it on the photos it learns from has learnt little.
LOW_TRAIN_AUC = 0.70

AGAINST_OVERFITTING = (
    "Try stronger augmentation, more model.dropout or weight_decay, early_stopping_epochs, fewer epochs, "
    "or transfer learning (model.weights with transfer.frozen_epochs)"
)
AGAINST_UNDERFITTING = (
    "Try more epochs, another learning_rate, pretrained weights (model.weights), a larger network, "
    "or weaker augmentation and dropout"
)


@dataclass(frozen=True)
class EpochFigures:
    """One epoch's figures, on the training photos and on those for validation; None: not recorded.

    Attributes:
        epoch: Which, from 1.
        train_auc: ROC-AUC, malignant against benign.
        validation_auc: The same on validation.
        train_balanced_accuracy: Mean of the classes' recalls.
        validation_balanced_accuracy: The same on validation.
        train_loss: What was minimised.
        validation_loss: Plain cross-entropy in nats; not to be compared with `train_loss`.
    """

    epoch: int
    train_auc: float | None
    validation_auc: float | None
    train_balanced_accuracy: float | None
    validation_balanced_accuracy: float | None
    train_loss: float | None
    validation_loss: float | None

    @property
    def auc_gap(self) -> float | None:
        """How much higher the AUC is on training photos."""
        return _difference(self.train_auc, self.validation_auc)

    @property
    def balanced_accuracy_gap(self) -> float | None:
        """How much higher the balanced accuracy is on training photos."""
        return _difference(self.train_balanced_accuracy, self.validation_balanced_accuracy)


@dataclass(frozen=True)
class Gap:
    """Training against validation; `dataclasses.asdict` of it can be stored as JSON.

    Attributes:
        verdict: Whether the run overfits, by the limits above; "unknown" without training figures.
        best: The epoch with the highest validation AUC, which is the one that is kept.
        last: The last epoch.
        lowest_loss_epoch: The epoch with the lowest validation loss.
        validation_loss_rise: The last epoch's validation loss above the lowest, as a share of the lowest.
        train_loss_fell: Whether the training loss fell, or stayed, in the epochs of that rise.
    """

    verdict: Verdict
    best: EpochFigures
    last: EpochFigures
    lowest_loss_epoch: int | None
    validation_loss_rise: float | None
    train_loss_fell: bool | None


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """The epoch with the highest validation AUC, the earlier one of equals.

    Args:
        history: One record an epoch; not empty.
    """
    return int(max(history, key=lambda record: _known(record, "validation_auc", -math.inf))["epoch"])


def generalisation_gap(history: Sequence[Mapping[str, Any]]) -> Gap:
    """Compares training with validation at the best epoch and at the last.

    Args:
        history: One record an epoch, in order; figures may be missing.

    Raises:
        ValueError: There is no epoch.
    """
    if not history:
        raise ValueError("no epoch was recorded")
    figures = [_figures(record) for record in history]
    kept = best_epoch(history)
    best, last = next(epoch for epoch in figures if epoch.epoch == kept), figures[-1]
    losses = [(epoch.validation_loss, epoch) for epoch in figures if epoch.validation_loss is not None]
    lowest_loss, lowest = min(losses, key=lambda pair: pair[0], default=(None, None))
    rise = last.validation_loss / lowest_loss - 1 if last.validation_loss is not None and lowest_loss else None
    fall = _difference(lowest.train_loss, last.train_loss) if lowest else None
    fell = None if fall is None else fall >= 0
    return Gap(_verdict(best, last, rise, fell), best, last, lowest.epoch if lowest else None, rise, fell)


def _verdict(best: EpochFigures, last: EpochFigures, rise: float | None, fell: bool | None) -> Verdict:
    learnt = [epoch.train_auc for epoch in (best, last) if epoch.train_auc is not None]
    if learnt and max(learnt) < LOW_TRAIN_AUC:
        return "underfits"
    # A validation loss that rises together with the training loss is a run that diverges, not one that overfits.
    if any(map(_too_wide, (best, last))) or (rise is not None and rise > LOSS_RISE and fell):
        return "overfits"
    return "no sign" if last.auc_gap is not None or last.balanced_accuracy_gap is not None else "unknown"


def _too_wide(epoch: EpochFigures) -> bool:
    return (epoch.auc_gap or 0) > AUC_GAP or (epoch.balanced_accuracy_gap or 0) > BALANCED_ACCURACY_GAP


def gap_in_words(gap: Gap) -> str:
    """The verdict with the figures that it rests on and, where something is wrong, what to try: a few sentences, one line."""
    best, last = gap.best, gap.last
    if gap.verdict == "unknown":
        return "whether it overfits is not known: the history has no training figures to compare with"
    if gap.verdict == "underfits":
        epoch = max((best, last), key=lambda epoch: epoch.train_auc or 0)
        return (
            f"underfits: at epoch {epoch.epoch} of {last.epoch} {_compared(epoch)}. An AUC below {LOW_TRAIN_AUC:.2f} on the very "
            f"photos that it learns from is little. {AGAINST_UNDERFITTING}."
        )
    found = f"at the last epoch {_compared(last)}"
    if gap.validation_loss_rise is not None and gap.validation_loss_rise > LOSS_RISE and gap.train_loss_fell:
        rise = f"{100 * gap.validation_loss_rise:.0f} %"
        found += f"; validation loss is {rise} above its lowest (epoch {gap.lowest_loss_epoch}) while training loss fell"
    gaps = [("AUC", best.auc_gap), ("balanced accuracy", best.balanced_accuracy_gap)]
    known = ", ".join(f"{name} gap {size:.3f}" for name, size in gaps if size is not None)
    found += f". The best epoch, which is kept, was {best.epoch} of {last.epoch}{f' ({known})' if known else ''}."
    if gap.verdict == "overfits":
        return f"overfits: {found} {AGAINST_OVERFITTING}."
    return (
        f"no sign of overfitting: {found} Training figures are those of augmented photos while they were learnt from; on "
        "unchanged ones the gap is rather larger."
    )


def _compared(epoch: EpochFigures) -> str:
    """AUC and balanced accuracy, training against validation, as far as they are known."""
    pairs = (
        ("AUC", epoch.train_auc, epoch.validation_auc, epoch.auc_gap),
        ("balanced accuracy", epoch.train_balanced_accuracy, epoch.validation_balanced_accuracy, epoch.balanced_accuracy_gap),
    )
    said = [
        f"training {name} is {train:.3f} and validation {name} {validation:.3f}, a gap of {difference:.3f}"
        for name, train, validation, difference in pairs
        if difference is not None
    ]
    return "; ".join(said) or "training figures are missing"


def _figures(record: Mapping[str, Any]) -> EpochFigures:
    names = [name for name in EpochFigures.__dataclass_fields__ if name != "epoch"]
    return EpochFigures(epoch=int(record["epoch"]), **{name: _known(record, name, None) for name in names})


def _known(record: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """A figure of an epoch, or something else where it is missing or not a number."""
    value = record.get(name)
    return otherwise if value is None or not math.isfinite(value) else float(value)


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
