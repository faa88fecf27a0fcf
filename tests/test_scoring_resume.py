"""Whenever a command is cut off, and whatever happens until it is given again: each photo is in one run, and none is left out.

Everything is as in `skinray score` but the network, in whose place every photo gets the same row.
"""

import dataclasses
import datetime
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from skinray import scoring, storage
from skinray.audit_chain import check_chain
from skinray.block_files import BLOCKS, finished_block, merge_blocks, write_block
from skinray.claims import claimed
from skinray.config import ScoreSettings
from skinray.errors import OutputExistsError
from skinray.listing import Listing
from skinray.scoring import score_archive
from skinray.scoring_pipeline import RunSummary
from skinray.screening_runs import run_identity

POINTS = SimpleNamespace(default="youden", points={"youden": SimpleNamespace(threshold=0.5)})
LEAKS = {"lesions across splits": 2}
MONDAY = datetime.datetime(2026, 11, 16, 2, 0, tzinfo=datetime.UTC)


class Archive:
    """An archive, the scores of it, and a command that can be cut off."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.source, self.output = folder / "archive", folder / "scores"
        self.source.mkdir()
        self.judged: Counter[str] = Counter()
        self._days, self._patch = itertools.count(), patch
        self._most = 1 << 30
        patch.setattr(
            scoring, "load_bundle", lambda _: SimpleNamespace(model_id="abc", operating_points=POINTS, metadata={"leaks": LEAKS})
        )
        patch.setattr(scoring, "write_predictions", self._write)

    def add(self, *names: str) -> None:
        """New photos, or changed ones."""
        for name in names:
            path = self.source / f"{name}.jpg"
            path.write_bytes(path.read_bytes() + b"x" if path.exists() else b"x")

    def settings(self, **changes: Any) -> ScoreSettings:
        asked = {"bundle": "b", "input": str(self.source), "output": str(self.output), "image_id": "stem", "only_new": True}
        return ScoreSettings.model_validate({**asked, **changes})

    def score(self, **changes: Any) -> RunSummary:
        """The command, on the next day."""
        return score_archive(self.settings(**changes), MONDAY + datetime.timedelta(days=next(self._days)))

    def cut_off(self, after: int = 1 << 30, at: str = "", **changes: Any) -> None:
        """The command, killed after some photos, or when it writes or removes what has a URI that ends so."""

        def killing(action: Callable[..., Any]) -> Callable[..., Any]:
            def act(uri: str, *values: Any) -> Any:
                if uri.endswith(at):
                    raise KeyboardInterrupt
                return action(uri, *values)

            return act

        with self._patch.context() as patch:
            patch.setattr(self, "_most", after)
            for name in ("write_json", "delete_file", "delete_folder") if at else ():
                patch.setattr(storage, name, killing(getattr(storage, name)))
            with pytest.raises(KeyboardInterrupt):
                self.score(**changes)

    def published(self) -> list[str]:
        """The photos in all published runs."""
        runs = [pd.read_parquet(path.parent) for path in self.output.rglob(storage.MANIFEST_NAME)]
        return sorted(name for run in runs for name in run["image_id"])

    def _write(self, _bundle: Any, listing: Listing, _settings: Any, run_uri: str, _extras: Any) -> tuple[RunSummary, Any]:
        results, resumed = [], 0
        for first, count in listing.blocks().items():
            done = finished_block(run_uri, first, count)
            if done:
                resumed += count
            elif self._most < first + count:
                raise KeyboardInterrupt
            else:
                names = listing.photos["image_id"].slice(first, count).to_pylist()
                self.judged.update(names)
                flags = {"status": ["scored"] * count, "error_code": pa.nulls(count, pa.string()), "flagged": [False] * count}
                done = write_block(run_uri, first, pa.table({"image_id": names, "image_sha256": names, **flags}))
            results.append(done)
        nothing = RunSummary.of_nothing(0)
        summary = dataclasses.replace(nothing, uri=run_uri, rows=listing.rows, statuses={"scored": listing.rows})
        return dataclasses.replace(summary, resumed_rows=resumed), merge_blocks(run_uri, results)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    return Archive(tmp_path, monkeypatch)


def counts(summary: RunSummary) -> tuple[int, int, int]:
    return summary.rows, summary.resumed_rows, summary.skipped_rows


def test_what_was_done_is_not_done_again(archive: Archive) -> None:
    archive.add("a", "b", "c", "d")
    archive.cut_off(after=3)
    archive.cut_off(at=storage.MANIFEST_NAME)
    assert counts(archive.score()) == (4, 4, 0)
    assert set(archive.judged.values()) == {1}
    assert counts(archive.score()) == (0, 0, 4)
    assert check_chain(str(archive.output)).problems == ()
    assert archive.published() == ["a", "b", "c", "d"]


def test_what_came_since_is_scored_too(archive: Archive) -> None:
    archive.add("b", "c")
    archive.score()
    archive.add("d", "f")
    archive.cut_off(after=1)
    archive.add("a", "e", "g")
    assert counts(archive.score()) == (5, 1, 2)
    assert set(archive.judged.values()) == {1}
    assert archive.published() == ["a", "b", "c", "d", "e", "f", "g"]


def test_what_another_command_scored_since_is_not_scored_again(archive: Archive) -> None:
    archive.add("a", "b", "c")
    archive.cut_off(after=2)
    assert counts(archive.score(only_new=False)) == (3, 0, 0)
    archive.add("d")
    assert counts(archive.score()) == (1, 0, 3)
    assert archive.published() == ["a", "b", "c", "d"]
    assert not [*archive.output.rglob(storage.INCOMPLETE_NAME)]


@pytest.mark.parametrize("only_new", [True, False])
def test_photos_that_are_gone_or_changed_since_are_not_scored_as_they_were(archive: Archive, only_new: bool) -> None:
    archive.add("a", "b", "c")
    archive.cut_off(after=2, only_new=only_new)
    (archive.source / "a.jpg").unlink()
    assert counts(archive.score(only_new=only_new)) == (2, 0, 0)
    archive.add("d")
    archive.cut_off(after=0, only_new=only_new)
    archive.add("d")
    assert counts(archive.score(only_new=only_new)) == ((1, 0, 2) if only_new else (3, 0, 0))
    assert len([*archive.output.rglob(scoring.LISTING_NAME)]) == 2, "what was cut off is removed"
    assert counts(archive.score()) == (0, 0, 3), "the row is that of the file as it is now"


@pytest.mark.parametrize("at", [BLOCKS, storage.INCOMPLETE_NAME])
def test_a_run_that_was_killed_between_its_manifest_and_its_marker_is_published(archive: Archive, at: str) -> None:
    archive.add("a", "b")
    archive.cut_off(at=at)
    assert archive.published() == ["a", "b"]
    assert check_chain(str(archive.output)).problems == ()
    archive.add("c")
    assert counts(archive.score()) == (1, 0, 2)
    chain = check_chain(str(archive.output))
    assert (chain.runs, chain.rows, chain.problems) == (2, 3, ())
    assert not [*archive.output.rglob(storage.INCOMPLETE_NAME), *archive.output.rglob("*.block")]


def test_two_inputs_with_photos_of_one_name_are_scored_once_each(archive: Archive) -> None:
    archive.add("a", "b")
    other = archive.source.with_name("other")
    other.mkdir()
    (other / "a.jpg").write_bytes(b"another photo")
    for new in ([2, 1], [0, 0]):
        assert [archive.score(input=str(folder)).rows for folder in (archive.source, other)] == new
    assert archive.published() == ["a", "a", "b"]


def test_a_run_says_that_its_bundles_training_data_leaks(archive: Archive) -> None:
    archive.add("a")
    assert storage.read_json(storage.join(archive.score().uri, storage.MANIFEST_NAME))["leaks_in_training"] == LEAKS


def test_who_was_taken_for_dead_does_not_publish(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.add("a")
    write_ledger = scoring.write_ledger

    def slowly(*values: Any) -> None:
        write_ledger(*values)
        with claimed(str(archive.output), run_identity(archive.settings(), "abc")):
            pass

    monkeypatch.setattr(scoring, "write_ledger", slowly)
    with pytest.raises(OutputExistsError, match="took over"):
        archive.score()
    assert archive.published() == []


def test_predictions_are_read_from_the_root_whatever_else_lies_there(archive: Archive) -> None:
    archive.add("a", "b")
    archive.score()
    archive.add("c")
    archive.score()
    rows = pd.read_parquet(archive.output)
    assert sorted(rows["image_id"]) == ["a", "b", "c"]
    assert set(rows["model_id"]) == {"abc"}
