"""The prepare job: a published data set -> inspected, grouped, split -> shards under a manifest.

Photos are read twice, as streams: once to inspect them (which the split needs: duplicates stay together), once to write
them. Nothing but the inventory's small rows stays in memory. The same source and settings give the same bytes under the same
names. The same command on a grown source adds shards for what is new; what is there keeps its split, its fold and its shard.
"""

import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from skinray import file_listing, outputs, storage
from skinray.audit import Audit, examine
from skinray.catalogs import CatalogSource, read_catalog
from skinray.config import PrepareSettings, SplitName
from skinray.duplicates import find_duplicates
from skinray.errors import ConfigError, DatasetError, OutputExistsError
from skinray.inventory import inspect_files
from skinray.shard_writer import cut_into_shards, write_shards
from skinray.shards import (
    AUDIT_NAME,
    REJECTED_NAME,
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
from skinray.telemetry import say

METADATA_STATEMENT = (
    "Shards hold the pixels as found and, where a photo lies on its side, its orientation. Camera data, location, captions, "
    "comments, thumbnails, what follows the picture in its file, and DICOM headers are left out. Text that is part of the "
    "picture itself is not looked for; DICOM files that declare such text are refused."
)

_NO_PAIRS = np.empty((0, 2), np.int64)
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
    before = _Before.of(known, settings)
    if existing is None:
        # What the catalog alone can tell is told before anything is read or written.
        _split(plan.photos, _groups(plan.photos, _NO_PAIRS), settings, before.places(plan.photos))
        outputs.claim_folder(output, "dataset", _identity(settings))
    inspected, rejected = _inspect(fresh)
    if known is None and inspected.empty:
        raise DatasetError(f"{settings.source}: none of its {len(fresh)} photos can be used; the first: {rejected[0]}")
    if existing is not None and inspected.empty and _same_left_out(existing, plan, rejected):
        say(f"prepare: {output} has every usable photo of the source already")
        return existing
    photos = inspected if known is None else pd.concat([known, inspected], ignore_index=True)
    audit = _divide(photos, plan, rejected, settings, before.places(photos))
    cut_into_shards(photos, settings.shard_mb)
    files = [*(existing.manifest.files if existing else ()), *write_shards(photos, output)]
    dataset = _publish(output, settings, plan, photos, audit, files, rejected)
    if existing is not None and existing.manifest.photos_path != dataset.manifest.photos_path:
        storage.delete_file(storage.join(output, existing.manifest.photos_path))
    return dataset


def preview_dataset(settings: PrepareSettings) -> tuple[pd.DataFrame, dict[str, int]]:
    """What a dry run can know: the catalog's photos with their split by ids alone, and the labels that are left out.

    Duplicates are found when photos are read, so some photos will stand elsewhere.
    """
    plan = plan_dataset(settings)
    existing = _existing(storage.normalize(settings.output), settings)
    known = read_photos(existing) if existing else None
    if known is not None:
        _unknown_photos(plan.photos, known, settings.output)
    places = _Before.of(known, settings).places(plan.photos)
    splits, _ = _split(plan.photos, _groups(plan.photos, _NO_PAIRS), settings, places)
    return plan.photos.assign(split=splits), plan.dropped_labels


def _identity(settings: PrepareSettings) -> dict[str, Any]:
    """The settings that make two data sets the same one."""
    recorded = settings.recorded()
    for steering in ("allow_leaks", "output"):
        recorded.pop(steering)
    recorded["source"] = storage.normalize(settings.source)
    recorded["previous"] = settings.previous and storage.normalize(settings.previous)
    recorded["classes"] = [[code, list(members)] for code, members in settings.classes.items()]  # their order matters
    return recorded


def _existing(output: str, settings: PrepareSettings) -> PreparedDataset | None:
    if not is_dataset(output):
        return None
    existing = open_dataset(output)
    now, then = _identity(settings), existing.manifest.settings
    other = [name for name in now if now[name] != then.get(name)]
    if other:
        raise OutputExistsError(
            f"output {output} was prepared with other settings ({', '.join(other)}): choose another --output "
            "(with --previous its photos keep their split there)"
        )
    return existing


def _same_left_out(existing: PreparedDataset, plan: Plan, rejected: list[dict[str, str]]) -> bool:
    listed = storage.read_json(storage.join(existing.uri, REJECTED_NAME))
    return bool(listed == rejected) and existing.manifest.dropped_labels == plan.dropped_labels


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
        {"image_id": image_id, "error_code": code, "error_detail": detail}
        for image_id, code, detail in zip(
            photos["image_id"][bad], found["error_code"][bad], found["error_detail"][bad], strict=True
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


@dataclass(frozen=True)
class _Before:
    """Where photos stood in the data set that was prepared before: this one, or the one that --previous names.

    A photo is the same when its id and content are; else when its content is, under whatever name; else when its id is.
    """

    by_both: dict[tuple[str, str], Placement]
    by_hash: dict[str, Placement]
    by_id: dict[str, Placement]

    @staticmethod
    def of(known: pd.DataFrame | None, settings: PrepareSettings) -> "_Before":
        """The places in `known`, else in the data set of --previous, else none."""
        if known is None and settings.previous is None:
            return _Before({}, {}, {})
        if known is None:
            previous = open_dataset(str(settings.previous))
            if previous.manifest.split.folds != settings.folds:
                raise ConfigError(f"--folds {settings.folds}: {settings.previous} has {previous.manifest.split.folds} folds")
            known = read_photos(previous)
        folds = [None if pd.isna(fold) else int(fold) for fold in known["fold"]]
        places = list(zip(known["split"], folds, strict=True))
        ids, hashes = known["image_id"].tolist(), known["image_sha256"].tolist()
        return _Before(
            by_both=dict(zip(zip(ids, hashes, strict=True), places, strict=True)),
            by_hash=dict(zip(hashes, places, strict=True)),
            by_id=dict(zip(ids, places, strict=True)),
        )

    def places(self, photos: pd.DataFrame) -> list[Placement | None] | None:
        """The place of each photo that had one; by ids alone as long as photos have not been read."""
        if not self.by_id:
            return None
        ids = photos["image_id"].tolist()
        if "image_sha256" not in photos:
            return [self.by_id.get(image_id) for image_id in ids]
        return [
            self.by_both.get((image_id, sha256)) or self.by_hash.get(sha256) or self.by_id.get(image_id)
            for image_id, sha256 in zip(ids, photos["image_sha256"], strict=True)
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
    check_filled(splits, folds, groups, rule, settings.keep_split)
    return splits, folds


def _publish(
    output: str,
    settings: PrepareSettings,
    plan: Plan,
    photos: pd.DataFrame,
    audit: Audit,
    files: list[ShardFile],
    rejected: list[dict[str, str]],
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
        rejected_rows=len(rejected),
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
    assert {split: sum(counts[split].values()) for split in SPLITS} == {
        split: sum(file.rows for file in files if file.split == split) for split in SPLITS
    }, "the inventory and the shards disagree"
    file_listing.check_written(output, {file.path: file.bytes for file in files})
    storage.write_bytes(storage.join(output, manifest.photos_path), encoded)
    storage.write_json(storage.join(output, REJECTED_NAME), rejected)
    storage.write_bytes(storage.join(output, AUDIT_NAME), audit.encoded())
    outputs.publish_folder(output, manifest.model_dump(mode="json"))
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
