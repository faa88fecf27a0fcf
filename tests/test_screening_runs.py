"""The same command goes on with a run that was cut off, when that is still what it is to do, and with no other."""

import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from skinray import outputs, storage
from skinray.block_files import BLOCKS
from skinray.config import ScoreSettings
from skinray.errors import OutputExistsError
from skinray.listing import LISTING_NAME, Listing, listed, read_listing
from skinray.screening_runs import open_run, run_identity

NIGHT = datetime.datetime(2026, 11, 21, 2, 0, tzinfo=datetime.UTC)
NEXT = NIGHT + datetime.timedelta(days=1)


def asked(output: Path, **changes: object) -> ScoreSettings:
    return ScoreSettings.model_validate({"bundle": "/bundle", "input": "/archive", "output": str(output), **changes})


def photos(numbers: range | list[int], rows_per_block: int = 4, **changed: int) -> Listing:
    """Photos by their numbers; the files of those that are named were changed so often."""
    names = [f"p{number}" for number in numbers]
    table = pa.table(
        {
            "image_id": names,
            "image_uri": [f"/archive/{name}" for name in names],
            "file_bytes": [100] * len(names),
            "file_version": [f"v{changed.get(name, 0)}" for name in names],
            "age": pa.array([float("nan")] * len(names), pa.float32()),
        }
    )
    return listed(table, rows_per_block)


TEN = photos(range(10))


def opened(settings: ScoreSettings, now: datetime.datetime, listing: Listing = TEN, model_id: str = "abc") -> str:
    return open_run(settings, run_identity(settings, model_id), listing, now)[0]


def test_a_run_has_its_model_date_and_time_in_its_name(tmp_path: Path) -> None:
    run = opened(asked(tmp_path), NIGHT)
    assert run == f"{tmp_path}/model_id=abc/scored_date=2026-11-21/run_id=20261121T020000000000Z"
    assert opened(asked(tmp_path, run_id="first"), NIGHT).endswith("/run_id=first")


def test_the_same_command_goes_on_with_what_was_cut_off(tmp_path: Path) -> None:
    first = opened(asked(tmp_path), NIGHT)
    assert opened(asked(tmp_path, batch_size=7, actors=3, max_bad_fraction=0.5), NEXT) == first
    otherwise = asked(tmp_path / "." / "", bundle="/./bundle/", input="file:///archive/")
    assert opened(otherwise, NEXT) == first, "written otherwise"
    outputs.publish_folder(first, {})
    assert opened(asked(tmp_path), NEXT) != first, "what is published is done"


@pytest.mark.parametrize(("changes", "model_id"), [({"input": "/other"}, "abc"), ({"image_id": "stem"}, "abc"), ({}, "def")])
def test_another_command_does_not(tmp_path: Path, changes: dict[str, str], model_id: str) -> None:
    first = opened(asked(tmp_path), NIGHT)
    assert opened(asked(tmp_path, **changes), NEXT, model_id=model_id) != first
    assert opened(asked(tmp_path), NEXT) == first


@pytest.mark.parametrize("then", [NIGHT, NEXT])
def test_a_name_that_is_taken_is_refused_on_whatever_day(tmp_path: Path, then: datetime.datetime) -> None:
    run = opened(asked(tmp_path, run_id="night"), NIGHT)
    assert opened(asked(tmp_path, run_id="night"), then) == run
    with pytest.raises(OutputExistsError, match="other settings"):
        opened(asked(tmp_path, run_id="night", input="/other"), then)
    outputs.publish_folder(run, {})
    with pytest.raises(OutputExistsError, match="already exists"):
        opened(asked(tmp_path, run_id="night"), then)


def test_of_two_that_were_cut_off_the_newer_is_gone_on_with(tmp_path: Path) -> None:
    opened(asked(tmp_path, run_id="a"), NIGHT)
    newer = opened(asked(tmp_path, run_id="b"), NIGHT)
    assert opened(asked(tmp_path), NEXT) == newer


