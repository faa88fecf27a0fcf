"""Published scoring runs: found below a root, and read column by column, because a run may have a million rows."""

import contextlib
import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.dataset

from skinray import file_listing, storage
from skinray.errors import StorageError

KIND = "skinray-predictions"
_RUN = re.compile(r"^(?:.*/)?model_id=[^/]+/scored_date=[^/]+/run_id=[^/]+$")


@dataclass(frozen=True)
class PublishedRun:
    """A run that came to its end.

    Attributes:
        uri: Its folder.
        manifest: What it says of itself.
        sha256: Of the manifest's bytes.
    """

    uri: str
    manifest: Mapping[str, Any]
    sha256: str

    @property
    def model_id(self) -> str:
        """What scored."""
        return str(self.manifest["model_id"])

    @property
    def run_id(self) -> str:
        """The run's name: that of its folder."""
        return self.uri.rsplit("/", 1)[1].removeprefix("run_id=")

    @property
    def started_at(self) -> datetime.datetime:
        """With its time zone."""
        return datetime.datetime.fromisoformat(self.manifest["started_at"])

    @property
    def root(self) -> str | None:
        """What `skinray score --output` was told; None for a folder that does not lie as runs do."""
        return self.uri.rsplit("/", 3)[0] if _RUN.match(self.uri) else None

    def rows(self) -> "RunRows":
        """Its rows, not yet read."""
        return RunRows(self.uri, [file["path"] for file in self.manifest["files"]])


class RunRows:
    """Rows of Parquet files below a folder, which are read column by column.

    Args:
        uri: The folder.
        paths: Files below it, in order.
    """

    def __init__(self, uri: str, paths: Sequence[str]) -> None:
        self._uri, self._paths = uri, [storage.path_of(storage.join(uri, path)) for path in paths]
        self.names = frozenset(self._dataset(()).schema.names)

    def read(self, columns: Sequence[str], repeated: Sequence[str] = ()) -> pd.DataFrame:
        """Some columns of all rows.

        Args:
            columns: Numbers and flags; those that are not there are left out.
            repeated: Texts of which many rows share one; as pandas categories. Likewise.

        Raises:
            StorageError: A file cannot be read.
        """
        wanted = [name for name in (*columns, *repeated) if name in self.names]
        table = self._table(self._dataset(repeated), columns=wanted)
        # Arrow's own columns are let go one by one.
        found: pd.DataFrame = table.to_pandas(self_destruct=True, split_blocks=True, ignore_metadata=True)
        return found

    def where(self, filter_: Any, columns: Sequence[str]) -> pa.Table:
        """Some columns of the rows that a pyarrow expression holds for, in order; missing columns are left out."""
        return self._table(self._dataset(()), columns=[name for name in columns if name in self.names], filter=filter_)

    def take(self, places: npt.NDArray[np.integer[Any]], columns: Sequence[str]) -> pd.DataFrame:
        """Some columns of a few rows.

        Args:
            places: int [K], the rows' numbers, in any order.
            columns: Those that are not there stand as missing.

        Returns:
            K rows, in the order of `places`.
        """
        ordered, back = np.unique(places, return_inverse=True)
        there = [name for name in columns if name in self.names]
        with _explained(self._uri):
            taken = self._dataset(()).take(pa.array(ordered, pa.int64()), columns=there)
        frame: pd.DataFrame = taken.to_pandas(ignore_metadata=True).iloc[back].reset_index(drop=True)
        return frame.reindex(columns=list(columns))

    def _dataset(self, repeated: Sequence[str]) -> Any:
        layout = pyarrow.dataset.ParquetFileFormat(dictionary_columns=list(repeated))
        with _explained(self._uri):
            return pyarrow.dataset.dataset(self._paths, format=layout, filesystem=storage.arrow_filesystem(self._uri))

    def _table(self, dataset: Any, **wanted: Any) -> pa.Table:
        with _explained(self._uri):
            return dataset.to_table(**wanted)


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turns what reading Parquet raises into a StorageError that names the folder."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot read the predictions of {uri}: {type(error).__name__}: {error}") from error


def find_runs(root: str) -> list[PublishedRun]:
    """The published runs below a root, in the order in which they started; those whose manifest is damaged are passed over.

    Args:
        root: What `skinray score --output` was told, or a folder of a model or a day below it.

    Raises:
        StorageError: Nothing is there, or it cannot be read.
    """
    return scan_runs(root)[0]


def scan_runs(root: str) -> tuple[list[PublishedRun], list[str]]:
    """The published runs below a root, as `find_runs` has them, and the URIs of the manifests that cannot be read.

    Raises:
        StorageError: Nothing is there, or it cannot be listed.
    """
    uris = [storage.join(root, path) for path in file_listing.list_files(root) if path.endswith(f"/{storage.MANIFEST_NAME}")]
    uris = [uri for uri in uris if _RUN.match(uri.rpartition("/")[0])]
    runs, damaged = [], []
    for uri, data in zip(uris, storage.read_many(uris), strict=True):
        try:
            run = _run_of(uri, data)
        except (OSError, ValueError, TypeError, KeyError, StorageError):
            damaged.append(uri)
            continue
        if run:
            runs.append(run)
    return sorted(runs, key=lambda run: (run.started_at, run.uri)), damaged


def _run_of(manifest_uri: str, data: bytes | Exception) -> PublishedRun | None:
    """The run of a manifest; None for what is published there and is no run."""
    if isinstance(data, Exception):
        raise data
    manifest = json.loads(data)
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        return None
    run = PublishedRun(storage.normalize(manifest_uri.rpartition("/")[0]), manifest, storage.sha256_of(data))
    _ = run.started_at, run.model_id, manifest["files"]  # without which nobody can do anything with it
    return run


def open_run(uri: str) -> PublishedRun:
    """A run by its folder, or the newest one below a root.

    Raises:
        StorageError: Neither is there.
    """
    run = _run_at(uri)
    if run:
        return run
    runs = find_runs(uri)
    if not runs:
        raise StorageError(f"{uri} holds no published run: give the folder of one, or what skinray score took as --output")
    return runs[-1]


def _run_at(uri: str) -> PublishedRun | None:
    manifest_uri = storage.join(uri, storage.MANIFEST_NAME)
    if not storage.exists(manifest_uri):
        return None
    try:
        return _run_of(manifest_uri, storage.read_bytes(manifest_uri))
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{manifest_uri} is damaged: {type(error).__name__}: {error}") from error
