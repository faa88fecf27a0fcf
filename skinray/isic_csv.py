"""Predictions as the ISIC challenges took them: a CSV with one line a photo.

Sources: ISIC 2018 task 3 and 2019 (image, then a column a diagnosis), ISIC 2020 (image_name, target); https://challenge.isic-archive.com
"""

import posixpath

import pandas as pd

from skinray.bundle import Labels

# The order in which ISIC 2018 and 2019 have their diagnoses; others follow in the bundle's order.
_ORDER = ("MEL", "NV", "BCC", "AKIEC", "AK", "BKL", "DF", "VASC", "SCC")


def isic_table(rows: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """Prediction rows in the challenges' layout.

    Args:
        rows: Rows of `skinray.predictions.prediction_schema`.
        labels: Of the bundle that gave them.

    Returns:
        A line a photo, named by its file without folder and ending. For a bundle that tells malignant from benign alone
        image_name and target, the malignancy score, as ISIC 2020; else image and a probability a class, as ISIC 2018 and 2019.
        A photo without a score has none here either.
    """
    names = [posixpath.splitext(posixpath.basename(name))[0] for name in rows["image_id"]]
    if set(labels.codes) == {"benign", "malignant"}:
        return pd.DataFrame({"image_name": names, "target": rows["malignancy_score"].to_numpy()})
    columns = {code.upper(): rows[f"prob_{code}"].to_numpy() for code in labels.codes}
    order = sorted(columns, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    return pd.DataFrame({"image": names, **{name: columns[name] for name in order}})
