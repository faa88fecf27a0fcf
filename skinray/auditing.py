"""The audit job: a prepared data set, or one as published -> inspected photos -> audit.json and a page with thumbnails.

<output>/audit.json       all findings
<output>/audit.html       the same for a person, with the photos side by side; opens without a network
<output>/_manifest.json   written last
"""

import base64
import functools
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from skinray import outputs, storage
from skinray.audit import Audit, examine
from skinray.audit_page import audit_page, shown_photos
from skinray.catalogs import Catalog, CatalogSource, read_catalog
from skinray.config import AuditSettings
from skinray.duplicates import find_duplicates
from skinray.errors import DatasetError, ImageError, StorageError
from skinray.images import Preprocessing, decode_photo
from skinray.inventory import inspect_files, inspect_shards
from skinray.shards import PreparedDataset, open_dataset
from skinray.taxonomy import MALIGNANT_DIAGNOSES

AUDIT_NAME = "audit.json"
PAGE_NAME = "audit.html"

_THUMBNAIL = Preprocessing(image_size_px=160)


@dataclass(frozen=True)
class _Source:
    """What is audited.

    Attributes:
        malignant: The labels that are malignant.
        listed: Pairs of image_ids that the data set itself calls the same photo.
        inspect: Reads all photos: one row each, as `examine` takes them, with image_uri, hash, fingerprint and error.
        read: Some photos by their image_uri, with their bytes, in any order; those that cannot be read are left out.
    """

    malignant: Sequence[str]
    listed: Sequence[tuple[str, str]]
    inspect: Callable[[], pd.DataFrame]
    read: Callable[[Iterable[str]], Iterator[tuple[str, bytes]]]


def audit_dataset(settings: AuditSettings) -> Audit:
    """Audits a data set and writes the report.

    Args:
        settings: The data, and its layout where it is not prepared.

    Returns:
        The findings; `leak_counts` is empty when there is no leak.

    Raises:
        DatasetError: Nothing is prepared there, and no layout was given; or none of the photos can be used.
        CatalogError: The data is not what its layout says.
        OutputExistsError: The output is already there.
    """
    source = _open(settings)
    output = storage.normalize(settings.output)
    outputs.claim_folder(output, "audit", settings.recorded())
    photos = source.inspect()
    failed = photos["error_code"] != ""
    about_failed = ["image_id", "error_code", "error_detail"]
    unreadable = [dict(zip(about_failed, row, strict=True)) for row in photos.loc[failed, about_failed].to_numpy().tolist()]
    usable = photos[~failed].reset_index(drop=True)
    if usable.empty:
        raise DatasetError(f"{settings.data}: none of its {len(photos)} photos can be used; the first: {unreadable[0]}")
    position = {image_id: row for row, image_id in enumerate(usable["image_id"])}
    pairs = [(position[one], position[two]) for one, two in source.listed if one in position and two in position]
    duplicates = find_duplicates(usable["source_sha256"].tolist(), usable["fingerprint"].tolist(), pairs)
    audit = examine(usable, duplicates, unreadable, source.malignant)
    storage.write_bytes(storage.join(output, AUDIT_NAME), audit.encoded())
    shown = {usable["image_uri"][position[image_id]]: image_id for image_id in shown_photos(audit)}
    thumbnails = {shown[uri]: _thumbnail(data) for uri, data in source.read(shown)}
    page = audit_page(audit, settings.data, thumbnails)
    storage.write_bytes(storage.join(output, PAGE_NAME), page.encode())
    outputs.publish_folder(output, {"kind": "skinray-audit", "schema_version": 1, "settings": settings.recorded()})
    return audit


def _open(settings: AuditSettings) -> _Source:
    if settings.catalog is None:
        dataset = open_dataset(settings.data)
        return _Source(dataset.manifest.malignant, (), functools.partial(_inspect_dataset, dataset), _read_shards)
    catalog = read_catalog(CatalogSource(settings.catalog, settings.data, settings.csv, settings.labels))
    malignant = sorted(MALIGNANT_DIAGNOSES)
    return _Source(malignant, catalog.listed_duplicates, functools.partial(_inspect_catalog, catalog), _read_files)


def _inspect_dataset(dataset: PreparedDataset) -> pd.DataFrame:
    photos = inspect_shards(dataset, "audit")
    return photos.assign(file_bytes=photos["stored_bytes"])


def _inspect_catalog(catalog: Catalog) -> pd.DataFrame:
    photos = catalog.photos
    found = inspect_files(photos["image_uri"].tolist(), photos["image_bytes"].tolist(), "audit")
    for name in found.columns:
        # DICOM files say themselves what a data set's own list may leave out.
        photos[name] = photos[name].where(photos[name].notna(), found[name]) if name in photos else found[name]
    # What has no code keeps the data set's own label: the audit tells labels apart, whatever they mean.
    return photos.assign(label=photos["diagnosis"], file_bytes=photos["image_bytes"], fold=None)


def _read_files(uris: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    for uri in uris:
        try:
            yield uri, storage.read_bytes(uri)
        except StorageError:
            continue  # gone since it was inspected


def _read_shards(uris: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Each row group is read once, for all its photos."""
    places: dict[tuple[str, int], list[tuple[str, int]]] = defaultdict(list)
    for uri in uris:
        shard, row_group, row = uri.rsplit("#", 2)
        places[shard, int(row_group)].append((uri, int(row)))
    for (shard, number), wanted in places.items():
        try:
            file = pq.ParquetFile(storage.path_of(shard), filesystem=storage.arrow_filesystem(shard))
            photos = file.read_row_group(number, columns=["image_bytes"])["image_bytes"].to_pylist()
        except (OSError, pa.ArrowException):
            continue  # gone or replaced since it was inspected
        yield from ((uri, photos[row]) for uri, row in wanted)


def _thumbnail(data: bytes) -> str:
    """One photo as a data: URI, stretched to a square as models see it; empty when it cannot be shown."""
    try:
        photo = decode_photo(data, _THUMBNAIL)
    except ImageError:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(photo.pixels).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
