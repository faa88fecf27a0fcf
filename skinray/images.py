"""Bytes of a photo -> uint8 RGB of the model's size. THE decode and resize: training, evaluation, scoring and serving
call nothing else, so that one photo gives one answer everywhere.

Decoders and resizers differ by more than models do (a resize without antialiasing moves pixels by 4.5 levels on
average), so `Preprocessing` is part of every bundle and its version is checked when a bundle is loaded.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from pydantic import BaseModel, ConfigDict, Field

from skinray.dicom import is_dicom, read_dicom
from skinray.errors import ImageError

# Formats that archives hold. Anything else that Pillow might open (PDF, EPS, icons...) is refused unopened.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".dcm", ".dicom"}
)
JPEG_START = b"\xff\xd8\xff"

# 100 megapixels: twice what today's largest cameras give. Decoding one takes 0.8 GB (two pictures of four bytes a pixel), a
# progressive JPEG that is decoded at full size 1.0, a WebP 1.6 and DICOM of 16 bits 2.5 GB, however few bytes it has.
MAX_PIXELS = 100_000_000
# Uncompressed, and as DICOM stores them: three samples of 16 bits each; the rest is for headers. What is larger, such as a whole
# slide, would only be read to be refused.
MAX_FILE_BYTES = 6 * MAX_PIXELS + 40_000_000
# Pixels that are converted at once where that takes several copies of them.
_STRIP_PIXELS = 1 << 20

_FULL_SIZE = 0  # what simplejpeg takes for no limit below

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Preprocessing(BaseModel):
    """How a photo becomes the model's input; stored in every bundle as `preprocessing.json`.

    JPEGs are decoded by libjpeg-turbo at the smallest DCT scale (n/8) that still covers the model's size, which is two
    to four times faster on large photos than a full decode; the rest is an antialiased resize by Pillow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    decoder: Literal["libjpeg-turbo-dct-scaled+pillow"] = "libjpeg-turbo-dct-scaled+pillow"
    image_size_px: int = Field(224, ge=16, le=2048)
    fit: Literal["stretch", "center_crop"] = "stretch"
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    orientation: Literal["exif"] = "exif"


@dataclass(frozen=True)
class Photo:
    """A decoded photo.

    Attributes:
        pixels: uint8 [size, size, 3], RGB.
        width_px: Width of the photo as stored upright, in pixels.
        height_px: Height of the photo as stored upright, in pixels.
    """

    pixels: npt.NDArray[np.uint8]
    width_px: int
    height_px: int


def decode_photo(data: bytes, preprocessing: Preprocessing) -> Photo:
    """Decodes a photo, turns it upright and resizes it.

    Args:
        data: The content of an image file (JPEG, PNG, WebP, TIFF, BMP, GIF or DICOM); of several frames the first.
        preprocessing: The size and how to reach it.

    Returns:
        The photo at the model's size.

    Raises:
        ImageError: The bytes are empty, no image, cut off, corrupt or larger than `MAX_PIXELS`; or they are DICOM and
            pydicom is not installed.
    """
    upright, width, height = _read_upright(data, preprocessing.image_size_px)
    return Photo(pixels=_resize(upright, preprocessing), width_px=width, height_px=height)


def read_full_size(data: bytes) -> Image.Image:
    """The upright RGB picture that `decode_photo` resizes, before any scaling: what `skinray.deidentify` stores anew.

    Raises:
        ImageError: As `decode_photo`.
    """
    return _read_upright(data, _FULL_SIZE)[0]


