"""The flags mark photos that were spoilt in the way they name, few others, and the same at every model's size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from skinray.images import Preprocessing, decode_photo
from skinray.quality import QUALITY_FLAGS, QUALITY_MEASURES, quality

Pixels = npt.NDArray[np.uint8]

SIZES = (128, 224, 448)


def lesion(size: int = 224) -> Pixels:
    """A brown disc on pale skin with the grain of a sharp photo, drawn at 448 pixels."""
    random = np.random.default_rng(0)
    row, column = np.ogrid[:448, :448]
    inside = (row - 224) ** 2 + (column - 224) ** 2 < 90**2
    grain = np.kron(random.normal(0, 9, (224, 224)), np.ones((2, 2)))[..., np.newaxis]
    colours = np.where(inside[..., np.newaxis], (110, 70, 50), (205, 165, 145)) + grain
    return resized(np.uint8(np.clip(colours, 0, 255)), size)


def resized(pixels: Pixels, size: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


def blurred(pixels: Pixels, share_of_side: float = 0.02) -> Pixels:
    # Drawn grain is white; real photos have less of it and are told at half this blur.
    sigma = share_of_side * len(pixels)
    return np.uint8(gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0)) + 0.5)


def exposed(pixels: Pixels, stops: float) -> Pixels:
    return np.uint8(np.clip(pixels * 2.0 ** (stops / 2.2), 0, 255) + 0.5)


def in_round_field(pixels: Pixels) -> Pixels:
    middle = (len(pixels) - 1) / 2
    row, column = np.ogrid[: len(pixels), : len(pixels)]
    outside = np.hypot(row - middle, column - middle) > 1.1 * middle
    return np.where(outside[..., np.newaxis], np.uint8(4), pixels)


def inked(pixels: Pixels, colour: tuple[int, int, int] = (50, 60, 170), corner: bool = True) -> Pixels:
    image = Image.fromarray(pixels)
    size = len(pixels)
    x = size * (0.1 if corner else 0.5)
    ImageDraw.Draw(image).ellipse([x - size * 0.05, x - size * 0.05, x + size * 0.05, x + size * 0.05], fill=colour)
    return np.asarray(image)


SPOILT: dict[str, Callable[[Pixels], Pixels]] = {
    "blurred": blurred,
    "underexposed": lambda pixels: exposed(pixels, -4),
    "overexposed": lambda pixels: exposed(pixels, 2),
    "vignetted": in_round_field,
    "marked": inked,
}


def flags(pixels: Pixels, width_px: int = 600, height_px: int = 450) -> set[str]:
    values = quality(pixels, width_px, height_px)
    return {name for name in QUALITY_FLAGS if values[name]}


def test_a_good_photo_has_no_flag_at_any_size() -> None:
    assert [flags(lesion(size)) for size in SIZES] == [set()] * len(SIZES)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flag", SPOILT)
def test_a_spoilt_photo_has_the_flag_that_names_it_at_every_size(flag: str, size: int) -> None:
    assert flag in flags(resized(SPOILT[flag](lesion(448)), size))


def test_a_blurred_photo_is_only_blurred() -> None:
    assert flags(blurred(lesion())) == {"blurred"}


def test_blur_is_not_told_where_the_model_sees_too_few_pixels() -> None:
    assert "blurred" in flags(resized(blurred(lesion()), 96))
    assert flags(resized(blurred(lesion()), 64)) == set()


@pytest.mark.parametrize(("width_px", "height_px", "small"), [(128, 128, False), (127, 4000, True), (4000, 127, True)])
def test_small_is_what_is_short_on_one_side(width_px: int, height_px: int, small: bool) -> None:
    assert ("small" in flags(lesion(), width_px, height_px)) == small


@pytest.mark.parametrize("colour", [(90, 50, 160), (40, 60, 160), (40, 130, 70)], ids=["violet", "blue", "green"])
def test_ink_is_found_beside_the_middle_only(colour: tuple[int, int, int]) -> None:
    assert flags(inked(lesion(), colour)) == {"marked"}
    assert flags(inked(lesion(), colour, corner=False)) == set()


def test_one_dark_corner_is_no_vignette() -> None:
    pixels = lesion().copy()
    pixels[:40, :40] = 0
    assert flags(pixels) == set()
    pixels[:40, -40:] = 0
    assert flags(pixels) == {"vignetted"}


def test_brightness_is_cielabs_lightness() -> None:
    # L* of sRGB 119 is 50.03.
    values = quality(np.full((64, 64, 3), 119, np.uint8), 600, 450)
    assert values["brightness"] == pytest.approx(50.03, abs=0.02)
    assert values["contrast"] == pytest.approx(0, abs=0.01)


def test_sharpness_falls_with_every_blur() -> None:
    sharpness = [
        quality(pixels, 600, 450)["sharpness"] for pixels in (lesion(), *(blurred(lesion(), s) for s in (0.005, 0.01, 0.03)))
    ]
    assert sharpness == sorted(sharpness, reverse=True)
    assert len(set(sharpness)) == 4


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(48, 640),
    cells=st.integers(1, 48),
    seed=st.integers(0, 2**32 - 1),
    low=st.integers(0, 255),
    high=st.integers(0, 255),
)
def test_any_pixels_have_finite_values_in_their_ranges(size: int, cells: int, seed: int, low: int, high: int) -> None:
    low, high = sorted((low, high))
    coarse = np.random.default_rng(seed).integers(low, high + 1, (cells, cells, 3), dtype=np.uint8)
    values = quality(np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.NEAREST)), size, size)
    assert tuple(values) == QUALITY_MEASURES + QUALITY_FLAGS
    assert all(values[name].dtype == np.float32 for name in QUALITY_MEASURES)
    assert all(values[name].dtype == np.bool_ for name in QUALITY_FLAGS)
    assert 0.49 < values["sharpness"] <= 1
    assert 0 <= values["brightness"] <= 100.01
    assert 0 <= values["contrast"] <= 50.01


def real_photos(folder: Path, count: int, size: int = 224) -> list[Pixels]:
    paths = sorted(folder.rglob("*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(paths))[:count]
    return [decode_photo(paths[i].read_bytes(), Preprocessing(image_size_px=size)).pixels for i in chosen]


def flagged_share(photos: list[Pixels], flag: str) -> float:
    return sum(flag in flags(pixels) for pixels in photos) / len(photos)


# Measured on 100 to 150 photos of each collection: blurred 1.00, underexposed 1.00, overexposed 0.80 to 1.00, vignetted 1.00,
# marked 0.99.
LEAST_FOUND = {"blurred": 0.97, "underexposed": 0.97, "overexposed": 0.75, "vignetted": 0.97, "marked": 0.95}


@pytest.mark.data
@pytest.mark.parametrize("collection", ["ham10000", "isic9", "isic2020"])
def test_degraded_real_photos_are_flagged_and_others_are_not(real_data: Path, collection: str) -> None:
    photos = real_photos(real_data / collection, 100)
    # Measured on all photos: blurred 0.1 %, underexposed none, overexposed up to 4 %, marked 0.4 %, vignetted up to 5 %.
    for flag, most in {"blurred": 0.02, "underexposed": 0.01, "overexposed": 0.09, "marked": 0.03, "vignetted": 0.12}.items():
        assert flagged_share(photos, flag) <= most, flag
    assert flagged_share([blurred(pixels, 0.01) for pixels in photos], "blurred") >= LEAST_FOUND["blurred"]
    for flag, spoil in SPOILT.items():
        assert flagged_share([spoil(pixels) for pixels in photos], flag) >= LEAST_FOUND[flag], flag
    assert flagged_share([exposed(pixels, -1) for pixels in photos], "underexposed") <= 0.05


@pytest.mark.data
def test_flags_of_real_photos_hardly_depend_on_the_models_size(real_data: Path) -> None:
    at_sizes = [real_photos(real_data / "ham10000", 100, size) for size in SIZES]
    differing = sum(len({frozenset(flags(pixels)) for pixels in same}) > 1 for same in zip(*at_sizes, strict=True))
    assert differing <= 3
