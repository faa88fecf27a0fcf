"""Published layouts: where each data set writes its labels and ids, and where its photos lie. One function a layout.

A layout takes the source's files (listed once) and returns one row a photo with the values as they are written; only the
diagnosis is a code already, because some layouts choose among several columns by it. What is not as published is a
CatalogError. `skinray.catalogs` checks the rows and brings ages, sexes and empty values into one form.
"""

import io
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from skinray import storage
from skinray.config import CatalogName, CsvSettings
from skinray.errors import CatalogError
from skinray.images import SUFFIXES
from skinray.taxonomy import DIAGNOSES, MALIGNANT_DIAGNOSES, diagnosis_of, label_key

# Values that data sets write where they know nothing.
NOT_STATED = frozenset({"", "unknown", "na", "n/a", "nan", "none", "null"})

_ISIC2019_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")

_SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Files:
    """A data set's folder, listed once.

    Attributes:
        uri: The folder or prefix, absolute.
        sizes: Path below it -> size in bytes.
        csv: Which columns of a CSV say what.
        labels: The user's own labels, by their `label_key` -> diagnosis code.
    """

    uri: str
    sizes: Mapping[str, int]
    csv: CsvSettings
    labels: Mapping[str, str]

    @cached_property
    def photos(self) -> dict[str, str]:
        """The path of each photo -> its file name without the ending."""
        photos: dict[str, str] = {}
        for path in self.sizes:
            stem, dot, ending = path.rpartition("/")[2].rpartition(".")
            if dot + ending.lower() in SUFFIXES:
                photos[path] = stem
        return photos

    @cached_property
    def tables(self) -> list[str]:
        """The paths of all other files, among which the metadata are."""
        return [path for path in self.sizes if path not in self.photos]

    def diagnosis_of(self, label: str) -> str:
        """The code that the user gave a label, else the known one, else the label itself."""
        return self.labels.get(label_key(label)) or diagnosis_of(label)


@dataclass(frozen=True)
class Listing:
    """What a layout found.

    Attributes:
        rows: One row a photo: image_id, path (below the source), diagnosis (code, unknown label, or "" where there is none);
            and as far as the layout has them lesion_id, patient_id, age, sex, site, skin_type, split.
        duplicates: Pairs of image_ids that the data set itself lists as the same photo.
    """

    rows: pd.DataFrame
    duplicates: tuple[tuple[str, str], ...] = ()


