"""The one decode: Pillow's own picture where nothing is scaled, the same picture from every format, and never a crash."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from skinray.errors import ImageError, ImageErrorCode
from skinray.images import FORMATS, SUFFIXES, Preprocessing, decode_photo, read_full_size

# Pillow's word on damaged metadata and on what it thinks too large: skinray's own answer is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin", "ignore::PIL.Image.DecompressionBombWarning")

Pixels = NDArray[np.uint8]
SMALL = Preprocessing(image_size_px=32)
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
ORIENTATION = 0x0112
# How a photo is stored that has this EXIF orientation: the inverse of what turns it upright.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def lesion(width: int, height: int) -> Image.Image:
    """A smooth, asymmetric picture: every turn or flip of it is another one."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    red = 220 - 90 * np.exp(-(((x - 0.35) / 0.15) ** 2 + ((y - 0.6) / 0.25) ** 2))
    return Image.fromarray(np.uint8(np.stack([red, 110 + 60 * x, 90 + 80 * y], axis=-1)))


def by_pillow(data: bytes, preprocessing: Preprocessing) -> Pixels:
    size = (preprocessing.image_size_px, preprocessing.image_size_px)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if preprocessing.fit == "center_crop":
        return np.asarray(ImageOps.fit(image, size, RESAMPLING[preprocessing.filter]))
    return np.asarray(image.resize(size, RESAMPLING[preprocessing.filter]))


def mean_difference(one: Pixels, two: Pixels) -> float:
    return float(np.abs(one.astype(int) - two.astype(int)).mean())


def code_of(data: bytes, preprocessing: Preprocessing = SMALL) -> str:
    with pytest.raises(ImageError) as caught:
        decode_photo(data, preprocessing)
    assert caught.value.detail
    assert len(caught.value.detail.splitlines()) == 1
    return caught.value.code


def decodes_or_says_why(data: bytes) -> None:
    try:
        photo = decode_photo(data, SMALL)
    except ImageError as error:
        code, detail = error.code, error.detail
    else:
        assert photo.pixels.shape == (32, 32, 3)
        assert photo.pixels.dtype == np.uint8
        assert min(photo.width_px, photo.height_px) > 0
        return
    assert code in get_args(ImageErrorCode)
    assert detail


# Pixels


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 72),
    height=st.integers(1, 72),
    options=st.fixed_dictionaries(
        {"quality": st.integers(20, 100), "subsampling": st.sampled_from([0, 1, 2]), "progressive": st.booleans()}
    ),
    mode=st.sampled_from(["RGB", "L"]),
    preprocessing=st.builds(
        Preprocessing,
        image_size_px=st.just(64),
        fit=st.sampled_from(["stretch", "center_crop"]),
        filter=st.sampled_from(["bilinear", "bicubic"]),
    ),
)
def test_a_jpeg_too_small_to_be_scaled_equals_pillow_bit_for_bit(
    width: int, height: int, options: dict[str, Any], mode: str, preprocessing: Preprocessing
) -> None:
    # 7/8 of 72 is 63: no DCT scale covers 64 pixels.
    data = encoded(noise(width, height).convert(mode), "JPEG", **options)
    photo = decode_photo(data, preprocessing)
    np.testing.assert_array_equal(photo.pixels, by_pillow(data, preprocessing))
    assert (photo.width_px, photo.height_px) == (width, height)


@pytest.mark.parametrize("scale", [2, 4, 8, 3.3])
def test_a_dct_scaled_jpeg_is_close_to_pillow(scale: float) -> None:
    data = encoded(lesion(int(100 * scale), int(80 * scale)), "JPEG", quality=90)
    preprocessing = Preprocessing(image_size_px=64)
    photo = decode_photo(data, preprocessing)
    assert mean_difference(photo.pixels, by_pillow(data, preprocessing)) < 1
    assert (photo.width_px, photo.height_px) == (int(100 * scale), int(80 * scale))


@pytest.mark.data
def test_real_photos_are_close_to_pillow(real_data: Path) -> None:
    for path in sorted((real_data / "ham10000" / "HAM10000_images_part_1").glob("*.jpg"))[:20]:
        data = path.read_bytes()
        assert mean_difference(decode_photo(data, Preprocessing()).pixels, by_pillow(data, Preprocessing())) < 4


