"""Metadata is gone, the picture is the same bit for bit, and what is clean stays as it is: for every format and every oddity."""

import contextlib
import functools
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from skinray.deidentify import Deidentified, without_metadata
from skinray.errors import ImageError
from skinray.images import Preprocessing, decode_photo
from tests.test_images import MAGIC, STORED, VALID, encoded, lesion, noise, with_orientation

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")

SECRET = b"Erika Mustermann *1964-08-12"
SIZES = [Preprocessing(image_size_px=16), Preprocessing(image_size_px=48, fit="center_crop"), Preprocessing(image_size_px=224)]
VOCABULARY = {"comment", "dicom", "exif", "gps", "iptc", "maker", "other", "text", "thumbnail", "trailer", "xmp"}
# 53 degrees, 33 minutes, 2.17 seconds north, as EXIF stores it.
LATITUDE = (53.0, 33.0, 2.17)
XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + SECRET + b"</x:xmpmeta>"


def cleaned(data: bytes) -> Deidentified:
    """Cleans a photo and checks that the secret is gone, and what `same_picture` checks."""
    result = same_picture(data)
    assert SECRET not in result.data
    return result


def same_picture(data: bytes) -> Deidentified:
    """Cleans a photo and checks what holds for all: one picture before and after, and nothing more to remove."""
    result = without_metadata(data)
    for preprocessing in SIZES:
        before, after = decode_photo(data, preprocessing), decode_photo(result.data, preprocessing)
        np.testing.assert_array_equal(after.pixels, before.pixels)
        assert (after.width_px, after.height_px) == (before.width_px, before.height_px)
    again = without_metadata(result.data)
    assert again.data is result.data
    assert again.removed == ()
    assert list(result.removed) == sorted(set(result.removed) & VOCABULARY)
    return result


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def jpeg(width: int = 120, height: int = 90, mode: str = "RGB", **options: Any) -> bytes:
    return encoded(lesion(width, height).convert(mode), "JPEG", **{"quality": 85, **options})


def with_segment(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def full_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0x927C] = b"maker " + SECRET
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2], gps[3], gps[4] = "N", LATITUDE, "E", (9.0, 59.0, 31.7)
    return exif


def tiff_with_a_place() -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x010F] = SECRET.decode()
    tags[0x8769] = {0x927C: b"maker " + SECRET}
    tags[0x8825] = {1: "N", 2: LATITUDE}
    return tags


@functools.cache  # a new one bears the time
def profile(*tags: bytes) -> bytes:
    body = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if not tags:
        return body
    table = b"".join(tag + struct.pack(">II", 132 + 12 * len(tags), 4) for tag in tags)
    content = body[4:128] + struct.pack(">I", len(tags)) + table + b"data"
    return struct.pack(">I", len(content) + 4) + content


# JPEG


