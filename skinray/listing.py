"""What is to be scored: photos of any layout -> one table, a row a photo, from which a job works.

A row says where a photo's bytes are and what is known of it without reading them. Loose files, photos in tar and Parquet
shards, prepared data sets and manifests all come to this table; `skinray.photos` reads and decodes what stands in it.
"""

import contextlib
import itertools
import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skinray import file_listing, storage
from skinray.config import SplitName
from skinray.errors import ConfigError, StorageError
from skinray.images import SUFFIXES
from skinray.shard_formats import SHARD_SUFFIXES
from skinray.shard_listing import ListedShard, list_shard, read_manifest
from skinray.shards import SPLITS, PreparedDataset, is_dataset, open_dataset
from skinray.telemetry import Tally

# In the folder of a run: its photos and how they are cut into blocks.
LISTING_NAME = "_listing.pq"
LISTING_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),  # position in the listing, from 0
        ("image_id", pa.string()),  # unique
        ("image_uri", pa.string()),  # of a photo in a shard: SHARD#NAME
        ("shard", pa.string()),  # "" for a file of its own
        ("position", pa.int64()),  # tar: first byte of the photo; Parquet: its row; -1 for a shard that cannot be read
        ("file_bytes", pa.int64()),  # null where only reading would tell
        ("file_version", pa.string()),  # changes with the content: ETag, time of change, sha256:...
        ("label", pa.string()),
        ("patient_id", pa.string()),
        ("lesion_id", pa.string()),
        ("age", pa.float32()),  # years
        ("sex", pa.string()),
        ("site", pa.string()),
    ]
)
# A job has at least so many blocks, or one a photo: two are classified at once on two cores, and together are a fiftieth.
_LEAST_BLOCKS = 100
# Blocks that are not smaller have a multiple of this, so that no batch of the default size is left half empty.
_WHOLE_BATCHES = 32
# Of few photos there are about so many tasks, so that decoding and scoring overlap.
_LEAST_TASKS = 8
_ROWS_AT_ONCE = 1 << 16
_BLOCK_KEY, _TASK_KEY, _LEFT_OUT_KEY = b"rows_per_block", b"rows_per_task", b"left_out"
# Headers are waited for more than worked on; each shard's list is small.
_SHARDS_AT_ONCE = 8
_KINDS_NAMED = 10
_OTHER_KINDS = "of other kinds"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")

ImageIdRule = Literal["path", "stem"]


@dataclass(frozen=True)
class Listing:
    """The photos of one job, listed and not yet read.

    Attributes:
        photos: Rows of LISTING_SCHEMA; `index` counts them.
        rows_per_block: Photos that are scored and written as one.
        rows_per_task: Photos that are read and decoded in one task: a whole number of blocks.
        left_out: Kind of file, as ".json", "without a suffix" -> how many of it lie in the input and are not listed.
        folder: Local folder in which the local ones of the photos were found; "" where there is none.
    """

    photos: pa.Table
    rows_per_block: int
    rows_per_task: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    folder: str = ""

    @property
    def rows(self) -> int:
        """Number of photos."""
        return len(self.photos)

    @property
    def bytes(self) -> int:
        """Their size as stored, as far as it is known without reading them."""
        return pc.sum(self.photos["file_bytes"], min_count=0).as_py() or 0

    def blocks(self) -> dict[int, int]:
        """Index of the first photo of each block -> how many it has, in order."""
        starts = range(0, self.rows, self.rows_per_block)
        return {start: min(self.rows_per_block, self.rows - start) for start in starts}