def ham10000(files: Files) -> Listing:
    """HAM10000: its metadata (.csv, .tab, or without ending as Harvard Dataverse gives it) and folders of `<image_id>.jpg`."""
    path = _one_of(files, ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab"))
    table = _read_table(files, path, ("lesion_id", "image_id", "dx", "age", "sex", "localization"))
    rows = _rows(table, {"image_id": "image_id", "lesion_id": "lesion_id", "age": "age", "sex": "sex", "site": "localization"})
    return Listing(rows.assign(diagnosis=_diagnoses(files, table["dx"]), path=_by_stem(files, rows["image_id"], path)))


def isic2019(files: Files) -> Listing:
    """ISIC 2019: one-hot ground truth and metadata of Training, and of Test where both files of it are there.

    Where there is Test, Training and Test are the given split.
    """
    parts = {"train": "Training", "test": "Test"}
    if not _found(files, "ISIC_2019_Test_GroundTruth.csv"):
        del parts["test"]
    found = []
    for split, part in parts.items():
        path = _one_of(files, (f"ISIC_2019_{part}_GroundTruth.csv",))
        truth = _read_table(files, path, ("image", *_ISIC2019_CLASSES))
        metadata = _isic2019_metadata(files, part, truth["image"])
        columns = {"lesion_id": "lesion_id", "age": "age_approx", "sex": "sex", "site": "anatom_site_general"}
        rows = _rows(metadata, {"image_id": "image", **columns})
        rows["diagnosis"] = _diagnoses(files, _hot_column(truth, f"{files.uri}/{path}"))
        rows["path"] = _by_stem(files, rows["image_id"], path)
        rows["split"] = split if len(parts) > 1 else ""
        found.append(rows)
    return Listing(pd.concat(found, ignore_index=True).fillna(""))


def _isic2019_metadata(files: Files, part: str, images: pd.Series) -> pd.DataFrame:
    """The metadata of `images`, in their order."""
    path = _found(files, f"ISIC_2019_{part}_Metadata.csv")
    if path is None:
        why = "without its lesion_id, photos of one lesion cannot be kept on one side" if part == "Training" else "add it"
        raise CatalogError(
            f"{files.uri}: ISIC_2019_{part}_GroundTruth.csv is there and ISIC_2019_{part}_Metadata.csv is not: {why}; "
            "--catalog csv reads the ground truth alone, as a CSV of image and label"
        )
    columns = ("image", "age_approx", "anatom_site_general", "sex", *(("lesion_id",) if part == "Training" else ()))
    metadata = _read_table(files, path, columns)
    twice = metadata["image"][metadata["image"].duplicated()]
    if len(twice):
        raise CatalogError(f"{files.uri}/{path}: {len(twice)} images stand more than once, the first is {twice.iloc[0]!r}")
    absent = images[~images.isin(metadata["image"])]
    if len(absent):
        raise CatalogError(
            f"{files.uri}/{path}: {len(absent)} of {len(images)} images of the ground truth have no row, "
            f"the first is {absent.iloc[0]}"
        )
    return metadata.set_index("image").loc[images].reset_index()


def _hot_column(truth: pd.DataFrame, where: str) -> pd.Series:
    """The name of the one column of each row that is 1."""
    values = truth[list(_ISIC2019_CLASSES)].apply(pd.to_numeric, errors="coerce")
    wrong = truth["image"][~(((values == 1).sum(axis=1) == 1) & ((values == 0).sum(axis=1) == len(_ISIC2019_CLASSES) - 1))]
    if len(wrong):
        raise CatalogError(
            f"{where}: {len(wrong)} of {len(truth)} rows are not one 1.0 and else 0.0, the first is {wrong.iloc[0]!r}"
        )
    return pd.Series(values.idxmax(axis=1))


def isic2020(files: Files) -> Listing:
    """ISIC 2020, from Kaggle (`train.csv`) or from ISIC (ground truth, where version 2 has lesions too).

    A photo that is there as a DICOM file and as the JPEG made of it, as in Kaggle's full download, is the JPEG.
    """
    path = _one_of(files, ("ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_GroundTruth.csv", "train.csv"))
    site = "anatom_site_general_challenge"
    table = _read_table(files, path, ("image_name", "patient_id", "sex", "age_approx", site, "diagnosis", "target"))
    columns = {"image_id": "image_name", "lesion_id": "lesion_id", "patient_id": "patient_id"}
    rows = _rows(table, {**columns, "age": "age_approx", "sex": "sex", "site": site})
    malignancies = table["target"].map({"0": "benign", "0.0": "benign", "1": "malignant", "1.0": "malignant"})
    where = storage.join(files.uri, path)
    _refuse(where, table[malignancies.isna()], "target", "are neither 0 nor 1")
    codes = pd.Series(_diagnoses(files, table["diagnosis"]), index=table.index)
    stated = codes.isin([code for code in DIAGNOSES if code != "unk"])
    malignant = codes.isin(list(MALIGNANT_DIAGNOSES))
    _refuse(where, table[stated & (malignant != (malignancies == "malignant"))], "diagnosis", "contradict their target")
    rows["diagnosis"] = codes.where(stated, malignancies)
    rows["path"] = _by_stem(files, rows["image_id"], path, without_dicom=True)
    duplicates_path = _found(files, "ISIC_2020_Training_Duplicates.csv")
    if duplicates_path is None:
        return Listing(rows)
    pairs = _read_table(files, duplicates_path, ("image_name_1", "image_name_2"))
    pairs = pairs[pairs["image_name_1"].isin(rows["image_id"]) & pairs["image_name_2"].isin(rows["image_id"])]
    return Listing(rows, tuple(zip(pairs["image_name_1"], pairs["image_name_2"], strict=True)))


def _refuse(where: str, wrong: pd.DataFrame, column: str, problem: str) -> None:
    if len(wrong):
        first = wrong.iloc[0]
        raise CatalogError(
            f"{where}: {len(wrong)} rows {problem}, the first is {first['image_name']} "
            f"with {column} {first[column]!r} and target {first['target']!r}; correct it"
        )


def isic(files: Files) -> Listing:
    """The ISIC archive's export: `metadata.csv` and `<isic_id>.jpg`.

    Of the levels diagnosis_1 (benign, malignant, indeterminate) to diagnosis_5, the most specific one counts whose label has a
    code, from the user or a known one. It is trusted where diagnosis_1 says otherwise: the archive calls actinic keratosis
    indeterminate, and akiec is malignant here. Without such a level the photo is benign or malignant as diagnosis_1 says,
    and unk when that is indeterminate or nothing is stated.
    """
    path = _one_of(files, ("metadata.csv",))
    table = _read_table(files, path, ("isic_id",))
    # From the most specific to the least; `diagnosis` and `benign_malignant` are the columns of exports before 2024.
    levels = ("diagnosis_5", "diagnosis_4", "diagnosis_3", "diagnosis_2", "diagnosis", "diagnosis_1", "benign_malignant")
    stated = [level for level in levels if level in table]
    if not stated:
        raise CatalogError(
            f"{files.uri}/{path}: no column says a diagnosis; expected diagnosis_1 to diagnosis_5, or diagnosis and "
            f"benign_malignant; it has {', '.join(table.columns)}"
        )
    columns = {"lesion_id": "lesion_id", "patient_id": "patient_id", "age": "age_approx", "sex": "sex"}
    rows = _rows(table, {"image_id": "isic_id", **columns, "site": "anatom_site_general", "skin_type": "fitzpatrick_skin_type"})
    combinations = list(zip(*(table[level] for level in stated), strict=True))
    codes = {labels: _most_specific(files, labels) for labels in set(combinations)}
    rows["diagnosis"] = [codes[labels] for labels in combinations]
    rows["path"] = _by_stem(files, rows["image_id"], path)
    return Listing(rows)


def _most_specific(files: Files, labels: Sequence[str]) -> str:
    """One code for a row's levels, given from the most specific to the least."""
    stated = [label for label in labels if label.lower() not in NOT_STATED or label_key(label) in files.labels]
    codes = [files.diagnosis_of(label) for label in stated]
    for label, code in zip(stated, codes, strict=True):
        if label_key(label) in files.labels or code in set(DIAGNOSES) - {"benign", "malignant", "unk"}:
            return code
    for code in codes:
        if code in ("benign", "malignant"):
            return code
    # A label without a code stands for itself, so that the target's error names it.
    return codes[0] if codes and "unk" not in codes else "unk"


def folders(files: Files) -> Listing:
    """A folder a class: the photo's own folder is its class, and Train, Test or Valid above it is its split.

    The image_id is the path below the source, because file names repeat between classes.
    """
    above = [path.split("/")[:-1] for path in files.photos]
    outside = [path for path, names in zip(files.photos, above, strict=True) if not names or names[-1].lower() in _SPLITS]
    if outside:
        raise CatalogError(
            f"{files.uri}: {len(outside)} of {len(above)} photos lie in no class folder, the first is {outside[0]}: "
            "give the folder that holds a folder for each class, or remove these photos"
        )
    classes = [names[-1] for names in above]
    splits = [next((_SPLITS[name.lower()] for name in reversed(names) if name.lower() in _SPLITS), "") for names in above]
    paths = list(files.photos)
    columns = {"image_id": paths, "path": paths, "diagnosis": _diagnoses(files, classes), "split": splits}
    return Listing(pd.DataFrame(columns))


def csv(files: Files) -> Listing:
    """A CSV file of the user's own, whose columns the settings name."""
    names = files.csv
    path = _csv_path(files)
    ours = ("lesion_id", "patient_id", "age", "sex", "site", "skin_type", "split")
    columns = {name: column for name in ours if (column := getattr(names, name)) is not None}
    table = _read_table(files, path, (names.image, names.label, *columns.values()), hint="; --csv.* names them")
    rows = _rows(table, {"image_id": names.image, **columns})
    rows["diagnosis"] = _diagnoses(files, table[names.label])
    if "split" in rows:
        stated = [value.lower() if value.lower() not in NOT_STATED else "" for value in rows["split"]]
        strange = sorted({value for value in stated if value and value not in _SPLITS})
        if strange:
            raise CatalogError(
                f"{files.uri}/{path}: column {names.split} says {', '.join(map(repr, strange))}; "
                f"known splits are {', '.join(_SPLITS)}"
            )
        rows["split"] = [_SPLITS.get(value, "") for value in stated]
    rows["path"] = _by_path_or_name(files, rows["image_id"], path)
    return Listing(rows)


def _csv_path(files: Files) -> str:
    there = [path for path in files.tables if posixpath.splitext(path)[1].lower() in (".csv", ".tsv", ".tab")]
    if files.csv.file is not None:
        wanted = posixpath.normpath(files.csv.file)
        if wanted not in files.sizes:
            raise CatalogError(f"{files.uri}: no {wanted}; CSV files there are {_first(there)}")
        return wanted
    if len(there) != 1:
        raise CatalogError(
            f"{files.uri}: {len(there)} CSV files ({_first(there)}) where one is expected; name it with --csv.file"
        )
    return there[0]


def synthetic(files: Files) -> Listing:
    """What `skinray.synthetic.draw_dataset` writes: `metadata.csv` and `images/`."""
    path = _one_of(files, ("metadata.csv",))
    ours = ("image_id", "lesion_id", "patient_id", "age", "sex", "site")
    table = _read_table(files, path, (*ours, "label"))
    rows = _rows(table, {name: name for name in ours})
    return Listing(rows.assign(diagnosis=_diagnoses(files, table["label"]), path=_by_stem(files, rows["image_id"], path)))


LAYOUTS: Mapping[CatalogName, Callable[[Files], Listing]] = {
    "ham10000": ham10000,
    "isic2019": isic2019,
    "isic2020": isic2020,
    "isic": isic,
    "folders": folders,
    "csv": csv,
    "synthetic": synthetic,
}


def _found(files: Files, name: str) -> str | None:
    """The path of the file of that name that lies nearest to the source, if there is one."""
    paths = [path for path in files.tables if posixpath.basename(path) == name]
    depth = min((path.count("/") for path in paths), default=0)
    nearest = [path for path in paths if path.count("/") == depth]
    if len(nearest) > 1:
        raise CatalogError(f"{files.uri}: {len(nearest)} files are called {name}: {_first(nearest)}; give one data set's folder")
    return nearest[0] if nearest else None


def _one_of(files: Files, names: tuple[str, ...]) -> str:
    for name in names:
        if (path := _found(files, name)) is not None:
            return path
    raise CatalogError(
        f"{files.uri}: no {' or '.join(names)} among its {len(files.sizes)} files; is this the right folder and --catalog?"
    )


def _first(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "") or "none"


def _read_table(files: Files, path: str, columns: Iterable[str], hint: str = "") -> pd.DataFrame:
    """A CSV file as text without outer spaces; a header with tabs and no commas is of a file separated by tabs."""
    uri = storage.join(files.uri, path)
    data = storage.read_bytes(uri)
    header = data.split(b"\n", 1)[0]
    separator = "\t" if b"\t" in header and b"," not in header else ","
    try:
        table = pd.read_csv(io.BytesIO(data), sep=separator, dtype=object, keep_default_na=False, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise CatalogError(f"{uri}: not a CSV file: {' '.join(str(error).split())}") from error
    if not isinstance(table.index, pd.RangeIndex):
        # pandas takes what has no header for row names, and shifts every column.
        raise CatalogError(f"{uri}: its rows have more fields than its header; quote labels that hold a {separator!r}")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise CatalogError(f"{uri}: missing columns {', '.join(missing)}; it has {', '.join(table.columns)}{hint}")
    return pd.DataFrame({column: [value.strip() for value in table[column]] for column in table.columns}, dtype=object)


def _rows(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """A table of our columns; those that the data set's table does not have stay out."""
    return pd.DataFrame({name: table[column] for name, column in columns.items() if column in table})


def _diagnoses(files: Files, labels: Iterable[str]) -> list[str]:
    written = list(labels)
    codes = {label: files.diagnosis_of(label) for label in set(written)}
    return [codes[label] for label in written]


def _by_stem(files: Files, image_ids: Iterable[str], listed_in: str, without_dicom: bool = False) -> list[str]:
    """The path of each photo by its file name without the ending, wherever it lies below the source."""
    photos = _index((stem, path) for path, stem in files.photos.items())
    return _paths(files, {image_id: photos.get(image_id, []) for image_id in image_ids}, image_ids, listed_in, without_dicom)


def _by_path_or_name(files: Files, names: Iterable[str], listed_in: str) -> list[str]:
    """The path of each photo by its path below the source or beside the CSV, its file name, or that without the ending."""
    by_name = _index((path.rpartition("/")[2], path) for path in files.photos)
    by_stem = _index((stem, path) for path, stem in files.photos.items())
    found: dict[str, list[str]] = {}
    for name in names:
        path = posixpath.normpath(name.replace("\\", "/"))
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(listed_in), path))
        exact = [candidate for candidate in (path, beside) if candidate in files.photos]
        found[name] = exact[:1] or by_name.get(path) or by_stem.get(path, [])
    return _paths(files, found, names, listed_in)


def _index(named: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    index: dict[str, list[str]] = {}
    for name, path in named:
        index.setdefault(name, []).append(path)
    return index


def _paths(
    files: Files, found: Mapping[str, list[str]], wanted: Iterable[str], listed_in: str, without_dicom: bool = False
) -> list[str]:
    """One path for each wanted photo, or the error that says which ones have none or two."""
    names = list(wanted)
    missing = [name for name in names if not found[name]]
    if missing:
        raise CatalogError(
            f"{files.uri}: {len(missing)} of {len(names)} photos in {listed_in} have no file, the first is {missing[0]!r}"
        )
    chosen = {name: paths[0] for name, paths in found.items()}
    for name, paths in found.items():
        if len(paths) == 1:
            continue
        kept = [path for path in paths if without_dicom and not path.lower().endswith((".dcm", ".dicom"))] or paths
        # HAM10000 also circulates with each folder twice: a file of the same name and size is the same photo.
        if len({(posixpath.basename(path), files.sizes[path]) for path in kept}) > 1:
            raise CatalogError(f"{files.uri}: {len(kept)} photos are called {name}: {_first(kept)}; keep one of them")
        chosen[name] = kept[0]
    return [chosen[name] for name in names]