@pytest.mark.parametrize(
    ("marker", "payload", "removed"),
    [
        (0xE1, b"Exif\0\0" + SECRET, {"exif"}),
        (0xE1, XMP, {"xmp"}),
        (0xE1, XMP + b"<exif:GPSLatitude>53,33.04N</exif:GPSLatitude>", {"xmp", "gps"}),
        (0xE1, b"http://ns.adobe.com/xmp/extension/\0" + SECRET, {"xmp"}),
        (0xE1, SECRET, {"other"}),
        (0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x1c" + SECRET, {"iptc"}),
        (0xFE, SECRET, {"comment"}),
        (0xE0, b"JFXX\0\x10" + SECRET, {"thumbnail"}),
        (0xE0, b"JFIF\0\1\1\0\0\1\0", {"other"}),
        (0xE0, SECRET, {"other"}),
        (0xE2, b"MPF\0" + SECRET, {"other"}),
        (0xE2, b"FPXR\0" + SECRET, {"other"}),
        (0xE2, b"ICC_PROFILE\0\1\1" + SECRET, {"other"}),
        (0xE5, SECRET, {"other"}),
        (0xEB, b"JP\0\0jumb" + SECRET, {"other"}),
        (0xEE, b"Adobe" + SECRET, {"other"}),
        (0xEE, SECRET, {"other"}),
        (0xEF, SECRET, {"other"}),
        (0xDC, SECRET, {"other"}),
    ],
)
@pytest.mark.parametrize("place", ["first", "before the scan", "last"])
def test_segments_of_a_jpeg_that_code_no_pixels_go(place: str, marker: int, payload: bytes, removed: set[str]) -> None:
    clean = jpeg()
    at = {"first": 2, "before the scan": clean.index(b"\xff\xda"), "last": len(clean) - 2}[place]
    data = clean[:at] + segment(marker, payload) + clean[at:]
    result = cleaned(data)
    assert set(result.removed) == removed
    if not payload.startswith(b"Adobe"):
        assert result.data == clean


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"restart_marker_blocks": 3},
        {"progressive": True, "restart_marker_rows": 1},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"subsampling": 0},
        {"subsampling": 1},
        {"keep_rgb": True},
        {"quality": 100, "optimize": True},
        {"icc_profile": profile()},
        {"icc_profile": profile() + bytes(70_000), "quality": 30},
    ],
    ids=str,
)
def test_a_jpeg_with_nothing_to_remove_is_returned_itself(options: dict[str, Any]) -> None:
    data = jpeg(**options)
    if len(options.get("icc_profile", b"")) > 65_000:
        # Longer than its header says: not a profile that can be vouched for, over two segments.
        assert cleaned(data).removed == ("other",)
        return
    assert cleaned(data).data is data
    assert cleaned(with_segment(data, segment(0xFE, SECRET), segment(0xE1, XMP))).data == data
    end = data + b"\xff\xd8" + SECRET
    assert cleaned(end) == Deidentified(data, ("trailer",))


def test_segments_between_the_scans_of_a_progressive_jpeg_go() -> None:
    clean = jpeg(progressive=True)
    second_scan = clean.index(b"\xff\xda", clean.index(b"\xff\xda") + 2)
    at = clean.rindex(b"\xff\xc4", 0, second_scan)  # its Huffman table
    data = clean[:at] + segment(0xFE, SECRET) + segment(0xE1, b"Exif\0\0" + SECRET) + b"\xff\xd0" + clean[at:]
    assert cleaned(data) == Deidentified(clean, ("comment", "exif", "other"))


def test_a_jfif_thumbnail_goes_and_the_density_stays() -> None:
    clean = jpeg(dpi=(300, 300))
    assert clean[6:11] == b"JFIF\0"
    pixels = (SECRET * 2)[:48]
    data = with_segment(clean[:2] + clean[20:], segment(0xE0, clean[6:18] + b"\4\4" + pixels))
    result = cleaned(data)
    assert result == Deidentified(clean, ("thumbnail",))
    assert Image.open(io.BytesIO(result.data)).info["dpi"] == (300, 300)


@pytest.mark.parametrize("transform", [0, 1])
def test_adobes_colour_transform_is_kept_and_what_follows_it_goes(transform: int) -> None:
    clean = jpeg(keep_rgb=True)
    if b"Adobe" in clean:
        clean = clean[:2] + clean[clean.index(b"Adobe") + 12 :]
    kept = segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))
    data = with_segment(clean, segment(0xEE, kept[4:] + SECRET))
    assert cleaned(data) == Deidentified(with_segment(clean, kept), ("other",))


def test_the_profile_of_a_kind_of_screen_stays_and_that_of_one_screen_goes() -> None:
    assert cleaned(jpeg(icc_profile=profile(b"desc", b"rXYZ"))).removed == ()
    for tag in (b"vcgt", b"mmod", b"meta"):
        assert cleaned(jpeg(icc_profile=profile(b"desc", tag))) == Deidentified(jpeg(), ("other",))
    assert cleaned(jpeg(icc_profile=profile()[:-4] + SECRET)).removed == ("other",)


