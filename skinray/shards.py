"""A catalog -> Parquet shards of image bytes under a manifest; and a prepared data set opened again.

    <output>/split=train/part-00000.parquet ...   photos in row groups of `ROWS_PER_GROUP`
    <output>/_rejected.json                       photos that could not be decoded, with the reason
    <output>/_manifest.json                       written last: what makes the data set exist

Shards are made by Ray Data, one task a shard, so memory holds a few shards at a time however large the archive. The same
catalog and settings give the same bytes under the same names.
"""

import functools
import io
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from pydantic import BaseModel, ConfigDict, ValidationError

from skinray import storage
from skinray.catalogs import read_catalog
from skinray.config import PrepareSettings, SplitName
from skinray.errors import DatasetError, ImageError, StorageError
from skinray.images import Preprocessing, decode_photo
from skinray.splits import SplitRule, assign_splits, divided_groups, group_of
from skinray.taxonomy import TARGETS, class_labels
from skinray.telemetry import Progress

SCHEMA_VERSION = 1
REJECTED_NAME = "_rejected.json"
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

# About 12 MB of 600x450 JPEGs: small enough to be a unit of work, large enough for one request to an object store.
ROWS_PER_GROUP = 128

SHARD_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_bytes", pa.binary()),
        ("image_sha256", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("label", pa.string()),
        ("lesion_id", pa.string()),
        ("patient_id", pa.string()),
        ("age", pa.float32()),
        ("sex", pa.string()),
        ("site", pa.string()),
        ("fold", pa.int8()),
        ("source", pa.string()),
    ]
)


