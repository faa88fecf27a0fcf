"""Listed photos -> files of prediction rows: read and decode (CPU tasks) -> classify (actors) -> write, block by block -> merge.

A block that comes in leaves as one file under its own name, written in one piece: a task that Ray runs again replaces its
own file and adds no row, and a run that was killed, whatever of it, goes on with the blocks that have no file yet.
"""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.data
from ray.data import ActorPoolStrategy, ExecutionResources

from skinray import storage
from skinray.block_files import BlockResult, finished_block, finished_blocks, merge_blocks, write_block
from skinray.bundle import Bundle, load_bundle
from skinray.classifier import Classifier, Precision, compute_on_cpu, passes_at_once, use_threads
from skinray.clinical import encode_clinical
from skinray.config import ClassifySettings
from skinray.errors import ConfigError, ScoringError, StorageError
from skinray.listing import Listing
from skinray.photos import DECODE_CPUS, Block, decoded_photos
from skinray.predictions import prediction_rows
from skinray.telemetry import Progress, say

# For a scheduler: where the run stands, a few times a minute.
PROGRESS_NAME = "_progress.json"
# Blocks that an actor writes at once.
_WRITERS = 4
# What may wait decoded, lest memory grow with the photos of a job: Ray Data alone stops at half of the object store, and came to
# 29 % more after 100,000 photos than after 10,000. Twenty blocks at 224 pixels on two cores, which no stage has waited behind.
_LEAST_WAITING_BYTES = 512 << 20
_TASKS_WAITING_PER_CORE = 10


@dataclass(frozen=True)
class Extras:
    """What a run may do beside classifying.

    Attributes:
        refuse: Refuse what is no photo of skin.
        embeddings: Also write what the network's head judges from.
    """

    refuse: bool = False
    embeddings: bool = False


NO_EXTRAS = Extras()


@dataclass(frozen=True)
class RunSummary:
    """What became of a run's photos.

    Attributes:
        uri: The run's folder; "" when there was nothing to do.
        rows: Photos listed, each one row.
        statuses: Rows by status.
        errors: Rows by error code.
        flagged: Rows at or above the operating point.
        resumed_rows: Those of them that a killed run of the same command had scored.
        seconds: From the start of the pipeline to its last block.
        rows_per_second: Of the others, over the same time, start-up included.
        start_up_seconds: From there until the first photo was classified.
        start_up_parts: What that time went into, in words -> seconds.
        head_start_rows: Photos that were decoded in that time already.
        skipped_rows: Photos of the input that were left out, as asked for; in no other figure.
        listing_seconds: Spent on the bundle, the listing and the ledger before the pipeline.
    """

    uri: str
    rows: int
    statuses: dict[str, int]
    errors: dict[str, int]
    flagged: int
    resumed_rows: int
    seconds: float
    rows_per_second: float
    start_up_seconds: float
    start_up_parts: Mapping[str, float]
    head_start_rows: int
    skipped_rows: int = 0
    listing_seconds: float = 0.0

    @staticmethod
    def of_nothing(skipped_rows: int) -> "RunSummary":
        """Of a command that finds nothing to do, and makes no run."""
        return RunSummary("", 0, {}, {}, 0, 0, 0.0, 0.0, 0.0, {}, 0, skipped_rows)

    @property
    def bad_fraction(self) -> float:
        """Share of the photos that have no score."""
        return 1 - self.statuses.get("scored", 0) / self.rows if self.rows else 0.0


