"""A checkpoint gives back what was put in, and says when a run is over."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skinray.checkpoints import Progress, load_checkpoint, save_checkpoint


def after(aucs: list[float]) -> Progress:
    progress = Progress()
    for epoch, auc in enumerate(aucs, start=1):
        progress = progress.at_step(7).after({"epoch": epoch, "validation_auc": auc})
    return progress


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    progress = after([0.5, 0.75]).at_step(11)
    arrays = {
        "model": [np.arange(6, dtype=np.float32).reshape(2, 3), np.float64(1e-300) * np.ones(2)],
        "optimizer": [np.array(7, np.int64)] * 12,  # more than ten, so that the order of names as text would differ
        "average": [],
    }
    save_checkpoint(tmp_path, progress, arrays)
    again, loaded = load_checkpoint(tmp_path)
    assert again == progress
    assert "average" not in loaded
    for name in ("model", "optimizer"):
        assert len(loaded[name]) == len(arrays[name])
        for one, other in zip(loaded[name], arrays[name], strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@given(st.lists(st.floats(0, 1), min_size=1))
def test_the_best_epoch_is_the_first_with_the_highest_auc(aucs: list[float]) -> None:
    progress = after(aucs)
    assert progress.best_epoch == int(np.argmax(aucs)) + 1
    assert progress.best_auc == max(aucs)
    assert (progress.epoch, progress.step) == (len(aucs), 0)
    assert [record["epoch"] for record in progress.history] == list(range(1, len(aucs) + 1))


@pytest.mark.parametrize(
    ("aucs", "patience", "over"),
    [
        ([], 1, False),
        ([0.9, 0.8], None, False),
        ([0.9, 0.8], 1, True),
        ([0.9, 0.8], 2, False),
        ([0.9, 0.8, 0.9], 2, True),
        ([0.7, 0.8, 0.9], 1, False),
        ([0.5] * 10, None, True),
    ],
)
def test_a_run_is_over_after_its_epochs_or_when_it_stalls(aucs: list[float], patience: int | None, over: bool) -> None:
    assert after(aucs).is_over(epochs=10, patience_epochs=patience) is over
