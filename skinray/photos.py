"""Listed photos -> a Ray Dataset of decoded blocks.

A block is what is scored and written as one; a task reads and decodes one or several, so that many small ones cost little.
Each row is one photo, usable or not: a photo that cannot be read or decoded is a row with an error code and black pixels,
never an exception.

    index         int64, position in the listing, from 0
    block         int64, index of the first photo of its block
    image_id, image_uri, image_sha256                           str ("" when unknown)
    width_px, height_px                                         int64 (0 when unknown)
    status        str: scored, which it is to be; failed; refused
    error_code, error_detail                                    str ("" for a usable photo)
    age           float64, years (NaN when unknown)
    label, patient_id, lesion_id, sex, site                     str ("" when unknown), as the input writes them
    ita_degrees   float64, see `skinray.skin_tone` (NaN when unknown)
    sharpness, brightness, contrast                             float64, see `skinray.quality` (NaN when unknown)
    blurred, underexposed, overexposed, small, vignetted, marked    bool, as those (False when unknown)
    pixels        uint8 [rows, size, size, 3]
    decoded_at    float64, seconds since 1970 at which the block was ready
"""

import functools
import itertools
import math
import os
import posixpath
import sys
import threading
import time
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from skinray import storage
from skinray.errors import ImageError
from skinray.images import Preprocessing, decode_photo
from skinray.input_gate import REASONS, refusal
from skinray.listing import Listing
from skinray.quality import QUALITY_FLAGS, QUALITY_MEASURES, quality
from skinray.shard_formats import is_parquet
from skinray.shard_reader import may_be_read_yet, read_contents
from skinray.skin_tone import ita_degrees

# A hair less than a core, so that one decode task a core and an actor fit on every machine, even one with a single core;
# asking for another share than the actor also keeps Ray from fusing the two.
DECODE_CPUS = 0.95

Block = dict[str, npt.NDArray[Any]]

# A task that begins in the middle of a row group reads all that stands before it, too.
_MOST_TASKS_OF_A_PARQUET_SHARD = 16
_MOST_BYTES_BESIDE_PIXELS = 4096

_ONLY_FOR_READING = frozenset({"shard", "position", "file_bytes", "file_version"})


def decoded_photos(
    listing: Listing, preprocessing: Preprocessing, refuse: bool = False, without: Container[int] = ()
) -> ray.data.Dataset:
    """Reads and decodes a listing on CPU tasks, a block at a time.

    Args:
        listing: What to read.
        preprocessing: How to decode it.
        refuse: Refuse what is no photo of skin.
        without: First indices of blocks to leave out.

    Returns:
        Rows as described at the top of this module; a block's photos are in one batch.
    """
    rows_at_once = listing.rows_per_task
    decode = functools.partial(
        _read_and_decode_in_gaps, rows_at_once=rows_at_once, preprocessing=preprocessing, refuse=refuse, folder=listing.folder
    )
    tasks = ray.data.from_arrow(_tasks(listing, without))
    decoded = tasks.map_batches(decode, batch_size=None, batch_format="pyarrow", num_cpus=DECODE_CPUS)
    # Ray Data joins what a task yields until it is larger than this, and cuts what is half as large again, blocks or not: with
    # room for two and a half yields it joins three and cuts nothing.
    row_bytes = preprocessing.image_size_px**2 * 3 + _MOST_BYTES_BESIDE_PIXELS
    decoded.context.target_max_block_size = int(2.5 * rows_at_once * row_bytes)
    return decoded


def _tasks(listing: Listing, without: Container[int]) -> list[pa.Table]:
    """The blocks that are not left out, in order, those that are read together as one table with the block of each photo."""
    shards = listing.photos["shard"]
    together = {
        each["values"]: each["counts"] // _MOST_TASKS_OF_A_PARQUET_SHARD
        for each in pc.value_counts(shards).to_pylist()
        if is_parquet(each["values"])
    }
    tasks: list[list[tuple[int, int]]] = []
    room = 0
    for first, count in listing.blocks().items():
        if first in without:
            continue
        if count > room:
            tasks.append([])
            room = max(listing.rows_per_task, together.get(shards[first].as_py(), 0))
        tasks[-1].append((first, count))
        room -= count
    return [
        pa.concat_tables(
            listing.photos.slice(first, count).append_column("block", pa.repeat(pa.scalar(first, pa.int64()), count))
            for first, count in some
        )
        for some in tasks
    ]


def _read_and_decode_in_gaps(plan: pa.Table, **options: Any) -> Iterator[Block]:
    """`read_and_decode` in a thread that gives way to the network.

    A forward pass waits for the slowest of its threads: one whose core a decode task takes stops all of them. ResNet-50 in
    bfloat16 scores 157 photos/s so and 149 without (3,200 photos, two cores). A thread's priority, because what a process has
    given away Ray would find lowered in whatever it runs there next.
    """
    blocks = read_and_decode(plan, **options)
    while (block := _giving_way().submit(next, blocks, None).result()) is not None:
        yield block
        del block  # before the next one is made


