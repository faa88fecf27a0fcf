"""What a scoring run would take, from a sample of its photos and without Ray: what `skinray score --dry-run` prints."""

import os
import resource
import time
from dataclasses import dataclass

import numpy as np

from skinray.bundle import Bundle
from skinray.config import ScoreSettings
from skinray.listing import Listing
from skinray.photos import read_and_decode
from skinray.shard_reader import BYTES_AT_ONCE

SAMPLE = 200
_SEED = 0
# What a run takes before its first photo is classified, and what Ray's own processes hold: both measured on two cores.
START_UP_S = 15.0
_RAY_BYTES = 700_000_000
# A decode task's process before it has decoded anything, and how many times its pixels it holds at its peak.
_TASK_BYTES, _TASK_COPIES = 250_000_000, 3


@dataclass(frozen=True)
class Estimate:
    """What a sample says of a whole run on one machine like this.

    Attributes:
        sampled: Photos that were read, decoded and classified.
        bad: Those of them that cannot be used.
        decode_ms: A photo, on one core, reading included.
        classify_ms: A photo, on all cores.
        seconds: The run, start-up included.
        memory_bytes: The run, all processes.
    """

    sampled: int
    bad: int
    decode_ms: float
    classify_ms: float
    seconds: float
    memory_bytes: int

    def in_words(self) -> list[str]:
        """Lines for a person."""
        return [
            f"sample of {self.sampled:,}: {self.bad:,} cannot be used; {self.decode_ms:.1f} ms to read and decode one on a core, "
            f"{self.classify_ms:.1f} ms to classify it on all",
            f"about {_duration(self.seconds)} and {self.memory_bytes / 1e9:.1f} GB of memory on one machine like this",
        ]


def estimate(bundle: Bundle, listing: Listing, settings: ScoreSettings) -> Estimate:
    """Reads, decodes and classifies a random sample of a listing.

    Raises:
        BundleError: The model cannot be loaded.
    """
    from skinray.classifier import Classifier, use_threads

    cores = len(os.sched_getaffinity(0))
    chosen = np.random.default_rng(_SEED).choice(listing.rows, min(SAMPLE, listing.rows), replace=False)
    photos = listing.photos.take(np.sort(chosen))
    started = time.perf_counter()
    plan = photos.append_column("block", photos["index"])
    (block,) = read_and_decode(plan, len(plan), bundle.preprocessing, settings.refuse, listing.folder)
    decode_s = (time.perf_counter() - started) / len(photos)
    use_threads(cores)
    classifier = Classifier(bundle, settings.batch_size, precision=settings.precision)
    usable = block["pixels"][block["status"] == "scored"]
    started = time.perf_counter()
    classifier.probabilities(usable)
    classify_s = (time.perf_counter() - started) / len(photos)
    task_pixels = listing.rows_per_task * bundle.preprocessing.image_size_px**2 * 3
    stored = min(BYTES_AT_ONCE, listing.rows_per_task * listing.bytes // listing.rows)
    actor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Estimate(
        sampled=len(photos),
        bad=len(photos) - len(usable),
        decode_ms=decode_s * 1e3,
        classify_ms=classify_s * 1e3,
        seconds=START_UP_S + listing.rows * (decode_s / cores + classify_s),
        memory_bytes=int(_RAY_BYTES + actor + cores * (_TASK_BYTES + stored + _TASK_COPIES * task_pixels)),
    )


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes = rest // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest % 60} s" if minutes else f"{rest} s"
