"""The prepare job: a published data set -> inspected, grouped, split -> shards under a manifest.

Photos are read twice, as streams: once to inspect them (which the split needs: duplicates stay together), once to write
them. Nothing but the inventory's small rows stays in memory. The same source and settings give the same bytes under the same
names. The same command on a grown source adds shards for what is new; what is there keeps its split, its fold and its shard.
"""

import functools
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from skinray import storage
from skinray.audit import Audit, examine
from skinray.catalogs import CatalogSource, read_catalog
from skinray.config import PrepareSettings, SplitName
from skinray.deidentify import without_metadata
from skinray.duplicates import find_duplicates
from skinray.errors import ConfigError, DatasetError, OutputExistsError, StorageError
from skinray.inventory import bounded_blocks, inspect_files
from skinray.shards import (
    AUDIT_NAME,
    REJECTED_NAME,
    SHARD_SCHEMA,
    SPLITS,
    DatasetManifest,
    PreparedDataset,
    ShardFile,
    SplitRecord,
    is_dataset,
    open_dataset,
    read_photos,
)
from skinray.splits import Placement, SplitRule, assign_splits, check_filled, group_photos, keep_splits, names
from skinray.taxonomy import Target, check_known, class_labels, target_for, unknown_labels
from skinray.telemetry import Progress, say

# A row group is what training and scoring read at once: about 3 MB of 600x450 JPEGs, a handful of 12-megapixel ones.
ROW_GROUP_ROWS = 128
ROW_GROUP_BYTES = 16_000_000

METADATA_STATEMENT = (
    "Shards hold the pixels as found and, where a photo lies on its side, its orientation. Camera data, location, captions, "
    "comments, thumbnails, what follows the picture in its file, and DICOM headers are left out. Text that is part of the "
    "picture itself is not looked for; DICOM files that declare such text are refused."
)

_INSPECTED = ("source_sha256", "image_sha256", "stored_bytes", "removed", "width_px", "height_px", "jpeg_quality", "fingerprint")
_FROM_DICOM = ("age", "sex", "site", "patient_id")


@dataclass(frozen=True)
class Plan:
    """A catalog with its classes, before any photo is read.

    Attributes:
        photos: The catalog's columns and `label`.
        dropped_labels: Labels without a class that are left out -> photos.
        listed_duplicates: Pairs of image_ids that the data set lists itself.
        target: The classes.
    """

    photos: pd.DataFrame
    dropped_labels: dict[str, int]
    listed_duplicates: tuple[tuple[str, str], ...]
    target: Target


def plan_dataset(settings: PrepareSettings) -> Plan:
    """Reads the catalog and gives each photo its class; no photo is opened and nothing is written.

    Raises:
        CatalogError: The source is not what its layout says, or has labels that the target does not know.
    """
    target = target_for(settings.target, settings.classes, settings.malignant_classes)
    catalog = read_catalog(CatalogSource(settings.catalog, settings.source, settings.csv, settings.labels))
    photos = catalog.photos.rename(columns={"split": "source_split"})
    diagnoses = photos["diagnosis"].tolist()
    dropped = unknown_labels(diagnoses, target) if settings.drop_unknown else {}
    if not settings.drop_unknown:
        check_known(diagnoses, target)
    photos["label"] = class_labels(diagnoses, target)
    photos = photos[photos["label"].notna()].reset_index(drop=True)
    if photos.empty:
        raise DatasetError(f"{settings.source}: none of its {len(catalog.photos)} photos has a class in target {target.name}")
    return Plan(photos, dropped, catalog.listed_duplicates, target)


def prepare_dataset(settings: PrepareSettings) -> PreparedDataset:
    """Writes a published data set as split Parquet shards, or adds to the one that stands there what is new in the source.

    Args:
        settings: Source, output, target and split.

    Returns:
        The data set, published; its manifest says which leaks it has.

    Raises:
        CatalogError: The source is not what its layout says.
        OutputExistsError: The output is something else, or its photos are no longer those of the source.
    """
    plan = plan_dataset(settings)
    output = storage.normalize(settings.output)
    existing = _existing(output, settings)
    known = read_photos(existing) if existing else None
    fresh = plan.photos if known is None else _unknown_photos(plan.photos, known, output)
    if existing is None:
        storage.claim_folder(output, "dataset", _identity(settings))
    inspected, rejected = _inspect(fresh)
    if existing is not None and inspected.empty:
        say(f"prepare: {output} has every usable photo of the source already")
        return existing
    if known is None and inspected.empty:
        raise DatasetError(f"{settings.source}: none of its {len(fresh)} photos can be used; the first: {rejected[0]}")
    photos = inspected if known is None else pd.concat([known, inspected], ignore_index=True)
    audit = _divide(photos, plan, rejected, settings, _placed_before(photos, known, settings))
    _cut_into_shards(photos, settings.shard_mb)
    files = [*(existing.manifest.files if existing else ()), *_write_shards(photos, output)]
    return _publish(output, settings, plan, photos, audit, files)