def listed(photos: pa.Table, rows_per_block: int, left_out: Mapping[str, int] | None = None, folder: str = "") -> Listing:
    """A job's photos, cut into blocks.

    Args:
        photos: Columns of LISTING_SCHEMA, at least image_id and image_uri; what is missing is unknown. Numbered here.
        rows_per_block: Most photos in one block; of few photos there are fewer, so that the two that a killed run loses are no
            more than a fiftieth of it.
        left_out: As `Listing` has it; nothing unless given.
        folder: As `Listing` has it.
    """
    numbered = photos.drop_columns(["index"]) if "index" in photos.column_names else photos
    numbered = _complete(numbered.append_column("index", pa.array(range(len(photos)), pa.int64())))
    block = min(rows_per_block, max(1, len(photos) // _LEAST_BLOCKS))
    block -= block % _WHOLE_BATCHES if block > _WHOLE_BATCHES else 0
    task = min(rows_per_block, max(block, len(photos) // _LEAST_TASKS))
    return Listing(numbered, block, max(1, task // block) * block, left_out or {}, folder)


def _complete(photos: pa.Table) -> pa.Table:
    """All columns of LISTING_SCHEMA in their order; what is not there is unknown, and the file its own."""
    columns: list[Any] = []
    for column in LISTING_SCHEMA:
        if column.name in photos.column_names:
            columns.append(photos[column.name].cast(column.type))
        elif column.name == "shard":
            columns.append(pa.repeat(pa.scalar("", column.type), len(photos)))
        else:
            columns.append(pa.nulls(len(photos), column.type))
    return pa.table(columns, schema=LISTING_SCHEMA)


def list_photos(input_uri: str, rows_per_block: int, image_id: ImageIdRule) -> Listing:
    """Lists what is to be scored.

    Args:
        input_uri: A prepared data set; a folder or prefix of image files, tar shards and Parquet shards at any depth; one such
            shard; or a manifest, a CSV or Parquet file of URIs.
        rows_per_block: As `listed` takes it.
        image_id: What names a loose photo or one in a tar shard: its path below the input, or its file name without the ending.

    Raises:
        StorageError: Nothing is there, or it holds no photos.
        ConfigError: Two photos have one name.
    """
    suffix = _suffix(input_uri)
    left_out: Counter[str] = Counter()
    folder = _local(input_uri)
    if (suffix in SHARD_SUFFIXES or suffix == ".csv") and not storage.is_folder(input_uri):
        photos = _list_file(input_uri, image_id, left_out)
        folder = _common_folder(photos)
    elif is_dataset(input_uri):
        photos = _list_dataset(open_dataset(input_uri), SPLITS)
    else:
        photos = _list_folder(input_uri, image_id, left_out)
    if not len(photos):
        raise StorageError(f"{input_uri} lists no photos")
    _check_names(photos["image_id"], input_uri, image_id)
    return listed(photos, rows_per_block, _in_words(left_out), folder)


def list_dataset(dataset: PreparedDataset, splits: tuple[SplitName, ...], rows_per_block: int = 192) -> Listing:
    """Lists the photos of some splits of a prepared data set, in the order of its shards."""
    return listed(_list_dataset(dataset, splits), rows_per_block, folder=_local(dataset.uri))


def _list_dataset(dataset: PreparedDataset, splits: tuple[SplitName, ...]) -> pa.Table:
    shards = [storage.join(dataset.uri, file.path) for split in splits for file in dataset.files(split)]
    return pa.concat_tables(_complete(shard.photos) for shard in _list_shards([(uri, "", "") for uri in shards]) if shard)


def _list_shards(shards: Sequence[tuple[str, str, str]]) -> list[ListedShard | None]:
    """What `list_shard` says of some, listed side by side, in their order."""
    tally = Tally("listing", f"of {len(shards):,} shards")
    found = []
    with ThreadPoolExecutor(_SHARDS_AT_ONCE, thread_name_prefix="list") as threads:
        for shard in threads.map(lambda shard: list_shard(*shard), shards):
            found.append(shard)
            tally.advance()
    return found


def _list_file(uri: str, image_id: ImageIdRule, left_out: Counter[str]) -> pa.Table:
    """A shard alone, or a manifest."""
    if _suffix(uri) != ".csv":
        shard = list_shard(uri, posixpath.basename(uri), file_listing.entry_of(uri).version)
        if shard is not None:
            left_out.update(shard.left_out)
            return _renamed(_complete(shard.photos), uri, image_id)
    photos = read_manifest(uri)
    stated = photos["image_id"].to_pylist() if "image_id" in photos.column_names else itertools.repeat(None)
    derived = _names([written or "" for written in photos["written"].to_pylist()], image_id)
    pairs = zip(stated, derived, strict=False)
    names = [one or other or f"{posixpath.basename(uri)}#{row}" for row, (one, other) in enumerate(pairs)]
    kept = [name for name in photos.column_names if name not in ("image_id", "written")]
    return _complete(photos.select(kept).append_column("image_id", pa.array(names, pa.string())))


def _local(uri: str) -> str:
    return "" if storage.is_remote(uri) else storage.normalize(uri)


def _common_folder(photos: pa.Table) -> str:
    """The deepest local folder in which all local files lie that were found; "" for none, and for one that may not be listed."""
    rows = zip(*(photos[name].to_pylist() for name in ("shard", "image_uri", "file_version")), strict=True)
    found = {local for shard, uri, version in rows if version and (local := _local(shard or uri))}
    if not found:
        return ""
    folder = posixpath.commonpath([posixpath.dirname(min(found)), posixpath.dirname(max(found))])
    with contextlib.suppress(StorageError):
        storage.check_answers(folder)
        return folder
    return ""


def _list_folder(uri: str, image_id: ImageIdRule, left_out: Counter[str]) -> pa.Table:
    """Loose photos, and those in shards, at any depth."""
    loose, shards, inside = [], {}, []
    tally = Tally("listing", "files")

    def files() -> Iterator[tuple[str, file_listing.Entry]]:
        for path, entry in file_listing.iterate_entries(uri):
            tally.advance()
            if path.lower().endswith(_COMPRESSED):
                raise StorageError(f"{storage.join(uri, path)} is compressed and cannot be read in parts: unpack it to a .tar")
            suffix = _suffix(path)
            if suffix in SHARD_SUFFIXES and entry != file_listing.UNKNOWN:
                shards[path] = entry
            elif suffix in SHARD_SUFFIXES or suffix in SUFFIXES:
                yield path, entry
            else:
                left_out[suffix] += 1

    for some in _batched(files(), _ROWS_AT_ONCE):
        loose.append(_loose(uri, some, image_id))
    listings = _list_shards([(storage.join(uri, path), path, entry.version) for path, entry in sorted(shards.items())])
    for path, shard in zip(sorted(shards), listings, strict=True):
        if shard is None:
            left_out[f"{_suffix(path)} without photos"] += 1
        else:
            left_out.update(shard.left_out)
            inside.append(_renamed(_complete(shard.photos), path, image_id))
    if not loose and not inside:
        raise StorageError(
            f"{uri} holds no image files ({', '.join(sorted(SUFFIXES))}), no .tar and no Parquet file with image bytes"
        )
    return pa.concat_tables([*([pa.concat_tables(loose).sort_by("image_uri")] if loose else []), *inside])


def _loose(uri: str, files: list[tuple[str, file_listing.Entry]], image_id: ImageIdRule) -> pa.Table:
    paths = [path for path, _ in files]
    columns = {
        "image_id": pa.array(_names(paths, image_id), pa.string()),
        "image_uri": pa.array([storage.join(uri, path) for path in paths], pa.string()),
        "file_bytes": pa.array([entry.size for _, entry in files], pa.int64()),
        "file_version": pa.array([entry.version for _, entry in files], pa.string()),
    }
    return _complete(pa.table(columns))


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some


def _renamed(members: pa.Table, shard: str, image_id: ImageIdRule) -> pa.Table:
    """Photos in tar shards are named as loose ones are; those in Parquet shards have names of their own."""
    if image_id == "path" or _suffix(shard) != ".tar":
        return members
    ids, positions = (members[column].to_pylist() for column in ("image_id", "position"))
    renamed = zip(ids, _names(ids, image_id), positions, strict=True)
    # The row of a shard that is damaged keeps the shard's name: by it the ledger finds the shard again.
    names = pa.array([one if position == -1 else other for one, other, position in renamed], pa.string())
    return members.set_column(members.column_names.index("image_id"), "image_id", names)


def _names(paths: list[str], image_id: ImageIdRule) -> list[str]:
    return [posixpath.splitext(posixpath.basename(path))[0] for path in paths] if image_id == "stem" else paths


def _check_names(names: pa.ChunkedArray, input_uri: str, image_id: ImageIdRule) -> None:
    counts = pc.value_counts(names)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        advice = "--image-id stem: use path" if image_id == "stem" else "every photo needs a name of its own"
        raise ConfigError(f"{input_uri}: {len(repeated):,} names stand twice, the first is {repeated[0].as_py()!r}; {advice}")


def _in_words(left_out: Counter[str]) -> dict[str, int]:
    """The most frequent kinds under names that a person reads, and how many others there are."""
    named = {kind or "without a suffix": count for kind, count in left_out.most_common(_KINDS_NAMED)}
    others = left_out.total() - sum(named.values())
    return {**named, _OTHER_KINDS: others} if others else named


def grown(before: Listing, now: Listing) -> Listing | None:
    """What is to be scored now, in an order and in blocks that keep those of an unfinished job.

    Args:
        before: Of the unfinished job.
        now: What would be listed without it.

    Returns:
        The photos of `before`, then the others of `now`; None when a photo of `before` is not in `now` as it was.
    """
    names = before.photos["image_id"]
    places = pc.index_in(names, value_set=now.photos["image_id"].combine_chunks())
    if places.null_count or not _comparable(now.photos.take(places)).equals(_comparable(before.photos)):
        return None
    others = now.photos.filter(pc.invert(pc.is_in(now.photos["image_id"], value_set=names.combine_chunks())))
    if not len(others):
        return replace(before, left_out=now.left_out, folder=now.folder)
    photos = listed(pa.concat_tables([before.photos, others]), before.rows_per_block).photos
    return Listing(photos, before.rows_per_block, before.rows_per_task, now.left_out, now.folder)


def outgrown(before: Listing, now: Listing) -> bool:
    """True when the blocks of an unfinished job are too small for what came since: it has no more than half of the photos, in
    blocks of less than half the size that they would have now."""
    return 2 * before.rows <= now.rows and 2 * before.rows_per_block < now.rows_per_block


def _comparable(photos: pa.Table) -> pa.Table:
    """Without its numbers, and unknown ages alike: no NaN is equal to itself."""
    ages = pc.if_else(pc.is_nan(photos["age"]), pa.scalar(None, pa.float32()), photos["age"])
    return photos.drop_columns(["index", "age"]).append_column("age", ages)


def write_listing(listing: Listing, uri: str) -> None:
    """Writes down a listing."""
    known = {
        _BLOCK_KEY: str(listing.rows_per_block),
        _TASK_KEY: str(listing.rows_per_task),
        _LEFT_OUT_KEY: json.dumps(listing.left_out),
    }
    with storage.writing(uri) as file:
        pq.write_table(listing.photos.replace_schema_metadata(known), file, compression="zstd", row_group_size=_ROWS_AT_ONCE)


def read_listing(uri: str) -> Listing:
    """What `write_listing` wrote: the same photos in the same blocks. Their folder is that of the input, and not written."""
    with storage.reading(uri) as file:
        table = pq.read_table(file)
    known = table.schema.metadata
    left_out = json.loads(known.get(_LEFT_OUT_KEY, "{}"))
    return Listing(table.replace_schema_metadata(None), int(known[_BLOCK_KEY]), int(known[_TASK_KEY]), left_out)


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()
