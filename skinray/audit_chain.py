"""The chain of scoring runs: each manifest carries the hash of every file of its run and of the manifest before it.

Whoever changes a published score, a listing or a manifest afterwards breaks the chain from there on, and a run that was
taken away is missed by the one that follows it. Only the newest run has none behind it: keep its hash elsewhere, as
`skinray verify audit` prints it, and give it back with `--head`.
"""

import datetime
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from skinray import file_listing, storage
from skinray.errors import StorageError
from skinray.published_runs import scan_runs

# Files that tell how a run went and are no part of what it found; some are left when a run is killed at its very end.
_NOT_AUDITED = (storage.MANIFEST_NAME, storage.INCOMPLETE_NAME, "_progress.json", "_alive.json", "_blocks/")
_CHUNK_BYTES = 1 << 22


class _Link(BaseModel):
    """What a manifest says of the one before it."""

    run: str
    manifest_sha256: str


class _StatedFile(BaseModel):
    path: str
    sha256: str


class _Manifest(BaseModel):
    """What the chain needs of a run's manifest."""

    rows: int
    files: tuple[_StatedFile, ...]
    records: tuple[_StatedFile, ...]
    previous: _Link | None
    published_at: datetime.datetime


@dataclass(frozen=True)
class _Run:
    """A run of the chain: its folder below the root, what its manifest says, the manifest's hash."""

    path: str
    manifest: _Manifest
    sha256: str

    @property
    def files(self) -> tuple[_StatedFile, ...]:
        """All files that are part of it."""
        return (*self.manifest.files, *self.manifest.records)


@dataclass(frozen=True)
class ChainReport:
    """What was found when every published run below a root was looked at.

    Attributes:
        runs: How many runs.
        rows: Photos in all of them.
        files: Files whose hash was taken.
        heads: Hashes of the manifests that no other names: one, but where two runs were published at the same time.
        problems: What is not as it was published, in words.
        notes: What is worth knowing and breaks nothing.
    """

    runs: int
    rows: int
    files: int
    heads: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def previous_run(output: str) -> dict[str, str] | None:
    """What the next run's manifest says of the one before it; None for the first."""
    runs, _ = _chained_runs(output)
    return {"run": runs[-1].path, "manifest_sha256": runs[-1].sha256} if runs else None


def _chained_runs(output: str) -> tuple[list[_Run], list[str]]:
    """Every published run below a root, the one that was published first in front; and in words what is no part of a chain."""
    if not storage.exists(output):
        return [], []
    found, damaged = scan_runs(output)
    runs, problems = [], [f"{_below(output, uri)} cannot be read" for uri in damaged]
    for run in found:
        try:
            runs.append(_Run(_below(output, run.uri), _Manifest.model_validate(run.manifest), run.sha256))
        except ValueError:
            problems.append(f"{_below(output, run.uri)} does not say what the chain needs")
    return sorted(runs, key=lambda run: (run.manifest.published_at.timestamp(), run.path)), problems


def _below(output: str, uri: str) -> str:
    return uri.removeprefix(storage.normalize(output)).lstrip("/")


def described_file(uri: str, path: str) -> dict[str, Any]:
    """Path, size in bytes and SHA-256 of a file below `uri`, read in pieces."""
    digest, size = hashlib.sha256(), 0
    with storage.reading(storage.join(uri, path)) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"path": path, "bytes": size, "sha256": digest.hexdigest()}


def check_chain(output: str, head: str | None = None) -> ChainReport:
    """Takes every hash again.

    Args:
        output: Root of the predictions, as `skinray score --output` had it.
        head: Hash of a manifest that an earlier check printed; it must still be part of the chain.

    Raises:
        StorageError: No run is published there, or its files cannot be read.
    """
    runs, problems = _chained_runs(output)
    if not runs and not problems:
        raise StorageError(f"{output} has no published scoring run")
    by_sha256 = {run.sha256: run for run in runs}
    problems += [problem for run in runs for problem in _broken_files(output, run)]
    followed = Counter(run.manifest.previous.manifest_sha256 for run in runs if run.manifest.previous)
    for run in runs:
        if run.manifest.previous and run.manifest.previous.manifest_sha256 not in by_sha256:
            problems.append(f"{run.path} follows {run.manifest.previous.run}, whose manifest was changed or taken away")
    if head is not None and head not in by_sha256:
        problems.append(f"no run has the manifest {head}: the run that had it was changed or taken away")
    firsts = [run.path for run in runs if run.manifest.previous is None]
    if len(firsts) > 1:
        problems.append(f"{len(firsts)} runs name none before them: {', '.join(firsts)}")
    twice = [run.path for run in runs if followed[run.sha256] > 1]
    return ChainReport(
        runs=len(runs),
        rows=sum(run.manifest.rows for run in runs),
        files=sum(len(run.files) for run in runs),
        heads=tuple(run.sha256 for run in runs if run.sha256 not in followed),
        problems=tuple(problems),
        notes=tuple(f"several runs follow {path}: they were published at the same time" for path in twice),
    )


def _broken_files(output: str, run: _Run) -> Iterator[str]:
    uri = storage.join(output, run.path)
    there = set(file_listing.list_files(uri))
    for stated in run.files:
        if stated.path not in there:
            yield f"{run.path}/{stated.path} is missing"
        elif described_file(uri, stated.path)["sha256"] != stated.sha256:
            yield f"{run.path}/{stated.path} was changed"
    for path in sorted(there - {stated.path for stated in run.files}):
        if not path.startswith(_NOT_AUDITED):
            yield f"{run.path}/{path} was added"
