"""The evaluation's page: its plots, and the photos that the model gets most wrong, with what it looked at.

<output>/roc.png, precision_recall.png, reliability.png, confusion_matrix.png
<output>/evaluation.html   all of them and the tables, in one file
<output>/model_card.md     the bundle's card with what was measured
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import ray
from PIL import Image

from skinray import storage
from skinray.bundle import Bundle, calibration_of, load_bundle
from skinray.calibration import reliability
from skinray.clinical import encode_clinical
from skinray.evaluation_page import ShownPhoto, evaluation_page
from skinray.images import decode_photo
from skinray.measurement import uncalibrated_scores
from skinray.reports import confusion_plot, model_card, precision_recall_plot, reliability_plot, roc_plot
from skinray.shards import PreparedDataset, read_photo_bytes

PAGE_NAME = "evaluation.html"
CARD_NAME = "model_card.md"
# Of each kind of error.
_MOST_SHOWN = 12
_THUMBNAIL_PX = 160


def write_report(judged: pd.DataFrame, metrics: Mapping[str, Any], bundle: Bundle, dataset: PreparedDataset, output: str) -> None:
    """Writes plots and page.

    Args:
        judged: One row a scored photo, as in judged.parquet.
        metrics: What metrics.json holds.
        bundle: What was measured.
        dataset: On what.
        output: Folder or prefix.
    """
    plots = _plots(judged, metrics, bundle)
    for name, png in plots.items():
        storage.write_bytes(storage.join(output, name), png)
    malignant = judged["malignant"].to_numpy(bool)
    missed = judged[malignant].nsmallest(_MOST_SHOWN, "malignancy_score")
    false_alarms = judged[~malignant].nlargest(_MOST_SHOWN, "malignancy_score")
    shown = _shown(pd.concat([missed, false_alarms]), bundle, dataset)
    page = evaluation_page(metrics, plots, shown[: len(missed)], shown[len(missed) :])
    storage.write_bytes(storage.join(output, PAGE_NAME), page.encode())
    card = model_card(bundle.metadata, bundle.operating_points, metrics)
    storage.write_bytes(storage.join(output, CARD_NAME), card.encode())


def _plots(judged: pd.DataFrame, metrics: Mapping[str, Any], bundle: Bundle) -> dict[str, bytes]:
    positive, scores = judged["malignant"].to_numpy(bool), judged["malignancy_score"].to_numpy(np.float64)
    title = f"model {bundle.model_id}, {metrics['split']} split, {len(judged):,} photos"
    figures = metrics["figures"]
    calibration = calibration_of(bundle) if "uncalibrated.ece" in figures else None
    curves = {f"the model: ECE {figures['ece']['value']:.3f}": reliability(positive, scores)}
    if calibration is not None:
        before = reliability(positive, uncalibrated_scores(judged, bundle.labels, calibration))
        curves = {f"not calibrated: ECE {figures['uncalibrated.ece']['value']:.3f}": before, **curves}
    matrix = np.array(metrics["confusion_matrix"]["rows_true_columns_predicted"])
    return {
        "roc.png": roc_plot(positive, scores, title),
        "precision_recall.png": precision_recall_plot(positive, scores, title),
        "reliability.png": reliability_plot(curves, title),
        "confusion_matrix.png": confusion_plot(matrix, metrics["confusion_matrix"]["codes"], title),
    }


def _shown(rows: pd.DataFrame, bundle: Bundle, dataset: PreparedDataset) -> list[ShownPhoto]:
    found = read_photo_bytes(dataset, list(rows["image_id"]))
    clinical = encode_clinical(rows["age"], rows["sex"], rows["site"])
    # In a process of its own: TensorFlow takes threads and memory that it never gives back.
    task = ray.remote(num_cpus=1, max_calls=1)(_pictures)
    pictures: list[tuple[str, str]] = ray.get(
        task.remote(bundle.uri, [found[image_id] for image_id in rows["image_id"]], clinical)
    )
    about = zip(rows["image_id"], rows["label"], rows["malignancy_score"], pictures, strict=True)
    return [ShownPhoto(image_id, label, float(score), *uris) for image_id, label, score, uris in about]


def _pictures(bundle_uri: str, photos: Sequence[bytes], clinical: npt.NDArray[np.float32]) -> list[tuple[str, str]]:
    """Thumbnail and heat map of each photo, as data: URIs."""
    from skinray.explain import heat_maps, overlay

    bundle = load_bundle(bundle_uri)
    pixels = np.stack([decode_photo(data, bundle.preprocessing).pixels for data in photos])
    malignant = [bundle.labels.codes.index(code) for code in bundle.labels.malignant]
    maps = heat_maps(bundle.load_model(), pixels, malignant, clinical)
    return [(_data_uri(photo), _data_uri(overlay(photo, heat))) for photo, heat in zip(pixels, maps, strict=True)]


def _data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((_THUMBNAIL_PX, _THUMBNAIL_PX)).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