def test_center_crop_loses_the_edges_and_stretch_keeps_them() -> None:
    image = Image.new("RGB", (96, 32), "red")
    ImageDraw.Draw(image).rectangle((32, 0, 63, 31), fill="blue")
    data = encoded(image, "PNG")
    cropped = decode_photo(data, Preprocessing(image_size_px=32, fit="center_crop")).pixels
    stretched = decode_photo(data, Preprocessing(image_size_px=32, fit="stretch")).pixels
    assert (cropped == (0, 0, 255)).all()
    assert (stretched[16, [0, 16, 31]] == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]).all()


def test_pixels_are_the_same_in_many_threads() -> None:
    files = [encoded(noise(200 + seed, 150, seed), "JPEG" if seed % 2 else "PNG") for seed in range(16)]
    alone = [decode_photo(data, SMALL).pixels for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode_photo(data, SMALL).pixels, files * 4))
    for number, pixels in enumerate(together):
        np.testing.assert_array_equal(pixels, alone[number % len(files)])


# Orientation


def with_orientation(image: Image.Image, orientation: int) -> tuple[Image.Image, Image.Exif]:
    transpose = STORED[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return (image if transpose is None else image.transpose(transpose)), exif


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("image_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_every_orientation_is_turned_upright(image_format: str, options: dict[str, Any], orientation: int) -> None:
    upright = lesion(48, 40)
    stored, exif = with_orientation(upright, orientation)
    photo = decode_photo(encoded(stored, image_format, exif=exif, **options), SMALL)
    assert (photo.width_px, photo.height_px) == (48, 40)
    np.testing.assert_array_equal(photo.pixels, decode_photo(encoded(upright, image_format, **options), SMALL).pixels)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("size", [(48, 40), (320, 240)], ids=["full size", "scaled"])
def test_every_orientation_of_a_jpeg_is_turned_upright(orientation: int, size: tuple[int, int]) -> None:
    upright = lesion(*size)
    stored, exif = with_orientation(upright, orientation)
    photo = decode_photo(encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0), SMALL)
    assert (photo.width_px, photo.height_px) == size
    expected = decode_photo(encoded(upright, "JPEG", quality=95, subsampling=0), SMALL)
    assert mean_difference(photo.pixels, expected.pixels) < 1


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    photo = decode_photo(encoded(lesion(48, 40), "PNG", exif=exif), SMALL)
    np.testing.assert_array_equal(photo.pixels, decode_photo(encoded(lesion(48, 40), "PNG"), SMALL).pixels)


def test_a_crop_is_taken_of_the_upright_photo() -> None:
    preprocessing = Preprocessing(image_size_px=32, fit="center_crop")
    stored, exif = with_orientation(lesion(96, 40), 6)
    photo = decode_photo(encoded(stored, "PNG", exif=exif), preprocessing)
    np.testing.assert_array_equal(photo.pixels, decode_photo(encoded(lesion(96, 40), "PNG"), preprocessing).pixels)


@pytest.mark.data
def test_real_photos_of_any_orientation_are_one_picture(real_data: Path) -> None:
    folder = real_data / "odd" / "exif_orientation"
    for names in (
        ("Portrait_1.jpg", "Portrait_6.jpg"),
        tuple(f"hopper_orientation_{orientation}.jpg" for orientation in (2, 4, 6, 8)),
    ):
        photos = [decode_photo((folder / name).read_bytes(), Preprocessing()) for name in names]
        for photo in photos[1:]:
            assert mean_difference(photo.pixels, photos[0].pixels) < 4
            assert (photo.width_px, photo.height_px) == (photos[0].width_px, photos[0].height_px)


# Formats and modes


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("MPO", {"quality": 100, "subsampling": 0}),
    ],
)
def test_every_format_gives_the_same_picture(image_format: str, options: dict[str, Any]) -> None:
    image = lesion(50, 40)
    photo = decode_photo(encoded(image, image_format, **options), SMALL)
    assert mean_difference(photo.pixels, np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))) < 1
    assert (photo.width_px, photo.height_px) == (50, 40)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_every_opaque_mode_is_pillows_rgb(mode: str) -> None:
    image = lesion(32, 32).convert(mode)
    photo = decode_photo(encoded(image, "PNG"), SMALL)
    np.testing.assert_array_equal(photo.pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_white(image_format: str) -> None:
    image = Image.new("RGBA", (32, 32), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 16))
    image.paste((0, 0, 0, 128), (0, 28, 32, 32))
    pixels = decode_photo(encoded(image, image_format, lossless=True), SMALL).pixels
    np.testing.assert_allclose(pixels[[0, 20, 31], 0], [(255, 255, 255), (200, 0, 0), (127, 127, 127)], atol=1)


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(image_format: str) -> None:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.paste(1, (0, 16, 32, 32))
    pixels = decode_photo(encoded(image, image_format, transparency=0), SMALL).pixels
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    assert tuple(pixels[31, 31]) == (200, 0, 0)