class ShardFile(BaseModel):
    """One Parquet file of a data set, by its path below the data set's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    split: SplitName
    rows: int
    bytes: int
    sha256: str


class DatasetManifest(BaseModel):
    """What `_manifest.json` says of a prepared data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["skinray-dataset"] = "skinray-dataset"
    schema_version: Literal[1] = 1
    classes: tuple[str, ...]
    malignant: tuple[str, ...]
    rows: int
    rejected_rows: int
    split_classes: dict[SplitName, dict[str, int]]
    files: tuple[ShardFile, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class PreparedDataset:
    """A published data set.

    Attributes:
        uri: Its folder or prefix.
        manifest: What it says of itself.
        sha256: Hash of the manifest, and through the files' hashes in it of every photo.
    """

    uri: str
    manifest: DatasetManifest
    sha256: str

    def files(self, split: SplitName) -> list[ShardFile]:
        """The shards of one split, in order."""
        return [file for file in self.manifest.files if file.split == split]

    def rows(self, split: SplitName) -> int:
        """The number of photos in one split."""
        return sum(file.rows for file in self.files(split))


def is_dataset(uri: str) -> bool:
    """True when a prepared data set is published at `uri`."""
    manifest = storage.join(uri, storage.MANIFEST_NAME)
    if not storage.exists(manifest):
        return False
    content = storage.read_json(manifest)
    return isinstance(content, dict) and content.get("kind") == "skinray-dataset"


def open_dataset(uri: str) -> PreparedDataset:
    """Opens a data set by its manifest.

    Raises:
        DatasetError: Nothing is published there, or by another schema version.
    """
    manifest_uri = storage.join(uri, storage.MANIFEST_NAME)
    if not storage.exists(manifest_uri):
        unfinished = storage.exists(storage.join(uri, storage.INCOMPLETE_NAME))
        why = "its prepare did not finish; run it again" if unfinished else "run skinray prepare first"
        raise DatasetError(f"{uri} is not a prepared data set: no {storage.MANIFEST_NAME}; {why}")
    data = storage.read_bytes(manifest_uri)
    try:
        manifest = DatasetManifest.model_validate_json(data)
    except ValidationError as error:
        raise DatasetError(
            f"{manifest_uri} is not a data set of schema version {SCHEMA_VERSION}: "
            f"{error.errors()[0]['msg']} at {'.'.join(map(str, error.errors()[0]['loc']))}"
        ) from error
    return PreparedDataset(uri=storage.normalize(uri), manifest=manifest, sha256=storage.sha256_of(data))


def plan_dataset(settings: PrepareSettings) -> pd.DataFrame:
    """The catalog with each photo's label, split, fold and shard; nothing is written.

    Returns:
        One row a photo: the catalog's columns and `label`, `split`, `fold`, `shard` (path below the output).
    """
    catalog = read_catalog(settings.catalog, settings.source)
    catalog["label"] = class_labels(list(catalog["diagnosis"]), TARGETS[settings.target])
    groups = [
        group_of(patient, lesion, image)
        for patient, lesion, image in zip(catalog["patient_id"], catalog["lesion_id"], catalog["image_id"], strict=True)
    ]
    rule = SplitRule(settings.validation_fraction, settings.test_fraction, settings.folds, settings.seed)
    catalog["split"], folds = assign_splits(list(catalog["label"]), groups, rule)
    catalog["fold"] = pd.array(folds, dtype="Int8")
    for column in ("patient_id", "lesion_id"):
        known = catalog[catalog[column].notna()]
        leaks = divided_groups(list(known[column]), list(known["split"]))
        if leaks:
            # A lesion of which some photos name the patient and others do not.
            raise DatasetError(f"{len(leaks)} {column}s stand on two sides of the split, the first is {leaks[0]}")
    number = catalog.groupby("split").cumcount() // settings.rows_per_shard
    catalog["shard"] = [f"split={split}/part-{n:05d}.parquet" for split, n in zip(catalog["split"], number, strict=True)]
    return catalog


def prepare_dataset(settings: PrepareSettings) -> PreparedDataset:
    """Writes a published data set as split Parquet shards.

    Args:
        settings: Source, output, target and split.

    Returns:
        The data set, published.

    Raises:
        CatalogError: The source is not what its layout says.
        OutputExistsError: The output is already there.
    """
    catalog = plan_dataset(settings)
    output = storage.normalize(settings.output)
    storage.claim_folder(output, "dataset", settings.recorded())
    files: list[ShardFile] = []
    rejected: list[dict[str, str]] = []
    progress = Progress("prepare", total=len(catalog), unit="photos")
    for result in _write_shards(catalog, output).iter_rows():
        lost = json.loads(result.pop("rejected"))
        rejected += lost
        if result["rows"]:
            files.append(ShardFile(**result))
        progress.advance(result["rows"] + len(lost))
    progress.close()
    if len(rejected) == len(catalog):
        raise DatasetError(f"{settings.source}: none of its {len(catalog)} photos can be decoded; the first: {rejected[0]}")
    storage.write_json(storage.join(output, REJECTED_NAME), sorted(rejected, key=lambda row: row["image_id"]))
    gone = {row["image_id"] for row in rejected}
    kept = catalog[~catalog["image_id"].isin(list(gone))]
    target = TARGETS[settings.target]
    manifest = DatasetManifest(
        classes=target.codes,
        malignant=target.malignant,
        rows=len(kept),
        rejected_rows=len(rejected),
        split_classes={split: _class_counts(kept, split, target.codes) for split in SPLITS},
        files=tuple(sorted(files, key=lambda file: file.path)),
        settings=settings.recorded(),
    )
    storage.check_written(output, {file.path: file.bytes for file in files})
    storage.publish_folder(output, manifest.model_dump(mode="json"))
    return open_dataset(output)


def _class_counts(catalog: pd.DataFrame, split: SplitName, codes: tuple[str, ...]) -> dict[str, int]:
    counts = Counter(catalog.loc[catalog["split"] == split, "label"])
    return {code: counts[code] for code in codes}


def _write_shards(catalog: pd.DataFrame, output: str) -> ray.data.Dataset:
    """One row a shard: what became of it. A shard is one block and one task, which writes it."""
    plans = [pa.Table.from_pandas(rows, preserve_index=False) for _, rows in catalog.groupby("shard", sort=True)]
    return ray.data.from_arrow(plans).map_batches(
        functools.partial(_write_shard, output=output), batch_size=None, batch_format="pyarrow"
    )


def _write_shard(plan: pa.Table, output: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, str]] = []
    planned = plan.to_pylist()
    for row, data in zip(planned, storage.read_many(list(plan["image_uri"].to_pylist())), strict=True):
        try:
            if isinstance(data, FileNotFoundError):
                raise ImageError("missing", "the file was listed and is gone")
            if isinstance(data, Exception):
                # Not the photo's fault: a store that throttles or refuses must not make the data set smaller.
                raise StorageError(f"cannot read {row['image_uri']}: {type(data).__name__}: {data}") from data
            photo = decode_photo(data, Preprocessing())
        except ImageError as error:
            where = {"image_id": row["image_id"], "image_uri": row["image_uri"]}
            rejected.append({**where, "error_code": error.code, "error_detail": error.detail})
            continue
        found = {"image_bytes": data, "image_sha256": storage.sha256_of(data)}
        size = {"width_px": photo.width_px, "height_px": photo.height_px}
        rows.append({**{name: row.get(name) for name in SHARD_SCHEMA.names}, **found, **size})
    path, split = planned[0]["shard"], planned[0]["split"]
    encoded = _encode_shard(rows) if rows else b""
    if rows:
        storage.write_bytes(storage.join(output, path), encoded)
    return {
        "path": [path],
        "split": [split],
        "rows": [len(rows)],
        "bytes": [len(encoded)],
        "sha256": [storage.sha256_of(encoded)],
        "rejected": [json.dumps(rejected)],
    }


def _encode_shard(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    # JPEG bytes do not compress further; trying costs more than the whole rest of the write.
    compression = {name: "none" if name == "image_bytes" else "zstd" for name in SHARD_SCHEMA.names}
    pq.write_table(
        pa.Table.from_pylist(rows, schema=SHARD_SCHEMA), buffer, row_group_size=ROWS_PER_GROUP, compression=compression,
        use_dictionary=["label", "sex", "site", "source"],
    )  # fmt: skip
    return buffer.getvalue()