def test_a_profile_in_several_segments_is_kept_as_a_whole() -> None:
    whole = profile()
    parts = [
        segment(0xE2, b"ICC_PROFILE\0" + bytes([number + 1, 2]) + whole[number * 100 :][: 100 + 9**9 * number])
        for number in (0, 1)
    ]
    data = with_segment(jpeg(), *parts)
    assert cleaned(data).data is data
    swapped = with_segment(jpeg(), *reversed(parts))
    assert cleaned(swapped).data is swapped


@pytest.mark.parametrize("numbers", [[(1, 2)], [(0, 1)], [(1, 1), (1, 1)], [(1, 2), (2, 3)], [(2, 2), (3, 2)]])
def test_a_profile_of_which_parts_are_missing_makes_no_other_picture(numbers: list[tuple[int, int]]) -> None:
    # libjpeg-turbo complains, so that decode_photo takes the way for odd JPEGs. Large enough to be scaled on the usual way.
    parts = [segment(0xE2, b"ICC_PROFILE\0" + bytes(number) + profile()) for number in numbers]
    result = cleaned(with_segment(jpeg(700, 500), *parts, segment(0xFE, SECRET)))
    assert result.data.startswith(b"\x89PNG")
    assert result.removed == ("comment",)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: with_segment(data, segment(0xFE, SECRET) + b"\0\0junk"),
        lambda data: with_segment(data, segment(0xFE, SECRET) + b"\0"),
        lambda data: with_segment(data, b"\xff\0", segment(0xFE, SECRET)),
        lambda data: data[:-2] + b"\0\0" + segment(0xFE, SECRET),
        lambda data: data[:-2] + segment(0xFE, SECRET) + b"\0\0\xff\xd9",
    ],
)
@pytest.mark.parametrize("size", [(120, 90), (700, 500)])
def test_jpegs_too_odd_to_be_cut_are_stored_anew(spoil: Callable[[bytes], bytes], size: tuple[int, int]) -> None:
    data = spoil(jpeg(*size))
    result = cleaned(data)
    assert result.data.startswith(b"\x89PNG")
    assert set(result.removed) <= {"comment"}


@pytest.mark.parametrize("filling", [b"\xff\xff\xff", b"\xff\xd3", b"\xff\xfe\0\0", b"\xff\xe5\0\1"])
def test_oddities_that_decoders_do_not_mind_are_no_reason_to_store_anew(filling: bytes) -> None:
    data = with_segment(jpeg(700, 500), filling, segment(0xFE, SECRET))
    assert cleaned(data).data.startswith(b"\xff\xd8\xff")
    assert cleaned(data[:-2] + filling + data[-2:]).data.startswith(b"\xff\xd8\xff")


def test_of_an_mpo_the_first_picture_stays() -> None:
    data = encoded(lesion(120, 90), "MPO", save_all=True, append_images=[noise(120, 90)], exif=full_exif())
    result = cleaned(data)
    assert len(result.data) < len(data) / 2
    assert {"exif", "trailer"} <= set(result.removed)


# Location and orientation, in every format that has EXIF


FORMATS_WITH_EXIF: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {"quality": 90}),
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"quality": 80}),
    ("MPO", {}),
]


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("image_format", "options"), FORMATS_WITH_EXIF)
def test_places_go_and_every_orientation_stays(image_format: str, options: dict[str, Any], orientation: int) -> None:
    stored, _ = with_orientation(lesion(96, 80), orientation)
    data = encoded(stored, image_format, exif=full_exif(orientation), **options)
    assert SECRET in data
    result = cleaned(data)
    assert {"exif", "gps"} <= set(result.removed)
    for order in "<>":
        assert struct.pack(f"{order}II", 217, 100) not in result.data
        assert struct.pack(f"{order}II", 33, 1) not in result.data
    with Image.open(io.BytesIO(result.data)) as image:
        entries = dict(image.getexif())
    assert entries == ({} if orientation == 1 else {0x0112: orientation})


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_exif_of_an_orientation_alone_is_clean(image_format: str) -> None:
    for orientation in range(2, 9):
        stored, exif = with_orientation(lesion(48, 40), orientation)
        data = encoded(stored, image_format, exif=exif)
        assert cleaned(data).data is data


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_only_xmp_knows_stays(image_format: str) -> None:
    xmp = b"<rdf:Description tiff:Orientation='6' tiff:Orientation=\"6\">" + SECRET + b"</rdf:Description>"
    options: dict[str, Any] = {"xmp": xmp}
    if image_format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options = {"pnginfo": text}
    result = cleaned(encoded(lesion(48, 40), image_format, **options))
    assert result.removed == ("xmp",)
    assert decode_photo(result.data, SIZES[0]).width_px == 40