def preview_splits(plan: Plan, settings: PrepareSettings) -> list[str]:
    """The split of each photo by its ids alone, as a dry run can know it: duplicates are found when photos are read."""
    photos = plan.photos
    groups = _groups(photos, np.empty((0, 2), np.int64))
    return _split(photos, groups, settings, None)[0]


def _identity(settings: PrepareSettings) -> dict[str, Any]:
    """The settings that make two data sets the same one."""
    recorded = settings.recorded()
    for steering in ("allow_leaks", "output"):
        recorded.pop(steering)
    return recorded


def _existing(output: str, settings: PrepareSettings) -> PreparedDataset | None:
    if not is_dataset(output):
        return None
    existing = open_dataset(output)
    if existing.manifest.settings != _identity(settings):
        raise OutputExistsError(
            f"output {output} was prepared with other settings: choose another --output "
            "(with --previous its photos keep their split there)"
        )
    return existing


def _unknown_photos(photos: pd.DataFrame, known: pd.DataFrame, output: str) -> pd.DataFrame:
    """The photos that the data set does not hold; raises when those that it holds are not what the source has now."""
    now = photos.set_index("image_id")
    gone = known[~known["image_id"].isin(now.index)]
    now, before = now.reindex(known["image_id"]).reset_index(), known
    changed = pd.Series(False, index=before.index)
    for name in ("image_bytes", "diagnosis", "label"):
        changed |= now[name] != before[name]
    for name in ("patient_id", "lesion_id"):
        # A DICOM file may have said what the catalog does not.
        changed |= now[name].notna() & (now[name] != before[name])
    changed &= ~before["image_id"].isin(gone["image_id"])
    for rows, what in ((gone, "no longer in the source"), (before[changed], "not what they were")):
        if len(rows):
            raise OutputExistsError(
                f"{len(rows)} photos of {output} are {what}, the first is {rows['image_id'].iloc[0]!r}; "
                f"shards are never changed: choose another --output, with --previous {output} so that every photo keeps its split"
            )
    return photos[~photos["image_id"].isin(known["image_id"])].reset_index(drop=True)


