"""Predictions as the ISIC challenges took them: a CSV with one line a photo.

Sources: ISIC 2018 task 3 and 2019 (image, then a column a diagnosis), ISIC 2020 (image_name, target); https://challenge.isic-archive.com
"""

import posixpath
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from skinray.bundle import Labels
from skinray.images import SUFFIXES
from skinray.telemetry import say

# The order in which ISIC 2018 and 2019 have their diagnoses; others follow in the bundle's order.
_ORDER = ("MEL", "NV", "BCC", "AKIEC", "AK", "BKL", "DF", "VASC", "SCC")


def isic_names(image_ids: Sequence[str]) -> list[str]:
    """What the challenges' files call photos: their files without folder and ending; the whole image_id of those that would have
    one name, which is said."""
    names = [_without_ending(posixpath.basename(image_id)) for image_id in image_ids]
    counts = Counter(names)
    repeated = sum(count for count in counts.values() if count > 1)
    if repeated:
        say(f"skinray: _isic.csv has the whole image_id of {repeated:,} photos, because others have the same file name")
    return [name if counts[name] == 1 else image_id for name, image_id in zip(names, image_ids, strict=True)]


def _without_ending(name: str) -> str:
    stem, ending = posixpath.splitext(name)
    return stem if ending.lower() in SUFFIXES else name


def isic_table(names: Sequence[str], rows: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """Prediction rows in the challenges' layout.

    Args:
        names: Of the photos, by `isic_names` of all that are in the file.
        rows: Rows of `skinray.predictions.prediction_schema`, as many.
        labels: Of the bundle that gave them.

    Returns:
        A line a photo. For a bundle that tells malignant from benign alone image_name and target, the malignancy score, as
        ISIC 2020; else image and a probability a class, as ISIC 2018 and 2019. A photo without a score has none here either.
    """
    if set(labels.codes) == {"benign", "malignant"}:
        return pd.DataFrame({"image_name": names, "target": rows["malignancy_score"].to_numpy()})
    columns = {code.upper(): rows[f"prob_{code}"].to_numpy() for code in labels.codes}
    order = sorted(columns, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    return pd.DataFrame({"image": names, **{name: columns[name] for name in order}})