def test_two_exif_segments_keep_the_orientation_that_the_decoder_sees() -> None:
    one, two = (segment(0xE1, with_orientation(lesion(1, 1), orientation)[1].tobytes()) for orientation in (3, 6))
    for data in (with_segment(jpeg(), one, two), with_segment(jpeg(), two, one), with_segment(jpeg(), two, segment(0xE1, XMP))):
        assert "exif" in cleaned(data).removed


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_goes(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for image_format in ("JPEG", "PNG", "WEBP"):
        assert cleaned(encoded(lesion(48, 40), image_format, exif=exif)).removed == ("exif",)


# PNG


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def with_chunk(data: bytes, *chunks: bytes, before: bytes = b"IDAT") -> bytes:
    at = data.index(before) - 4
    return data[:at] + b"".join(chunks) + data[at:]


@pytest.mark.parametrize(
    ("kind", "payload", "removed"),
    [
        (b"tEXt", b"Author\0" + SECRET, {"text"}),
        (b"tEXt", b"exif\0" + SECRET, {"text"}),
        (b"tEXt", SECRET, {"text"}),
        (b"zTXt", b"Author\0\0" + zlib.compress(SECRET), {"text"}),
        (b"iTXt", b"Author\0\0\0\0\0" + SECRET, {"text"}),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x>" + SECRET + b"</x>", {"xmp"}),
        (b"tEXt", b"Raw profile type iptc\0" + SECRET, {"iptc"}),
        (b"tEXt", b"Raw profile type exif\0\nexif\n 8\n4d4d", {"exif"}),
        (b"eXIf", SECRET, {"exif"}),
        (b"tIME", b"\x07\xe9\5\6\7\x08\x09", {"other"}),
        (b"sPLT", SECRET, {"other"}),
        (b"prVt", SECRET, {"other"}),
        (b"gAMA", b"\0\0\xb1\x8f" + SECRET, {"other"}),
        (b"pHYs", SECRET, {"other"}),
        (b"iCCP", SECRET + b"\0\0" + zlib.compress(profile()), {"text"}),
        (b"iCCP", b"ICC Profile\0\0" + zlib.compress(SECRET), {"other"}),
        (b"iCCP", b"ICC Profile\0\0" + SECRET, {"other"}),
        (b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile()) + SECRET, {"other"}),
        (b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile(b"mmod")), {"other"}),
    ],
)
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_chunks_of_a_png_that_make_no_pixels_go(before: bytes, kind: bytes, payload: bytes, removed: set[str]) -> None:
    clean = encoded(lesion(48, 40), "PNG")
    result = cleaned(with_chunk(clean, chunk(kind, payload), before=before))
    assert set(result.removed) == removed
    if removed == {"text"} and kind == b"iCCP":
        with Image.open(io.BytesIO(result.data)) as image:
            image.load()
            assert image.info["icc_profile"] == profile()
    else:
        assert result.data == clean


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_with_nothing_to_remove_is_returned_itself(mode: str) -> None:
    image = lesion(48, 40).convert("L").convert("I;16") if mode == "I;16" else lesion(48, 40).convert(mode)
    options: dict[str, Any] = {"P": {"transparency": 3}, "RGB": {"transparency": (1, 2, 3)}}.get(mode, {})
    colours = (chunk(b"gAMA", bytes(4)), chunk(b"cHRM", bytes(32)), chunk(b"sRGB", b"\0"), chunk(b"cICP", b"\1\x0d\0\1"))
    for data in (
        encoded(image, "PNG", **options),
        encoded(image, "PNG", dpi=(300, 300), icc_profile=profile(), **options),
        with_chunk(encoded(image, "PNG", **options), *colours),
    ):
        assert cleaned(data).data is data
        assert cleaned(data + SECRET) == Deidentified(data, ("trailer",))