def write_predictions(
    bundle: Bundle, listing: Listing, settings: ClassifySettings, run_uri: str, extras: Extras = NO_EXTRAS
) -> tuple[RunSummary, list[dict[str, Any]]]:
    """Runs what a listing has and the folder has not yet through a bundle, and writes all of it as Parquet files.

    Args:
        bundle: The verified bundle.
        listing: The photos.
        settings: Actors, threads, batch.
        run_uri: The folder for the files; blocks of the same listing and bundle that lie there already are done. Who publishes
            it calls `drop_blocks` then.
        extras: What else is asked for.

    Returns:
        What became of the photos, and each file's path, rows, bytes and SHA-256.

    Raises:
        ScoringError: The rows written are not the photos listed.
    """
    planned = listing.blocks()
    done = finished_blocks(run_uri, planned.items())
    resumed_rows = sum(result.rows for result in done.values())
    if resumed_rows:
        say(f"score: {resumed_rows:,} of {listing.rows:,} photos are done already")
    times = _Times(0.0, 0.0, 0.0, 0.0, 0.0, ())
    if resumed_rows < listing.rows:
        pipeline = classified_blocks(bundle, listing, settings, run_uri, extras, frozenset(done))
        times = _run_pipeline(pipeline, listing.rows - resumed_rows, run_uri, done)
    if {first: result.rows for first, result in done.items()} != planned:
        written = sum(result.rows for result in done.values())
        raise ScoringError(f"{run_uri}: {listing.rows} photos were listed but {written} rows written; run it again")
    results = [done[first] for first in planned]
    files = merge_blocks(run_uri, results)
    statuses: Counter[str] = sum((Counter(result.statuses) for result in results), Counter())
    errors: Counter[str] = sum((Counter(result.errors) for result in results), Counter())
    seconds = times.ended - times.started
    return RunSummary(
        uri=run_uri,
        rows=listing.rows,
        statuses=dict(sorted(statuses.items())),
        errors=dict(sorted(errors.items())),
        flagged=sum(result.flagged for result in results),
        resumed_rows=resumed_rows,
        seconds=seconds,
        rows_per_second=(listing.rows - resumed_rows) / seconds if seconds else 0.0,
        start_up_seconds=times.first_classified - times.started,
        start_up_parts=times.start_up_parts(),
        head_start_rows=sum(rows for ready, rows in times.decoded if ready < times.first_classified),
    ), files


@dataclass(frozen=True)
class _Times:
    """When what happened in a pipeline, in seconds since 1970, because it happened in many processes.

    Attributes:
        started: Of the pipeline.
        actor_began: Of the actor that classified first.
        model_ready: When that one could classify.
        first_classified: Of the first photo's forward pass.
        ended: Of its last block; what follows is its taking down.
        decoded: When each block was ready, and how many photos it has.
    """

    started: float
    actor_began: float
    model_ready: float
    first_classified: float
    ended: float
    decoded: Sequence[tuple[float, int]]

    def start_up_parts(self) -> dict[str, float]:
        """What happened before the first photo was classified -> seconds; nothing where nothing ran."""
        if not self.decoded:
            return {}
        return {
            "processes": self.actor_began - self.started,
            "TensorFlow and model": self.model_ready - self.actor_began,
            "first photos": self.first_classified - self.model_ready,
        }


def _run_pipeline(pipeline: ray.data.Dataset, rows: int, run_uri: str, done: dict[int, BlockResult]) -> _Times:
    """Scores the blocks of a pipeline, which have so many rows together, and adds them to those done as they come."""
    resumed_rows = sum(result.rows for result in done.values())
    failed = 0

    def tell(state: dict[str, Any]) -> None:
        state |= {"resumed": resumed_rows, "failed": failed, "at": time.time()}
        with contextlib.suppress(StorageError):  # what only tells may fail
            storage.write_json(storage.join(run_uri, PROGRESS_NAME), state)

    progress = Progress("score", total=rows, unit="photos", told=tell)
    started = ended = time.time()
    first = (math.inf, 0.0, 0.0)
    decoded = []
    for block in pipeline.iter_rows():
        result = BlockResult.decoded(block["result"])
        done[result.first_index] = result
        decoded.append((block["decoded_at"], result.rows))
        first = min(first, (block["classified_from"], block["actor_began"], block["model_ready"]))
        ended = time.time()
        failed += result.statuses.get("failed", 0)
        progress.advance(result.rows, f"{failed:,} failed" if failed else "")
    progress.close()
    first_classified, actor_began, model_ready = first
    return _Times(started, actor_began, model_ready, first_classified, ended, decoded)


