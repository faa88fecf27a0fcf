"""Where the workers' photos come from: the same pixels in every mode, decoded no more often and held no longer than said."""

import itertools
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from skinray import photo_blocks, photo_cache, shard_writer
from skinray.config import PrepareSettings, SplitName
from skinray.errors import DatasetError
from skinray.feed import blocks_of, epoch_order, worker_batches
from skinray.images import Preprocessing, decode_photo
from skinray.photo_cache import TrainingPhotos, gather_photos
from skinray.photo_reader import PhotoReader
from skinray.preparation import prepare_dataset
from skinray.shards import PreparedDataset, open_dataset

pytestmark = pytest.mark.ray

Mode = Literal["memory", "none"]

SPLITS: tuple[SplitName, ...] = ("train", "validation")
# 8 photos of this size are more than the 100 KB up to which Ray hands a value round without its object store.
PREPROCESSING = Preprocessing(image_size_px=96)
BLOCK_ROWS = 8

both_modes = pytest.mark.parametrize("mode", ["memory", "none"])


def prepare(photos: Path, output: str) -> PreparedDataset:
    """The drawn photos in many small blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writer, "ROW_GROUP_ROWS", BLOCK_ROWS)
        return prepare_dataset(PrepareSettings(catalog="synthetic", source=str(photos), output=output, shard_mb=1.2))


@pytest.fixture(scope="module")
def dataset(ray_cluster: None, drawn_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepare(drawn_photos, str(tmp_path_factory.mktemp("blocks") / "dataset"))


@pytest.fixture(scope="module")
def stored(dataset: PreparedDataset) -> pd.DataFrame:
    """All rows of the shards of both splits, as they are stored."""
    tables = []
    for split in SPLITS:
        for file in dataset.files(split):
            tables.append(pq.ParquetFile(f"{dataset.uri}/{file.path}").read().to_pandas().assign(split=split))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def pixels(stored: pd.DataFrame) -> NDArray[np.uint8]:
    """The photos, decoded directly."""
    return np.stack([decode_photo(data, PREPROCESSING).pixels for data in stored["image_bytes"]])


@pytest.fixture
def decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Counter[str]]:
    """How often each block was decoded since, in whatever process."""
    log = tmp_path / "decoded.txt"
    log.touch()
    decode = photo_blocks.decode_block

    def logged(plan: Any, preprocessing: Preprocessing) -> Any:
        with log.open("a") as file:
            file.write(f"{plan.uri}#{plan.row_group}\n")
        return decode(plan, preprocessing)

    monkeypatch.setattr(photo_blocks, "decode_block", logged)
    return lambda: Counter(log.read_text().split())


@pytest.fixture
def reserve_all_cpus(ray_cluster: None) -> Iterator[Callable[[], None]]:
    """Reserves all CPUs of the cluster until the test ends, as training does."""
    holders = []

    class Holder:
        def ready(self) -> bool:
            return True

    def reserve() -> None:
        holders.append(ray.remote(Holder).options(num_cpus=ray.cluster_resources()["CPU"]).remote())
        ray.get(holders[0].ready.remote())

    yield reserve
    for holder in holders:
        ray.kill(holder)


def random_rows(photos: TrainingPhotos, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(photos.rows).astype(np.int64)


def batches(rows: NDArray[np.int64], size: int = 16) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


class Worker:
    """A reader in a process of its own."""

    def __init__(self, photos: TrainingPhotos, held_rows: int) -> None:
        self.reader = PhotoReader(photos, held_rows)

    def expect(self, rows: NDArray[np.int64]) -> None:
        self.reader.expect(rows)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.reader.read(rows)


def start_worker(photos: TrainingPhotos, held_rows: int) -> Any:
    return ray.remote(Worker).options(num_cpus=0).remote(photos, held_rows)


# What is known of the photos


def test_the_columns_are_those_of_the_shards(dataset: PreparedDataset, stored: pd.DataFrame) -> None:
    photos = gather_photos(dataset, SPLITS, PREPROCESSING, "none")
    assert photos.rows == len(stored) == sum(photos.block_rows)
    assert photos.bytes == len(stored) * 96 * 96 * 3
    assert max(photos.block_rows) == BLOCK_ROWS
    assert photos.block_rows == [rows for split in SPLITS for file in dataset.files(split) for rows in file.row_groups]
    columns = {
        "image_id": photos.image_ids,
        "label": photos.labels,
        "split": photos.splits,
        "sex": photos.sex,
        "site": photos.site,
        "lesion_id": photos.lesion_ids,
    }
    for name, values in columns.items():
        assert values.dtype.kind == "U", name
        assert values.tolist() == stored[name].fillna("").tolist(), name
    assert photos.folds.dtype == np.int64
    np.testing.assert_array_equal(photos.folds, stored["fold"])
    assert photos.age.dtype == np.float64
    np.testing.assert_array_equal(photos.age, stored["age"].astype(float))


def altered(dataset: PreparedDataset, folder: Path, changes: dict[str, Callable[[list[Any]], list[Any]]]) -> PreparedDataset:
    """A copy with other values in some columns of every shard."""
    copy = shutil.copytree(dataset.uri, folder)
    for path in copy.rglob("part-*.parquet"):
        table = pq.read_table(path, partitioning=None)
        for name, change in changes.items():
            position = table.schema.get_field_index(name)
            values = pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
            table = table.set_column(position, table.schema.field(name), values)
        pq.write_table(table, path, row_group_size=BLOCK_ROWS)
    return open_dataset(str(copy))


def test_lesions_that_are_numbered_anew_with_each_patient_are_told_apart(
    dataset: PreparedDataset, stored: pd.DataFrame, tmp_path: Path
) -> None:
    anew = altered(dataset, tmp_path / "copy", {"lesion_id": lambda values: ["1"] * len(values)})
    photos = gather_photos(anew, SPLITS, PREPROCESSING, "none")
    assert photos.lesion_ids.tolist() == ("1 of " + stored["patient_id"]).tolist()


def test_what_is_unknown_is_empty(dataset: PreparedDataset, tmp_path: Path) -> None:
    unknown = dict.fromkeys(("lesion_id", "age", "sex", "site"), lambda values: [None, *values[1:]])
    copy = altered(dataset, tmp_path / "copy", unknown)
    photos = gather_photos(copy, ("test",), PREPROCESSING, "none")
    assert (photos.sex[0], photos.site[0], photos.lesion_ids[0]) == ("", "", "")
    assert np.isnan(photos.age[0])
    assert not np.isnan(photos.age[1])
    assert set(photos.folds) == {-1}
    assert set(photos.splits) == {"test"}


def test_no_splits_are_no_photos(dataset: PreparedDataset) -> None:
    photos = gather_photos(dataset, (), PREPROCESSING, "memory")
    assert (photos.rows, photos.bytes, photos.block_rows, len(photos.labels)) == (0, 0, [], 0)


# Pixels


@both_modes
def test_the_pixels_are_those_of_the_decoder(dataset: PreparedDataset, pixels: NDArray[np.uint8], mode: Mode) -> None:
    photos = gather_photos(dataset, SPLITS, PREPROCESSING, mode)
    reader = PhotoReader(photos, held_rows=photos.rows)
    rows = random_rows(photos)
    for part in batches(rows):
        np.testing.assert_array_equal(reader.read(part), pixels[part])
    backwards_and_twice = np.concatenate([rows[::-1], rows[:20], [0, 0, photos.rows - 1, 0]])
    np.testing.assert_array_equal(reader.read(backwards_and_twice), pixels[backwards_and_twice])
    assert reader.read(np.empty(0, np.int64)).shape == (0, 96, 96, 3)


@both_modes
@pytest.mark.parametrize("held_rows", [1, 3 * BLOCK_ROWS, 5 * BLOCK_ROWS + 3])
def test_no_more_is_held_than_allowed_and_the_pixels_are_the_same(
    dataset: PreparedDataset, pixels: NDArray[np.uint8], mode: Mode, held_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo_cache, "KEPT_ROWS", held_rows)
    photos = gather_photos(dataset, SPLITS, PREPROCESSING, mode)
    reader = PhotoReader(photos, held_rows)
    most = 0
    fetch = reader._fetch

    def watched(block: int) -> None:
        nonlocal most
        fetch(block)
        most = max(most, reader._rows_held())

    monkeypatch.setattr(reader, "_fetch", watched)
    rows = random_rows(photos)[:64]
    for part in batches(rows, 4):  # nothing was expected
        np.testing.assert_array_equal(reader.read(part), pixels[part])
    ordered = epoch_order(blocks_of(np.arange(photos.rows), photos.block_rows), 0, 0, window_rows=2 * BLOCK_ROWS)
    reader.expect(ordered)
    for part in batches(ordered, 4):
        np.testing.assert_array_equal(reader.read(part), pixels[part])
    assert BLOCK_ROWS <= most <= max(BLOCK_ROWS, held_rows)


@both_modes
def test_wrong_expectations_cost_time_and_not_pixels(dataset: PreparedDataset, pixels: NDArray[np.uint8], mode: Mode) -> None:
    photos = gather_photos(dataset, SPLITS, PREPROCESSING, mode)
    reader = PhotoReader(photos, held_rows=4 * BLOCK_ROWS)
    reader.expect(np.arange(photos.rows))
    for part in batches(np.arange(photos.rows)[::-1])[:4]:
        np.testing.assert_array_equal(reader.read(part), pixels[part])


# What is decoded, and when


def test_in_memory_everything_is_decoded_once_before_training(
    dataset: PreparedDataset, decoded: Callable[[], Counter[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    photos = gather_photos(dataset, SPLITS, PREPROCESSING, "memory")
    assert f"decode: {photos.rows} of {photos.rows} photos (100%)" in capsys.readouterr().err
    assert len(decoded()) == len(photos.block_rows)
    for epoch in range(2):
        reader = PhotoReader(photos, held_rows=4 * BLOCK_ROWS)
        reader.expect(random_rows(photos, epoch))
        reader.read(random_rows(photos, epoch)[:100])
    assert set(decoded().values()) == {1}


def test_without_a_cache_two_workers_decode_every_block_once_an_epoch(
    dataset: PreparedDataset, pixels: NDArray[np.uint8], decoded: Callable[[], Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    window_rows = 3 * BLOCK_ROWS
    monkeypatch.setattr(photo_cache, "KEPT_ROWS", 2 * window_rows)
    photos = gather_photos(dataset, SPLITS, PREPROCESSING, "none")
    assert not decoded()
    workers = [start_worker(photos, 2 * window_rows) for _ in range(2)]
    steps = photos.rows // 8
    for epoch in range(2):
        order = epoch_order(blocks_of(np.arange(photos.rows), photos.block_rows), 0, epoch, window_rows=window_rows)
        ray.get([worker.expect.remote(order[: steps * 8]) for worker in workers])
        for parts in zip(*(worker_batches(order, 8, rank, 2, 0, steps) for rank in range(2)), strict=True):
            read = ray.get([worker.read.remote(rows) for worker, rows in zip(workers, parts, strict=True)])
            np.testing.assert_array_equal(np.concatenate(read), pixels[np.concatenate(parts)])
        counts = decoded()
        assert max(counts.values()) == epoch + 1
        assert len(counts) == len(photos.block_rows)
    # The second epoch could begin with what was left of the first, and with no more than that.
    left_at_most = np.sum(np.cumsum(sorted(photos.block_rows)) <= 2 * window_rows)
    assert counts.total() >= 2 * len(photos.block_rows) - left_at_most
    for worker in workers:
        ray.kill(worker)


def test_without_a_cache_no_more_is_kept_than_allowed(
    dataset: PreparedDataset, decoded: Callable[[], Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo_cache, "KEPT_ROWS", 2 * BLOCK_ROWS)
    photos = gather_photos(dataset, SPLITS, PREPROCESSING, "none")

    def ask(*blocks: int) -> int:
        """How many of the blocks had to be decoded."""
        before = decoded().total()
        for block in blocks:
            ray.get(photos.source.block.remote(block))
        return decoded().total() - before

    assert ask(0, 1) == 2
    assert ask(1, 0, 1, 0) == 0
    assert ask(2) == 1  # in place of 1, which was asked for before 0
    assert ask(0, 2) == 0
    assert ask(1) == 1


class PutSource:
    """Hands out blocks that are there already, in which every pixel is the number of its row, and keeps a list of who asked."""

    def __init__(self, block_rows: list[int]) -> None:
        self.asked: list[int] = []
        first = np.cumsum([0, *block_rows])
        numbers = [np.arange(start, end, dtype=np.uint8) for start, end in itertools.pairwise(first)]
        self.blocks = [ray.put([ray.put(np.tile(some[:, None, None, None], (1, 16, 16, 3)))]) for some in numbers]
        self.block = SimpleNamespace(remote=self.reference)

    def reference(self, block: int) -> Any:
        self.asked.append(block)
        return self.blocks[block]


def put_photos(block_rows: list[int]) -> TrainingPhotos:
    unknown = np.array([""] * sum(block_rows))
    numbers = np.zeros(sum(block_rows))
    texts = dict.fromkeys(("image_ids", "labels", "splits", "sex", "site", "lesion_ids"), unknown)
    source = PutSource(block_rows)
    return TrainingPhotos(block_rows, image_size_px=16, folds=numbers.astype(int), age=numbers, source=source, **texts)


def test_blocks_are_let_go_when_the_order_is_over_them(ray_cluster: None) -> None:
    photos = put_photos([8] * 10)
    reader = PhotoReader(photos, held_rows=32)
    order = np.arange(photos.rows)
    reader.expect(order)
    assert list(reader._held) == [0, 1, 2, 3]
    reader.read(order[:7])
    assert list(reader._held) == [1, 2, 3, 0]
    reader.read(order[7:8])
    assert list(reader._held) == [1, 2, 3, 4]
    reader.read(order[20:24])  # the second half of a batch, whose first half another worker reads
    assert list(reader._held) == [3, 4, 5, 6]
    assert photos.source.asked == [0, 1, 2, 3, 4, 5, 6]
    reader.expect(np.concatenate([order[48:56], order[:48]]))  # what comes soon in another order stays
    assert list(reader._held) == [6, 0, 1, 2]
    assert photos.source.asked == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]


def test_repeated_rows_are_held_until_their_last_place(ray_cluster: None) -> None:
    reader = PhotoReader(put_photos([8] * 10), held_rows=16)
    order = np.array([0, 9, 0, 1, 9, 0, 17, 0, 18, 25])
    reader.expect(order)
    held = []
    for part in batches(order, 2):
        assert reader.read(part)[:, 5, 5, 1].tolist() == part.tolist()
        held.append(sorted(reader._held))
    assert held == [[0, 1], [0, 1], [0, 2], [2, 3], []]


@settings(deadline=None, max_examples=60)
@given(
    block_rows=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    held_rows=st.integers(1, 60),
    window_rows=st.integers(1, 60),
    workers=st.sampled_from([1, 2, 3]),
    balanced=st.booleans(),
)
def test_every_slice_of_every_order_is_read_within_the_bound(
    ray_cluster: None, block_rows: list[int], held_rows: int, window_rows: int, workers: int, balanced: bool
) -> None:
    photos = put_photos(block_rows)
    reader = PhotoReader(photos, held_rows)
    classes = (np.arange(photos.rows) % 7 == 0).astype(np.int32) if balanced else None
    for epoch in range(2):
        order = epoch_order(blocks_of(np.arange(photos.rows), block_rows), 0, epoch, classes, window_rows)
        steps = len(order) // (2 * workers)
        reader.expect(order[: steps * 2 * workers])
        for rows in worker_batches(order, 2 * workers, workers - 1, workers, 0, steps):
            assert reader.read(rows)[:, 5, 5, 1].tolist() == rows.tolist()
            assert reader._rows_held() <= max(held_rows, max(block_rows))
    if held_rows >= 2 * (window_rows + max(block_rows)) and not balanced:
        # Each block was asked for once an epoch, and no second time: all that was asked for ahead was needed.
        assert max(Counter(photos.source.asked).values(), default=0) <= 2


def test_blocks_are_decoded_ahead_although_all_cpus_are_reserved(
    dataset: PreparedDataset, pixels: NDArray[np.uint8], decoded: Callable[[], Counter[str]], reserve_all_cpus: Callable[[], None]
) -> None:
    reserve_all_cpus()
    photos = gather_photos(dataset, SPLITS, PREPROCESSING, "none")
    reader = PhotoReader(photos, held_rows=6 * BLOCK_ROWS)
    order = np.arange(photos.rows)
    reader.expect(order)
    assert wait_until(lambda: len(decoded()) == 6)
    np.testing.assert_array_equal(reader.read(order[:8]), pixels[:8])
    assert wait_until(lambda: len(decoded()) == 7)
    time.sleep(0.5)
    assert len(decoded()) == 7  # and no further
    for part in batches(order[8:]):
        np.testing.assert_array_equal(reader.read(part), pixels[part])
    assert set(decoded().values()) == {1}


def test_no_more_tasks_run_than_there_are_cpus(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserve_all_cpus: Callable[[], None]
) -> None:
    reserve_all_cpus()
    decode = photo_blocks.decode_block

    def watched(plan: Any, preprocessing: Preprocessing) -> Any:
        mine = tmp_path / f"{os.getpid()}.running"
        mine.touch()
        (tmp_path / f"{len(list(tmp_path.glob('*.running')))}.seen").touch()
        time.sleep(0.1)
        mine.unlink()
        return decode(plan, preprocessing)

    monkeypatch.setattr(photo_blocks, "decode_block", watched)
    photos = gather_photos(dataset, SPLITS, PREPROCESSING, "none")
    PhotoReader(photos, held_rows=photos.rows).read(np.arange(photos.rows))
    assert 1 <= max(int(path.stem) for path in tmp_path.glob("*.seen")) <= ray.cluster_resources()["CPU"]


@pytest.mark.parametrize(
    ("share", "blocks", "words"),
    [
        pytest.param(0.6, "all", "photos: decoded once and kept in memory, 0.0 GB are within 60% of", id="fits"),
        pytest.param(0.001, "none", "photos: decoded anew for every epoch, 0.0 GB are more than 0% of", id="does not fit"),
    ],
)
def test_auto_keeps_in_memory_what_fits(
    dataset: PreparedDataset,
    decoded: Callable[[], Counter[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    share: float,
    blocks: str,
    words: str,
) -> None:
    monkeypatch.setattr(photo_cache, "STORE_SHARE", share)
    photos = gather_photos(dataset, SPLITS, PREPROCESSING, "auto")
    assert len(decoded()) == (len(photos.block_rows) if blocks == "all" else 0)
    assert f"{words} the object store's 1.0 GB" in capsys.readouterr().err


# What goes wrong


@pytest.fixture
def damaged(dataset: PreparedDataset, stored: pd.DataFrame, tmp_path: Path) -> PreparedDataset:
    """The data set with one photo of the training split cut out of its shard."""
    copy = shutil.copytree(dataset.uri, tmp_path / "damaged")
    photo = stored["image_bytes"][20]
    for path in copy.rglob("split=train/part-*.parquet"):
        path.write_bytes(path.read_bytes().replace(photo, bytes(len(photo))))
    return open_dataset(str(copy))


def test_a_damaged_photo_ends_the_decoding_into_memory(damaged: PreparedDataset, stored: pd.DataFrame) -> None:
    with pytest.raises(DatasetError) as caught:
        gather_photos(damaged, SPLITS, PREPROCESSING, "memory")
    assert type(caught.value) is DatasetError
    assert f"#{stored['image_id'][20]} cannot be decoded any more" in str(caught.value)


@both_modes
def test_a_damaged_photo_ends_the_worker_that_reads_it(
    dataset: PreparedDataset, stored: pd.DataFrame, tmp_path: Path, mode: Mode, damaged: PreparedDataset
) -> None:
    if mode == "memory":  # decoded, lost, and damaged since
        copy = shutil.copytree(dataset.uri, tmp_path / "copy")
        photos = gather_photos(open_dataset(str(copy)), SPLITS, PREPROCESSING, mode)
        ray.kill(photos.source, no_restart=False)
        for path in Path(damaged.uri).rglob("part-*.parquet"):
            shutil.copy(path, copy / path.relative_to(damaged.uri))
    else:
        photos = gather_photos(damaged, SPLITS, PREPROCESSING, mode)
    worker = start_worker(photos, 64)
    ray.get(worker.read.remote(np.arange(8)))  # the first block
    with pytest.raises(DatasetError, match=f"#{stored['image_id'][20]} cannot be decoded any more"):
        ray.get(worker.read.remote(np.array([0, 20])))
    ray.kill(worker)


@both_modes
def test_a_shard_that_is_cut_off_is_named(damaged: PreparedDataset, mode: Mode) -> None:
    path = sorted(Path(damaged.uri).rglob("split=train/part-*.parquet"))[1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=f"cannot read the shard {path}: .*; prepare again"):
        gather_photos(damaged, SPLITS, PREPROCESSING, mode)


def test_a_shard_that_is_gone_while_training_is_named(damaged: PreparedDataset) -> None:
    photos = gather_photos(damaged, SPLITS, PREPROCESSING, "none")
    path = sorted(Path(damaged.uri).rglob("split=train/part-*.parquet"))[0]
    path.unlink()
    with pytest.raises(DatasetError, match=f"cannot read the shard {path}: FileNotFoundError"):
        PhotoReader(photos, 64).read(np.arange(8))


def test_a_shard_of_another_data_set_is_noticed(damaged: PreparedDataset) -> None:
    first, *_, last = sorted(Path(damaged.uri).rglob("part-*.parquet"), key=lambda path: pq.read_metadata(path).num_rows)
    shutil.copy(first, last)
    with pytest.raises(DatasetError, match=f"{last} holds .* photos, its manifest says"):
        gather_photos(damaged, ("train", "validation", "test"), PREPROCESSING, "none")


@both_modes
def test_a_killed_actor_is_survived_although_all_cpus_are_reserved(
    dataset: PreparedDataset, pixels: NDArray[np.uint8], mode: Mode, reserve_all_cpus: Callable[[], None]
) -> None:
    photos = gather_photos(dataset, SPLITS, PREPROCESSING, mode)
    reserve_all_cpus()
    reader = PhotoReader(photos, held_rows=6 * BLOCK_ROWS)
    rows = np.arange(photos.rows)
    reader.expect(rows)
    for number, part in enumerate(batches(rows)):
        if number == 3:  # some blocks are held, some on their way, some not asked for yet
            ray.kill(photos.source, no_restart=False)
        np.testing.assert_array_equal(reader.read(part), pixels[part])


@both_modes
def test_a_decoder_that_dies_is_replaced(
    dataset: PreparedDataset, pixels: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    decode = photo_blocks.decode_block
    died = tmp_path / "died"

    def mortal(plan: Any, preprocessing: Preprocessing) -> Any:
        if plan.row_group == 1 and not died.exists():
            died.touch()
            os._exit(1)
        return decode(plan, preprocessing)

    monkeypatch.setattr(photo_blocks, "decode_block", mortal)
    photos = gather_photos(dataset, SPLITS, PREPROCESSING, mode)
    rows = np.arange(32)
    np.testing.assert_array_equal(PhotoReader(photos, 64).read(rows), pixels[rows])
    assert died.exists()


# Object stores


@pytest.mark.s3
@both_modes
def test_shards_in_an_object_store_are_read_from_there(
    ray_cluster: None, s3_bucket: str, drawn_photos: Path, stored: pd.DataFrame, pixels: NDArray[np.uint8], mode: Mode
) -> None:
    photos = gather_photos(prepare(drawn_photos, f"{s3_bucket}/dataset"), SPLITS, PREPROCESSING, mode)
    assert photos.image_ids.tolist() == stored["image_id"].tolist()
    rows = random_rows(photos)[:40]
    np.testing.assert_array_equal(PhotoReader(photos, 1000).read(rows), pixels[rows])
