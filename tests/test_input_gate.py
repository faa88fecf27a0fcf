"""What is no photo of skin is refused, and skin of every tone, camera and size is not."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from skinray.images import Preprocessing, decode_photo
from skinray.input_gate import REASONS, refusal

Pixels = npt.NDArray[np.uint8]

SIZES = (128, 224, 448)


def decoded(image: Image.Image, size: int = 224, jpeg_quality: int | None = None) -> Pixels:
    buffer = io.BytesIO()
    image.save(buffer, "PNG") if jpeg_quality is None else image.save(buffer, "JPEG", quality=jpeg_quality)
    return decode_photo(buffer.getvalue(), Preprocessing(image_size_px=size)).pixels


def window(background: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", (1920, 1080), background)
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 0, 1920, 60], fill=(50, 60, 90))
    draw.rectangle([500, 200, 900, 500], fill=(200, 80, 60), outline="black", width=3)
    for line in range(14):
        draw.text((20, 90 + line * 60), f"entry {line}", fill=(120, 120, 120), font=ImageFont.load_default(24))
    return image


def chart() -> Image.Image:
    image = Image.new("RGB", (800, 600), "white")
    draw = ImageDraw.Draw(image)
    draw.line([60, 20, 60, 560, 780, 560], fill="black", width=3)
    for bar in range(8):
        draw.rectangle([90 + bar * 85, 500 - bar * 40, 150 + bar * 85, 560], fill=(200 - 20 * bar, 30 * bar, 90))
    return image


def letter() -> Image.Image:
    image = Image.new("RGB", (1240, 1754), "white")
    for line in range(12):
        ImageDraw.Draw(image).text(
            (120, 200 + line * 40), "Dear colleague, thank you for " * 2, "black", ImageFont.load_default(26)
        )
    return image


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("jpeg_quality", [None, 85, 50])
@pytest.mark.parametrize(
    "image",
    [window((245, 246, 247)), window((32, 33, 36)), chart(), letter()],
    ids=["light window", "dark window", "chart", "letter"],
)
def test_screenshots_charts_and_pages_are_graphics(image: Image.Image, jpeg_quality: int | None, size: int) -> None:
    assert refusal(decoded(image, size, jpeg_quality)) == "graphic"


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (220, 180, 160)])
@pytest.mark.parametrize("size", SIZES)
def test_one_colour_is_blank(colour: tuple[int, int, int], size: int) -> None:
    assert refusal(np.full((size, size, 3), colour, np.uint8)) == "blank"


def test_a_covered_lens_is_blank() -> None:
    assert refusal(np.random.default_rng(0).integers(0, 12, (224, 224, 3), dtype=np.uint8)) == "blank"


def test_sky_and_lawn_are_not_skin() -> None:
    row = np.linspace(0, 1, 224)[:, np.newaxis, np.newaxis]
    grain = np.random.default_rng(0).normal(0, 6, (224, 224, 3))
    for top, bottom in (((60, 120, 220), (120, 190, 250)), ((40, 110, 30), (80, 160, 60))):
        colours = np.array(top) * (1 - row) + np.array(bottom) * row + grain
        assert refusal(np.uint8(np.clip(colours, 0, 255))) == "not_skin"


@pytest.mark.parametrize("size", [48, *SIZES])
def test_noise_is_not_skin(size: int) -> None:
    assert refusal(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)) == "not_skin"


def test_edges_everywhere_are_not_skin() -> None:
    cells = np.random.default_rng(0).integers(0, 256, (32, 32, 1), dtype=np.uint8)
    pixels = np.kron(np.repeat(cells, 3, axis=2), np.ones((7, 7, 1), np.uint8))
    assert refusal(pixels) == "not_skin"


# sRGB from very light to very dark skin, and grey.
SKINS = [(238, 206, 179), (190, 140, 105), (130, 85, 60), (80, 55, 45), (45, 32, 27), (140, 140, 140)]


@pytest.mark.parametrize("skin", SKINS)
@pytest.mark.parametrize("size", [48, *SIZES])
def test_a_lesion_on_any_skin_is_accepted(skin: tuple[int, int, int], size: int) -> None:
    grain = np.random.default_rng(0).normal(0, 3, (size, size, 3))
    row, column = np.ogrid[:size, :size]
    share = 1 - 0.6 * (np.hypot(row - size / 2, column - size / 2) < size / 4)
    assert refusal(np.uint8(np.clip(np.array(skin) * share[..., np.newaxis] + grain, 0, 255))) == ""


def test_drawn_lesions_are_accepted(drawn_photos: Path) -> None:
    paths = sorted((drawn_photos / "images").iterdir())[:60]
    assert {refusal(decode_photo(path.read_bytes(), Preprocessing()).pixels) for path in paths} == {""}


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(48, 640),
    cells=st.integers(1, 64),
    seed=st.integers(0, 2**32 - 1),
    low=st.integers(0, 255),
    high=st.integers(0, 255),
)
def test_any_pixels_have_an_answer(size: int, cells: int, seed: int, low: int, high: int) -> None:
    low, high = sorted((low, high))
    coarse = np.random.default_rng(seed).integers(low, high + 1, (cells, cells, 3), dtype=np.uint8)
    assert refusal(np.asarray(Image.fromarray(coarse).resize((size, size)))) in ("", *REASONS)


def real_photos(folder: Path, count: int | None = None) -> list[Pixels]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    chosen = np.random.default_rng(0).permutation(len(paths))[:count]
    return [decode_photo(paths[i].read_bytes(), Preprocessing()).pixels for i in chosen]


def refused_share(photos: list[Pixels]) -> float:
    return sum(refusal(pixels) != "" for pixels in photos) / len(photos)


@pytest.mark.data
@pytest.mark.parametrize("collection", ["ham10000", "isic9", "isic2020"])
def test_good_photos_are_accepted(real_data: Path, collection: str) -> None:
    photos = real_photos(real_data / collection, 400)
    assert refused_share(photos) <= 0.02
    if collection == "ham10000":
        # Melanin takes more of blue than of red; at 4 the median skin has an L* near 25.
        for melanin in (1.0, 2.5, 4.0):
            light = np.exp(-melanin * np.array([0.62, 0.95, 1.10]) / 2.2)
            assert refused_share([np.uint8(pixels * light + 0.5) for pixels in photos]) <= 0.01
        greys = [np.repeat(np.asarray(Image.fromarray(pixels).convert("L"))[..., np.newaxis], 3, axis=2) for pixels in photos]
        assert refused_share(greys) <= 0.02


@pytest.mark.data
def test_photos_of_other_things_are_refused(real_data: Path) -> None:
    photos = real_photos(real_data / "odd" / "non_lesion")
    assert len(photos) >= 40
    # Measured 0.83.
    assert refused_share(photos) >= 0.75
