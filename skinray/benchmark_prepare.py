"""What prepare costs beside reading, hashing and decoding the same photos in a plain loop, and how much memory it takes.

    plain     read, SHA-256, decode and resize for a model: a process pool on all cores, nothing else
    inspect   the same pool doing what prepare does with each photo: both hashes, fingerprint, metadata
    prepare   the whole of `skinray prepare` on a running Ray: catalog, inspection, duplicates, split, audit, shards

Photos are repeated under distinct names when there are too few of them.
"""

import hashlib
import itertools
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skinray import storage
from skinray.config import BenchmarkSettings, PrepareSettings
from skinray.images import Preprocessing, decode_photo
from skinray.inventory import inspect_photo
from skinray.preparation import prepare_dataset
from skinray.telemetry import say


def benchmark_prepare(settings: BenchmarkSettings, source: Path, folder: Path) -> dict[str, Any]:
    """Takes every rate in turn, `rounds` times.

    Args:
        settings: How many photos, how often.
        source: Folder of JPEG files.
        folder: For what the runs write.

    Returns:
        Medians in images a second, their ratios, the largest peak of memory in MB, and every reading under `readings`.
    """
    photos = _class_folders(source, settings.photos, folder / "classes")
    paths = [str(path) for path in sorted(photos.rglob("*.jpg"))]
    cores = os.cpu_count() or 1
    numbers, peaks = itertools.count(), list[float]()

    def prepare() -> float:
        request = PrepareSettings(catalog="folders", source=str(photos), output=str(folder / f"run{next(numbers)}"))
        with _PeakMemory() as memory:
            started = time.perf_counter()
            prepare_dataset(request)
            took = time.perf_counter() - started
        peaks.append(memory.peak_mb)
        storage.delete_folder(request.output)
        return len(paths) / took

    measures: dict[str, Callable[[], float]] = {
        "plain": lambda: _pool_rate(_plain, paths, cores),
        "inspect": lambda: _pool_rate(_inspect, paths, cores),
        "prepare": prepare,
    }
    readings: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(settings.rounds):
        for name, measure in measures.items():
            readings[name].append(measure())
            say(f"round {number + 1} of {settings.rounds}: {name} {readings[name][-1]:.1f} images/s")
    rounds = list(zip(*readings.values(), strict=True))
    median = {name: statistics.median(values) for name, values in readings.items()}
    return {
        "plain_images_per_s": median["plain"],
        "inspect_images_per_s": median["inspect"],
        "pipeline_images_per_s": median["prepare"],
        "ratio_to_plain": statistics.median(whole / plain for plain, _, whole in rounds),
        "ratio_to_inspect": statistics.median(whole / inspect for _, inspect, whole in rounds),
        "peak_memory_mb": max(peaks),
        "cores": cores,
        "photos": len(paths),
        "readings": readings,
        "settings": settings.recorded(),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as lines for a person."""
    names = {"plain": "plain loop", "inspect": "inspect loop", "pipeline": "prepare"}
    lines = [f"{figures['photos']:,} photos, {figures['cores']} cores, median of {figures['settings']['rounds']}"]
    lines += [f"  {words:<13} {figures[f'{name}_images_per_s']:>9.1f} images/s" for name, words in names.items()]
    lines += [f"  prepare / {names[name]:<13} {figures[f'ratio_to_{name}']:.2f}" for name in ("plain", "inspect")]
    return "\n".join([*lines, f"  peak memory of all processes {figures['peak_memory_mb']:,.0f} MB"])


def _class_folders(source: Path, count: int, folder: Path) -> Path:
    found = sorted(source.iterdir())
    for number, path in zip(range(count), itertools.cycle(found), strict=False):
        # One in five is malignant; a repeated photo keeps its class.
        target = folder / ("malignant" if number % len(found) % 5 == 0 else "benign") / f"{number:07d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder


def _pool_rate(work: Callable[[str], None], paths: list[str], cores: int) -> float:
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(work, paths[: 8 * cores])  # starts the processes and their imports
        started = time.perf_counter()
        for _ in pool.imap_unordered(work, paths, chunksize=64):
            pass
        return len(paths) / (time.perf_counter() - started)


def _plain(path: str) -> None:
    data = Path(path).read_bytes()
    hashlib.sha256(data).hexdigest()
    decode_photo(data, Preprocessing())


def _inspect(path: str) -> None:
    inspect_photo(Path(path).read_bytes())


class _PeakMemory:
    """Watches the memory of this process and all below it, which Ray's own are part of: proportional set size, in MB."""

    peak_mb = 0.0

    def __enter__(self) -> "_PeakMemory":
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self.peak_mb = max(self.peak_mb, sum(_pss_mb(process) for process in _family(os.getpid())))


def _family(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue  # it has ended meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    family = [root]
    for process in family:
        family += children.get(process, [])
    return family


def _pss_mb(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)
