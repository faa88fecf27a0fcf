"""The audit job: a prepared data set, or one as published -> inspected photos -> audit.json and a page with thumbnails.

<output>/audit.json       all findings
<output>/audit.html       the same for a person, with the photos side by side; opens without a network
<output>/_manifest.json   written last
"""

import base64
import io
from collections.abc import Sequence

import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from skinray import storage
from skinray.audit import Audit, examine
from skinray.audit_page import audit_page, shown_photos
from skinray.catalogs import CatalogSource, read_catalog
from skinray.config import AuditSettings
from skinray.duplicates import find_duplicates
from skinray.errors import DatasetError, ImageError
from skinray.images import Preprocessing, decode_photo
from skinray.inventory import inspect_files, inspect_shards
from skinray.shards import open_dataset
from skinray.taxonomy import MALIGNANT_DIAGNOSES

AUDIT_NAME = "audit.json"
PAGE_NAME = "audit.html"

_THUMBNAIL = Preprocessing(image_size_px=160)


def audit_dataset(settings: AuditSettings) -> Audit:
    """Audits a data set and writes the report.

    Args:
        settings: The data, and its layout where it is not prepared.

    Returns:
        The findings; `leak_counts` is empty when there is no leak.

    Raises:
        DatasetError: Nothing is prepared there, and no layout was given.
        CatalogError: The data is not what its layout says.
        OutputExistsError: The output is already there.
    """
    photos, listed, malignant = _read_dataset(settings) if settings.catalog is None else _read_source(settings)
    output = storage.normalize(settings.output)
    storage.claim_folder(output, "audit", settings.recorded())
    bad = photos[photos["error_code"] != ""]
    unreadable = [
        {"image_id": image_id, "error_code": code, "error_detail": detail}
        for image_id, code, detail in zip(bad["image_id"], bad["error_code"], bad["error_detail"], strict=True)
    ]
    usable = photos[photos["error_code"] == ""].reset_index(drop=True)
    if usable.empty:
        raise DatasetError(f"{settings.data}: none of its {len(photos)} photos can be used; the first: {unreadable[0]}")
    position = {image_id: row for row, image_id in enumerate(usable["image_id"])}
    pairs = [(position[one], position[two]) for one, two in listed if one in position and two in position]
    duplicates = find_duplicates(usable["source_sha256"].tolist(), usable["fingerprint"].tolist(), pairs)
    audit = examine(usable, duplicates, unreadable, malignant)
    storage.write_json(storage.join(output, AUDIT_NAME), audit.model_dump(mode="json"))
    uri_of = dict(zip(photos["image_id"], photos["image_uri"], strict=True))
    thumbnails = {image_id: _thumbnail(uri_of[image_id]) for image_id in shown_photos(audit)}
    page = audit_page(audit, settings.data, thumbnails)
    storage.write_bytes(storage.join(output, PAGE_NAME), page.encode())
    storage.publish_folder(output, {"kind": "skinray-audit", "schema_version": 1, "settings": settings.recorded()})
    return audit


def _read_dataset(settings: AuditSettings) -> tuple[pd.DataFrame, Sequence[tuple[str, str]], Sequence[str]]:
    dataset = open_dataset(settings.data)
    photos = inspect_shards(dataset, "audit")
    photos["file_bytes"] = photos["stored_bytes"]
    return photos, (), dataset.manifest.malignant


def _read_source(settings: AuditSettings) -> tuple[pd.DataFrame, Sequence[tuple[str, str]], Sequence[str]]:
    assert settings.catalog is not None
    catalog = read_catalog(CatalogSource(settings.catalog, settings.data, settings.csv, settings.labels))
    photos = catalog.photos
    found = inspect_files(photos["image_uri"].tolist(), photos["image_bytes"].tolist(), "audit")
    for name in found.columns.difference(photos.columns):
        photos[name] = found[name]
    # What has no code keeps the data set's own label: the audit tells labels apart, whatever they mean.
    photos["label"] = photos["diagnosis"]
    photos["file_bytes"] = photos["image_bytes"]
    photos["fold"] = None
    return photos, catalog.listed_duplicates, sorted(MALIGNANT_DIAGNOSES)


def _thumbnail(uri: str) -> str:
    """One photo as a data: URI, stretched to a square as models see it; empty when it cannot be shown."""
    try:
        photo = decode_photo(_bytes_of(uri), _THUMBNAIL)
    except ImageError:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(photo.pixels).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _bytes_of(uri: str) -> bytes:
    shard, _, row = uri.partition(".parquet#")
    if not row:
        return storage.read_bytes(uri)
    group, offset = row.split("#")
    file = pq.ParquetFile(storage.path_of(f"{shard}.parquet"), filesystem=storage.arrow_filesystem(shard))
    data: bytes = file.read_row_group(int(group), columns=["image_bytes"])["image_bytes"][int(offset)].as_py()
    return data
