"""DICOM: every way in which its pixels are stored gives the photo, and of all else only the permitted values come out."""

import contextlib
import hashlib
import hmac
import io
import os
import struct
import subprocess
import sys
from typing import Any, get_args

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    VLPhotographicImageStorage,
)

from skinray.deidentify import without_metadata
from skinray.dicom import DicomTags, is_dicom, read_dicom
from skinray.errors import ImageError, ImageErrorCode
from skinray.images import MAX_PIXELS, Preprocessing, decode_photo
from tests.test_images import SMALL, encoded, lesion, mean_difference, noise

# pydicom's word on what does not fit; skinray's own answer is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore::UserWarning:PIL")

Samples = NDArray[Any]
WIDTH, HEIGHT = 48, 40
NOBODY = DicomTags(age=None, sex=None, site=None, patient_pseudonym=None, burned_in=False)
SECRETS = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "MRN-0012345",
    "PatientBirthDate": "19640812",
    "InstitutionName": "Klinikum Musterstadt",
    "AccessionNumber": "ACC-99887",
    "ReferringPhysicianName": "Who^Doctor",
    "StudyDate": "20250317",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.123456",
    "PatientComments": "lives in Heidestrasse 17",
    "DeviceSerialNumber": "SN-4711-0815",
}
PRIVATE = "private remark of a vendor"


def rgb() -> Samples:
    return np.asarray(lesion(WIDTH, HEIGHT))