def test_of_an_animated_png_the_picture_that_all_show_stays() -> None:
    frames = [lesion(48, 40), noise(48, 40), noise(48, 40, 1)]
    for default_image in (True, False):
        data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default_image)
        assert cleaned(data) == Deidentified(encoded(frames[0], "PNG"), ("other",))


def test_an_orientation_that_no_decoder_reads_does_not_come_to_count() -> None:
    # Behind the second frame of an animation Pillow does not look.
    frames = [lesion(48, 40), noise(48, 40)]
    _, exif = with_orientation(lesion(1, 1), 6)
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    cleaned(with_chunk(data, chunk(b"eXIf", exif.tobytes()[6:]), before=b"IEND"))
    cleaned(with_chunk(encoded(frames[0], "PNG"), chunk(b"eXIf", exif.tobytes()[6:]), before=b"IEND"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-12],
        lambda data: data[:-12] + chunk(b"IEND", SECRET),
        lambda data: (
            with_chunk(data, chunk(b"IDAT", SECRET), before=b"IEND")[:-12]
            + chunk(b"tEXt", b"a\0" + SECRET)
            + chunk(b"IDAT", SECRET)
            + data[-12:]
        ),
        lambda data: with_chunk(data, chunk(b"tRNS", bytes(6)), before=b"IEND"),
        lambda data: with_chunk(data, chunk(b"tRNS", bytes(6) + SECRET)),
        lambda data: with_chunk(data, chunk(b"PLTE", bytes(9)), before=b"IEND"),
        lambda data: with_chunk(data, chunk(b"VITL", SECRET), before=b"IEND"),
    ],
)
def test_pngs_too_odd_to_be_cut_are_stored_anew(spoil: Callable[[bytes], bytes]) -> None:
    image = lesion(48, 40)
    image.putpixel((0, 0), (0, 0, 0))
    data = spoil(encoded(image, "PNG"))
    assert cleaned(data).data != data


# WebP, TIFF, BMP and GIF


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}], ids=["lossless", "lossy"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_keeps_its_coded_picture(mode: str, options: dict[str, Any]) -> None:
    image = lesion(48, 40).convert(mode)
    if mode == "RGBA":
        image.putalpha(lesion(48, 40).convert("L"))
    clean = encoded(image, "WEBP", **options)
    assert cleaned(clean).data is clean
    assert cleaned(clean + SECRET) == Deidentified(clean, ("trailer",))
    xmp = SECRET + b"exif:GPSLongitude"
    result = cleaned(encoded(image, "WEBP", exif=full_exif(), xmp=xmp, icc_profile=profile(b"meta"), **options))
    assert set(result.removed) == {"exif", "gps", "maker", "other", "xmp"}
    assert len(result.data) < len(clean) + 20
    with_profile = encoded(image, "WEBP", icc_profile=profile(), **options)
    assert cleaned(with_profile).data is with_profile
    assert cleaned(encoded(image, "WEBP", icc_profile=profile(), xmp=SECRET, **options)).data == with_profile


def test_unknown_chunks_of_a_webp_go() -> None:
    extra = b"ABCD" + struct.pack("<I", len(SECRET)) + SECRET
    for options in ({}, {"icc_profile": profile()}):
        clean = encoded(lesion(48, 40), "WEBP", **options)
        data = clean[:4] + struct.pack("<I", len(clean) - 8 + len(extra)) + clean[8:] + extra
        assert cleaned(data) == Deidentified(clean, ("other",))


@pytest.mark.parametrize(
    ("image_format", "options", "removed"),
    [
        ("BMP", {}, ()),
        ("GIF", {"comment": SECRET}, ("comment",)),
        ("GIF", {"save_all": True, "append_images": [noise(48, 40)], "comment": SECRET}, ("comment", "other")),
        ("TIFF", {}, ()),
        ("TIFF", {"description": SECRET.decode(), "artist": SECRET.decode()}, ("text",)),
        ("TIFF", {"tiffinfo": {700: SECRET, 33723: SECRET}}, ("iptc", "xmp")),
        ("TIFF", {"tiffinfo": tiff_with_a_place()}, ("exif", "gps", "maker", "text")),
        ("TIFF", {"compression": "tiff_lzw", "icc_profile": profile()}, ()),
        ("WEBP", {"save_all": True, "append_images": [noise(48, 40)], "exif": full_exif()}, ("exif", "gps", "maker", "other")),
    ],
)
def test_other_formats_are_stored_anew_as_png(image_format: str, options: dict[str, Any], removed: tuple[str, ...]) -> None:
    result = cleaned(encoded(lesion(48, 40), image_format, **options))
    assert result.removed == removed
    with Image.open(io.BytesIO(result.data)) as image:
        image.load()
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (48, 40))
        assert not image.info