@functools.cache
def _giving_way() -> ThreadPoolExecutor:
    """One a process: memory that a thread has freed stays with it, and 10,000 photos took 0.5 GB more with one a task."""
    return ThreadPoolExecutor(1, "decode", initializer=_give_way)


def _give_way() -> None:
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def read_and_decode(
    plan: pa.Table, rows_at_once: int, preprocessing: Preprocessing, refuse: bool, folder: str = ""
) -> Iterator[Block]:
    """Reads and decodes some listed photos here and now: what each task of `decoded_photos` does.

    Photos that their store did not give are read once more as soon as it answers: they are not at fault for a bad minute.

    Args:
        plan: Rows of LISTING_SCHEMA with the block of each.
        rows_at_once: How many to hold decoded; a whole number of blocks.
        preprocessing: How to decode them.
        refuse: Refuse what is no photo of skin.
        folder: As `Listing` has it.

    Raises:
        StorageError: The store of some of them does not answer, or the disk went away.
    """
    listed = plan.to_pylist()
    contents = read_contents(listed)
    size = preprocessing.image_size_px
    for start in range(0, len(listed), rows_at_once):
        some = listed[start : start + rows_at_once]
        pixels = np.zeros((len(some), size, size, 3), np.uint8)
        rows, not_given = [], []
        for place, (photo, data) in enumerate(zip(some, itertools.islice(contents, len(some)), strict=True)):
            rows.append(_decoded(photo, data, pixels[place], preprocessing, refuse))
            if isinstance(data, Exception) and may_be_read_yet(photo, data):
                not_given.append(place)
        if not_given:
            _check_answers([some[place]["image_uri"] for place in not_given], folder)
            for place, data in zip(not_given, read_contents([some[place] for place in not_given]), strict=True):
                rows[place] = _decoded(some[place], data, pixels[place], preprocessing, refuse)
            if not_given[-1] == len(some) - 1:
                # It may be that a Parquet shard was lost, and none of its rows was asked for since.
                contents = read_contents(listed[start + len(some) :])
        yield _block(rows, pixels)


def _check_answers(uris: Sequence[str], folder: str) -> None:
    """Raises a StorageError when where some photos lie does not answer."""
    remote = [uri for uri in uris if storage.is_remote(uri)]
    if remote:
        storage.check_answers(posixpath.dirname(remote[0]))
    if folder and len(remote) < len(uris):
        storage.check_answers(folder)


def _decoded(
    photo: dict[str, Any], data: bytes | Exception, pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing, refuse: bool
) -> dict[str, Any]:
    """A listed photo as a row of a block; what it shows goes into `pixels`, uint8 [size, size, 3]."""
    row = _described(photo)
    try:
        if isinstance(data, Exception):
            raise _unreadable(data)
        row["image_sha256"] = storage.sha256_of(data)
        decoded = decode_photo(data, preprocessing)
        row["width_px"], row["height_px"] = decoded.width_px, decoded.height_px
        row["ita_degrees"] = ita_degrees(decoded.pixels)
        row.update(quality(decoded.pixels, decoded.width_px, decoded.height_px))
        pixels[:] = decoded.pixels
        if refuse and (reason := refusal(decoded.pixels)):
            row["status"], row["error_code"], row["error_detail"] = "refused", reason, REASONS[reason]
    except ImageError as error:
        row["status"], row["error_code"], row["error_detail"] = "failed", error.code, error.detail
    return row


def _block(rows: Sequence[dict[str, Any]], pixels: npt.NDArray[np.uint8]) -> Block:
    block: Block = {name: np.array([row[name] for row in rows]) for name in rows[0] if name not in _ONLY_FOR_READING}
    block["pixels"] = pixels
    block["decoded_at"] = np.full(len(rows), time.time())
    return block


def _described(listed: dict[str, Any]) -> dict[str, Any]:
    """A listed photo as a row of a block, before it is read."""
    texts = {name: listed[name] or "" for name in ("label", "patient_id", "lesion_id", "sex", "site")}
    age = math.nan if listed["age"] is None else listed["age"]
    unread = {"image_sha256": "", "width_px": 0, "height_px": 0, "status": "scored", "error_code": "", "error_detail": ""}
    unmeasured = {**dict.fromkeys(("ita_degrees", *QUALITY_MEASURES), math.nan), **dict.fromkeys(QUALITY_FLAGS, False)}
    return {**listed, **texts, "age": age, **unread, **unmeasured}


def _unreadable(error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    if isinstance(error, FileNotFoundError):
        return ImageError("missing", "the file was listed and is gone")
    return ImageError("unreadable", " ".join(f"{type(error).__name__}: {error}".split()))
