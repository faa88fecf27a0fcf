"""What is wrong with a data set: a table of its photos and their duplicates -> findings. No Ray, no files.

A leak is a patient, a lesion or a photo (through its duplicates) on both sides of a split or of two folds: figures measured
across it are too high. Everything else found here is worth knowing and stops nothing.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict

from skinray.duplicates import Duplicates, clusters
from skinray.splits import divided_groups, lesion_names, names

# Listed of each kind of finding, and of the photos of one; the counts are of all.
MOST_LISTED = 2_000
MOST_PHOTOS = 100

# ROC-AUC of telling malignant from benign by the file alone, above which a page calls it a shortcut.
SHORTCUT_AUC = 0.6

PLURALS = {"patient": "patients", "lesion": "lesions", "duplicates": "duplicate clusters"}

_Kind = Literal["patient", "lesion", "duplicates"]
_ConflictKind = Literal["lesion", "duplicates"]
_Side = TypeVar("_Side", str, int)

_SPLIT_ORDER: tuple[object, ...] = ("train", "validation", "test")
_SHORTCUT_COLUMNS = ("width_px", "height_px", "aspect_ratio", "file_bytes", "bytes_per_pixel", "jpeg_quality", "has_metadata")
_MOST_FOR_SHORTCUTS = 5_000
_CROSS_VALIDATION = 5


class _Finding(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PhotoFact(_Finding):
    """A photo of a finding, and where it stands."""

    image_id: str
    label: str
    split: str | None
    fold: int | None
    lesion_id: str | None = None
    patient_id: str | None = None


class Leak(_Finding):
    """One patient, lesion or duplicate cluster that stands on more than one side.

    `photos` begins with the first photo of each of `sides`, in their order, and holds `MOST_PHOTOS` at most of `photo_count`.
    """

    kind: _Kind
    between: Literal["splits", "folds"]
    name: str
    sides: tuple[str, ...]
    photos: tuple[PhotoFact, ...]
    photo_count: int


class Conflict(_Finding):
    """Photos that show the same (or one lesion) under different labels; `photos` is as in a leak, with labels for sides."""

    kind: _ConflictKind
    name: str
    labels: tuple[str, ...]
    photos: tuple[PhotoFact, ...]
    photo_count: int


class Pair(_Finding):
    """Two photos that show the same; `ids_differ` if the data set calls them two lesions or two patients."""

    kind: Literal["exact", "near", "listed"]
    photos: tuple[PhotoFact, PhotoFact]
    similarity: float | None
    ids_differ: bool = False


class Shortcut(_Finding):
    """How well something about the file, not the lesion, tells malignant from benign: ROC-AUC, 0.5 is chance."""

    feature: str
    roc_auc: float


class Audit(_Finding):
    """All findings on one data set.

    The lists hold the first `MOST_LISTED` of each kind; all numbers are of all.

    Attributes:
        leak_counts: What stands across what, such as "lesions across splits" -> how many; empty where nothing leaks.
        leaked_photos: Split -> photos that have their patient, their lesion or a duplicate in another split.
        contradicted_photos: Label -> photos of which a duplicate, or another photo of the lesion, has another label.
        class_counts: Split ("all" for photos in none) -> label -> photos.
        sizes: The most frequent sizes, such as "600x450" -> photos.
        missing: Column -> share of the photos without it.
    """

    photos: int
    counts: dict[str, int]
    leak_counts: dict[str, int]
    leaked_photos: dict[str, int]
    contradicted_photos: dict[str, int]
    class_counts: dict[str, dict[str, int]]
    sizes: dict[str, int]
    missing: dict[str, float]
    shortcuts: tuple[Shortcut, ...]
    leaks: tuple[Leak, ...]
    conflicts: tuple[Conflict, ...]
    pairs: tuple[Pair, ...]
    unreadable: tuple[dict[str, str], ...]

    def encoded(self) -> bytes:
        """The findings as indented JSON."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    def summary(self) -> list[str]:
        """The findings in a few lines for a person."""
        counts = self.counts
        contradicting = [plural(counts["conflicts_duplicates"], "cluster"), plural(counts["conflicts_lesion"], "lesion")]
        lines = [
            f"{plural(self.photos, 'photo')}, {counts['unreadable']:,} unreadable",
            f"{counts['exact_pairs']:,} exact and {counts['near_pairs']:,} near duplicate pairs, "
            f"{plural(counts['clusters'], 'cluster')} of {plural(counts['photos_in_clusters'], 'photo')}",
            f"{' and '.join(contradicting)} with contradicting labels",
        ]
        if counts["pairs_under_two_ids"]:
            lines.append(f"{plural(counts['pairs_under_two_ids'], 'duplicate pair')} under two lesion_ids or patient_ids")
        lines += [f"LEAK: {words}" for words in leaks_in_words(self.leak_counts)]
        return lines if self.leak_counts else [*lines, "no leaks"]


