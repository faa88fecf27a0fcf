"""The bulk pipeline: list -> read and decode (CPU tasks) -> classify (actors) -> write Parquet, block by block.

A block that comes in leaves as one Parquet file, written under its own name in one piece, so a task that Ray runs again
replaces its own file and adds no row. The driver counts rows as blocks finish and publishes the run's manifest only
when every listed photo is one row.

    <output>/model_id=.../scored_date=.../run_id=.../part-000000000.parquet ...   named by its first photo's index
    <output>/model_id=.../scored_date=.../run_id=.../_manifest.json               written last: what makes the run exist
"""

import datetime
import io
import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy

from skinray import storage
from skinray.bundle import Bundle, load_bundle
from skinray.classifier import Classifier, use_threads
from skinray.clinical import encode_clinical
from skinray.config import ClassifySettings, ScoreSettings
from skinray.errors import ConfigError, ScoringError
from skinray.photos import DECODE_CPUS, Block, Listing, decoded_photos, list_photos
from skinray.predictions import prediction_rows
from skinray.telemetry import Progress


@dataclass(frozen=True)
class RunSummary:
    """What became of a run's photos.

    Attributes:
        uri: The run's folder.
        rows: Photos listed, each one row.
        statuses: Rows by status.
        errors: Rows by error code.
        flagged: Rows at or above the operating point.
        seconds: From the start of the pipeline to its last block.
        rows_per_second: Over the same time, start-up included.
        start_up_seconds: Until the first photo was classified.
        head_start_rows: Photos that were decoded in that time already.
    """

    uri: str
    rows: int
    statuses: dict[str, int]
    errors: dict[str, int]
    flagged: int
    seconds: float
    rows_per_second: float
    start_up_seconds: float
    head_start_rows: int

    @property
    def bad_fraction(self) -> float:
        """Share of the photos that have no score."""
        return 1 - self.statuses.get("scored", 0) / self.rows


def score_archive(settings: ScoreSettings, now: datetime.datetime) -> RunSummary:
    """Scores an archive into its own run folder.

    Args:
        settings: Bundle, input, output.
        now: The time of the start, with its time zone.

    Returns:
        What became of the photos.

    Raises:
        BundleError: The bundle does not verify.
        StorageError: The input cannot be listed or the output not written.
        ScoringError: The rows written are not the photos listed; nothing is published.
    """
    bundle = load_bundle(settings.bundle)
    listing = list_photos(settings.input, settings.rows_per_block, settings.image_id)
    run_id = settings.run_id or now.strftime("%Y%m%dT%H%M%S%fZ")
    run_uri = storage.join(
        settings.output, f"model_id={bundle.model_id}", f"scored_date={now.date().isoformat()}", f"run_id={run_id}"
    )
    storage.claim_folder(run_uri, "predictions", settings.recorded())
    summary, files = write_predictions(bundle, listing, settings, run_uri)
    manifest = {
        "kind": "skinray-predictions",
        "schema_version": 1,
        "model_id": bundle.model_id,
        "operating_point": bundle.operating_points.default,
        "threshold": bundle.operating_points.points[bundle.operating_points.default].threshold,
        "started_at": now.isoformat(),
        "rows": summary.rows,
        "statuses": summary.statuses,
        "errors": summary.errors,
        "flagged": summary.flagged,
        "seconds": round(summary.seconds, 1),
        "files": files,
        "settings": settings.recorded(),
    }
    storage.publish_folder(run_uri, manifest)
    return summary


def write_predictions(
    bundle: Bundle, listing: Listing, settings: ClassifySettings, run_uri: str
) -> tuple[RunSummary, list[dict[str, Any]]]:
    """Runs a listing through a bundle and writes one Parquet file a block.

    Args:
        bundle: The verified bundle.
        listing: The photos.
        settings: Actors, threads, batch.
        run_uri: The folder for the files.

    Returns:
        What became of the photos, and each file's path, rows and SHA-256.

    Raises:
        ScoringError: The rows written are not the photos listed.
    """
    progress = Progress("score", total=listing.rows, unit="photos")
    started = time.time()  # not monotonic: it is compared with the clocks of other processes
    decoded: list[tuple[float, int]] = []
    first_classified = math.inf
    statuses: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    files: list[dict[str, Any]] = []
    flagged, seconds = 0, 0.0
    for block in classified_blocks(bundle, listing, settings, run_uri).iter_rows():
        files.append({name: block[name] for name in ("path", "rows", "bytes", "sha256")})
        statuses.update({"scored": block["rows"] - block["failed"], "failed": block["failed"]})
        errors.update(code for code in block["error_codes"].split(",") if code)
        flagged += block["flagged"]
        decoded.append((block["decoded_at"], block["rows"]))
        first_classified = min(first_classified, block["classified_from"])
        seconds = time.time() - started  # to the last block; what follows is the pipeline's taking down
        progress.advance(block["rows"], f"{statuses['failed']:,} failed" if statuses["failed"] else "")
    progress.close()
    written = sum(file["rows"] for file in files)
    if written != listing.rows or len({file["path"] for file in files}) != len(files):
        raise ScoringError(f"{run_uri}: {listing.rows} photos were listed but {written} rows written; run it again")
    storage.check_written(run_uri, {file["path"]: file["bytes"] for file in files})
    summary = RunSummary(
        uri=run_uri,
        rows=listing.rows,
        statuses={status: count for status, count in sorted(statuses.items()) if count},
        errors=dict(sorted(errors.items())),
        flagged=flagged,
        seconds=seconds,
        rows_per_second=listing.rows / seconds,
        start_up_seconds=first_classified - started,
        head_start_rows=sum(rows for ready, rows in decoded if ready < first_classified),
    )
    return summary, sorted(files, key=lambda file: str(file["path"]))