def _inspect(photos: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Reads every photo once; returns those that can be used with what was found, and why the others cannot."""
    found = inspect_files(photos["image_uri"].tolist(), photos["image_bytes"].tolist(), "inspect")
    bad = (found["error_code"] != "").to_numpy(bool)
    rejected = [
        {"image_id": image_id, "image_uri": uri, "error_code": code, "error_detail": detail}
        for image_id, uri, code, detail in zip(
            photos["image_id"][bad], photos["image_uri"][bad], found["error_code"][bad], found["error_detail"][bad], strict=True
        )
    ]
    for name in _INSPECTED:
        photos[name] = found[name]
    for name in _FROM_DICOM:
        photos[name] = photos[name].where(photos[name].notna(), found[name])
        if name != "age":
            photos[name] = photos[name].astype(object).where(photos[name].notna(), None)
    usable = photos[~bad].reset_index(drop=True)
    return usable, sorted(rejected, key=lambda row: row["image_id"])


def _placed_before(photos: pd.DataFrame, known: pd.DataFrame | None, settings: PrepareSettings) -> list[Placement | None] | None:
    """Where photos stand already: in this data set, or in the one that --previous names."""
    if known is None:
        if settings.previous is None:
            return None
        previous = open_dataset(settings.previous)
        if previous.manifest.split.folds != settings.folds:
            raise ConfigError(f"--folds {settings.folds}: {settings.previous} has {previous.manifest.split.folds} folds")
        known = read_photos(previous)
    places = [(split, None if pd.isna(fold) else int(fold)) for split, fold in zip(known["split"], known["fold"], strict=True)]
    by_id = dict(zip(known["image_id"], places, strict=True))
    by_hash = dict(zip(known["image_sha256"], places, strict=True))  # a photo that was renamed is the same photo
    return [
        by_id.get(image_id) or by_hash.get(sha256)
        for image_id, sha256 in zip(photos["image_id"], photos["image_sha256"], strict=True)
    ]


def _divide(
    photos: pd.DataFrame,
    plan: Plan,
    rejected: list[dict[str, str]],
    settings: PrepareSettings,
    placed: list[Placement | None] | None,
) -> Audit:
    """Fills in group, split and fold, and says what is wrong with the result."""
    position = {image_id: row for row, image_id in enumerate(photos["image_id"])}
    listed = [(position[one], position[two]) for one, two in plan.listed_duplicates if one in position and two in position]
    duplicates = find_duplicates(photos["image_sha256"].tolist(), photos["fingerprint"].tolist(), listed)
    photos["group"] = _groups(photos, duplicates.pairs)
    splits, folds = _split(photos, photos["group"].tolist(), settings, placed)
    photos["split"] = splits
    photos["fold"] = pd.array(folds, dtype="Int8")
    audited = photos.assign(file_bytes=photos["stored_bytes"])
    return examine(audited, duplicates, rejected, plan.target.malignant)


def _groups(photos: pd.DataFrame, pairs: npt.NDArray[np.int64]) -> list[str]:
    return group_photos(photos["image_id"].tolist(), names(photos["patient_id"]), names(photos["lesion_id"]), pairs)


def _split(
    photos: pd.DataFrame, groups: list[str], settings: PrepareSettings, placed: list[Placement | None] | None
) -> tuple[list[str], list[int | None]]:
    rule = SplitRule(settings.validation_fraction, settings.test_fraction, settings.folds, settings.seed)
    labels = photos["label"].tolist()
    if settings.keep_split:
        splits, folds = keep_splits(names(photos["source_split"]), labels, groups, rule, placed)
    else:
        splits, folds = assign_splits(labels, groups, rule, placed)
    check_filled(splits, groups)
    return splits, folds


def _cut_into_shards(photos: pd.DataFrame, shard_mb: float) -> None:
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


def _write_shards(photos: pd.DataFrame, output: str) -> list[ShardFile]:
    """Writes the shards of the photos that have a row group, one task a shard."""
    new = photos[photos["row_group"] >= 0].sort_values(["shard", "image_id"])
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
    dictionaries = ["label", "diagnosis", "sex", "site", "source"]
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


def _publish(
    output: str, settings: PrepareSettings, plan: Plan, photos: pd.DataFrame, audit: Audit, files: list[ShardFile]
) -> PreparedDataset:
    codes = plan.target.codes
    counts = {split: _class_counts(photos, split, codes) for split in SPLITS}
    in_train = sum(counts["train"].values())
    present = [code for code in codes if counts["train"][code]]
    encoded = _encode_photos(photos)
    photos_sha256 = storage.sha256_of(encoded)
    manifest = DatasetManifest(
        classes=codes,
        malignant=plan.target.malignant,
        rows=len(photos),
        rejected_rows=len(audit.unreadable),
        dropped_labels=plan.dropped_labels,
        split_classes=counts,
        prior={code: counts["train"][code] / in_train for code in codes},
        class_weights={code: in_train / (len(present) * counts["train"][code]) for code in present},
        split=SplitRecord(
            grouped_by=("patient_id", "lesion_id", "duplicates"),
            stratified_by="label",
            seed=settings.seed,
            folds=settings.folds,
            kept_from_source=settings.keep_split,
            groups=photos["group"].nunique(),
            largest_group=int(photos["group"].value_counts().iloc[0]),
        ),
        leaks=audit.leak_counts,
        findings=audit.counts,
        metadata_removed=dict(sorted(Counter(kind for kinds in photos["removed"] for kind in kinds.split()).items())),
        metadata_statement=METADATA_STATEMENT,
        files=tuple(files),
        # Named after its content: until the new manifest is there, the old one still finds the old inventory.
        photos_path=f"_photos-{photos_sha256[:12]}.parquet",
        photos_sha256=photos_sha256,
        settings=_identity(settings),
    )
    storage.check_written(output, {file.path: file.bytes for file in files})
    storage.write_bytes(storage.join(output, manifest.photos_path), encoded)
    storage.write_json(storage.join(output, REJECTED_NAME), list(audit.unreadable))
    storage.write_bytes(storage.join(output, AUDIT_NAME), audit.encoded())
    storage.publish_folder(output, manifest.model_dump(mode="json"))
    return open_dataset(output)


def _encode_photos(photos: pd.DataFrame) -> bytes:
    """The inventory as Parquet. Where a photo came from is left out: paths may name people."""
    buffer = io.BytesIO()
    table = pa.Table.from_pandas(photos.drop(columns=["image_uri", "row_group"]), preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), buffer, compression="zstd")
    return buffer.getvalue()


def _class_counts(photos: pd.DataFrame, split: SplitName, codes: tuple[str, ...]) -> dict[str, int]:
    counts = Counter(photos.loc[photos["split"] == split, "label"])
    return {code: counts[code] for code in codes}