@pytest.mark.parametrize("image_format", ["TIFF", "GIF", "PNG"])
def test_transparency_and_depth_give_the_same_pixels(image_format: str) -> None:
    image = lesion(48, 40).convert("RGBA")
    image.putalpha(lesion(48, 40).convert("L"))
    cleaned(encoded(image, image_format))
    if image_format != "GIF":
        cleaned(encoded(Image.fromarray(np.tile(np.arange(48, dtype=np.uint16) * 80, (40, 1))), image_format))


# Anything


secrets = st.binary(max_size=60).map(lambda rest: rest + SECRET)


@settings(max_examples=150, deadline=None)
@given(
    planted=st.lists(
        st.tuples(
            st.integers(0, 30),
            st.sampled_from([0xFE, *range(0xE0, 0xF0)]),
            st.sampled_from(
                [b"", b"Exif\0\0", b"JFIF\0", b"JFXX\0", b"Photoshop 3.0\0", b"MPF\0", b"Exif\0\0MM\0*\0\0\0\x08", XMP[:29]]
            ),
            secrets,
        ),
        min_size=1,
        max_size=5,
    ),
    trailer=st.one_of(st.just(b""), secrets),
    options=st.fixed_dictionaries({"progressive": st.booleans(), "mode": st.sampled_from(["RGB", "L", "CMYK"])}),
)
def test_nothing_planted_in_a_jpeg_survives(
    planted: list[tuple[int, int, bytes, bytes]], trailer: bytes, options: dict[str, Any]
) -> None:
    clean = jpeg(80, 60, **options)
    places = [2]
    while clean[places[-1] + 1] != 0xDA:  # segment by segment to the scan
        places.append(places[-1] + 2 + int.from_bytes(clean[places[-1] + 2 : places[-1] + 4], "big"))
    data = clean
    for place, marker, start, secret in sorted(planted, key=lambda plant: -(plant[0] % len(places))):
        at = places[place % len(places)]
        # JFIF's and Adobe's own bytes come first; they are kept.
        filling = bytes([1, 1, 0, 0, 1, 0, 1, 0, 0]) if start == b"JFIF\0" and marker == 0xE0 else b""
        data = data[:at] + segment(marker, start + filling + secret) + data[at:]
    assert cleaned(data + trailer).removed  # and no secret is in it