def classified_blocks(bundle: Bundle, listing: Listing, settings: ClassifySettings, run_uri: str) -> ray.data.Dataset:
    """The pipeline itself, not yet running: one row a block that says what was written."""
    actors, threads = _actors(settings)
    return decoded_photos(listing, bundle.preprocessing).map_batches(
        _ClassifyAndWrite,
        batch_size=None,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=actors),
        # Next to nothing, not its threads: the forward pass and the decode tasks share the cores, and the operating system
        # divides them better than fixed shares do. Not 0: a head that is to run no work (num-cpus 0) must not get it.
        num_cpus=1 - DECODE_CPUS,
        num_gpus=settings.gpus_per_actor or None,
        fn_constructor_kwargs={
            "bundle_uri": bundle.uri,
            "model_id": bundle.model_id,
            "batch_size": settings.batch_size,
            "threads": threads,
            "run_uri": run_uri,
        },
    )


def _actors(settings: ClassifySettings) -> tuple[int, int]:
    """How many actors, and how many threads each: all of a machine's cores, because decoding needs few beside them."""
    need = "GPU" if settings.gpus_per_actor else "CPU"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    able = [resources for resources in nodes if resources.get(need, 0) >= max(settings.gpus_per_actor, 1 - DECODE_CPUS)]
    if not able:
        wanted = f"{settings.gpus_per_actor:g} GPUs" if settings.gpus_per_actor else "a CPU"
        raise ConfigError(f"no machine of the cluster has {wanted}; set gpus_per_actor to 0 to score on CPUs")
    room = sum(int(resources["GPU"] / settings.gpus_per_actor) for resources in able) if settings.gpus_per_actor else len(able)
    actors = settings.actors or room
    cores = max(resources.get("CPU", 1) for resources in able)
    return actors, settings.cpus_per_actor or max(1, math.floor(cores / math.ceil(actors / len(able))))


class _ClassifyAndWrite:
    """The actor: holds the bundle; a decoded block in, its Parquet file written, one row about it out."""

    def __init__(self, bundle_uri: str, model_id: str, batch_size: int, threads: int, run_uri: str) -> None:
        use_threads(threads)
        bundle = load_bundle(bundle_uri)
        if bundle.model_id != model_id:
            raise ScoringError(f"bundle {bundle_uri} changed from {model_id} to {bundle.model_id} while the run was going")
        self.classifier = Classifier(bundle, batch_size)
        self.run_uri = run_uri

    def __call__(self, block: Block) -> dict[str, list[Any]]:
        classified_from = time.time()
        bundle = self.classifier.bundle
        usable = block["error_code"] == ""
        pixels, clinical = block["pixels"], encode_clinical(block["age"], block["sex"], block["site"])
        if not usable.all():
            pixels, clinical = pixels[usable], clinical[usable]
        probabilities = self.classifier.probabilities(pixels, clinical)
        rows = prediction_rows(block, probabilities, bundle, bundle.operating_points.default)
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd")
        encoded = buffer.getvalue()
        path = f"part-{int(block['index'][0]):09d}.parquet"
        storage.write_bytes(storage.join(self.run_uri, path), encoded)
        return {
            "path": [path],
            "rows": [rows.num_rows],
            "bytes": [len(encoded)],
            "sha256": [storage.sha256_of(encoded)],
            "failed": [int(np.count_nonzero(~usable))],
            "decoded_at": [float(block["decoded_at"][0])],
            "classified_from": [classified_from],
            "error_codes": [",".join(block["error_code"][~usable].tolist())],
            "flagged": [sum(1 for flag in rows["flagged"].to_pylist() if flag)],
        }
