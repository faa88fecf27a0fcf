"""The bytes of a photo -> the same picture without what may identify a person. `decode_photo` took it before; a shard gets it
after.

Cameras, phones and clinics' programs write names, places, dates, serial numbers and small copies of the uncropped picture
beside the pixels. Of these only the density, the colour profile and the orientation are kept; whatever else stands there
goes, known or not:

    JPEG (and MPO), PNG, WebP    what is no picture is cut out; the picture's own bytes stay (`skinray.containers`)
    DICOM                        the photo in it, treated so
    TIFF, BMP, GIF, animated WebP, and files too odd to cut: stored anew as PNG, upright and at full size

Two things hold for every photo that `decode_photo` takes, at every size. The pixels that it gives are the same before and
after, bit for bit: odd JPEGs included, because libjpeg-turbo's strict mode refuses all that cannot be cut, and `decode_photo`
then reads them at full size, as it does their PNG. And what was cleaned once is clean: it comes back as it is.

Names in the picture itself, in a filename, or hidden in coded pixels stay where they are.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from skinray.containers import PNG_START, OddFileError, clean_jpeg, clean_png, clean_webp, exif_contents
from skinray.dicom import is_dicom, read_dicom
from skinray.images import JPEG_START, MAX_PIXELS, decoding, open_photo, read_full_size

# A tenth larger than at Pillow's level, in a third of the time (HAM10000's photos).
_PNG_LEVEL = 3

_INFO_NAMES = {"exif": "exif", "xmp": "xmp", "XML:com.adobe.xmp": "xmp", "photoshop": "iptc", "comment": "comment"}
_TIFF_NAMES = {
    Base.ImageDescription: "text",
    Base.Make: "text",
    Base.Model: "text",
    Base.Software: "text",
    Base.DateTime: "text",
    Base.Artist: "text",
    Base.HostComputer: "text",
    Base.Copyright: "text",
    Base.XMLPacket: "xmp",
    Base.IPTCNAA: "iptc",
    Base.ImageResources: "iptc",
    Base.ExifOffset: "exif",
    Base.GPSInfo: "gps",
}


@dataclass(frozen=True)
class Deidentified:
    """A photo without metadata.

    Attributes:
        data: The content of an image file: the very object that was given where there was nothing to remove.
        removed: What was found and left out, sorted, of "comment", "dicom", "exif", "gps" (a place), "iptc", "maker",
            "other", "text", "thumbnail", "trailer" (bytes after the picture's end) and "xmp". Where a file is stored anew,
            what Pillow recognised; so it is empty for a plain BMP, though its bytes change.
    """

    data: bytes
    removed: tuple[str, ...]


def without_metadata(data: bytes) -> Deidentified:
    """Removes the metadata of a photo.

    Args:
        data: The content of an image file that `decode_photo` takes.

    Returns:
        The same picture, and what was left out.

    Raises:
        ImageError: It has to be decoded for this, and cannot be; `decode_photo` says the same of it.
    """
    if data.startswith(JPEG_START):
        clean = clean_jpeg
    elif is_dicom(data):
        photo = without_metadata(read_dicom(data, MAX_PIXELS).image)
        return Deidentified(photo.data, tuple(sorted({*photo.removed, "dicom"})))
    elif data.startswith(PNG_START):
        clean = clean_png
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        clean = clean_webp
    else:
        return _stored_anew(data)
    try:
        with decoding():
            cleaned, removed = clean(data)
    except OddFileError:
        return _stored_anew(data)
    return Deidentified(cleaned, tuple(sorted(removed))) if removed else Deidentified(data, ())


def _stored_anew(data: bytes) -> Deidentified:
    pixels = np.asarray(read_full_size(data))
    with decoding(), open_photo(data) as image:
        removed = _recognised(image)
    buffer = io.BytesIO()
    # From the pixels alone: Pillow's image would bring its colour profile and texts along.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return Deidentified(buffer.getvalue(), tuple(sorted(removed)))


def _recognised(image: Image.Image) -> set[str]:
    removed = exif_contents(image)
    removed |= {name for key, name in _INFO_NAMES.items() if key in image.info}
    if image.format == "TIFF":
        tags = image.getexif()
        removed |= {name for tag, name in _TIFF_NAMES.items() if tag in tags}
    if getattr(image, "text", None):
        removed.add("text")
    if getattr(image, "is_animated", False):
        removed.add("other")
    return removed
