"""A checkpoint gives back what was put in, and says when a run is over."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skinray import storage
from skinray.checkpoints import (
    Progress,
    checkpoint_name,
    drop_unusable_notes,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from skinray.errors import StorageError


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
    again, loaded = load_checkpoint(str(tmp_path))
    assert again == progress
    assert "average" not in loaded
    for name in ("model", "optimizer"):
        assert len(loaded[name]) == len(arrays[name])
        for one, other in zip(loaded[name], arrays[name], strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_a_run_that_diverged_is_over_and_says_so_after_a_restart(tmp_path: Path) -> None:
    progress = after([0.5, 0.75]).diverged_at(3)
    assert progress.is_over(10, None)
    assert (progress.epoch, progress.step, progress.best_epoch) == (2, 3, 2)
    save_checkpoint(tmp_path, progress, {"model": [np.full(2, np.nan)]})
    assert load_checkpoint(str(tmp_path))[0] == progress
    assert checkpoint_name(progress) > checkpoint_name(after([0.5, 0.75]))


def stored(folder: Path, progress: Progress) -> Path:
    where = folder / checkpoint_name(progress)
    where.mkdir(parents=True)
    save_checkpoint(where, progress, {"model": [np.arange(1000)]})
    return where


def cut_arrays(checkpoint: Path) -> None:
    arrays = checkpoint / "arrays.npz"
    arrays.write_bytes(arrays.read_bytes()[:-100])


def change_arrays(checkpoint: Path) -> None:
    data = bytearray((checkpoint / "arrays.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / "arrays.npz").write_bytes(data)


def cut_state(checkpoint: Path) -> None:
    (checkpoint / "state.json").write_text('{"epoch": 3, "st')


def lose_state(checkpoint: Path) -> None:
    (checkpoint / "state.json").unlink()


def empty_arrays(checkpoint: Path) -> None:
    (checkpoint / "arrays.npz").write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_arrays, change_arrays, cut_state, lose_state, empty_arrays])
def test_a_checkpoint_cut_off_in_its_upload_is_passed_over(damage: Callable[[Path], None], tmp_path: Path) -> None:
    stored(tmp_path, Progress(2, 9))
    whole = stored(tmp_path, Progress(2, 10))
    damage(stored(tmp_path, Progress(3, 0)))
    (tmp_path / "checkpoint_manager_snapshot.json").write_text("{}")  # Ray Train's own, beside them
    stored(tmp_path, Progress(1, 0)).rename(tmp_path / "checkpoint_2026-11-21_21-27-38.247944")  # Ray Train's way to name them
    assert newest_checkpoint(str(tmp_path)) == whole.name


def test_a_checkpoint_removed_while_they_are_listed_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        folder = tmp_path / checkpoint_name(Progress(step=step))
        folder.mkdir()
        save_checkpoint(folder, Progress(step=step), {"model": []})
    scandir = os.scandir

    def scans(path: Any) -> Any:
        opened = scandir(path)
        if checkpoint_name(Progress(step=1)) in str(path):  # the next one goes before it is looked at
            shutil.rmtree(tmp_path / checkpoint_name(Progress(step=2)), ignore_errors=True)
        return opened

    monkeypatch.setattr(os, "scandir", scans)
    assert newest_checkpoint(str(tmp_path)) == checkpoint_name(Progress(step=3))
    assert not (tmp_path / checkpoint_name(Progress(step=2))).exists()


def test_a_run_without_a_whole_checkpoint_has_none(tmp_path: Path) -> None:
    assert newest_checkpoint(str(tmp_path / "nowhere")) is None
    cut_arrays(stored(tmp_path, Progress(0, 5)))
    assert newest_checkpoint(str(tmp_path)) is None


def test_a_checkpoint_that_cannot_be_read_now_is_not_passed_over(tmp_path: Path) -> None:
    stored(tmp_path, Progress(1, 0))
    state = stored(tmp_path, Progress(2, 0)) / "state.json"
    state.unlink()
    state.mkdir()  # there, and whoever reads it gets an OSError
    with pytest.raises(StorageError, match=r"checkpoint_000002_000000000/state\.json"):
        newest_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("notes", "usable"),
    [
        ('{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_000001_000000000", "metrics": {}}]}', True),
        ('{"checkpoint_results": []}', True),
        ('{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_000000_000000005", "metrics": {}}]}', False),
        ('{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_00', False),
        ("", False),
        ("[]", False),
    ],
)
def test_notes_that_ray_train_could_not_start_with_are_removed(notes: str, usable: bool, tmp_path: Path) -> None:
    kept = stored(tmp_path, Progress(1, 0))
    noted = tmp_path / "checkpoint_manager_snapshot.json"
    noted.write_text(notes)
    drop_unusable_notes(str(tmp_path))
    assert noted.exists() == usable
    assert newest_checkpoint(str(tmp_path)) == kept.name
    drop_unusable_notes(str(tmp_path / "nowhere"))


@pytest.mark.s3
def test_checkpoints_in_an_object_store_are_found_and_read(s3_bucket: str, tmp_path: Path) -> None:
    assert newest_checkpoint(f"{s3_bucket}/checkpoints") is None
    for progress in (Progress(0, 7), Progress(1, 0)):
        where = stored(tmp_path, progress)
        storage.upload_folder(where, f"{s3_bucket}/checkpoints/{where.name}")
    newest = newest_checkpoint(f"{s3_bucket}/checkpoints")
    assert newest == checkpoint_name(Progress(1, 0))
    progress, arrays = load_checkpoint(f"{s3_bucket}/checkpoints/{newest}")
    assert progress == Progress(1, 0)
    np.testing.assert_array_equal(arrays["model"][0], np.arange(1000))


@given(st.lists(st.tuples(st.integers(0, 999_999), st.integers(0, 999_999_999)), min_size=2))
def test_names_stand_in_the_order_of_progress(places: list[tuple[int, int]]) -> None:
    names = [checkpoint_name(Progress(epoch, step)) for epoch, step in sorted(places)]
    assert names == sorted(names)


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