def _read_upright(data: bytes, size_px: int) -> tuple[Image.Image, int, int]:
    """An upright RGB picture that covers `size_px`, and the photo's upright width and height in pixels."""
    if not data:
        raise ImageError("empty", "the file has 0 bytes")
    if not data.startswith(JPEG_START) and is_dicom(data):
        dicom = read_dicom(data, MAX_PIXELS)
        if dicom.tags.burned_in:
            raise ImageError("burned_in", "its DICOM header says that identifying text is part of the picture")
        data = dicom.image
    with decoding(), open_photo(data) as image:
        upright = _load_rgb(data, image, size_px)
        # After the pixels: asking a PNG for its EXIF reads them too, and would swallow what is wrong with them.
        orientation = orientation_of(image)
        width, height = image.size
    del image  # its pixels, before they are copied once more
    if orientation in _TRANSPOSE:
        upright = upright.transpose(_TRANSPOSE[orientation])
        if orientation >= 5:
            width, height = height, width
    return upright, width, height


@contextmanager
def decoding() -> Iterator[None]:
    """Turns what Pillow's plugins answer damaged headers and pixels with into an `ImageError`."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, MemoryError) as error:
        raise _damaged(error) from error


def open_photo(data: bytes) -> Image.Image:
    """Opens a photo that is no DICOM, its pixels not yet read.

    Raises:
        ImageError: It is none of `FORMATS`, or larger than `MAX_PIXELS`.
    """
    file = io.BytesIO(data)
    image: Image.Image
    try:
        # JPEGs not through Image.open: an MPO (two JPEGs in one file) is its first JPEG, however damaged its index is.
        image = JpegImageFile(file) if data.startswith(JPEG_START) else Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError("not_an_image", f"the {len(data)} bytes are none of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError("too_large", f"{width}x{height} is more than {MAX_PIXELS // 1_000_000} megapixels")
    return image


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation by which `decode_photo` turns an opened photo; only 2 to 8 turn it."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF upright while it reads the pixels
    # A photo with damaged EXIF is a good photo: its orientation is unknown and taken as upright.
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        return 1


def _load_rgb(data: bytes, image: Image.Image, size_px: int) -> Image.Image:
    if isinstance(image, JpegImageFile) and image.mode in ("RGB", "L"):
        try:
            pixels = simplejpeg.decode_jpeg(
                data, colorspace="RGB", min_height=size_px, min_width=size_px, min_factor=1, strict=True
            )
            return Image.fromarray(pixels)
        except ValueError:
            # strict refuses harmless oddities too (stray bytes before a marker). Pillow tells those from lost data.
            pass
    image.load()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_high_depth(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _in_strips(image, _laid_on_white)
    return image.convert("RGB")


def _laid_on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _from_high_depth(image: Image.Image) -> Image.Image:
    # 12 bits in 16 are told from full 16 by the brightest pixel; convert("RGB") alone would clip everything to white.
    most = max(float(_values(strip).max()) for _, strip in _strips(image))
    brightest = 4095.0 if most <= 4095 else 65535.0
    if image.mode == "F" and most <= 1:
        brightest = 1.0  # floating-point photos hold 0 to 1 by convention

    def to_rgb(strip: Image.Image) -> Image.Image:
        return Image.fromarray(np.uint8(np.clip(_values(strip), 0, brightest) * (255.0 / brightest) + 0.5)).convert("RGB")

    return _in_strips(image, to_rgb)


def _values(image: Image.Image) -> npt.NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image, dtype=np.float64))


def _in_strips(image: Image.Image, to_rgb: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What `to_rgb` makes of a picture, pixel by pixel, without ever holding all of what it holds meanwhile."""
    whole = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        whole.paste(to_rgb(strip), (0, top))
    return whole


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """A picture from top to bottom: where each part begins, and the part."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


def _resize(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    size = (preprocessing.image_size_px, preprocessing.image_size_px)
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[preprocessing.filter]
    if preprocessing.fit == "center_crop":
        resized = ImageOps.fit(image, size, method=resample)
    else:
        resized = image.resize(size, resample=resample)
    return np.asarray(resized)


def _damaged(error: Exception) -> ImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in reason.lower() or isinstance(error, EOFError):
        return ImageError("truncated", reason)
    return ImageError("corrupt", reason)
