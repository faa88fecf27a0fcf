"""Output folders are claimed by one run and published once, on a disk and in a bucket."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skinray import file_listing, outputs, storage
from skinray.errors import OutputExistsError, StorageError
from skinray.storage import INCOMPLETE_NAME, MANIFEST_NAME

SETTINGS: dict[str, Any] = {"seed": 0, "model": {"name": "resnet50"}, "sizes": (1, 2)}


def test_a_claimed_folder_is_unfinished_until_it_is_published(place: str) -> None:
    run = storage.join(place, "run")
    outputs.claim_folder(run, "dataset", SETTINGS)
    assert set(file_listing.list_files(run)) == {INCOMPLETE_NAME}
    storage.write_bytes(storage.join(run, "part.parquet"), b"x")
    outputs.publish_folder(run, {"rows": 1})
    assert set(file_listing.list_files(run)) == {MANIFEST_NAME, "part.parquet"}
    assert storage.read_json(storage.join(run, MANIFEST_NAME)) == {"rows": 1}


def test_a_full_disk_leaves_no_marker_and_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a kill at that place, after which the temporary file stays."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="no space left"):
            outputs.claim_folder(str(run), "dataset", SETTINGS)
        assert list(run.iterdir()) == []
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(StorageError, match="no space left"):
            outputs.claim_folder(str(run), "dataset", SETTINGS)
        assert len(list(run.iterdir())) == 1
    outputs.claim_folder(str(run), "dataset", SETTINGS)
    assert set(file_listing.list_files(str(run))) == {INCOMPLETE_NAME}


def test_an_unfinished_run_is_taken_over_with_the_same_settings(place: str) -> None:
    run = storage.join(place, "run")
    outputs.claim_folder(run, "dataset", SETTINGS)
    storage.write_bytes(storage.join(run, "part.parquet"), b"x")
    outputs.claim_folder(run, "dataset", SETTINGS, keep=True)
    assert storage.read_bytes(storage.join(run, "part.parquet")) == b"x", "kept, to go on from it"
    outputs.claim_folder(run, "dataset", SETTINGS)
    assert set(file_listing.list_files(run)) == {INCOMPLETE_NAME}, "removed, so that no stale file is published"


@pytest.mark.parametrize(("kind", "changes"), [("dataset", {"seed": 1}), ("predictions", {}), ("dataset", {"more": None})])
def test_an_unfinished_run_is_not_taken_over_with_others(place: str, kind: str, changes: dict[str, Any]) -> None:
    run = storage.join(place, "run")
    outputs.claim_folder(run, "dataset", SETTINGS)
    before = storage.read_bytes(storage.join(run, INCOMPLETE_NAME))
    with pytest.raises(OutputExistsError, match="unfinished run with other settings") as caught:
        outputs.claim_folder(run, kind, {**SETTINGS, **changes})
    assert run in str(caught.value)
    assert storage.read_bytes(storage.join(run, INCOMPLETE_NAME)) == before


def test_a_published_folder_is_never_claimed_again(place: str) -> None:
    run = storage.join(place, "run")
    outputs.claim_folder(run, "dataset", SETTINGS)
    outputs.publish_folder(run, {})
    with pytest.raises(OutputExistsError, match="already exists") as caught:
        outputs.claim_folder(run, "dataset", SETTINGS)
    assert run in str(caught.value)


def test_somebody_elses_folder_is_never_claimed(place: str) -> None:
    run = storage.join(place, "photos")
    storage.write_bytes(storage.join(run, "a.jpg"), b"x")
    with pytest.raises(OutputExistsError, match="not empty") as caught:
        outputs.claim_folder(run, "dataset", SETTINGS)
    assert run in str(caught.value)
    assert file_listing.list_files(run) == {"a.jpg": 1}


def test_a_file_is_never_claimed(place: str) -> None:
    uri = storage.join(place, "a.jpg")
    storage.write_bytes(uri, b"x")
    with pytest.raises(OutputExistsError):
        outputs.claim_folder(uri, "dataset", SETTINGS)
    assert storage.read_bytes(uri) == b"x"


def test_an_empty_folder_may_be_claimed(tmp_path: Path) -> None:
    outputs.claim_folder(str(tmp_path), "dataset", SETTINGS)
    assert {path.name for path in tmp_path.iterdir()} == {INCOMPLETE_NAME}


PLAIN_VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)


@settings(max_examples=20, deadline=None)
@given(recorded=st.dictionaries(st.text(max_size=5), PLAIN_VALUES))
def test_any_settings_take_over_their_own_run(tmp_path_factory: pytest.TempPathFactory, recorded: dict[str, Any]) -> None:
    run = str(tmp_path_factory.mktemp("run"))
    outputs.claim_folder(run, "dataset", recorded)
    outputs.claim_folder(run, "dataset", recorded)
