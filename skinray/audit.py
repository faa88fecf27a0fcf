"""What is wrong with a data set: a table of its photos and their duplicates -> findings. No Ray, no files.

A leak is a patient, a lesion or a photo (through its duplicates) on both sides of a split or of two folds: figures measured
across it are too high. Everything else found here is worth knowing and stops nothing.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import sklearn.ensemble
import sklearn.metrics
import sklearn.model_selection
from pydantic import BaseModel, ConfigDict

from skinray.duplicates import Duplicates, clusters
from skinray.splits import divided_groups, names

# Listed of each kind of finding; the counts are of all.
MOST_LISTED = 10_000

# ROC-AUC of telling malignant from benign by the file alone, above which a page calls it a shortcut.
SHORTCUT_AUC = 0.6

_Groups = dict[Literal["patient", "lesion", "duplicates"], list[str | None]]

_SHORTCUT_COLUMNS = ("width_px", "height_px", "aspect_ratio", "file_bytes", "bytes_per_pixel", "jpeg_quality", "has_metadata")
_MOST_FOR_SHORTCUTS = 5_000


class _Finding(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Leak(_Finding):
    """One patient, lesion or duplicate cluster that stands on more than one side."""

    kind: Literal["patient", "lesion", "duplicates"]
    between: Literal["splits", "folds"]
    name: str
    sides: tuple[str, ...]
    image_ids: tuple[str, ...]


class Conflict(_Finding):
    """Photos that show the same (or one lesion) under different labels."""

    kind: Literal["lesion", "duplicates"]
    name: str
    labels: tuple[str, ...]
    image_ids: tuple[str, ...]


class Pair(_Finding):
    """Two photos that show the same."""

    kind: Literal["exact", "near", "listed"]
    image_ids: tuple[str, str]
    labels: tuple[str, str]
    splits: tuple[str, str]
    similarity: float | None


class Shortcut(_Finding):
    """How well something about the file, not the lesion, tells malignant from benign: ROC-AUC, 0.5 is chance."""

    feature: str
    roc_auc: float


class Audit(_Finding):
    """All findings on one data set.

    The lists hold the first `MOST_LISTED`; `counts` counts all.
    """

    photos: int
    counts: dict[str, int]
    leak_counts: dict[str, int]
    class_counts: dict[str, dict[str, int]]
    sizes: dict[str, int]
    missing: dict[str, float]
    shortcuts: tuple[Shortcut, ...]
    leaks: tuple[Leak, ...]
    conflicts: tuple[Conflict, ...]
    pairs: tuple[Pair, ...]
    unreadable: tuple[dict[str, str], ...]

    def summary(self) -> list[str]:
        """The findings in a few lines for a person."""
        counts = self.counts
        lines = [
            f"{self.photos:,} photos, {counts['unreadable']:,} unreadable",
            f"{counts['exact_pairs']:,} exact and {counts['near_pairs']:,} near duplicate pairs, "
            f"{counts['clusters']:,} clusters of {counts['photos_in_clusters']:,} photos",
            f"{counts['conflicts_duplicates']:,} clusters and {counts['conflicts_lesion']:,} lesions with contradicting labels",
        ]
        lines += [f"LEAK: {count:,} {what}" for what, count in self.leak_counts.items()]
        return lines if self.leak_counts else [*lines, "no leaks"]


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
    number = clusters(len(photos), duplicates.pairs)
    sizes = np.bincount(number, minlength=1)
    groups: _Groups = {
        "patient": names(photos["patient_id"]),
        "lesion": names(photos["lesion_id"]),
        "duplicates": [f"cluster {one}" if sizes[one] > 1 else None for one in number.tolist()],
    }
    leaks = _leaks(photos, groups)
    conflicts = _conflicts(photos, groups)
    kinds = Counter(duplicates.kinds.tolist())
    return Audit(
        photos=len(photos),
        counts={
            "unreadable": len(unreadable),
            **{f"{kind}_pairs": kinds[kind] for kind in ("exact", "near", "listed")},
            "clusters": int((sizes > 1).sum()),
            "photos_in_clusters": int(sizes[sizes > 1].sum()),
            **{f"conflicts_{kind}": sum(one.kind == kind for one in conflicts) for kind in ("duplicates", "lesion")},
            "leaks": len(leaks),
        },
        leak_counts=count_leaks(leaks),
        class_counts=_class_counts(photos),
        sizes={str(size): int(count) for size, count in _size_names(photos).value_counts().head(20).items()},
        missing={column: _missing(photos[column]) for column in ("patient_id", "lesion_id", "age", "sex", "site")},
        shortcuts=_shortcuts(photos, groups, malignant),
        leaks=tuple(leaks[:MOST_LISTED]),
        conflicts=tuple(conflicts[:MOST_LISTED]),
        pairs=_pairs(photos, duplicates),
        unreadable=tuple(unreadable[:MOST_LISTED]),
    )


def count_leaks(leaks: Sequence[Leak]) -> dict[str, int]:
    """How many of each kind, in words: "lesions across splits" -> 3."""
    plural = {"patient": "patients", "lesion": "lesions", "duplicates": "duplicate clusters"}
    return dict(sorted(Counter(f"{plural[leak.kind]} across {leak.between}" for leak in leaks).items()))


def _leaks(photos: pd.DataFrame, groups: _Groups) -> list[Leak]:
    found: list[Leak] = []
    splits = names(photos["split"])
    folds = [None if pd.isna(fold) else f"fold {fold}" for fold in photos["fold"]]
    sides_of: dict[Literal["splits", "folds"], list[str | None]] = {"splits": splits, "folds": folds}
    for between, sides in sides_of.items():
        for kind, members in groups.items():
            within = [name if side is not None else None for name, side in zip(members, sides, strict=True)]
            for name, rows in _members(within, divided_groups(within, sides)).items():
                found.append(
                    Leak(
                        kind=kind,
                        between=between,
                        name=name,
                        sides=tuple(sorted({str(sides[row]) for row in rows})),
                        image_ids=tuple(photos["image_id"].iloc[rows]),
                    )
                )
    return found


def _conflicts(photos: pd.DataFrame, groups: _Groups) -> list[Conflict]:
    labels = photos["label"].tolist()
    kinds: tuple[Literal["duplicates", "lesion"], ...] = ("duplicates", "lesion")
    return [
        Conflict(
            kind=kind,
            name=name,
            labels=tuple(sorted({labels[row] for row in rows})),
            image_ids=tuple(photos["image_id"].iloc[rows]),
        )
        for kind in kinds
        for name, rows in _members(groups[kind], divided_groups(groups[kind], labels)).items()
    ]


def _members(groups: Sequence[str | None], wanted: Sequence[str]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {name: [] for name in wanted}
    for row, name in enumerate(groups):
        if name in members:
            members[name].append(row)
    return members


def _class_counts(photos: pd.DataFrame) -> dict[str, dict[str, int]]:
    splits = pd.Series([split or "all" for split in names(photos["split"])], index=photos.index)
    table = pd.crosstab(photos["label"], splits)
    return {str(split): {str(label): int(count) for label, count in table[split].items()} for split in table.columns}


def _size_names(photos: pd.DataFrame) -> "pd.Series[Any]":
    return photos["width_px"].astype(str) + "x" + photos["height_px"].astype(str)


def _missing(column: "pd.Series[Any]") -> float:
    return round(float(column.isna().mean()), 4) if len(column) else 0.0


def _pairs(photos: pd.DataFrame, duplicates: Duplicates) -> tuple[Pair, ...]:
    ids, labels = photos["image_id"].tolist(), photos["label"].tolist()
    splits = [split or "" for split in names(photos["split"])]
    listed = zip(duplicates.pairs.tolist(), duplicates.kinds.tolist(), duplicates.similarity.tolist(), strict=True)
    return tuple(
        Pair(
            kind=kind,
            image_ids=(ids[one], ids[other]),
            labels=(labels[one], labels[other]),
            splits=(splits[one], splits[other]),
            similarity=None if similarity != similarity else round(similarity, 4),
        )
        for ((one, other), kind, similarity), _ in zip(listed, range(MOST_LISTED), strict=False)
    )


def _shortcuts(photos: pd.DataFrame, groups: _Groups, malignant: Sequence[str]) -> tuple[Shortcut, ...]:
    """Each file feature by itself, and all of them through a boosted tree in cross-validation that keeps groups together."""
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
        area = float(sklearn.metrics.roc_auc_score(positive, features[name]))
        found.append(Shortcut(feature=name, roc_auc=round(max(area, 1 - area), 4)))
    # The patient, else the lesion, else the duplicate cluster, else the photo itself.
    own = [next((own_name for members in groups.values() if (own_name := members[row])), f"photo {row}") for row in chosen]
    found.append(Shortcut(feature="all of them together", roc_auc=_grouped_auc(features, positive, own)))
    return tuple(sorted(found, key=lambda one: -one.roc_auc))


def _grouped_auc(features: pd.DataFrame, positive: npt.NDArray[np.bool_], groups: Sequence[str]) -> float:
    folds = sklearn.model_selection.StratifiedGroupKFold(5, shuffle=True, random_state=0)
    tree = sklearn.ensemble.HistGradientBoostingClassifier(max_iter=50, max_depth=4, random_state=0)
    scores = sklearn.model_selection.cross_val_predict(
        tree, features.to_numpy(), positive, groups=pd.factorize(np.array(groups))[0], cv=folds, method="predict_proba"
    )
    return round(float(sklearn.metrics.roc_auc_score(positive, scores[:, 1])), 4)