def dicom(pixels: Samples | bytes, syntax: UID = ExplicitVRLittleEndian, **elements: Any) -> bytes:
    """A DICOM file of uncompressed samples, or of one frame's compressed bytes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLPhotographicImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.826.0.1.3680043.8.498.1")
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID = VLPhotographicImageStorage
    dataset.Rows, dataset.Columns = HEIGHT, WIDTH
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    if isinstance(pixels, bytes):
        dataset.PixelData = encapsulate([pixels]) if pixels else b""
    else:
        dataset.Rows, dataset.Columns = pixels.shape[:2]
        dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
        dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.size * pixels.dtype.itemsize % 2)
        if pixels.ndim == 2:
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
            del dataset.PlanarConfiguration
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    if syntax.is_encapsulated:
        dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def shown(data: bytes) -> Samples:
    """The pixels of the extracted image, which `decode_photo` shows too."""
    photo = read_dicom(data)
    with Image.open(io.BytesIO(photo.image)) as image:
        pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    decoded = decode_photo(data, SMALL)
    np.testing.assert_array_equal(decoded.pixels, decode_photo(photo.image, SMALL).pixels)
    assert (decoded.width_px, decoded.height_px) == (width, height)
    return pixels


def error_of(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_dicom(data)
    with pytest.raises(ImageError) as again:
        decode_photo(data, SMALL)
    assert again.value.code == caught.value.code
    assert len(caught.value.detail.splitlines()) == 1
    return caught.value


def test_dicom_is_told_by_its_prefix() -> None:
    assert is_dicom(dicom(rgb()))
    assert not is_dicom(encoded(lesion(100, 100), "PNG"))
    assert not is_dicom(b"")
    assert not is_dicom(b"DICM")


# Pixels


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_uncompressed_rgb_is_taken_as_it_is(syntax: UID) -> None:
    np.testing.assert_array_equal(shown(dicom(rgb(), syntax)), rgb())


def test_colours_stored_plane_by_plane() -> None:
    planes = np.ascontiguousarray(np.moveaxis(rgb(), -1, 0))
    data = dicom(planes.reshape(HEIGHT, WIDTH, 3), PlanarConfiguration=1)
    np.testing.assert_array_equal(shown(data), rgb())


def test_ybr_becomes_rgb() -> None:
    ybr = np.asarray(lesion(WIDTH, HEIGHT).convert("YCbCr"))
    assert mean_difference(shown(dicom(ybr, PhotometricInterpretation="YBR_FULL")), rgb()) < 1


def test_rle_is_lossless() -> None:
    frame = RLELosslessEncoder.encode(
        rgb(),
        rows=HEIGHT,
        columns=WIDTH,
        samples_per_pixel=3,
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        photometric_interpretation="RGB",
        planar_configuration=0,
        number_of_frames=1,
    )
    np.testing.assert_array_equal(shown(dicom(frame, RLELossless, PlanarConfiguration=1)), rgb())


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("has_offsets", [True, False])
def test_a_jpeg_in_it_is_taken_out_byte_for_byte(syntax: UID, fragments: int, has_offsets: bool) -> None:
    jpeg = encoded(lesion(WIDTH, HEIGHT), "JPEG", quality=80)
    pixels = encapsulate([jpeg], fragments_per_frame=fragments, has_bot=has_offsets)
    data = dicom(b"", syntax, PixelData=pixels, PhotometricInterpretation="YBR_FULL_422")
    assert read_dicom(data).image == jpeg
    np.testing.assert_array_equal(shown(data), np.asarray(Image.open(io.BytesIO(jpeg))))


@pytest.mark.parametrize("has_offsets", [True, False])
def test_of_several_frames_the_first_is_taken(has_offsets: bool) -> None:
    jpegs = [encoded(lesion(WIDTH, HEIGHT), "JPEG", quality=quality) for quality in (80, 50, 30)]
    pixels = encapsulate(jpegs, has_bot=has_offsets)
    data = dicom(b"", JPEGBaseline8Bit, PixelData=pixels, NumberOfFrames=3, PhotometricInterpretation="YBR_FULL_422")
    assert read_dicom(data).image == jpegs[0]
    stack = np.stack([rgb(), 255 - rgb()])
    native = dicom(rgb(), NumberOfFrames=2, PixelData=stack.tobytes())
    np.testing.assert_array_equal(shown(native), rgb())


def test_an_extended_offset_table_is_followed() -> None:
    jpegs = [encoded(lesion(WIDTH, HEIGHT), "JPEG", quality=quality) for quality in (80, 50)]
    pixels, offsets, lengths = pydicom.encaps.encapsulate_extended(jpegs)
    tables = {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    data = dicom(b"", JPEGBaseline8Bit, PixelData=pixels, NumberOfFrames=2, **tables)
    assert read_dicom(data).image == jpegs[0]


def without_jfif(jpeg: bytes) -> bytes:
    assert jpeg[2:4] == b"\xff\xe0"
    return jpeg[:2] + jpeg[4 + int.from_bytes(jpeg[4:6], "big") :]


def test_rgb_in_a_jpeg_that_does_not_say_so_gets_its_colours() -> None:
    # A JPEG of RGB samples is one of YCbCr whose samples are called so: without JFIF nothing but DICOM tells.
    samples = Image.frombytes("YCbCr", (WIDTH, HEIGHT), lesion(WIDTH, HEIGHT).tobytes())
    jpeg = without_jfif(encoded(samples, "JPEG", quality=95, subsampling=0))
    data = dicom(jpeg, JPEGBaseline8Bit)
    assert mean_difference(shown(data), rgb()) < 2
    assert mean_difference(shown(data), np.asarray(Image.open(io.BytesIO(jpeg)))) > 20
    cleaned = without_metadata(data)
    assert cleaned.removed == ("dicom",)
    np.testing.assert_array_equal(decode_photo(cleaned.data, SMALL).pixels, decode_photo(data, SMALL).pixels)


@pytest.mark.parametrize(("jfif", "subsampling"), [(True, 0), (True, 2), (False, 2)])
def test_ybr_in_a_jpeg_under_the_name_of_rgb_gets_its_colours(jfif: bool, subsampling: int) -> None:
    jpeg = encoded(lesion(WIDTH, HEIGHT), "JPEG", quality=95, subsampling=subsampling)
    data = dicom(jpeg if jfif else without_jfif(jpeg), JPEGBaseline8Bit, PhotometricInterpretation="RGB")
    assert mean_difference(shown(data), rgb()) < 3


@pytest.mark.parametrize("syntax", [JPEG2000, JPEG2000Lossless])
def test_jpeg_2000_needs_no_plugin(syntax: UID) -> None:
    codestream = encoded(lesion(WIDTH, HEIGHT), "JPEG2000", no_jp2=True, mct=1)
    interpretation = "YBR_RCT" if syntax == JPEG2000Lossless else "YBR_ICT"
    assert mean_difference(shown(dicom(codestream, syntax, PhotometricInterpretation=interpretation)), rgb()) < 1


def test_grey_jpegs_are_shown_in_grey() -> None:
    jpeg = encoded(lesion(WIDTH, HEIGHT).convert("L"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    data = dicom(jpeg, JPEGBaseline8Bit, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2")
    np.testing.assert_array_equal(shown(data), expected)


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_grey_of_8_bits_keeps_its_levels(interpretation: str) -> None:
    levels = rgb()[..., 0]
    expected = 255 - levels if interpretation == "MONOCHROME1" else levels
    pixels = shown(dicom(levels, PhotometricInterpretation=interpretation, WindowCenter=10, WindowWidth=5))
    np.testing.assert_array_equal(pixels, np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_grey_of_12_bits_spans_from_black_to_white(interpretation: str) -> None:
    ramp = np.tile(np.linspace(500, 2500, WIDTH).astype(np.uint16), (HEIGHT, 1))
    pixels = shown(dicom(ramp, BitsStored=12, PhotometricInterpretation=interpretation))
    expected = np.linspace(0, 255, WIDTH)
    expected = expected[::-1] if interpretation == "MONOCHROME1" else expected
    assert np.abs(pixels[0] - expected[:, np.newaxis]).max() <= 1


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_a_window_cuts_what_it_says(function: str | None) -> None:
    ramp = np.tile(np.linspace(0, 4095, WIDTH).astype(np.uint16), (HEIGHT, 1))
    window = {"WindowCenter": [1000, 7], "WindowWidth": [200, 7], "RescaleSlope": 2, "RescaleIntercept": -1000}
    pixels = shown(dicom(ramp, BitsStored=12, **window, **({"VOILUTFunction": function} if function else {})))[0, :, 0]
    physical = ramp[0] * 2.0 - 1000
    assert (pixels[physical < 700] == 0).all()
    assert (pixels[physical > 1300] == 255).all()
    assert (np.diff(pixels.astype(int)) >= 0).all()


def test_signed_and_16_bit_grey_is_shown() -> None:
    ramp = np.tile(np.linspace(-1000, 1000, WIDTH).astype(np.int16), (HEIGHT, 1))
    pixels = shown(dicom(ramp, PixelRepresentation=1))[0, :, 0]
    assert (pixels[0], pixels[-1]) == (0, 255)
    assert (np.diff(pixels.astype(int)) >= 0).all()
    assert (shown(dicom(np.full((HEIGHT, WIDTH), 7, np.uint16))) == 0).all()


def test_bits_beside_the_sample_are_no_picture() -> None:
    # Old files keep overlays, such as a name, in the bits above the sample.
    ramp = np.tile(np.linspace(0, 4095, WIDTH).astype(np.uint16), (HEIGHT, 1))
    drawn = ramp.copy()
    drawn[10:20, 10:20] |= 0x8000
    np.testing.assert_array_equal(shown(dicom(drawn, BitsStored=12)), shown(dicom(ramp, BitsStored=12)))


@pytest.mark.parametrize("depth", [8, 16])
def test_palettes_are_looked_up(depth: int) -> None:
    image = lesion(WIDTH, HEIGHT).quantize(64)
    palette = np.array(image.getpalette(), dtype=f"uint{depth}").reshape(-1, 3)[:64] * (257 if depth == 16 else 1)
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for number, colour in enumerate(("Red", "Green", "Blue")):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [64, 0, depth]
        elements[f"{colour}PaletteColorLookupTableData"] = palette[:, number].tobytes()
    np.testing.assert_array_equal(shown(dicom(np.asarray(image), **elements)), np.asarray(image.convert("RGB")))


# Tags


def test_only_permitted_values_come_out() -> None:
    data = dicom(rgb(), PatientAge="045Y", PatientSex="F", BodyPartExamined="SKIN", **SECRETS)
    photo = read_dicom(data)
    pseudonym = hmac.new(b"skinray patient pseudonym 1", b"MRN-0012345", hashlib.sha256).hexdigest()[:16]
    assert photo.tags == DicomTags(45.0, "female", "skin", pseudonym, burned_in=False)


@pytest.mark.parametrize("compressed", [True, False])
def test_no_secret_survives(compressed: bool) -> None:
    exif = Image.Exif()
    exif[0x010E] = "embedded " + SECRETS["PatientName"]
    jpeg = encoded(lesion(WIDTH, HEIGHT), "JPEG", quality=80, exif=exif, comment=SECRETS["PatientComments"].encode())
    data = dicom(jpeg, JPEGBaseline8Bit, **SECRETS) if compressed else dicom(rgb(), **SECRETS)
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.private_block(0x0029, "VENDOR", create=True).add_new(0x01, "LO", PRIVATE)
    request = Dataset()
    request.PatientName = SECRETS["PatientName"]
    dataset.RequestAttributesSequence = Sequence([request])
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    data = buffer.getvalue() + SECRETS["PatientName"].encode()
    photo, result = read_dicom(data), without_metadata(data)
    for secret in (*SECRETS.values(), PRIVATE):
        assert secret.encode() in data
        assert secret.encode() not in result.data
        assert compressed or secret.encode() not in photo.image
        assert secret not in repr(photo.tags)
    assert result.removed == (("comment", "dicom", "exif") if compressed else ("dicom",))
    again = without_metadata(result.data)
    assert again.data is result.data
    for size in (32, 224):
        preprocessing = Preprocessing(image_size_px=size)
        np.testing.assert_array_equal(decode_photo(result.data, preprocessing).pixels, decode_photo(data, preprocessing).pixels)


@pytest.mark.parametrize(
    ("stored", "years"),
    [
        ("045Y", 45.0),
        ("006M", 0.5),
        ("026W", 26 * 7 / 365.25),
        ("003D", 3 / 365.25),
        ("089Y", 89.0),
        ("090Y", 90.0),
        ("101Y", 90.0),
        ("45", None),
        ("old", None),
        ("", None),
    ],
)
def test_ages_are_years_and_none_is_above_90(stored: str, years: float | None) -> None:
    assert read_dicom(dicom(rgb(), PatientAge=stored)).tags.age == pytest.approx(years)


def test_values_that_are_no_such_values_are_left_out() -> None:
    assert read_dicom(dicom(rgb())).tags == NOBODY
    region = Dataset()
    region.CodeMeaning = "Skin of lower leg"
    strange = {"PatientSex": "O", "PatientAge": "Y", "PatientID": " ", "BurnedInAnnotation": "NO"}
    assert read_dicom(dicom(rgb(), **strange, BodyPartExamined="BORN 1964")).tags == NOBODY
    assert read_dicom(dicom(rgb(), AnatomicRegionSequence=Sequence([region]))).tags.site == "skin of lower leg"
    assert read_dicom(dicom(rgb(), AnatomicRegionSequence=Sequence([]))).tags.site is None
    assert read_dicom(dicom(rgb(), PatientSex="m")).tags.sex == "male"
    assert read_dicom(dicom(rgb(), BurnedInAnnotation="YES")).tags.burned_in


def test_a_photo_with_text_in_it_is_not_decoded() -> None:
    with pytest.raises(ImageError, match="identifying text") as refused:
        decode_photo(dicom(rgb(), BurnedInAnnotation="YES"), Preprocessing())
    assert refused.value.code == "burned_in"


def test_pseudonyms_group_photos_and_show_no_id() -> None:
    one, same, other = (read_dicom(dicom(rgb(), PatientID=name)).tags.patient_pseudonym for name in ("A1", "A1 ", "A2"))
    assert one == same != other
    assert one is not None
    assert len(one) == 16
    assert set(one) <= set("0123456789abcdef")


# What cannot be used


def test_a_cut_file_is_truncated() -> None:
    jpeg = encoded(noise(WIDTH, HEIGHT), "JPEG", quality=95)
    for data in (dicom(rgb()), dicom(jpeg, JPEGBaseline8Bit), dicom(rgb(), NumberOfFrames=2, PixelData=rgb().tobytes() * 2)):
        for kept in (0.6, 0.9):
            assert error_of(data[: int(len(data) * kept)]).code == "truncated"
    assert error_of(dicom(rgb(), PixelData=rgb().tobytes()[:-500])).code == "truncated"


def test_a_cut_jpeg_in_a_whole_file_is_truncated() -> None:
    jpeg = encoded(lesion(400, 300), "JPEG", quality=95)
    data = dicom(jpeg[: len(jpeg) // 2], JPEGBaseline8Bit, Rows=300, Columns=400, PhotometricInterpretation="YBR_FULL_422")
    with pytest.raises(ImageError) as caught:
        decode_photo(data, SMALL)
    assert caught.value.code == "truncated"


def test_pixels_that_are_not_what_the_file_says_are_corrupt() -> None:
    assert error_of(dicom(b"no jpeg at all", JPEGBaseline8Bit)).code == "corrupt"
    assert error_of(dicom(b"no codestream", JPEG2000)).code == "corrupt"
    assert error_of(dicom(rgb(), SamplesPerPixel=4)).code == "corrupt"
    assert error_of(dicom(rgb(), Rows=0)).code == "corrupt"
    assert error_of(dicom(rgb(), PhotometricInterpretation="HSV")).code == "corrupt"
    assert error_of(dicom(rgb(), PhotometricInterpretation="MONOCHROME2")).code == "corrupt"
    assert error_of(dicom(rgb()[..., 0], PhotometricInterpretation="RGB")).code == "corrupt"


def test_errors_quote_nothing_of_the_file() -> None:
    data = dicom(rgb(), **SECRETS)
    for number in range(140, 1200, 7):
        damaged = data[:number] + b"\xff\x00\xff" + data[number + 3 :]
        with contextlib.suppress(ImageError):
            read_dicom(damaged)
            continue
        error = error_of(damaged)
        assert error.__cause__ is None
        assert not [secret for secret in SECRETS.values() if secret in error.detail]


def test_a_file_without_pixels_is_no_image() -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.88.11"), UID("1.2.3")
    report = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    report.SOPClassUID = meta.MediaStorageSOPClassUID
    report.PatientName = "Mustermann^Erika"
    buffer = io.BytesIO()
    report.save_as(buffer, enforce_file_format=True)
    assert error_of(buffer.getvalue()).code == "not_an_image"
    assert error_of(bytes(128) + b"DICM").code == "truncated"


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, UID("1.2.840.10008.1.2.4.100")])
def test_a_compression_without_a_plugin_is_named(syntax: UID) -> None:
    if syntax in (JPEGLosslessSV1, JPEGLSLossless) and get_decoder(syntax).is_available:
        pytest.skip("its plugin is installed here")
    error = error_of(dicom(b"\xff\xd8\xff\xf7", syntax))
    assert error.code == "not_an_image"
    assert syntax.name in error.detail


def test_a_file_that_is_deflated_as_a_whole_is_refused_before_it_grows() -> None:
    data = dicom(np.zeros((2000, 2000, 3), np.uint8), DeflatedExplicitVRLittleEndian)
    assert len(data) < 50_000
    error = error_of(data)
    assert error.code == "not_an_image"
    assert "deflated" in error.detail


def test_120_megapixels_are_too_large_before_they_are_decoded() -> None:
    data = dicom(b"\0" * 64, RLELossless, Rows=12_000, Columns=10_000, PlanarConfiguration=1)
    assert error_of(data).code == "too_large"
    with pytest.raises(ImageError, match="too_large"):
        read_dicom(dicom(rgb()), max_pixels=WIDTH * HEIGHT - 1)
    assert read_dicom(dicom(rgb()), max_pixels=WIDTH * HEIGHT).tags == NOBODY
    assert read_dicom.__defaults__ == (MAX_PIXELS,)


VALID = {
    "uncompressed": dicom(rgb(), **SECRETS),
    "grey": dicom(rgb()[..., 0].astype(np.uint16) * 16, BitsStored=12, WindowCenter=500, WindowWidth=300),
    "JPEG": dicom(encoded(lesion(WIDTH, HEIGHT), "JPEG"), JPEGBaseline8Bit, **SECRETS),
    "JPEG 2000": dicom(
        encoded(lesion(WIDTH, HEIGHT), "JPEG2000", no_jp2=True, mct=1), JPEG2000, PhotometricInterpretation="YBR_ICT"
    ),
}


def decodes_or_says_why(data: bytes) -> None:
    try:
        photo = decode_photo(data, SMALL)
    except ImageError as error:
        code, detail = error.code, error.detail
    else:
        np.testing.assert_array_equal(decode_photo(without_metadata(data).data, SMALL).pixels, photo.pixels)
        return
    assert code in get_args(ImageErrorCode)
    assert detail


@pytest.mark.parametrize("name", VALID)
@settings(max_examples=60, deadline=None)
@given(damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_any_damage_is_a_photo_or_an_image_error(name: str, damage: list[tuple[float, int]]) -> None:
    damaged = bytearray(VALID[name])
    for place, flipped in damage:
        at = int(place**2 * len(damaged))
        if not 128 <= at < 132:
            damaged[at] ^= flipped
    decodes_or_says_why(bytes(damaged))


@pytest.mark.parametrize("name", VALID)
def test_any_truncation_is_a_photo_or_an_image_error(name: str) -> None:
    for length in range(0, len(VALID[name]), max(1, len(VALID[name]) // 100)):
        decodes_or_says_why(VALID[name][:length])


@settings(max_examples=50, deadline=None)
@given(rest=st.binary(max_size=300))
def test_any_bytes_after_the_prefix_are_a_photo_or_an_image_error(rest: bytes) -> None:
    decodes_or_says_why(bytes(128) + b"DICM" + rest)


# Without pydicom


def test_without_pydicom_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    error = error_of(dicom_without_import())
    assert error.code == "not_an_image"
    assert "skinray[dicom]" in error.detail


def dicom_without_import() -> bytes:
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, 0)


def test_pydicom_is_imported_when_a_dicom_comes() -> None:
    program = "import sys, skinray.deidentify; assert not [name for name in sys.modules if name.startswith('pydicom')]"
    subprocess.run([sys.executable, "-c", program], check=True, env=dict(os.environ))
