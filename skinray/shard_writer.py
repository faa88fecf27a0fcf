"""Inspected and divided photos -> Parquet shards, one task each, written as a stream. The second reading of prepare."""

import functools

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from skinray import storage
from skinray.deidentify import without_metadata
from skinray.errors import StorageError
from skinray.inventory import bounded_blocks
from skinray.shards import SHARD_SCHEMA, SPLITS, ShardFile
from skinray.telemetry import Progress

# A row group is what training and scoring read at once: about 3 MB of 600x450 JPEGs, a handful of 12-megapixel ones.
ROW_GROUP_ROWS = 128
ROW_GROUP_BYTES = 16_000_000


def cut_into_shards(photos: pd.DataFrame, shard_mb: float) -> None:
    """Fills in the shard and the row group of photos that have none; numbers go on where the split's last one ended."""
    if "shard" not in photos:
        photos["shard"] = None
    photos["shard"] = photos["shard"].astype(object)
    photos["row_group"] = -1
    for split in SPLITS:
        inside = photos[photos["split"] == split]
        waiting = inside[inside["shard"].isna()].sort_values("image_id")
        number = inside["shard"].nunique()
        sizes = waiting["stored_bytes"].tolist()
        for first, end in bounded_blocks(sizes, len(sizes), int(shard_mb * 1e6)):
            rows = waiting.index[first:end]
            photos.loc[rows, "shard"] = f"split={split}/part-{number:05d}.parquet"
            for group, (start, stop) in enumerate(bounded_blocks(sizes[first:end], ROW_GROUP_ROWS, ROW_GROUP_BYTES)):
                photos.loc[rows[start:stop], "row_group"] = group
            number += 1


def write_shards(photos: pd.DataFrame, output: str) -> list[ShardFile]:
    """Writes the shards of the photos that have a row group, one task a shard."""
    new = photos[photos["row_group"] >= 0].sort_values(["shard", "image_id"])
    if new.empty:
        return []
    columns = [*(name for name in SHARD_SCHEMA.names if name != "image_bytes"), "image_uri", "shard", "row_group", "split"]
    plans = [pa.Table.from_pandas(rows[columns], preserve_index=False) for _, rows in new.groupby("shard", sort=True)]
    progress = Progress("write", total=len(new), unit="photos")
    written = ray.data.from_arrow(plans).map_batches(
        functools.partial(_write_shard, output=output), batch_size=None, batch_format="pyarrow"
    )
    files = []
    for row in written.iter_rows():
        files.append(ShardFile(**{**row, "row_groups": tuple(row["row_groups"])}))
        progress.advance(row["rows"])
    return sorted(files, key=lambda file: file.path)


def _write_shard(plan: pa.Table, output: str) -> pa.Table:
    path, split = plan["shard"][0].as_py(), plan["split"][0].as_py()
    # JPEG bytes do not compress further; trying costs more than the whole rest of the write.
    compression = {name: "none" if name == "image_bytes" else "zstd" for name in SHARD_SCHEMA.names}
    dictionaries = ["label", "diagnosis", "sex", "site", "skin_type", "source"]
    row_groups = []
    with storage.writing(storage.join(output, path)) as file:
        with pq.ParquetWriter(file, SHARD_SCHEMA, compression=compression, use_dictionary=dictionaries) as writer:
            for group in sorted(set(plan["row_group"].to_pylist())):
                rows = plan.filter(pa.compute.equal(plan["row_group"], group))
                photos = [_stored_photo(row) for row in _with_bytes(rows)]
                columns = {name: rows[name] for name in SHARD_SCHEMA.names if name != "image_bytes"}
                table = pa.table({**columns, "image_bytes": pa.array(photos, pa.binary())}).select(SHARD_SCHEMA.names)
                writer.write_table(table.cast(SHARD_SCHEMA), row_group_size=len(rows))
                row_groups.append(len(rows))
        about = {"path": [path], "split": [split], "rows": [len(plan)], "row_groups": [row_groups]}
        return pa.table({**about, "bytes": [file.size], "sha256": [file.sha256]})


def _with_bytes(rows: pa.Table) -> list[tuple[str, str, bytes | Exception]]:
    uris = rows["image_uri"].to_pylist()
    return list(zip(uris, rows["image_sha256"].to_pylist(), storage.read_many(uris), strict=True))


def _stored_photo(photo: tuple[str, str, bytes | Exception]) -> bytes:
    uri, sha256, data = photo
    if isinstance(data, Exception):
        raise StorageError(f"cannot read {uri} again: {type(data).__name__}: {data}") from data
    stored = without_metadata(data).data
    if storage.sha256_of(stored) != sha256:
        raise StorageError(f"{uri} changed while it was being prepared; run the same command again")
    return stored