def test_gray_with_alpha_is_laid_on_white() -> None:
    image = Image.new("LA", (32, 32), (10, 0))
    image.paste((10, 255), (0, 16, 32, 32))
    pixels = decode_photo(encoded(image, "PNG"), SMALL).pixels
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    assert tuple(pixels[31, 31]) == (10, 10, 10)


def test_a_cmyk_jpeg_has_the_colours_it_was_made_from() -> None:
    image = lesion(40, 40)
    photo = decode_photo(encoded(image.convert("CMYK"), "JPEG", quality=95), SMALL)
    assert mean_difference(photo.pixels, np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))) < 2


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("brightest", [4095, 65535], ids=["12 bits", "16 bits"])
def test_deep_gray_keeps_its_shades(image_format: str, brightest: int) -> None:
    shades = np.linspace(0, brightest, 32).astype(np.uint16)
    image = Image.fromarray(np.tile(shades, (32, 1)))
    pixels = decode_photo(encoded(image, image_format), SMALL).pixels
    expected = np.linspace(0, 255, 32)
    assert np.abs(pixels[0] - expected[:, np.newaxis]).max() <= 1


def test_a_photo_that_is_converted_in_parts_is_the_same_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = np.random.default_rng(3).integers(0, 4096, (50, 70)).astype(np.uint16)
    deep[-1, -1] = 60_000  # the last part says that these are 16 bits
    clear = noise(70, 50).convert("RGBA")
    clear.putalpha(Image.fromarray(np.random.default_rng(4).integers(0, 256, (50, 70), np.uint8)))
    photos = {
        "RGBA": encoded(clear, "PNG"),
        "LA": encoded(clear.convert("LA"), "PNG"),
        "palette": encoded(noise(70, 50).quantize(9), "PNG", transparency=bytes(range(0, 250, 30))),
        "one colour of a palette": encoded(noise(70, 50).quantize(9), "GIF", transparency=3),
        "one grey": encoded(noise(70, 50).convert("L"), "PNG", transparency=7),
        "16 bits": encoded(Image.fromarray(deep), "PNG"),
        "32 bits": encoded(Image.fromarray(deep.astype(np.int32)), "TIFF"),
        "float": encoded(Image.fromarray((deep / 65535).astype(np.float32)), "TIFF"),
    }
    whole = {name: np.asarray(read_full_size(data)) for name, data in photos.items()}
    monkeypatch.setattr("skinray.images._STRIP_PIXELS", 500)
    for name, data in photos.items():
        np.testing.assert_array_equal(np.asarray(read_full_size(data)), whole[name], err_msg=name)


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_a_large_photo_is_held_twice_and_no_more(mode: str) -> None:
    def memory_mb(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))

    data = encoded(Image.new(mode, (4000, 4000)), "PNG", compress_level=1)
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    decode_photo(data, SMALL)
    assert memory_mb("VmHWM") - before < 2.5 * 4 * 16


def test_a_float_image_that_is_no_number_is_no_crash() -> None:
    data = encoded(Image.fromarray(np.full((32, 32), np.nan, np.float32)), "TIFF")
    decodes_or_says_why(data)


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    for image_format in ("GIF", "TIFF", "WEBP"):
        data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], lossless=True)
        assert (decode_photo(data, SMALL).pixels == (255, 0, 0)).all(), image_format


