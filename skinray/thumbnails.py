"""Photos of prediction rows, read again where they lie -> small pictures inside a page.

A photo that is gone, or that cannot be decoded, has no picture: a page about photos is made although some of them are lost.
"""

import base64
import io
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from skinray import storage
from skinray.errors import ImageError, SkinrayError
from skinray.images import Photo, Preprocessing, decode_photo

# The longer side.
THUMBNAIL_PX = 160
_DECODED = Preprocessing(image_size_px=192)
_QUALITY = 80
# Photos held at a time, as they are stored: one of a slide scanner may have a hundred megabytes.
_HELD = 8


def thumbnails(image_ids: Sequence[str], image_uris: Sequence[str]) -> list[str]:
    """A small picture of each photo.

    Args:
        image_ids: [N].
        image_uris: [N], files, or `shard#image_id` for a photo of a prepared data set.

    Returns:
        N data: URIs of JPEGs of at most THUMBNAIL_PX, in the photo's own proportions and without any metadata; "" for a photo
        that cannot be shown.
    """
    found = dict.fromkeys(range(len(image_ids)), "")
    files: dict[str, list[tuple[int, str]]] = defaultdict(list)
    shards: dict[str, dict[str, int]] = defaultdict(dict)
    for place, (image_id, uri) in enumerate(zip(image_ids, image_uris, strict=True)):
        shard = uri.removesuffix(f"#{image_id}")
        if shard != uri and shard.endswith(".parquet"):
            shards[shard].setdefault(image_id, place)
        elif uri:
            files[uri.partition("://")[0] if storage.is_remote(uri) else ""].append((place, uri))
    for of_store in files.values():
        for start in range(0, len(of_store), _HELD):
            places, uris = zip(*of_store[start : start + _HELD], strict=True)
            found |= dict(zip(places, map(_thumbnail, _read(list(uris))), strict=True))
    for shard, wanted in shards.items():
        for image_id, data in _read_shard(shard, wanted).items():
            found[wanted[image_id]] = _thumbnail(data)
    return [found[place] for place in range(len(image_ids))]


def _read(uris: list[str]) -> Sequence[bytes | Exception]:
    try:
        return storage.read_many(uris)
    except SkinrayError as error:
        return [error] * len(uris)


def _read_shard(uri: str, wanted: dict[str, int]) -> dict[str, bytes]:
    """The stored bytes of some photos of a shard; what cannot be read is missing."""
    found: dict[str, bytes] = {}
    try:
        with pq.ParquetFile(storage.path_of(uri), filesystem=storage.arrow_filesystem(uri)) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["image_id"])["image_id"].to_pylist()
                rows = [row for row, image_id in enumerate(ids) if image_id in wanted]
                if rows:
                    data = file.read_row_group(group, columns=["image_bytes"])["image_bytes"].take(rows).to_pylist()
                    found |= dict(zip((ids[row] for row in rows), data, strict=True))
    except (OSError, KeyError, pa.ArrowException, SkinrayError):
        pass
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
