"""Which photos a training run has, what is known of each, and when they are decoded.

In memory, everything is decoded before training begins and nothing is let go; without a cache, a block is decoded when the
first worker asks, shared with the others, and let go when newer blocks take its place.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from skinray import storage
from skinray.config import SplitName
from skinray.errors import DatasetError
from skinray.feed import WINDOW_ROWS
from skinray.images import Preprocessing
from skinray.photo_blocks import BlockPlan, opened_shard, received_block, start_source
from skinray.shards import SHARD_SCHEMA, PreparedDataset, ShardFile
from skinray.splits import lesion_names
from skinray.telemetry import Progress, say

# Ray begins to write blocks to disk when a store is four fifths full; a fifth is left for the copies of blocks that the
# machines read from each other, weights and checkpoints.
STORE_SHARE = 0.6
# Without a cache: the window that the workers are in and the next one, which is as much as they ask for.
KEPT_ROWS = 2 * WINDOW_ROWS

_DESCRIPTION = pa.schema(
    [SHARD_SCHEMA.field(name) for name in ("image_id", "label", "lesion_id", "patient_id", "age", "sex", "site", "fold")]
)


@dataclass(frozen=True, eq=False)
class TrainingPhotos:
    """The photos of some splits: what is known of each, and where its pixels are to be had. Row by row, in shard order.

    Attributes:
        block_rows: Rows of each block.
        image_size_px: Width and height of the decoded photos.
        image_ids, labels, splits, sex, site, lesion_ids: str [rows], "" where unknown; lesions by names that are theirs alone.
        folds: int64 [rows], -1 where there is none.
        age: float64 [rows] in years, NaN where unknown.
        source: Handle of the actor that hands out blocks; they are gone when the last copy of it is.
    """

    block_rows: list[int]
    image_size_px: int
    image_ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.str_]
    splits: npt.NDArray[np.str_]
    folds: npt.NDArray[np.int64]
    age: npt.NDArray[np.float64]
    sex: npt.NDArray[np.str_]
    site: npt.NDArray[np.str_]
    lesion_ids: npt.NDArray[np.str_]
    source: Any

    @property
    def rows(self) -> int:
        """Number of photos."""
        return sum(self.block_rows)

    @property
    def bytes(self) -> int:
        """Size of all decoded photos."""
        return self.rows * self.image_size_px**2 * 3


def gather_photos(
    dataset: PreparedDataset, splits: Sequence[SplitName], preprocessing: Preprocessing, cache: Literal["auto", "memory", "none"]
) -> TrainingPhotos:
    """Looks up the photos of some splits; those to be kept in memory are decoded now, on every CPU of the cluster.

    Args:
        dataset: Where they are.
        splits: Which of them, in this order.
        preprocessing: The model's size.
        cache: memory, none, or auto: memory where the decoded photos fit.

    Raises:
        DatasetError: A shard cannot be read, or a photo that prepare decoded no longer can be: it was damaged.
    """
    files = [file for split in splits for file in dataset.files(split)]
    uris = [storage.join(dataset.uri, file.path) for file in files]
    with ThreadPoolExecutor(16, thread_name_prefix="shards") as threads:
        tables = list(threads.map(_describe, uris, files))
    columns = pa.concat_tables([_DESCRIPTION.empty_table(), *tables])
    plans = [
        BlockPlan(uri, group, rows) for uri, file in zip(uris, files, strict=True) for group, rows in enumerate(file.row_groups)
    ]
    total_bytes = len(columns) * preprocessing.image_size_px**2 * 3
    in_memory = _fits(total_bytes) if cache == "auto" else cache == "memory"
    photos = TrainingPhotos(
        block_rows=[plan.rows for plan in plans],
        image_size_px=preprocessing.image_size_px,
        image_ids=_texts(columns["image_id"]),
        labels=_texts(columns["label"]),
        splits=np.repeat(np.array([file.split for file in files], np.str_), [file.rows for file in files]),
        folds=columns["fold"].cast(pa.int64()).fill_null(-1).to_numpy(),
        age=columns["age"].cast(pa.float64()).fill_null(np.nan).to_numpy(),
        sex=_texts(columns["sex"]),
        site=_texts(columns["site"]),
        lesion_ids=np.array(lesion_names(*(_texts(columns[name]).tolist() for name in ("lesion_id", "patient_id"))), np.str_),
        source=start_source(plans, preprocessing, kept_rows=len(columns) if in_memory else KEPT_ROWS),
    )
    if in_memory:
        _decode_all(photos)
    return photos


def _decode_all(photos: TrainingPhotos) -> None:
    asked = [photos.source.block.remote(block, reserve_cpu=True) for block in range(len(photos.block_rows))]
    progress = Progress("decode", total=photos.rows, unit="photos")
    for block, rows in enumerate(photos.block_rows):
        received_block(photos.source, block, asked[block], pixels=False)
        progress.advance(rows)


def _describe(uri: str, shard: ShardFile) -> pa.Table:
    """The descriptive columns of one shard; the photos beside them are not read."""
    with opened_shard(uri) as file:
        table = file.read(columns=_DESCRIPTION.names)
    if len(table) != shard.rows:
        raise DatasetError(f"{uri} holds {len(table)} photos, its manifest says {shard.rows}; prepare again")
    return table


def _texts(column: pa.ChunkedArray) -> npt.NDArray[np.str_]:
    return np.array(column.fill_null("").to_pylist(), np.str_)


def _fits(photo_bytes: int) -> bool:
    """True when photos of so many bytes can be kept in memory; says so, and why."""
    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    store_bytes = cluster.get("object_store_memory", 0.0)
    fits = photo_bytes <= STORE_SHARE * store_bytes
    limit = f"{STORE_SHARE:.0%} of the object store's {store_bytes / 1e9:.1f} GB"
    if fits:
        say(f"photos: decoded once and kept in memory, {photo_bytes / 1e9:.1f} GB are within {limit}")
    else:
        say(f"photos: decoded anew for every epoch, {photo_bytes / 1e9:.1f} GB are more than {limit}")
    return fits
