"""Photos -> one small row each: hashes, size, fingerprint, and whether they can be used at all. Prepare and audit start here.

The photos are read and decoded by Ray Data tasks, a block of bounded bytes at a time; only the rows come back, about 600
bytes a photo, so the memory needed does not depend on the size of the photos.

    index                        int64, row in the table that was given
    error_code, error_detail     str, "" for a photo that can be used
    source_sha256                of the file as it was found
    image_sha256, stored_bytes   of the file as it is stored: without identifying metadata
    removed                      which metadata was found and left out, joined by spaces
    width_px, height_px          int32, upright
    jpeg_quality                 int32, 1 to 100, 0 for other formats
    fingerprint                  binary, see skinray.duplicates
    age, sex, site, patient_id   what a DICOM file says; null elsewhere
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from skinray import storage
from skinray.deidentify import without_metadata
from skinray.dicom import is_dicom, read_dicom
from skinray.duplicates import FINGERPRINT_INPUT, fingerprint
from skinray.errors import ImageError, StorageError
from skinray.images import decode_photo
from skinray.shards import PreparedDataset
from skinray.telemetry import Progress

# What one task reads, and of that in one go, which is what it holds in memory.
BLOCK_BYTES = 256_000_000
_READ_PHOTOS = 32

INVENTORY_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("error_code", pa.string()),
        ("error_detail", pa.string()),
        ("source_sha256", pa.string()),
        ("image_sha256", pa.string()),
        ("stored_bytes", pa.int64()),
        ("removed", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("jpeg_quality", pa.int32()),
        ("fingerprint", pa.binary()),
        ("age", pa.float32()),
        ("sex", pa.string()),
        ("site", pa.string()),
        ("patient_id", pa.string()),
    ]
)

# Annex K.1 of the JPEG standard (ITU-T T.81), in zigzag order: what quality 50 of the reference encoder uses.
_LUMINANCE_50 = np.array(
    [
        [16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40],
        [26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51, 61, 60, 57, 51],
        [56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87],
        [95, 98, 103, 104, 103, 62, 77, 113, 121, 112, 100, 120, 92, 101, 103, 99],
    ],
    float,
).ravel()


def inspect_files(uris: Sequence[str], sizes: Sequence[int], stage: str) -> pd.DataFrame:
    """Reads and inspects loose files.

    Args:
        uris: The photos.
        sizes: Bytes of each.
        stage: What the progress line calls it.

    Returns:
        One row a photo, in their order, with the columns above.

    Raises:
        StorageError: A store refuses or throttles: that must not make a data set smaller.
    """
    table = pa.table({"index": pa.array(range(len(uris)), pa.int64()), "image_uri": pa.array(uris, pa.string())})
    plans = [table.slice(start, end - start) for start, end in bounded_blocks(sizes, _block_photos(len(uris)), BLOCK_BYTES)]
    return _run(plans, _inspect_files, len(uris), stage)


def inspect_shards(dataset: PreparedDataset, stage: str) -> pd.DataFrame:
    """Reads and inspects a prepared data set, in the order of its files and their rows.

    Returns:
        One row a photo, with the columns above and those of the shards (but the photo), `split`, and `image_uri`, which is
        `SHARD#ROW GROUP#ROW`.
    """
    groups, sizes, first = [], [], 0
    for file in dataset.manifest.files:
        for number, rows in enumerate(file.row_groups):
            uri = storage.join(dataset.uri, file.path)
            groups.append({"index": first, "uri": uri, "row_group": number, "split": file.split})
            sizes.append(rows)
            first += rows
    plans = [pa.Table.from_pylist(groups[start:end]) for start, end in bounded_blocks(sizes, len(sizes), _block_photos(first))]
    return _run(plans, _inspect_row_groups, first, stage)


def bounded_blocks(sizes: Sequence[int], most_rows: int, most_bytes: int) -> Iterator[tuple[int, int]]:
    """Cuts rows into consecutive blocks, first and behind the last row of each; one row alone may be larger than allowed."""
    start, held = 0, 0
    for position, size in enumerate(sizes):
        if position > start and (position - start >= most_rows or held + size > most_bytes):
            yield start, position
            start, held = position, 0
        held += size
    if start < len(sizes):
        yield start, len(sizes)


def inspect_photo(data: bytes) -> dict[str, Any]:
    """What is known of one photo from its bytes alone, by the names of the columns above.

    Raises:
        ImageError: It cannot be used.
    """
    photo = decode_photo(data, FINGERPRINT_INPUT)
    found: dict[str, Any] = {}
    if is_dicom(data):
        tags = asdict(read_dicom(data).tags)
        del tags["burned_in"]  # or it would not have been decoded
        patient = tags.pop("patient_pseudonym")
        found = {**tags, "patient_id": patient}
    stored = without_metadata(data)
    source_sha256 = storage.sha256_of(data)
    return {
        **found,
        "error_code": "",
        "error_detail": "",
        "source_sha256": source_sha256,
        "image_sha256": source_sha256 if stored.data is data else storage.sha256_of(stored.data),
        "stored_bytes": len(stored.data),
        "removed": " ".join(stored.removed),
        "width_px": photo.width_px,
        "height_px": photo.height_px,
        "jpeg_quality": jpeg_quality(stored.data),
        "fingerprint": fingerprint(photo.pixels),
    }


def jpeg_quality(data: bytes) -> int:
    """The quality that the JPEG reference encoder would have been given for this file's luminance table, 1 to 100.

    Returns:
        The quality; 0 for a file that is no JPEG or has no such table.
    """
    # A quantization table is FF DB, its length, one byte of precision and number, then 64 values; number 0 is luminance.
    found = re.search(rb"\xff\xdb..\x00(.{64})", data[:65536], re.DOTALL) if data.startswith(b"\xff\xd8") else None
    if found is None:
        return 0
    scale = float(np.median(np.frombuffer(found[1], np.uint8) / _LUMINANCE_50)) * 100
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return int(np.clip(round(quality), 1, 100))


def _block_photos(total: int) -> int:
    """Photos of one task: some tasks for every core, and each as large as may be.

    Ray Data hears of a finished task and sends the next one within 0.17 s, in which a core is idle: on 256 photos of 25 KB
    that was as long as two thirds of their work, on 2,048 it is a tenth.
    """
    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(np.clip(total // (4 * max(1, int(cluster.get("CPU", 1)))), 64, 2048))


def _run(plans: list[pa.Table], inspect: Callable[[pa.Table], pa.Table], total: int, stage: str) -> pd.DataFrame:
    if not plans:
        empty: pd.DataFrame = INVENTORY_SCHEMA.empty_table().to_pandas()
        return empty
    progress = Progress(stage, total=total, unit="photos")
    parts = []
    inspected = ray.data.from_arrow(plans).map_batches(inspect, batch_size=None, batch_format="pyarrow")
    for part in inspected.iter_batches(batch_size=None, batch_format="pyarrow"):
        parts.append(part)
        progress.advance(len(part))
    parts.sort(key=lambda part: part["index"][0].as_py())  # each is consecutive
    rows: pd.DataFrame = pa.concat_tables(parts).to_pandas()
    return rows


def _inspect_files(plan: pa.Table) -> pa.Table:
    rows = []
    for start in range(0, len(plan), _READ_PHOTOS):
        some = plan.slice(start, _READ_PHOTOS)
        uris = some["image_uri"].to_pylist()
        for index, uri, data in zip(some["index"].to_pylist(), uris, storage.read_many(uris), strict=True):
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                raise StorageError(f"cannot read {uri}: {type(data).__name__}: {data}") from data
            rows.append({"index": index, **_inspected(data)})
    return pa.Table.from_pylist(rows, schema=INVENTORY_SCHEMA)


def _inspect_row_groups(plan: pa.Table) -> pa.Table:
    return pa.concat_tables([_inspect_row_group(group) for group in plan.to_pylist()])


def _inspect_row_group(where: dict[str, Any]) -> pa.Table:
    uri = where["uri"]
    try:
        file = pq.ParquetFile(storage.path_of(uri), filesystem=storage.arrow_filesystem(uri))
        table = file.read_row_group(where["row_group"])
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot read the shard {uri}: {type(error).__name__}: {error}") from error
    rows = [_inspected(data) for data in table["image_bytes"].to_pylist()]
    for offset, (row, stored) in enumerate(zip(rows, table.drop_columns(["image_bytes"]).to_pylist(), strict=True)):
        if not row["error_code"] and row["image_sha256"] != stored["image_sha256"]:
            row.update(error_code="corrupt", error_detail="its bytes are not those that were prepared")
        row |= {name: value for name, value in stored.items() if name not in ("image_sha256", "width_px", "height_px")}
        row |= {"index": where["index"] + offset, "split": where["split"], "image_uri": f"{uri}#{where['row_group']}#{offset}"}
    carried = [field for field in table.schema if field.name not in INVENTORY_SCHEMA.names and field.name != "image_bytes"]
    schema = pa.schema([*INVENTORY_SCHEMA, *carried, ("split", pa.string()), ("image_uri", pa.string())])
    return pa.Table.from_pylist(rows, schema=schema)


def _inspected(data: bytes | Exception) -> dict[str, Any]:
    try:
        if isinstance(data, Exception):
            raise ImageError("missing", "the file was listed and is gone")
        return inspect_photo(data)
    except ImageError as error:
        return {"error_code": error.code, "error_detail": error.detail}
