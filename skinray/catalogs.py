"""Readers of published data sets: each turns one layout into the same catalog, one row a photo.

A catalog is a pandas table with the columns of `CATALOG_COLUMNS`. `diagnosis` is a code of `skinray.taxonomy`; what a
data set does not say is None.
"""

import io
import posixpath
from collections.abc import Callable, Mapping

import pandas as pd

from skinray import storage
from skinray.config import CatalogName
from skinray.errors import CatalogError
from skinray.images import SUFFIXES
from skinray.taxonomy import DIAGNOSES

CATALOG_COLUMNS = ("image_id", "image_uri", "image_bytes", "diagnosis", "lesion_id", "patient_id", "age", "sex", "site", "source")


def read_catalog(name: CatalogName, source: str) -> pd.DataFrame:
    """Reads a data set's own metadata and finds its photos.

    Args:
        name: The layout.
        source: Folder or s3:// prefix that holds the data set.

    Returns:
        One row a photo, sorted by image_id, with `CATALOG_COLUMNS`: image_uri is absolute, image_bytes the file's size
        in bytes, age in years (float, NaN when unknown), the others str or None.

    Raises:
        CatalogError: The metadata file, a column or a photo is missing, an image_id stands twice, or a diagnosis is unknown.
        StorageError: The source cannot be read.
    """
    catalog = _READERS[name](source)
    if catalog.empty:
        raise CatalogError(f"{source}: the {name} catalog lists no photos")
    repeated = catalog["image_id"][catalog["image_id"].duplicated()]
    if len(repeated):
        raise CatalogError(f"{source}: {len(repeated)} image_ids stand more than once, the first is {repeated.iloc[0]!r}")
    unknown = catalog.loc[~catalog["diagnosis"].isin(list(DIAGNOSES)), "diagnosis"].value_counts()
    if len(unknown):
        listed = ", ".join(f"{label!r} ({count} photos)" for label, count in unknown.items())
        raise CatalogError(f"{source}: unknown diagnoses {listed}; known are {', '.join(sorted(DIAGNOSES))}")
    return catalog.sort_values("image_id", ignore_index=True)[list(CATALOG_COLUMNS)]


def _read_ham10000(source: str) -> pd.DataFrame:
    """HAM10000 as published: `HAM10000_metadata.csv` (or without suffix) beside folders of `<image_id>.jpg`."""
    files = storage.list_files(source)
    metadata_path = _one_of(source, files, ("HAM10000_metadata.csv", "HAM10000_metadata"))
    metadata = _read_csv(source, metadata_path, ("lesion_id", "image_id", "dx", "age", "sex", "localization"))
    return _catalog(source, files, metadata, {"dx": "diagnosis", "localization": "site"}, "ham10000")


def _read_synthetic(source: str) -> pd.DataFrame:
    """What `skinray.synthetic.draw_dataset` writes: `metadata.csv` and `images/`."""
    files = storage.list_files(source)
    metadata_path = _one_of(source, files, ("metadata.csv",))
    columns = ("image_id", "lesion_id", "patient_id", "label", "age", "sex", "site")
    return _catalog(source, files, _read_csv(source, metadata_path, columns), {"label": "diagnosis"}, "synthetic")


_READERS: Mapping[CatalogName, Callable[[str], pd.DataFrame]] = {
    "ham10000": _read_ham10000,
    "synthetic": _read_synthetic,
}


_NOT_STATED = frozenset({"", "unknown", "NA", "nan"})


def _one_of(source: str, files: Mapping[str, int], names: tuple[str, ...]) -> str:
    for name in names:
        if name in files:
            return name
    raise CatalogError(f"{source}: no {' or '.join(names)} among its {len(files)} files; is this the right folder and --catalog?")


def _read_csv(source: str, path: str, columns: tuple[str, ...]) -> pd.DataFrame:
    uri = storage.join(source, path)
    try:
        table = pd.read_csv(io.BytesIO(storage.read_bytes(uri)), dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise CatalogError(f"{uri}: not a CSV file: {' '.join(str(error).split())}") from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise CatalogError(f"{uri}: missing columns {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    return table


def _catalog(
    source: str, files: Mapping[str, int], metadata: pd.DataFrame, renamed: Mapping[str, str], name: str
) -> pd.DataFrame:
    """Joins a metadata table with the photos found below the source, by file name without its ending."""
    photos: dict[str, str] = {}
    for path in files:
        stem, suffix = posixpath.splitext(posixpath.basename(path))
        if suffix.lower() in SUFFIXES:
            if stem in photos:
                raise CatalogError(f"{source}: two photos are called {stem}: {photos[stem]} and {path}")
            photos[stem] = path
    table = metadata.rename(columns=dict(renamed))
    table["source"] = name
    missing = [image_id for image_id in table["image_id"] if image_id not in photos]
    if missing:
        raise CatalogError(
            f"{source}: {len(missing)} of {len(table)} photos in the metadata have no file, the first is {missing[0]}"
        )
    paths = [photos[image_id] for image_id in table["image_id"]]
    table["image_uri"] = [storage.join(source, path) for path in paths]
    table["image_bytes"] = [files[path] for path in paths]
    for column in ("lesion_id", "patient_id", "sex", "site"):
        values = table[column] if column in table else [""] * len(table)
        known = [None if value in _NOT_STATED else value for value in values]
        # object, because pandas' string type would turn None into NaN, which is true.
        table[column] = pd.Series(known, index=table.index, dtype=object)
    table["age"] = pd.to_numeric(table["age"], errors="coerce").astype(float)
    return table
