"""A published data set -> a catalog: the same table for every layout, one row a photo.

The first step of `prepare` and `audit`. `skinray.layouts` knows where each data set writes what; this module checks what
a layout found and brings it into one form. `diagnosis` is a code of `skinray.taxonomy`, or the data set's own label where
no code is known for it, which the target decides on later. What a data set does not say is None.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from skinray import file_listing, storage
from skinray.config import CatalogName, CsvSettings
from skinray.errors import CatalogError, ConfigError
from skinray.layouts import LAYOUTS, NOT_STATED, Files
from skinray.taxonomy import DIAGNOSES, diagnosis_of, label_key

CATALOG_COLUMNS = (
    "image_id", "image_uri", "image_bytes", "diagnosis", "lesion_id", "patient_id", "age", "sex", "site", "skin_type", "split",
    "source",
)  # fmt: skip

_SEXES: Mapping[str, str] = {"male": "male", "m": "male", "female": "female", "f": "female"}
# Fitzpatrick's six skin types (1988, doi:10.1001/archderm.1988.01670060015008) as numbers or numerals; and in pairs, as the DDI
# data set has them (Daneshjou et al. 2022, doi:10.1126/sciadv.abq6147).
_NUMERALS = ("I", "II", "III", "IV", "V", "VI")
_SKIN_TYPES: Mapping[str, str] = {
    **{
        written: numeral
        for number, numeral in enumerate(_NUMERALS, 1)
        for written in (str(number), f"{number}.0", numeral.lower())
    },
    "12": "I-II",
    "34": "III-IV",
    "56": "V-VI",
    **{pair.lower(): pair for pair in ("I-II", "III-IV", "V-VI")},
}


@dataclass(frozen=True)
class CatalogSource:
    """Where a data set lies and how to read it.

    Attributes:
        name: The layout.
        uri: Folder or s3:// prefix that holds the data set.
        csv: Which columns say what, for the layout "csv".
        labels: The user's own labels -> diagnosis codes, in any case and spelling; they win over what skinray knows.
    """

    name: CatalogName
    uri: str
    csv: CsvSettings = field(default_factory=CsvSettings)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Catalog:
    """What a data set says of its photos.

    Attributes:
        photos: One row a photo, sorted by image_id, with `CATALOG_COLUMNS`. image_uri is absolute; image_bytes the file's
            size in bytes; diagnosis a code, or the label as written where no code is known, never empty; age in years
            (float, NaN when unknown); sex "male", "female" or None; skin_type Fitzpatrick's, "I" to "VI", or "I-II", "III-IV",
            "V-VI" where the data set tells no more; split "train", "validation" or "test" where the data
            set came divided, else None; source the layout's name. Text columns hold str or None.
        listed_duplicates: Pairs of image_ids that the data set itself lists as the same photo.
    """

    photos: pd.DataFrame
    listed_duplicates: tuple[tuple[str, str], ...]


def read_catalog(source: CatalogSource) -> Catalog:
    """Reads a data set's own metadata and finds its photos, without opening one.

    Args:
        source: The layout, the folder or prefix, and what the user knows of its labels.

    Returns:
        The photos, and the duplicates that the data set lists itself.

    Raises:
        CatalogError: A metadata file, a column, a label or a photo is missing, or one stands twice.
        ConfigError: A label of the user's is mapped to no diagnosis code, or to two.
        StorageError: The source cannot be read.
    """
    uri = storage.normalize(source.uri)
    sizes = file_listing.list_files(uri)
    files = Files(uri, sizes, source.csv, _own_labels(source.labels))
    listing = LAYOUTS[source.name](files)
    rows = listing.rows
    if rows.empty:
        raise CatalogError(f"{uri}: the {source.name} catalog lists no photos")
    for column, what in (("image_id", "image_ids"), ("path", "photos")):
        repeated = rows[column][rows[column].duplicated()]
        if len(repeated):
            raise CatalogError(f"{uri}: {len(repeated)} {what} stand more than once, the first is {repeated.iloc[0]!r}")
    unlabelled = rows["image_id"][rows["diagnosis"] == ""]
    if len(unlabelled):
        raise CatalogError(
            f"{uri}: {len(unlabelled)} of {len(rows)} photos have no label, the first is {unlabelled.iloc[0]!r}; "
            "fill it in, or take these rows out"
        )
    # storage.join looks at the whole URI each time: once for the folder, not for every photo.
    folder = storage.join(uri, "")
    photos = pd.DataFrame(
        {
            "image_id": _text(rows["image_id"]),
            "image_uri": _text(folder + path for path in rows["path"]),
            "image_bytes": [files.sizes[path] for path in rows["path"]],
            "diagnosis": _text(rows["diagnosis"]),
            **{column: _text(_stated(rows, column)) for column in ("lesion_id", "patient_id", "site", "split")},
            "age": _ages(rows),
            "sex": _text(None if sex is None else _SEXES.get(sex.lower()) for sex in _stated(rows, "sex")),
            "skin_type": _text(_skin_types(rows, uri)),
            "source": _text([source.name] * len(rows)),
        }
    )
    return Catalog(photos.sort_values("image_id", ignore_index=True)[list(CATALOG_COLUMNS)], listing.duplicates)


def _own_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The user's labels by their key, each with a code of `DIAGNOSES`."""
    codes: dict[str, str] = {}
    for label, diagnosis in labels.items():
        code = diagnosis_of(diagnosis)
        if code not in DIAGNOSES:
            raise ConfigError(f"labels: {label!r} -> {diagnosis!r} is no diagnosis code; known are {', '.join(DIAGNOSES)}")
        if codes.setdefault(label_key(label), code) != code:
            raise ConfigError(f"labels: {label!r} stands twice in different spellings, as {codes[label_key(label)]} and {code}")
    return codes


def _text(values: Iterable[str | None]) -> "pd.Series[str]":
    # object, because pandas' string type would turn None into NaN, which is true.
    return pd.Series(list(values), dtype=object)


def _stated(rows: pd.DataFrame, column: str) -> list[str | None]:
    if column not in rows:
        return [None] * len(rows)
    known = {value: None if value.lower() in NOT_STATED else value for value in set(rows[column])}
    return [known[value] for value in rows[column]]


def _skin_types(rows: pd.DataFrame, uri: str) -> list[str | None]:
    # -1 is how Fitzpatrick17k says that it does not know.
    stated = [None if value in (None, "-1", "-1.0") else value for value in _stated(rows, "skin_type")]
    strange = sorted({value for value in stated if value is not None and value.lower() not in _SKIN_TYPES})
    if strange:
        raise CatalogError(
            f"{uri}: {', '.join(map(repr, strange[:5]))} is no skin type of Fitzpatrick's: 1 to 6, I to VI, or I-II, III-IV, V-VI"
        )
    return [None if value is None else _SKIN_TYPES[value.lower()] for value in stated]


def _ages(rows: pd.DataFrame) -> "pd.Series[float]":
    if "age" not in rows:
        return pd.Series(np.nan, index=range(len(rows)), dtype=float)
    ages = pd.to_numeric(pd.Series(list(rows["age"]), dtype=object), errors="coerce").astype(float)
    return ages.where(np.isfinite(ages) & (ages >= 0))