def classified_blocks(
    bundle: Bundle,
    listing: Listing,
    settings: ClassifySettings,
    run_uri: str,
    extras: Extras = NO_EXTRAS,
    without: Container[int] = (),
) -> ray.data.Dataset:
    """The pipeline itself, not yet running: one row a block that says what was written.

    Args:
        bundle: The verified bundle.
        listing: The photos.
        settings: Actors, threads, batch.
        run_uri: The folder for the blocks' files.
        extras: What else is asked for.
        without: First indices of blocks to leave out.
    """
    actors, threads = _actors(settings)
    passes = 1 if settings.gpus_per_actor else passes_at_once(threads)
    pipeline = decoded_photos(listing, bundle.preprocessing, extras.refuse, without).map_batches(
        _ClassifyAndWrite,
        batch_size=None,
        batch_format="numpy",
        # Two calls: while one is computed, the next takes its photos out of the object store, and the last one writes.
        compute=ActorPoolStrategy(size=actors, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True),
        # Next to nothing, not its threads: the forward pass and the decode tasks share the cores, and the operating system
        # divides them better than fixed shares do. Not 0: a head that is to run no work (num-cpus 0) must not get it.
        num_cpus=1 - DECODE_CPUS,
        num_gpus=settings.gpus_per_actor or None,
        fn_constructor_kwargs={
            "bundle_uri": bundle.uri,
            "model_id": bundle.model_id,
            "batch_size": settings.batch_size,
            "threads": threads,
            "passes": passes,
            "gpus": settings.gpus_per_actor,
            "run_uri": run_uri,
            "embeddings": extras.embeddings,
            "precision": settings.precision,
        },
    )
    pipeline.context.execution_options.resource_limits = ExecutionResources(
        object_store_memory=_waiting_bytes(listing, bundle.preprocessing.image_size_px)
    )
    return pipeline


def _waiting_bytes(listing: Listing, size_px: int) -> int:
    """How much of decoded photos may wait for the network in the whole cluster."""
    cores: float = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    task_bytes = listing.rows_per_task * size_px * size_px * 3
    return max(_LEAST_WAITING_BYTES, int(_TASKS_WAITING_PER_CORE * cores) * task_bytes)


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
    """The actor: holds the bundle; decoded blocks in, each one's file written, one row about each out."""

    def __init__(
        self,
        bundle_uri: str,
        model_id: str,
        batch_size: int,
        threads: int,
        passes: int,
        gpus: float,
        run_uri: str,
        embeddings: bool,
        precision: Precision,
    ) -> None:
        self.began = time.time()
        use_threads(threads, passes)
        if not gpus:
            compute_on_cpu()
        bundle = load_bundle(bundle_uri)
        if bundle.model_id != model_id:
            raise ScoringError(f"bundle {bundle_uri} changed from {model_id} to {bundle.model_id} while the run was going")
        self.classifier = Classifier(bundle, batch_size, embeddings, precision)
        self.run_uri = run_uri
        self.passes = ThreadPoolExecutor(passes, thread_name_prefix="passes")
        self.writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="blocks")
        self.ready = time.time()

    def __call__(self, decoded: Block) -> dict[str, list[Any]]:
        starts = np.flatnonzero(np.diff(decoded["block"], prepend=-1))
        blocks = [
            {name: column[start:end] for name, column in decoded.items()}
            for start, end in zip(starts, [*starts[1:], len(decoded["block"])], strict=True)
        ]
        # A task that an actor died in comes again with all its blocks, most of which it had written.
        done = [
            *self.writers.map(lambda block: finished_block(self.run_uri, int(block["block"][0]), len(block["block"])), blocks)
        ]
        scored = [result or self.passes.submit(self._score, block) for block, result in zip(blocks, done, strict=True)]
        classified_from, results = [], []
        for each in scored:
            started, written = each.result() if isinstance(each, Future) else (time.time(), each)
            classified_from.append(started)
            results.append(written)
        return {
            "result": [(each.result() if isinstance(each, Future) else each).encoded() for each in results],
            "decoded_at": [float(block["decoded_at"][0]) for block in blocks],
            "classified_from": classified_from,
            "actor_began": [self.began] * len(blocks),
            "model_ready": [self.ready] * len(blocks),
        }

    def _score(self, block: Block) -> tuple[float, "Future[BlockResult]"]:
        """When it began, and what will have been written: a store takes its time, and the network need not wait for it."""
        started = time.time()
        return started, self.writers.submit(self._write, block, *self._classified(block))

    def _classified(self, block: Block) -> list[npt.NDArray[np.float32]]:
        """Probabilities, and embeddings when they are wanted, of the photos of a block that are usable."""
        usable = block["status"] == "scored"
        pixels, clinical = block["pixels"], encode_clinical(block["age"], block["sex"], block["site"])
        if not usable.all():
            pixels, clinical = pixels[usable], clinical[usable]
        return self.classifier.classified(pixels, clinical)

    def _write(self, block: Block, probabilities: npt.NDArray[np.float32], *embeddings: npt.NDArray[np.float32]) -> BlockResult:
        bundle = self.classifier.bundle
        rows = prediction_rows(block, probabilities, bundle, bundle.operating_points.default, *embeddings)
        return write_block(self.run_uri, int(block["block"][0]), rows)