@settings(max_examples=100, deadline=None)
@given(
    planted=st.lists(
        st.tuples(
            st.sampled_from([b"IDAT", b"IEND"]),
            st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME", b"prVt", b"iCCP", b"hIST", b"oFFs"]),
            st.sampled_from([b"", b"Comment\0", b"XML:com.adobe.xmp\0\0\0\0\0", b"ICC Profile\0\0", b"MM\0*\0\0\0\x08"]),
            secrets,
        ),
        min_size=1,
        max_size=5,
    ),
    trailer=st.one_of(st.just(b""), secrets),
)
def test_nothing_planted_in_a_png_survives(planted: list[tuple[bytes, bytes, bytes, bytes]], trailer: bytes) -> None:
    data = encoded(lesion(48, 40), "PNG")
    for before, kind, start, secret in planted:
        data = with_chunk(data, chunk(kind, start + secret), before=before)
    try:
        decode_photo(data, SIZES[0])
    except ImageError:
        assume(False)
    cleaned(data + trailer)  # and no secret is in it


DAMAGED = {
    **VALID,
    "large JPEG": jpeg(400, 300, exif=full_exif(6)),
    "JPEG with restarts": jpeg(300, 200, restart_marker_blocks=2, comment=SECRET),
    "large progressive JPEG": jpeg(400, 300, progressive=True, icc_profile=profile()),
    "CMYK JPEG": jpeg(100, 80, mode="CMYK"),
    "WEBP with EXIF": encoded(lesion(40, 36), "WEBP", exif=full_exif(6), xmp=b"<x/>", icc_profile=profile()),
    "PNG with EXIF": encoded(lesion(40, 36), "PNG", exif=full_exif(6), icc_profile=profile()),
}


def survives(data: bytes) -> None:
    """Whatever the bytes: an ImageError, or a file; and of a photo the same picture."""
    try:
        for preprocessing in SIZES:
            decode_photo(data, preprocessing)
    except ImageError:
        with contextlib.suppress(ImageError):
            without_metadata(data)
        return
    same_picture(data)


@pytest.mark.parametrize("name", DAMAGED)
@settings(max_examples=80, deadline=None)
@given(damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_any_damage_that_is_still_a_photo_gives_the_same_picture(name: str, damage: list[tuple[float, int]]) -> None:
    damaged = bytearray(DAMAGED[name])
    for place, flipped in damage:
        damaged[int(place**2 * len(damaged))] ^= flipped
    survives(bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(start=st.sampled_from([b"", *MAGIC]), rest=st.binary(max_size=200))
def test_any_bytes_are_a_photo_or_an_image_error(start: bytes, rest: bytes) -> None:
    survives(start + rest)


@pytest.mark.parametrize("name", DAMAGED)
def test_any_truncation_is_a_photo_or_an_image_error(name: str) -> None:
    for length in range(0, len(DAMAGED[name]), max(1, len(DAMAGED[name]) // 60)):
        survives(DAMAGED[name][:length])


# Real photos


@pytest.mark.data
@pytest.mark.parametrize("folder", ["ham10000/HAM10000_images_part_1", "isic2020/train"])
def test_published_dermoscopy_photos_are_clean_already(real_data: Path, folder: str) -> None:
    for path in sorted((real_data / folder).glob("*.jpg"))[:20]:
        data = path.read_bytes()
        assert cleaned(data).data is data


@pytest.mark.data
@pytest.mark.parametrize("folder", ["exif_orientation", "format", "broken", "non_lesion"])
def test_odd_real_photos_keep_their_picture(real_data: Path, folder: str) -> None:
    for path in sorted((real_data / "odd" / folder).iterdir()):
        if path.is_file():
            survives(path.read_bytes())


@pytest.mark.data
def test_real_metadata_is_recognised(real_data: Path) -> None:
    for path, removed in {
        "exif_orientation/Portrait_6.jpg": {"exif"},
        "format/frozenpond.mpo": {"exif", "maker", "thumbnail", "trailer", "other"},
        "format/hopper.gif": {"comment"},
        "format/hopper_bad_exif.jpg": {"exif", "iptc", "thumbnail"},
        "non_lesion/n03633091_ladle.JPEG": {"exif", "iptc", "thumbnail", "xmp"},
    }.items():
        assert set(cleaned((real_data / "odd" / path).read_bytes()).removed) == removed, path
