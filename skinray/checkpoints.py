"""What a training checkpoint holds: enough to go on in the middle of an epoch as if nothing had been.

<run>/checkpoints/checkpoint_EPOCH_STEP/arrays.npz   model, optimizer, averaged weights, the best epoch's weights and logits,
                                                     the running epoch's losses and logits
<run>/checkpoints/checkpoint_EPOCH_STEP/state.json   epochs and steps done, the history, which epoch was the best

Random numbers need no state: every draw is a function of the run's seed, the step and the photo's place in its batch.

Ray Train uploads these folders and keeps the last two of those it knows; it takes note of a new one every other second. A run
goes on from the newest that lies there whole, noted or not, so that a kill costs the steps since then and no more. (What was
not noted before a kill is not removed by Ray Train later: one folder a kill stays until the run's output is removed. All
stay that there were when its notes were lost.)
"""

import json
import logging
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skinray import file_listing, storage
from skinray.errors import StorageError

ARRAYS, STATE = "arrays.npz", "state.json"
# What `checkpoint_name` makes; a folder of another name has no place in their order.
_NAME = re.compile(r"checkpoint_\d{6}_\d{9}")
# How often checkpoints are listed while others are removed.
_LISTINGS = 10
# Ray Train's notes of which checkpoints there are.
_NOTES = "checkpoint_manager_snapshot.json"

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
        diverged: True when the loss is not a number any more, in the epoch after those done.
    """

    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_auc: float = 0.0
    best_epoch: int = 0
    diverged: bool = False

    def at_step(self, step: int) -> "Progress":
        """The same, so many steps into the running epoch."""
        return replace(self, step=step)

    def diverged_at(self, step: int) -> "Progress":
        """The same, over because the loss is not a number so many steps into the running epoch."""
        return replace(self, step=step, diverged=True)

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
        """True when all epochs are done, when the last so many of them have not raised the AUC, or when it diverged."""
        stalled = patience_epochs is not None and self.best_epoch > 0 and self.epoch - self.best_epoch >= patience_epochs
        return self.epoch >= epochs or stalled or self.diverged


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


def checkpoint_name(progress: Progress) -> str:
    """The folder of a checkpoint; as text, names stand in the order of progress."""
    return f"checkpoint_{progress.epoch:06d}_{progress.step:09d}"


def load_checkpoint(uri: str) -> tuple[Progress, dict[str, list[npt.NDArray[Any]]]]:
    """Reads what `save_checkpoint` wrote; a group of no arrays is missing.

    Args:
        uri: The checkpoint's folder.

    Raises:
        ValueError: It was not written to its end.
    """
    arrays: dict[str, list[npt.NDArray[Any]]] = {}
    try:
        progress = Progress(**json.loads(storage.read_bytes(storage.join(uri, STATE))))
        with storage.reading(storage.join(uri, ARRAYS)) as file, np.load(file) as stored:
            for key in stored.files:  # in the order of writing
                arrays.setdefault(key.rsplit(".", 1)[0], []).append(stored[key])
    except (zipfile.BadZipFile, EOFError, ValueError) as error:  # json's errors are ValueErrors
        raise ValueError(f"the checkpoint {uri} is not whole: {error}") from error
    return progress, arrays


def newest_checkpoint(folder_uri: str) -> str | None:
    """The name of the newest checkpoint of a run that lies there whole.

    Args:
        folder_uri: Where the run's checkpoints lie.

    Returns:
        The name of its folder below `folder_uri`; None when there is none.

    Raises:
        StorageError: One that is there cannot be read.
    """
    if not storage.exists(folder_uri):
        return None
    folders = {path.rpartition("/")[0] for path in _files(folder_uri) if path.endswith(f"/{ARRAYS}")}
    for name in sorted(filter(_NAME.fullmatch, folders), reverse=True):
        try:
            load_checkpoint(storage.join(folder_uri, name))
        except ValueError as error:  # cut off while it was uploaded
            logging.getLogger(__name__).warning("%s", error)
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise  # there, and not to be read now: an older one would cost what this one holds
            logging.getLogger(__name__).warning("%s", error)  # cut off before its second file, or just removed as too old
        else:
            return name
    return None


def _files(folder_uri: str) -> Collection[str]:
    """Those of all checkpoints; listed again when one was removed as too old meanwhile."""
    for _ in range(_LISTINGS - 1):
        try:
            return file_listing.list_files(folder_uri)
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    return file_listing.list_files(folder_uri)


def drop_unusable_notes(folder_uri: str) -> None:
    """Removes Ray Train's notes of a run's checkpoints when it could not start with them.

    It writes them anew in place after each checkpoint, so that a crash can leave half of them. Training goes by the folders.

    Args:
        folder_uri: Where the run's checkpoints lie.
    """
    notes = storage.read_if_there(storage.join(folder_uri, _NOTES))
    if notes is None:
        return
    try:
        names = [noted["checkpoint_dir_name"] for noted in json.loads(notes)["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        usable = False
    else:
        usable = all(storage.exists(storage.join(folder_uri, name)) for name in names)
    if not usable:
        storage.delete_file(storage.join(folder_uri, _NOTES))
