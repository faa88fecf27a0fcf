"""What a training checkpoint holds: enough to go on in the middle of an epoch as if nothing had been.

arrays.npz   model, optimizer, averaged weights, the best epoch's weights and logits, the running epoch's losses and logits
state.json   epochs and steps done, the history, which epoch was the best

Random numbers need no state: every draw is a function of the run's seed, the step and the photo's place in its batch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ARRAYS, STATE = "arrays.npz", "state.json"

Arrays = Mapping[str, Sequence[npt.NDArray[Any]]]


@dataclass(frozen=True)
class Progress:
    """How far training has come.

    Attributes:
        epoch: Epochs done.
        step: Steps done of the epoch after these.
        history: One record an epoch.
        best_auc: Best validation ROC-AUC so far.
        best_epoch: The epoch that reached it, from 1; 0 before the first has ended.
    """

    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_auc: float = 0.0
    best_epoch: int = 0

    def at_step(self, step: int) -> "Progress":
        """The same, so many steps into the running epoch."""
        return replace(self, step=step)

    def after(self, record: dict[str, Any]) -> "Progress":
        """One epoch later; an equal AUC does not replace the earlier epoch."""
        better = self.best_epoch == 0 or record["validation_auc"] > self.best_auc
        return Progress(
            epoch=record["epoch"],
            history=[*self.history, record],
            best_auc=record["validation_auc"] if better else self.best_auc,
            best_epoch=record["epoch"] if better else self.best_epoch,
        )

    def is_over(self, epochs: int, patience_epochs: int | None) -> bool:
        """True when all epochs are done, or when the last so many of them have not raised the AUC."""
        stalled = patience_epochs is not None and self.best_epoch > 0 and self.epoch - self.best_epoch >= patience_epochs
        return self.epoch >= epochs or stalled


def save_checkpoint(folder: Path, progress: Progress, arrays: Arrays) -> None:
    """Writes a checkpoint.

    Args:
        folder: An existing folder.
        progress: How far training has come.
        arrays: Name -> arrays in an order that the reader knows.
    """
    flat = {f"{name}.{number:05d}": array for name, group in arrays.items() for number, array in enumerate(group)}
    np.savez(folder / ARRAYS, **flat)  # type: ignore[arg-type]
    (folder / STATE).write_text(json.dumps(asdict(progress)))


def load_checkpoint(folder: Path) -> tuple[Progress, dict[str, list[npt.NDArray[Any]]]]:
    """Reads what `save_checkpoint` wrote; a group of no arrays is missing."""
    progress = Progress(**json.loads((folder / STATE).read_bytes()))
    arrays: dict[str, list[npt.NDArray[Any]]] = {}
    with np.load(folder / ARRAYS) as stored:
        for key in stored.files:  # in the order of writing
            arrays.setdefault(key.rsplit(".", 1)[0], []).append(stored[key])
    return progress, arrays
