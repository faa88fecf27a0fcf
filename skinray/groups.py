"""Figures by age, sex, site, source, image quality: whether a model judges everybody, and every photo, equally well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from skinray.clinical import site_group
from skinray.counts import Measure, ScoreCounts, ThresholdCounts
from skinray.intervals import Estimate, Resampled
from skinray.quality import QUALITY_FLAGS
from skinray.skin_tone import TONES, tones

# Fewer photos of a kind than this give no figure that says anything about a group.
LEAST_PHOTOS = 10
# A group that is further below all photos than this is a warning.
LARGE_GAP = 0.05
# Scores are told apart less finely within groups, of which there are many: the ROC-AUC moves by less than 1e-5.
_BINS = 1 << 12
_AGES_YEARS = (30.0, 45.0, 60.0, 75.0)
_AGE_NAMES = ("under 30", "30 to 44", "45 to 59", "60 to 74", "75 and over")
UNKNOWN = "unknown"
# What a warning says whose interval holds 0.
BY_CHANCE = "; chance alone could make such a gap"
# Names of measures of groups start so.
GROUPS = "group "
# Groups stand in this order, others by their name before them.
_ORDER = (*_AGE_NAMES, *(name for _, name in TONES), UNKNOWN)


@dataclass(frozen=True)
class Group:
    """The photos of one group, and how well they are judged.

    Attributes:
        attribute: By what they were grouped.
        name: Of the group.
        photos: How many.
        malignant: How many of them are malignant.
        figures: roc_auc, recall (sensitivity) and specificity; None where there are too few photos.
        gaps: By how much each lies above that of all photos, with its interval.
    """

    attribute: str
    name: str
    photos: int
    malignant: int
    figures: Mapping[str, Estimate | None]
    gaps: Mapping[str, Estimate | None]

    def warnings(self) -> list[str]:
        """What is more than LARGE_GAP worse here than on all photos, in words."""
        found = []
        for name, gap in self.gaps.items():
            figure = self.figures[name]
            if gap is None or figure is None or gap.value >= -LARGE_GAP:
                continue
            sure = "" if gap.high < 0 else BY_CHANCE
            found.append(
                f"{self.attribute} {self.name}: {_WORDS[name]} {figure.value:.3f}, {-gap.value:.3f} below all photos "
                f"({-gap.high:.3f} to {-gap.low:.3f}{sure})"
            )
        return found


_WORDS = {"roc_auc": "ROC-AUC", "recall": "sensitivity", "specificity": "specificity"}


def in_short(warnings: Sequence[str]) -> list[str]:
    """Warnings for a person: what chance does not explain first, one line each, and the rest in one line.

    Args:
        warnings: As `Group.warnings` words them, and others.
    """
    sure = [warning for warning in warnings if BY_CHANCE not in warning]
    doubtful = [warning.split(" below all photos")[0] + " below" for warning in warnings if BY_CHANCE in warning]
    return [*sure, *([f"gaps that chance alone could make: {'; '.join(doubtful)}"] if doubtful else [])]


def age_bands(age_years: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.str_]:
    """The band of each age, str [N].

    Args:
        age_years: float [N], NaN where unknown.
    """
    bands = np.array(_AGE_NAMES)[np.digitize(age_years, _AGES_YEARS)]
    return np.where(np.isnan(age_years), UNKNOWN, bands)


def attributes_of(photos: pd.DataFrame) -> dict[str, npt.NDArray[np.str_]]:
    """What photos are grouped by.

    Args:
        photos: One row a photo with age (years), sex, site, skin_type, source, ita_degrees and the flags of `skinray.quality`;
            what is missing may be anything that pandas takes for it.

    Returns:
        Attribute -> the group of each photo, str [N]; attributes of a single group, and quality flags that few photos have, are
        left out. Skin tone is estimated from the photos where the data set states no skin type.
    """
    skin = _texts(photos["skin_type"])
    estimated = tones(photos["ita_degrees"].to_numpy(np.float64, na_value=np.nan))
    known = {
        "age": age_bands(photos["age"].to_numpy(np.float64, na_value=np.nan)),
        "sex": _texts(photos["sex"]),
        "site": np.array([site_group(site) or UNKNOWN for site in _texts(photos["site"])]),
        "source": _texts(photos["source"]),
        **({"skin type": skin} if set(skin) - {UNKNOWN} else {"estimated skin tone": estimated}),
    }
    flagged = {name: photos[name].to_numpy(bool, na_value=False) for name in QUALITY_FLAGS if name in photos}
    known |= {name: np.where(has, "yes", "no") for name, has in flagged.items() if has.sum() >= LEAST_PHOTOS}
    return {name: groups for name, groups in known.items() if len(set(groups) - {UNKNOWN}) > 1}


def _place(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else -1, name)


def _texts(column: "pd.Series[Any]") -> npt.NDArray[np.str_]:
    texts = column.astype(object).where(column.notna(), "").astype(str).to_numpy(str)
    return np.where(texts == "", UNKNOWN, texts)


def group_measures(
    attributes: Mapping[str, npt.NDArray[np.str_]],
    positive: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.floating[Any]],
    flagged: npt.NDArray[np.bool_],
) -> list[Measure]:
    """What to count for the figures of every group of every attribute, under names that `judged_groups` knows.

    Args:
        attributes: Attribute -> the group of each photo, str [N].
        positive: bool [N], malignant.
        scores: float [N].
        flagged: bool [N], at the operating point.
    """
    return [
        measure
        for attribute, groups in attributes.items()
        for name in sorted(set(groups.tolist()))
        for rows in [np.flatnonzero(groups == name)]
        for measure in (
            Measure(_measure_name(attribute, name), ScoreCounts(positive[rows], scores[rows], _BINS), rows),
            Measure(_measure_name(attribute, name), ThresholdCounts(positive[rows], flagged[rows]), rows),
        )
    ]


def judged_groups(
    attributes: Mapping[str, npt.NDArray[np.str_]],
    positive: npt.NDArray[np.bool_],
    found: Mapping[str, Resampled],
    overall: Mapping[str, Resampled],
) -> list[Group]:
    """Figures of every group of every attribute, and how far they are from those of all photos.

    Args:
        attributes: Attribute -> the group of each photo, str [N].
        positive: bool [N], malignant.
        found: Figures of `group_measures`.
        overall: roc_auc, recall and specificity of all photos, in the same draws.
    """
    judged = []
    for attribute, groups in attributes.items():
        for name in sorted(set(groups.tolist()), key=_place):
            photos, malignant = int((groups == name).sum()), int(positive[groups == name].sum())
            enough = {
                "roc_auc": min(malignant, photos - malignant) >= LEAST_PHOTOS,
                "recall": malignant >= LEAST_PHOTOS,
                "specificity": photos - malignant >= LEAST_PHOTOS,
            }
            mine = {figure: found[f"{_measure_name(attribute, name)}.{figure}"] for figure in enough}
            judged.append(
                Group(
                    attribute=attribute,
                    name=name,
                    photos=photos,
                    malignant=malignant,
                    figures={figure: mine[figure].estimate() if enough[figure] else None for figure in enough},
                    gaps={figure: (mine[figure] - overall[figure]).estimate() if enough[figure] else None for figure in enough},
                )
            )
    return judged


def _measure_name(attribute: str, group: str) -> str:
    return f"{GROUPS}{attribute} {group}"
