"""Photos of prediction rows, read again where they lie -> small pictures inside a page.

A photo that is gone, or that cannot be decoded, has no picture: a page about photos is made although some of them are lost.
"""

import base64
import contextlib
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from skinray import file_listing
from skinray.errors import ImageError, SkinrayError
from skinray.images import Photo, Preprocessing, decode_photo
from skinray.shard_listing import list_shard
from skinray.shard_reader import read_contents

# The longer side.
THUMBNAIL_PX = 160
_DECODED = Preprocessing(image_size_px=192)
_QUALITY = 80
_IN_SHARD = re.compile(r"(.+?\.(?:tar|parquet|pq))#", re.IGNORECASE)


def thumbnails(image_uris: Sequence[str]) -> list[str]:
    """A small picture of each photo.

    Args:
        image_uris: [N], as prediction rows have them: files, or `SHARD#NAME`.

    Returns:
        N data: URIs of JPEGs of at most THUMBNAIL_PX, in the photo's own proportions and without any metadata; "" for a photo
        that cannot be shown.
    """
    shards: dict[str, set[str]] = defaultdict(set)
    found: dict[str, str] = {}
    for uri in image_uris:
        if shard := _IN_SHARD.match(uri):
            shards[shard[1]].add(uri)
        elif uri and uri not in found:
            found |= _shown([{"image_uri": uri, "shard": "", "file_bytes": None}])
    for shard_uri, wanted in shards.items():
        found |= _shown(_rows_of_shard(shard_uri, wanted))
    return [found.get(uri, "") for uri in image_uris]


def _rows_of_shard(uri: str, wanted: set[str]) -> Sequence[Mapping[str, Any]]:
    """Where photos lie in a shard; those that are not there any more are missing."""
    try:
        shard = list_shard(uri, "", file_listing.entry_of(uri).version)
    except SkinrayError:
        return []
    if shard is None:
        return []
    chosen = pc.is_in(shard.photos["image_uri"], pa.array(sorted(wanted), pa.string()))
    rows: list[dict[str, Any]] = shard.photos.filter(pc.and_(chosen, pc.greater_equal(shard.photos["position"], 0))).to_pylist()
    return rows


def _shown(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found = {}
    with contextlib.suppress(SkinrayError):  # of a store that nobody knows
        for row, data in zip(rows, read_contents(rows), strict=True):
            found[row["image_uri"]] = _thumbnail(data)
    return found


def _thumbnail(data: bytes | Exception) -> str:
    if isinstance(data, Exception):
        return ""
    try:
        return _data_uri(decode_photo(data, _DECODED))
    except ImageError:
        return ""


def _data_uri(photo: Photo) -> str:
    width, height = _size(photo)
    buffer = io.BytesIO()
    pixels: npt.NDArray[np.uint8] = photo.pixels
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _size(photo: Photo) -> tuple[int, int]:
    """In pixels; a photo that is very long is cut to no less than a fourth of its length."""
    longer = max(photo.width_px, photo.height_px)
    width, height = (max(THUMBNAIL_PX // 4, round(THUMBNAIL_PX * side / longer)) for side in (photo.width_px, photo.height_px))
    return width, height