def test_what_was_killed_between_its_manifest_and_its_marker_is_published(tmp_path: Path) -> None:
    run = opened(asked(tmp_path), NIGHT)
    storage.write_bytes(storage.join(run, BLOCKS, "000000000000.block"), b"rows")
    storage.write_json(storage.join(run, storage.MANIFEST_NAME), {})
    assert opened(asked(tmp_path, input="/other", run_id="other"), NEXT) != run
    assert (Path(run) / storage.INCOMPLETE_NAME).exists(), "that may be about to publish it"
    assert opened(asked(tmp_path), NEXT) != run
    assert sorted(path.name for path in Path(run).iterdir()) == [LISTING_NAME, storage.MANIFEST_NAME]


def test_photos_that_came_since_are_scored_behind_those_of_the_run(tmp_path: Path) -> None:
    settings = asked(tmp_path)
    run = opened(settings, NIGHT, photos([3, 5, 7], rows_per_block=2))
    now = photos([9, 5, 4, 3, 7], rows_per_block=2)
    again, listing = open_run(settings, run_identity(settings, "abc"), now, NEXT)
    assert again == run
    assert listing.photos["image_id"].to_pylist() == ["p3", "p5", "p7", "p9", "p4"]
    assert listing.photos["index"].to_pylist() == [0, 1, 2, 3, 4]
    noted = read_listing(storage.join(run, LISTING_NAME))
    assert (noted.rows, noted.blocks()) == (5, listing.blocks()), "for who goes on after another kill"


GONE = "its photos changed, are gone or were scored since"


@pytest.mark.parametrize(
    ("now", "why"),
    [
        pytest.param(photos(range(10, 20)), GONE, id="all of them were scored since"),
        pytest.param(photos(range(1, 12)), GONE, id="one is gone, or was scored since"),
        pytest.param(photos(range(10), p3=1), GONE, id="one was changed"),
        pytest.param(
            photos(range(5000), rows_per_block=192),
            "the blocks of its 10 photos, 1 in each, are too small for 5,000",
            id="so many came that its blocks are too small for them",
        ),
    ],
)
def test_a_run_that_is_not_what_is_to_be_done_is_removed(
    tmp_path: Path, now: Listing, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = asked(tmp_path)
    before = opened(settings, NIGHT)
    storage.write_bytes(storage.join(before, BLOCKS, "000000000000.block"), b"rows")
    run, listing = open_run(settings, run_identity(settings, "abc"), now, NEXT)
    assert run != before
    assert listing is now
    assert not Path(before).exists()
    assert f"removes {before}, which did not come to its end: {why}" in capsys.readouterr().err


def test_a_run_keeps_its_small_blocks_when_few_photos_came(tmp_path: Path) -> None:
    before = opened(asked(tmp_path), NIGHT, photos(range(1000), rows_per_block=4))
    settings = asked(tmp_path, rows_per_block=192)
    run, listing = open_run(settings, run_identity(settings, "abc"), photos(range(1900), rows_per_block=192), NEXT)
    assert (run, listing.rows, listing.rows_per_block) == (before, 1900, 4)


@pytest.mark.parametrize("marker", ["", '{"kind": "pred'])
def test_a_marker_that_was_never_written_to_its_end_is_no_ones(tmp_path: Path, marker: str) -> None:
    run = opened(asked(tmp_path, run_id="night"), NIGHT)
    (Path(run) / storage.INCOMPLETE_NAME).write_text(marker)
    assert opened(asked(tmp_path), NEXT) != run
    with pytest.raises(OutputExistsError, match="choose another --run-id"):
        opened(asked(tmp_path, run_id="night"), NEXT)


def test_a_run_that_was_killed_before_its_listing_is_begun_anew(tmp_path: Path) -> None:
    run = opened(asked(tmp_path, run_id="night"), NIGHT)
    storage.delete_file(storage.join(run, LISTING_NAME))
    storage.write_bytes(storage.join(run, BLOCKS, "000000000000.block"), b"rows of no known photos")
    assert opened(asked(tmp_path, run_id="night"), NIGHT) == run
    assert sorted(path.name for path in Path(run).iterdir()) == [storage.INCOMPLETE_NAME, LISTING_NAME]
