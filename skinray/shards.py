"""What a prepared data set is: Parquet shards of photos under a manifest; and one opened again.

<output>/split=train/part-00000.parquet ...   photos, in row groups of bounded rows and bytes
<output>/_photos.parquet                      one small row a photo: where it stands, its hashes, its fingerprint
<output>/_rejected.json                       photos that cannot be used, with the reason
<output>/_audit.json                          duplicates, contradicting labels, leaks; see skinray.audit
<output>/_manifest.json                       written last: what makes the data set exist
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from skinray import storage
from skinray.config import SplitName
from skinray.errors import DatasetError

SCHEMA_VERSION = 2
REJECTED_NAME = "_rejected.json"
AUDIT_NAME = "_audit.json"
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

SHARD_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_bytes", pa.binary()),
        ("image_sha256", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("label", pa.string()),
        ("diagnosis", pa.string()),
        ("lesion_id", pa.string()),
        ("patient_id", pa.string()),
        ("age", pa.float32()),
        ("sex", pa.string()),
        ("site", pa.string()),
        ("skin_type", pa.string()),
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
    row_groups: tuple[int, ...]
    bytes: int
    sha256: str


class SplitRecord(BaseModel):
    """How the photos were divided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grouped_by: tuple[str, ...]
    stratified_by: str
    seed: int
    folds: int
    kept_from_source: bool
    groups: int
    largest_group: int


class DatasetManifest(BaseModel):
    """What `_manifest.json` says of a prepared data set.

    Attributes:
        dropped_labels: Labels that have no class in the target and were left out by `--drop-unknown` -> photos.
        prior: Class -> its share of the training photos.
        class_weights: Class -> what its loss is multiplied by so that all classes weigh the same in training.
        leaks: What stands on both sides of a split or fold, in words -> how many; empty for a clean data set.
        findings: Counts of the audit: duplicates, contradicting labels.
        metadata_removed: Kind of metadata that files carried and the shards do not -> photos.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["skinray-dataset"] = "skinray-dataset"
    schema_version: Literal[2] = 2
    classes: tuple[str, ...]
    malignant: tuple[str, ...]
    rows: int
    rejected_rows: int
    dropped_labels: dict[str, int]
    split_classes: dict[SplitName, dict[str, int]]
    prior: dict[str, float]
    class_weights: dict[str, float]
    split: SplitRecord
    leaks: dict[str, int]
    findings: dict[str, int]
    metadata_removed: dict[str, int]
    metadata_statement: str
    files: tuple[ShardFile, ...]
    photos_path: str
    photos_sha256: str
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


def read_photo_bytes(dataset: PreparedDataset, image_ids: Sequence[str]) -> dict[str, bytes]:
    """The stored bytes of a few photos.

    Args:
        dataset: Where they are.
        image_ids: Which.

    Returns:
        image_id -> bytes.

    Raises:
        DatasetError: One of them is not in the data set.
    """
    photos = read_photos(dataset)
    wanted = photos[photos["image_id"].isin(list(image_ids))]
    absent = set(image_ids) - set(wanted["image_id"])
    if absent:
        raise DatasetError(f"{dataset.uri} has no photo {sorted(absent)[0]!r}")
    found: dict[str, bytes] = {}
    for shard, rows in wanted.groupby("shard"):
        uri, ids = storage.join(dataset.uri, str(shard)), list(rows["image_id"])
        file = pq.ParquetFile(storage.path_of(uri), filesystem=storage.arrow_filesystem(uri))
        for group in range(file.num_row_groups):
            if set(file.read_row_group(group, columns=["image_id"])["image_id"].to_pylist()).isdisjoint(ids):
                continue
            table = file.read_row_group(group, columns=["image_id", "image_bytes"])
            pairs = zip(table["image_id"].to_pylist(), table["image_bytes"].to_pylist(), strict=True)
            found |= {image_id: data for image_id, data in pairs if image_id in ids}
    return found


def read_photos(dataset: PreparedDataset) -> pd.DataFrame:
    """The data set's inventory: one row a photo with its split, fold, group, label, shard, hashes and fingerprint.

    Raises:
        DatasetError: It is not the one that the manifest names.
    """
    data = storage.read_bytes(storage.join(dataset.uri, dataset.manifest.photos_path))
    if storage.sha256_of(data) != dataset.manifest.photos_sha256:
        raise DatasetError(f"{dataset.uri}/{dataset.manifest.photos_path} is not the one that its manifest names; prepare again")
    photos: pd.DataFrame = pq.read_table(io.BytesIO(data)).to_pandas()
    photos["fold"] = photos["fold"].astype("Int8")
    return photos
