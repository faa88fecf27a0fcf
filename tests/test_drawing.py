"""Drawn lesions: pixels and mask belong together, and the severity changes nothing but its three signs."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from skinray.drawing import draw_lesion


def draw(severity: float, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return draw_lesion(severity, patient_seed=seed, lesion_seed=seed + 1, photo_seed=seed + 2)


def jpeg_bytes(photo: NDArray[np.uint8]) -> int:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=88)
    return file.tell()


def test_photos_of_one_lesion_differ() -> None:
    seeds = {"patient_seed": 1, "lesion_seed": 2}
    first, _ = draw_lesion(0.0, **seeds, photo_seed=3)
    second, _ = draw_lesion(0.0, **seeds, photo_seed=4)
    assert np.abs(first.astype(float) - second).mean() > 5


@pytest.mark.parametrize("severity", [-4.0, -1.5, 0.0, 1.5, 4.0])
def test_mask_covers_the_lesion(severity: float) -> None:
    for seed in range(0, 30, 10):
        photo, mask = draw(severity, seed)
        assert photo.shape == (450, 600, 3)
        assert photo.dtype == np.uint8
        assert mask.shape == (450, 600)
        assert mask.dtype == np.bool_
        assert 0.04 < mask.mean() < 0.35
        # Around the lesion, but within the circle that a vignette leaves light.
        across, down = np.meshgrid(np.arange(600) - 299.5, np.arange(450) - 224.5)
        skin = ~mask & (np.hypot(across, down) < 225)
        assert photo[mask].mean() < 0.85 * photo[skin].mean()


def test_the_severity_changes_neither_pose_nor_area_nor_colour_nor_file_size() -> None:
    # The same 8 lesions twice, harmless and suspicious: so a shift shows that a comparison of different lesions would miss.
    # One by 0.2 standard deviations between lesions would be an AUC of 0.56. The largest is that of the file size, 0.08 with a
    # standard error of 0.01; the colours within the lesion shift by 0.04 with 0.06.
    numbers: list[list[list[float]]] = []
    for seed in range(0, 80, 10):
        pair = [draw(severity, seed) for severity in (-3.0, 3.0)]
        (_, mild), (_, severe) = pair
        assert severe.sum() == pytest.approx(mild.sum(), rel=0.05)
        assert (mild & severe).sum() > 0.6 * mild.sum()
        numbers.append([[jpeg_bytes(photo), mask.sum(), *photo[mask].mean(axis=0)] for photo, mask in pair])
    values = np.array(numbers)  # [8 lesions, mild and severe, file size and area and RGB]
    shift = (values[:, 1] - values[:, 0]).mean(axis=0) / values.mean(axis=1).std(axis=0, ddof=1)
    assert np.abs(shift).max() < 0.2, shift
