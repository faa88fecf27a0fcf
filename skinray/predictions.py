"""Probabilities -> rows: the schema of every prediction that skinray writes, the operating point, the status codes.

Every input photo is exactly one row. `status` says what became of it:

    scored    it has probabilities
    failed    it could not be read or decoded; `error_code` and `error_detail` say why; it has no probabilities and no flag
    refused   it was decoded but is no photo of skin (`skinray.input_gate`); as failed, but measured
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from skinray.bundle import Bundle, Labels
from skinray.errors import ConfigError
from skinray.quality import QUALITY_FLAGS, QUALITY_MEASURES


def prediction_schema(labels: Labels) -> pa.Schema:
    """The Arrow schema of prediction rows for a bundle's classes."""
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("image_uri", pa.string()),
            ("image_sha256", pa.string()),
            ("width_px", pa.int32()),
            ("height_px", pa.int32()),
            ("label", pa.string()),
            ("patient_id", pa.string()),
            ("lesion_id", pa.string()),
            ("age", pa.float32()),
            ("sex", pa.string()),
            ("site", pa.string()),
            ("status", pa.string()),
            ("error_code", pa.string()),
            ("error_detail", pa.string()),
            *((f"prob_{code}", pa.float32()) for code in labels.codes),
            ("malignancy_score", pa.float32()),
            ("operating_point", pa.string()),
            ("flagged", pa.bool_()),
            ("ita_degrees", pa.float32()),
            *((name, pa.float32()) for name in QUALITY_MEASURES),
            *((name, pa.bool_()) for name in QUALITY_FLAGS),
        ]
    )


def malignancy_scores(probabilities: npt.NDArray[np.float32], labels: Labels) -> npt.NDArray[np.float32]:
    """The summed probability of the malignant classes, float32 [N], 0 to 1.

    Args:
        probabilities: float32 [N, C], in the order of `labels.codes`.
        labels: Which of them are malignant.
    """
    columns = [labels.codes.index(code) for code in labels.malignant]
    scores: npt.NDArray[np.float32] = np.minimum(probabilities[:, columns].sum(axis=1), np.float32(1.0))
    return scores


def threshold_of(bundle: Bundle, operating_point: str) -> float:
    """The threshold of a named operating point.

    Raises:
        ConfigError: The bundle has no point of that name.
    """
    points = bundle.operating_points.points
    if operating_point not in points:
        raise ConfigError(
            f"operating point {operating_point!r} is not in bundle {bundle.uri}; it has {', '.join(sorted(points))}"
        )
    return points[operating_point].threshold


def prediction_answer(probabilities: npt.NDArray[np.float32], bundle: Bundle, operating_point: str) -> dict[str, Any]:
    """One photo's prediction as JSON values, with the names that the rows have.

    Args:
        probabilities: float32 [C].
        bundle: The bundle that gave them.
        operating_point: The name of the threshold that decides `flagged`.
    """
    score = malignancy_scores(probabilities[np.newaxis], bundle.labels)[0]
    threshold = threshold_of(bundle, operating_point)
    return {
        "model_id": bundle.model_id,
        "status": "scored",
        **{f"prob_{code}": float(value) for code, value in zip(bundle.labels.codes, probabilities, strict=True)},
        "malignancy_score": float(score),
        "operating_point": operating_point,
        "threshold": threshold,
        "flagged": bool(score >= threshold),
    }


def prediction_rows(
    photos: Mapping[str, npt.NDArray[Any]],
    probabilities: npt.NDArray[np.float32],
    bundle: Bundle,
    operating_point: str,
    embeddings: npt.NDArray[np.float32] | None = None,
) -> pa.Table:
    """One row a photo, in order.

    Args:
        photos: The columns of a decoded block but its pixels, see `skinray.photos`.
        probabilities: float32 [number of usable photos, C], in the order in which the usable photos stand.
        bundle: The bundle that gave them.
        operating_point: The name of the threshold that decides `flagged`.
        embeddings: float32 [number of usable photos, D], or None for rows without.

    Returns:
        Rows of `prediction_schema`, with a column `embedding` behind them when there are embeddings.
    """
    usable = photos["status"] == "scored"
    scores = malignancy_scores(probabilities, bundle.labels)

    def spread(values: npt.NDArray[Any]) -> pa.Array:
        full = np.zeros(len(usable), values.dtype)
        full[usable] = values
        return pa.array(full, mask=~usable)

    def text(name: str) -> pa.Array:
        values = photos[name]
        return pa.array(values.tolist(), pa.string(), mask=values == "")

    columns: dict[str, Any] = {name: text(name) for name in ("image_id", "image_uri", "image_sha256")}
    for name in ("width_px", "height_px"):
        columns[name] = pa.array(photos[name].astype(np.int32), mask=photos[name] == 0)
    for name in ("label", "patient_id", "lesion_id", "sex", "site", "status", "error_code", "error_detail"):
        columns[name] = text(name)
    for position, code in enumerate(bundle.labels.codes):
        columns[f"prob_{code}"] = spread(probabilities[:, position])
    columns["malignancy_score"] = spread(scores)
    columns["operating_point"] = pa.array([operating_point] * len(usable), pa.string())
    for name in ("age", "ita_degrees", *QUALITY_MEASURES):
        columns[name] = pa.array(photos[name].astype(np.float32), from_pandas=True)
    for name in QUALITY_FLAGS:
        columns[name] = pa.array(photos[name], mask=photos["status"] == "failed")
    columns["flagged"] = spread(scores >= threshold_of(bundle, operating_point))
    rows = pa.table(columns, schema=prediction_schema(bundle.labels))
    return rows if embeddings is None else rows.append_column("embedding", _lists(embeddings, usable))


def _lists(values: npt.NDArray[np.float32], usable: npt.NDArray[np.bool_]) -> pa.Array:
    """float32 [n, D] -> a list for each usable photo, null for the others."""
    lengths = np.where(usable, values.shape[1], 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values.ravel(), mask=pa.array(~usable))