def test_a_file_is_told_by_its_content_and_listed_by_its_suffix() -> None:
    assert {".jpg", ".mpo", ".dcm", ".dicom"} <= SUFFIXES
    # Four bytes in a comment make no DICOM of a JPEG, and need no pydicom.
    plain = encoded(lesion(40, 36), "JPEG")
    data = encoded(lesion(40, 36), "JPEG", comment=b"DICM" * 50)
    shift = (128 - data.index(b"DICM")) % 4
    data = encoded(lesion(40, 36), "JPEG", comment=b" " * shift + b"DICM" * 50)
    assert data[128:132] == b"DICM"
    np.testing.assert_array_equal(decode_photo(data, SMALL).pixels, decode_photo(plain, SMALL).pixels)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_full_size_is_upright_and_what_is_resized(image_format: str) -> None:
    stored, exif = with_orientation(lesion(300, 200), 6)
    data = encoded(stored, image_format, exif=exif)
    picture = read_full_size(data)
    assert (picture.mode, picture.size) == ("RGB", (300, 200))
    unscaled = Preprocessing(image_size_px=512)
    resized = np.asarray(picture.resize((512, 512), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode_photo(data, unscaled).pixels, resized)


# What cannot be used


def test_no_bytes_are_empty() -> None:
    assert code_of(b"") == "empty"


@pytest.mark.parametrize(
    "data",
    [b"not a photo", b"\x89PNG", b"GIF8", b"%PDF-1.4\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(1000)],
)
def test_other_bytes_are_no_image(data: bytes) -> None:
    assert code_of(data) == "not_an_image"


@pytest.mark.parametrize("image_format", ["ICO", "PPM", "TGA", "PDF"])
def test_other_image_formats_are_refused(image_format: str) -> None:
    assert image_format not in FORMATS
    assert code_of(encoded(Image.new("RGB", (32, 32)), image_format)) == "not_an_image"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("draw", [noise, lesion])
def test_half_a_photo_is_not_scored(draw: Callable[[int, int], Image.Image], image_format: str, kept: float) -> None:
    data = encoded(draw(100, 100), image_format)
    assert code_of(data[: int(len(data) * kept)]) in ("truncated", "corrupt")


def test_half_a_jpeg_is_truncated() -> None:
    data = encoded(noise(300, 300), "JPEG")
    assert code_of(data[: len(data) // 2]) == "truncated"


def test_a_damaged_png_is_corrupt() -> None:
    data = bytearray(encoded(lesion(100, 100), "PNG"))
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    assert code_of(bytes(data)) == "corrupt"


def test_a_png_of_120_megapixels_is_too_large() -> None:
    assert code_of(encoded(Image.new("1", (12_000, 10_000)), "PNG")) == "too_large"


def test_a_jpeg_that_claims_to_be_huge_is_too_large() -> None:
    data = bytearray(encoded(noise(16, 16), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    assert code_of(bytes(data)) == "too_large"


# Robustness


VALID: dict[str, bytes] = {
    "JPEG": encoded(lesion(40, 36), "JPEG", quality=80, exif=with_orientation(lesion(1, 1), 6)[1]),
    "progressive JPEG": encoded(lesion(40, 36), "JPEG", quality=80, progressive=True),
    "PNG": encoded(lesion(40, 36), "PNG"),
    "palette PNG": encoded(lesion(40, 36).convert("P"), "PNG", transparency=3),
    "GIF": encoded(lesion(40, 36), "GIF"),
    "BMP": encoded(lesion(40, 36), "BMP"),
    "TIFF": encoded(lesion(40, 36), "TIFF", compression="tiff_lzw"),
    "WEBP": encoded(lesion(40, 36), "WEBP"),
}
MAGIC = [
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    b"GIF89a",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"RIFF\x10\x00\x00\x00WEBPVP8 ",
]


@settings(max_examples=150, deadline=None)
@given(start=st.sampled_from([b"", *MAGIC]), rest=st.binary(max_size=300))
def test_any_bytes_are_a_photo_or_an_image_error(start: bytes, rest: bytes) -> None:
    decodes_or_says_why(start + rest)


@pytest.mark.parametrize("name", VALID)
def test_any_truncation_is_a_photo_or_an_image_error(name: str) -> None:
    for length in range(0, len(VALID[name]), max(1, len(VALID[name]) // 100)):
        decodes_or_says_why(VALID[name][:length])


@pytest.mark.parametrize("name", VALID)
@settings(max_examples=60, deadline=None)
@given(damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=6))
def test_any_damage_is_a_photo_or_an_image_error(name: str, damage: list[tuple[float, int]]) -> None:
    damaged = bytearray(VALID[name])
    for place, flipped in damage:
        damaged[int(place**2 * len(damaged))] ^= flipped  # squared: more of it hits the headers
    decodes_or_says_why(bytes(damaged))


@example(extra=b"\x00" * 100)
@given(extra=st.binary(min_size=1, max_size=50))
@settings(max_examples=30, deadline=None)
def test_bytes_after_the_end_change_nothing(extra: bytes) -> None:
    for name in ("JPEG", "PNG"):
        np.testing.assert_array_equal(decode_photo(VALID[name] + extra, SMALL).pixels, decode_photo(VALID[name], SMALL).pixels)


@pytest.mark.data
@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("broken/ISIC_0024306_lfs_pointer.jpg", "not_an_image"),
        ("broken/broken.png", "not_an_image"),
        ("broken/decompression_bomb.gif", "too_large"),
        ("broken/truncated_jpeg.jpg", "truncated"),
    ],
)
def test_broken_real_files_have_their_reason(real_data: Path, path: str, code: str) -> None:
    assert code_of((real_data / "odd" / path).read_bytes()) == code


@pytest.mark.data
def test_odd_real_files_are_photos(real_data: Path) -> None:
    sizes = {
        "broken/sugarshack_bad_mpo_header.jpg": (640, 480),
        "exif_orientation/Landscape_5.jpg": (1800, 1200),
        "exif_orientation/Portrait_6.jpg": (1200, 1800),
        "format/12in16bit.tif": (100, 100),
        "format/RGBA_PAT_1105_420_520.png": (897, 897),
        "format/frozenpond.mpo": (640, 480),
        "format/hopper.gif": (128, 128),
        "format/hopper.webp": (128, 128),
        "format/hopper_bad_exif.jpg": (500, 500),
        "format/invalid-exif.jpg": (200, 200),
        "format/pil123rgba.png": (162, 150),
        "format/sugarshack.mpo": (640, 480),
    }
    for path, size in sizes.items():
        photo = decode_photo((real_data / "odd" / path).read_bytes(), SMALL)
        assert (photo.width_px, photo.height_px) == size, path


@pytest.mark.data
@pytest.mark.parametrize("folder", ["broken", "format", "exif_orientation", "non_lesion"])
def test_every_odd_real_file_is_a_photo_or_an_image_error(real_data: Path, folder: str) -> None:
    paths = [path for path in (real_data / "odd" / folder).iterdir() if path.is_file()]
    assert paths
    for path in paths:
        decodes_or_says_why(path.read_bytes())


# The settings that travel with a model


@settings(deadline=None, max_examples=50)
@given(
    preprocessing=st.builds(
        Preprocessing,
        image_size_px=st.integers(16, 2048),
        fit=st.sampled_from(["stretch", "center_crop"]),
        filter=st.sampled_from(["bilinear", "bicubic"]),
    )
)
def test_preprocessing_survives_json(preprocessing: Preprocessing) -> None:
    assert Preprocessing.model_validate_json(preprocessing.model_dump_json()) == preprocessing


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": 0},
        {"decoder": "pillow"},
        {"image_size_px": 8},
        {"fit": "pad"},
        {"orientation": "no"},
        {"mean": 0},
    ],
)
def test_preprocessing_of_another_version_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(change))):
        Preprocessing.model_validate({**Preprocessing().model_dump(), **change})


def test_preprocessing_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        SMALL.image_size_px = 64  # type: ignore[misc]


@pytest.mark.parametrize("size_px", [16, 17, 224])
def test_the_result_has_the_size_asked_for(size_px: int) -> None:
    for data in VALID.values():
        assert decode_photo(data, Preprocessing(image_size_px=size_px)).pixels.shape == (size_px, size_px, 3)
