"""A DICOM file -> the photo in it and the few values that may leave it. `skinray.images` decodes the photo like any other.

DICOM is how clinics store dermoscopy and overview photos: one file holds the pixels, compressed or not, and up to hundreds
of elements about the patient, the visit and the devices. Those are a blacklist's nightmare (private elements, free text), so
nothing is blacked out here: `DicomTags` is all that is read besides the pixels.

Needs pydicom (`pip install 'skinray[dicom]'`), imported when the first DICOM comes. Uncompressed, RLE, JPEG baseline and
JPEG 2000 photos need nothing else. Lossless JPEG, JPEG-LS and HTJ2K are read where a plugin of pydicom for them is installed
(pylibjpeg with pylibjpeg-openjpeg or pylibjpeg-libjpeg, pyjpegls).
"""

import hashlib
import hmac
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from skinray.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

# The elements that are read; pydicom skips all others.
_FRAME = ["SOPClassUID", "NumberOfFrames", "Rows", "Columns", "PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]
_SAMPLES = ["SamplesPerPixel", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"]
_WINDOW = ["WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"]
_GREY = ["RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", *_WINDOW]
_COLOURS = [
    "PhotometricInterpretation",
    "PixelPresentation",
    *(f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
]
_TAGS = ["PatientID", "PatientAge", "PatientSex", "BodyPartExamined", "AnatomicRegionSequence", "BurnedInAnnotation"]

_JPEG_SYNTAXES = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})  # baseline; extended, of 8 or 12 bits

_RGB_ONCE_DECODED = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
_CUT = "the DICOM file ends before its pixels do"

# Public on purpose: two archives that were prepared apart must give one patient one pseudonym.
_PSEUDONYM_KEY = b"skinray patient pseudonym 1"
_PSEUDONYM = re.compile(r"(?=.*[a-f])[0-9a-f]{16}")

_AGE = re.compile(r"(\d{1,3})([DWMY])")
_YEARS_IN = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
# In these years a date of birth can be told from an age and a postcode; US law (HIPAA's safe harbor) wants them in one class.
_OLDEST_YEARS = 90.0
_SITE = re.compile(r"[a-z][a-z ,()/-]{0,63}")


@dataclass(frozen=True)
class DicomTags:
    """All that leaves a DICOM file besides the photo.

    Attributes:
        age: The patient's age in years; 90 for all above 89. None: not stated.
        sex: "male", "female" or None.
        site: The body part or anatomic region, in lower case: letters only, so no date or number comes with it. Or None.
        patient_pseudonym: 16 hexadecimal digits that are the same for all photos of one PatientID, or None. A pseudonym, no
            anonymity: it is a hash under a key that anyone can read here, so who has a list of patient ids can compute
            theirs, and who can guess an id can check it.
        burned_in: Whether the file says that text which may name the patient is drawn into the pixels. Refuse such photos;
            that it is False proves nothing.
    """

    age: float | None
    sex: Literal["male", "female"] | None
    site: str | None
    patient_pseudonym: str | None
    burned_in: bool


@dataclass(frozen=True)
class DicomPhoto:
    """The photo in a DICOM file.

    Attributes:
        image: The content of an image file: a JPEG as it was stored, or a PNG of 8-bit RGB.
        tags: What may be known of it.
    """

    image: bytes
    tags: DicomTags


def is_pseudonym(patient_id: str) -> bool:
    """Whether a patient's id looks like a `DicomTags.patient_pseudonym`, and not like a number of 16 digits."""
    return bool(_PSEUDONYM.fullmatch(patient_id))


def is_dicom(data: bytes) -> bool:
    """Whether these bytes are a DICOM file."""
    return data[128:132] == b"DICM"


def read_dicom(data: bytes, max_pixels: int = 100_000_000) -> DicomPhoto:
    """Takes the first frame and the permitted values out of a DICOM file.

    A JPEG in it (baseline, three samples of 8 bits) is taken out as it is, with whatever its encoder wrote into it; all else
    is decoded. Grey of more than 8 bits is shown as the file's window says, else from its darkest to its brightest pixel.

    Args:
        data: The content of the file.
        max_pixels: The largest photo that is decoded, in pixels.

    Returns:
        The photo and its tags.

    Raises:
        ImageError: "truncated" or "corrupt": the file is damaged. "too_large": a frame has more than `max_pixels`.
            "not_an_image": it holds no pixels, or pydicom or its plugin for this compression is not installed.
    """
    dataset = _parse(data)
    try:
        rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
        tags = _read_tags(dataset)
        if "PixelData" not in dataset or not dataset.PixelData:
            raise ImageError("truncated", _CUT)
        if rows * columns > max_pixels:
            raise ImageError("too_large", f"{columns}x{rows} is more than {max_pixels // 1_000_000} megapixels")
        if rows * columns == 0 or samples not in (1, 3):
            raise ImageError("corrupt", f"{columns}x{rows} pixels of {samples} samples are no photo")
        is_jpeg = dataset.file_meta.TransferSyntaxUID in _JPEG_SYNTAXES and samples == 3 and dataset.BitsAllocated == 8
        image = _jpeg_of(dataset) if is_jpeg else _png_of(dataset)
    except ImageError:
        raise
    except EOFError as error:
        raise ImageError("truncated", _CUT) from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except Exception as error:
        # pydicom and its plugins raise what their parsers ran into. Its text may quote the file, so it goes no further.
        raise ImageError("corrupt", f"the DICOM file's pixels cannot be decoded ({type(error).__name__})") from None
    return DicomPhoto(image, tags)


class _Source(io.BytesIO):
    """pydicom asks for all the rest of a file only in order to inflate it, however large it may become."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise ImageError("not_an_image", "DICOM files that are deflated as a whole are not read")
        return super().read(size)


def _parse(data: bytes) -> "Dataset":
    try:
        import pydicom
    except ImportError as error:
        raise ImageError("not_an_image", "this is a DICOM file: pip install 'skinray[dicom]' to read it") from error
    # Its warnings would quote values, such as a name or a date that is not as it should be, in the log.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        dataset = pydicom.dcmread(_Source(data), specific_tags=[*_FRAME, *_SAMPLES, *_GREY, *_COLOURS, *_TAGS])
        is_photo = "Rows" in dataset and "Columns" in dataset and "SamplesPerPixel" in dataset
        # pydicom gives back nothing of a file that ends amid its pixels' fragments, and the start of one that ends before.
        is_cut = "SOPClassUID" not in dataset or "Image" in dataset.SOPClassUID.name
    except ImageError:
        raise
    except Exception as error:
        raise ImageError("corrupt", f"the DICOM file cannot be parsed ({type(error).__name__})") from None
    if not is_photo and is_cut:
        raise ImageError("truncated", _CUT)
    if not is_photo:
        raise ImageError("not_an_image", "the DICOM file holds no pixels")
    return dataset


# Pixels


def _jpeg_of(dataset: "Dataset") -> bytes:
    from pydicom.encaps import get_frame

    offsets = None
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    frames = int(dataset.get("NumberOfFrames") or 1)
    jpeg = get_frame(dataset.PixelData, 0, number_of_frames=frames, extended_offsets=offsets)
    if not jpeg.startswith(b"\xff\xd8\xff"):
        raise ImageError("corrupt", "the DICOM file's pixels are no JPEG, though it says so")
    # Fragments are padded to an even length.
    unpadded = jpeg.rstrip(b"\0")
    jpeg = unpadded if unpadded.endswith(b"\xff\xd9") else jpeg
    if dataset.PhotometricInterpretation == "RGB" and _is_silent_on_colours(jpeg):
        # Adobe's segment, whose last byte says that nothing was transformed.
        return jpeg[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + jpeg[2:]
    return jpeg


def _is_silent_on_colours(jpeg: bytes) -> bool:
    """Whether only DICOM says that a JPEG's samples are RGB; decoders would take them for YCbCr.

    Many encoders write "RGB" over YCbCr, so it is believed only where nothing in the JPEG speaks against it: no JFIF or
    Adobe segment, and no component that is stored more coarsely than another, as nobody would store green or blue.
    """
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        layers: list[tuple[int, int, int, int]] = image.layer  # type: ignore[attr-defined]
        return not {"jfif", "adobe"} & image.info.keys() and len({layer[1:3] for layer in layers}) == 1


def _png_of(dataset: "Dataset") -> bytes:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        is_available = get_decoder(syntax).is_available
    except NotImplementedError:
        is_available = False
    if not is_available:
        name = syntax.name if syntax.is_valid else "these pixels"
        raise ImageError("not_an_image", f"no plugin of pydicom is installed that decodes {name}")
    if not syntax.is_encapsulated and (missing := _expected_bytes(dataset) - len(dataset.PixelData)) > 0:
        raise ImageError("truncated", f"{missing} bytes of the DICOM file's pixels are missing")
    picture = _rgb_of(pixel_array(dataset, index=0), dataset)
    buffer = io.BytesIO()
    # The fastest level: most of these files are decoded again at once.
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _expected_bytes(dataset: "Dataset") -> int:
    """How long uncompressed pixels are, without padding."""
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel) * int(dataset.get("NumberOfFrames") or 1)
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        samples = samples * 2 // 3  # two samples of colour for two pixels
    return samples * int(dataset.BitsAllocated) // 8


def _rgb_of(values: npt.NDArray[Any], dataset: "Dataset") -> npt.NDArray[np.uint8]:
    """Samples as stored, [rows, columns] or [rows, columns, 3] -> uint8 [rows, columns, 3]."""
    interpretation = dataset.PhotometricInterpretation
    bits = int(dataset.BitsStored)
    if interpretation == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        colours = apply_color_lut(values, dataset)[..., :3]
        # Of 16-bit palettes some use the lower 8 bits only.
        return _to_8_bits(colours, 0, 65535 if colours.max() > 255 else 255)
    if values.ndim == 3 and interpretation in _RGB_ONCE_DECODED:
        return _to_8_bits(values, 0, 2**bits - 1)
    if values.ndim == 3 or interpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError("corrupt", "the DICOM file's pixels are neither grey, nor RGB or YBR, nor of a palette")
    is_deep = bits > 8 or dataset.PixelRepresentation
    grey = _windowed(values, dataset) if is_deep else _to_8_bits(values, 0, 2**bits - 1)
    if interpretation == "MONOCHROME1":  # the lowest value is white
        grey = 255 - grey
    return np.stack([grey] * 3, axis=-1)


def _windowed(values: npt.NDArray[Any], dataset: "Dataset") -> npt.NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, apply_windowing

    physical = apply_modality_lut(values, dataset)
    if not dataset.get("VOILUTSequence") and None not in (dataset.get("WindowCenter"), dataset.get("WindowWidth")):
        with np.errstate(over="ignore"):  # of the sigmoid's exponential
            shown = apply_windowing(physical, dataset)
            darkest, brightest = apply_windowing(np.array([-1e9, 1e9]), dataset)
        return _to_8_bits(shown, darkest, brightest)
    shown = apply_voi_lut(physical, dataset)
    return _to_8_bits(shown, float(shown.min()), float(shown.max()))


def _to_8_bits(values: npt.NDArray[Any], darkest: float, brightest: float) -> npt.NDArray[np.uint8]:
    if values.dtype == np.uint8 and (darkest, brightest) == (0, 255):
        return values
    scale = 255.0 / (brightest - darkest) if brightest > darkest else 0.0
    return (np.clip((values.astype(np.float64) - darkest) * scale, 0, 255) + 0.5).astype(np.uint8)


# Tags


def _read_tags(dataset: "Dataset") -> DicomTags:
    patient = _text(lambda: dataset.PatientID)
    age = _AGE.fullmatch(_text(lambda: dataset.PatientAge))
    site = _text(lambda: dataset.BodyPartExamined) or _text(lambda: dataset.AnatomicRegionSequence[0].CodeMeaning)
    site = site.lower()
    sexes: dict[str, Literal["male", "female"]] = {"M": "male", "F": "female"}
    return DicomTags(
        age=min(int(age[1]) * _YEARS_IN[age[2]], _OLDEST_YEARS) if age else None,
        sex=sexes.get(_text(lambda: dataset.PatientSex).upper()),
        site=site if _SITE.fullmatch(site) else None,
        patient_pseudonym=_pseudonym(patient) if patient else None,
        burned_in=_text(lambda: dataset.BurnedInAnnotation).upper() == "YES",
    )


def _pseudonym(patient_id: str) -> str:
    return hmac.new(_PSEUDONYM_KEY, patient_id.encode(), hashlib.sha256).hexdigest()[:16]


def _text(read: Callable[[], object]) -> str:
    """An element's value; empty where it is not there or damaged, which is no reason to lose the photo."""
    try:
        value = read()
    except Exception:
        return ""
    return "" if value is None else str(value).strip()