def plural(count: int, one: str, many: str = "") -> str:
    """The number with its noun: "1 photo", "2,000 photos"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def leaks_in_words(leak_counts: Mapping[str, int]) -> list[str]:
    """One phrase for each kind of leak: "1 lesion across splits", "18 duplicate clusters across splits"."""
    return [plural(count, what.replace("s across ", " across "), what) for what, count in leak_counts.items()]


@dataclass(frozen=True)
class _Photos:
    """Where each photo stands, as lists: to reach a row of a table takes a thousand times longer."""

    image_ids: list[str]
    labels: list[str]
    splits: list[str | None]
    folds: list[int | None]
    lesion_ids: list[str | None]
    patient_ids: list[str | None]

    def facts(self, rows: Iterable[int]) -> tuple[PhotoFact, ...]:
        """What is known of some rows."""
        return tuple(
            PhotoFact(
                image_id=self.image_ids[row],
                label=self.labels[row],
                split=self.splits[row],
                fold=self.folds[row],
                lesion_id=self.lesion_ids[row],
                patient_id=self.patient_ids[row],
            )
            for row in rows
        )

    def ids_differ(self, rows: Sequence[int]) -> bool:
        """Whether two rows name two lesions or two patients."""
        one, other = rows
        return any(ids[one] and ids[other] and ids[one] != ids[other] for ids in (self.lesion_ids, self.patient_ids))


# Names of what is divided, in the order of their first photos -> rows.
_Divided = dict[str, list[int]]


def examine(
    photos: pd.DataFrame, duplicates: Duplicates, unreadable: Sequence[dict[str, str]], malignant: Sequence[str]
) -> Audit:
    """Looks for leaks, contradicting labels, shortcuts and gaps.

    Args:
        photos: One row a photo: image_id, label, split and fold (None where there is none), patient_id, lesion_id, age, sex,
            site, width_px, height_px, file_bytes, jpeg_quality, removed (metadata that was found).
        duplicates: Pairs by row position.
        unreadable: One a photo that could not be decoded: image_id, error_code, error_detail.
        malignant: The labels that are malignant.
    """
    known = _Photos(
        photos["image_id"].tolist(),
        photos["label"].tolist(),
        names(photos["split"]),
        [None if pd.isna(fold) else int(fold) for fold in photos["fold"]],
        lesion_names(names(photos["lesion_id"]), names(photos["patient_id"])),
        names(photos["patient_id"]),
    )
    number = clusters(len(photos), duplicates.pairs)
    sizes = np.bincount(number, minlength=1)
    groups: dict[_Kind, list[str | None]] = {
        "patient": known.patient_ids,
        "lesion": known.lesion_ids,
        "duplicates": _cluster_names(number, sizes),
    }
    across_splits = {kind: _divided(members, known.splits) for kind, members in groups.items()}
    across_folds = {kind: _divided(members, known.folds) for kind, members in groups.items()}
    contradicting: dict[_ConflictKind, _Divided] = {
        "duplicates": _divided(groups["duplicates"], known.labels),
        "lesion": _divided(groups["lesion"], known.labels),
    }
    leak_counts = {
        f"{PLURALS[kind]} across {between}": len(found)
        for between, across in (("splits", across_splits), ("folds", across_folds))
        for kind, found in across.items()
        if found
    }
    kinds = Counter(duplicates.kinds.tolist())
    return Audit(
        photos=len(photos),
        counts={
            "unreadable": len(unreadable),
            **{f"{kind}_pairs": kinds[kind] for kind in ("exact", "near", "listed")},
            "pairs_under_two_ids": sum(map(known.ids_differ, duplicates.pairs.tolist())),
            "clusters": int((sizes > 1).sum()),
            "photos_in_clusters": int(sizes[sizes > 1].sum()),
            **{f"conflicts_{kind}": len(found) for kind, found in contradicting.items()},
            "leaks": sum(leak_counts.values()),
        },
        leak_counts=dict(sorted(leak_counts.items())),
        leaked_photos=_count_photos(across_splits.values(), known.splits),
        contradicted_photos=_count_photos(contradicting.values(), known.labels),
        class_counts=_class_counts(known),
        sizes={str(size): int(count) for size, count in _size_names(photos).value_counts().head(20).items()},
        missing={column: _missing(photos[column]) for column in ("patient_id", "lesion_id", "age", "sex", "site")},
        shortcuts=_shortcuts(photos, groups, malignant),
        leaks=(*_leaks(known, across_splits, "splits"), *_leaks(known, across_folds, "folds")),
        conflicts=tuple(_conflicts(known, contradicting)),
        pairs=_pairs(known, duplicates),
        unreadable=tuple(unreadable[:MOST_LISTED]),
    )


def _cluster_names(number: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> list[str | None]:
    """Clusters count from 1 in the order of their first photos; a photo without a duplicate is in none."""
    rank = np.cumsum(sizes > 1)
    return [f"cluster {rank[one]}" if sizes[one] > 1 else None for one in number.tolist()]


def _divided(groups: Sequence[str | None], sides: Sequence[_Side | None]) -> _Divided:
    """The rows of each group that stands on more than one side. None is no group, and no side."""
    rows = [row for row, side in enumerate(sides) if side is not None]
    wanted = set(divided_groups([groups[row] for row in rows], [sides[row] for row in rows]))
    found: _Divided = defaultdict(list)
    for row in rows:
        name = groups[row]
        if name in wanted:
            found[name].append(row)
    return found


def _count_photos(divided: Iterable[_Divided], sides: Sequence[str | None]) -> dict[str, int]:
    """How many photos of each side the findings have, each photo once."""
    rows = {row for found in divided for members in found.values() for row in members}
    counts = Counter(side for row in rows if (side := sides[row]) is not None)
    return {side: counts[side] for side in _in_order(counts)}


def _in_order(sides: Iterable[_Side]) -> list[_Side]:
    """Train, validation, test; anything else as numbers and words are ordered."""
    return sorted(sides, key=lambda side: (_SPLIT_ORDER.index(side) if side in _SPLIT_ORDER else len(_SPLIT_ORDER), side))


def _sides_first(rows: Sequence[int], sides: Sequence[_Side | None]) -> tuple[list[_Side], list[int]]:
    """The sides that rows stand on; and the first row of each, then the other rows, as many as are listed."""
    first: dict[_Side, int] = {}
    for row in rows:
        side = sides[row]
        if side is not None:
            first.setdefault(side, row)
    ordered: list[_Side] = _in_order(first)
    return ordered, list(dict.fromkeys([*(first[side] for side in ordered), *rows]))[:MOST_PHOTOS]


def _leaks(known: _Photos, across: Mapping[_Kind, _Divided], between: Literal["splits", "folds"]) -> Iterator[Leak]:
    for kind, found in across.items():
        for name, rows in itertools.islice(found.items(), MOST_LISTED):
            if between == "splits":
                sides, listed = _sides_first(rows, known.splits)
            else:
                folds, listed = _sides_first(rows, known.folds)
                sides = [f"fold {fold}" for fold in folds]
            yield Leak(
                kind=kind,
                between=between,
                name=name,
                sides=tuple(sides),
                photos=known.facts(listed),
                photo_count=len(rows),
            )


def _conflicts(known: _Photos, contradicting: Mapping[_ConflictKind, _Divided]) -> Iterator[Conflict]:
    for kind, found in contradicting.items():
        for name, rows in itertools.islice(found.items(), MOST_LISTED):
            labels, listed = _sides_first(rows, known.labels)
            yield Conflict(kind=kind, name=name, labels=tuple(labels), photos=known.facts(listed), photo_count=len(rows))


def _pairs(known: _Photos, duplicates: Duplicates) -> tuple[Pair, ...]:
    """Those under two ids first: they are the ones to look at."""
    found = list(zip(duplicates.pairs.tolist(), duplicates.kinds.tolist(), duplicates.similarity.tolist(), strict=True))
    found.sort(key=lambda one: not known.ids_differ(one[0]))
    return tuple(
        Pair(
            kind=kind,
            photos=known.facts(rows),
            similarity=None if similarity != similarity else round(similarity, 4),
            ids_differ=known.ids_differ(rows),
        )
        for rows, kind, similarity in found[:MOST_LISTED]
    )


def _class_counts(known: _Photos) -> dict[str, dict[str, int]]:
    labels = sorted(set(known.labels))
    counts = Counter(zip((split or "all" for split in known.splits), known.labels, strict=True))
    splits = _in_order({split for split, _ in counts})
    return {split: {label: counts[split, label] for label in labels} for split in splits}


def _size_names(photos: pd.DataFrame) -> "pd.Series[Any]":
    return photos["width_px"].astype(str) + "x" + photos["height_px"].astype(str)


def _missing(column: "pd.Series[Any]") -> float:
    return float(column.isna().mean()) if len(column) else 0.0


def _shortcuts(photos: pd.DataFrame, groups: Mapping[_Kind, list[str | None]], malignant: Sequence[str]) -> tuple[Shortcut, ...]:
    """Each file feature by itself, and all of them through a boosted tree in cross-validation that keeps groups together."""
    from sklearn.metrics import roc_auc_score  # here, because it takes a second that the workers need not spend

    chosen = np.arange(len(photos))
    if len(chosen) > _MOST_FOR_SHORTCUTS:
        chosen = np.random.default_rng(0).choice(chosen, _MOST_FOR_SHORTCUTS, replace=False)
    some = photos.iloc[chosen]
    positive = some["label"].isin(list(malignant)).to_numpy()
    pixels = np.maximum(1, some["width_px"].to_numpy(float) * some["height_px"].to_numpy(float))
    features = pd.DataFrame(
        {
            "width_px": some["width_px"],
            "height_px": some["height_px"],
            "aspect_ratio": some["width_px"] / some["height_px"].clip(lower=1),
            "file_bytes": some["file_bytes"],
            "bytes_per_pixel": some["file_bytes"] / pixels,
            "jpeg_quality": some["jpeg_quality"],
            "has_metadata": some["removed"] != "",
        }
    ).astype(float)
    if min(positive.sum(), (~positive).sum()) < 20:
        return ()  # too few of a kind for a figure that means anything
    found = []
    for name in _SHORTCUT_COLUMNS:
        area = float(roc_auc_score(positive, features[name]))
        found.append(Shortcut(feature=name, roc_auc=round(max(area, 1 - area), 4)))
    # The patient, else the lesion, else the duplicate cluster, else the photo itself.
    own = [
        next((f"{kind} {members[row]}" for kind, members in groups.items() if members[row]), f"photo {row}")
        for row in chosen.tolist()
    ]
    sides = [{group for group, sick in zip(own, positive, strict=True) if sick == side} for side in (True, False)]
    if min(map(len, sides)) >= _CROSS_VALIDATION:  # else a fold would lack one of the two
        found.append(Shortcut(feature="all of them together", roc_auc=_grouped_auc(features, positive, own)))
    return tuple(sorted(found, key=lambda one: -one.roc_auc))


def _grouped_auc(features: pd.DataFrame, positive: npt.NDArray[np.bool_], groups: Sequence[str]) -> float:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    folds = StratifiedGroupKFold(_CROSS_VALIDATION, shuffle=True, random_state=0)
    tree = HistGradientBoostingClassifier(max_iter=50, max_depth=4, random_state=0)
    scores = cross_val_predict(
        tree, features.to_numpy(), positive, groups=pd.factorize(np.array(groups))[0], cv=folds, method="predict_proba"
    )
    return round(float(roc_auc_score(positive, scores[:, 1])), 4)
