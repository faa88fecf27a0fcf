"""Draws a data set of skin lesions: that of the demo and of the tests, in place of a download.

It stands before everything else: `draw_dataset` plans patients, lesions and photos, has `skinray.drawing` draw them, and
writes a folder that the catalog reader of `prepare` takes like any public archive. Nothing else of the package is imported,
and neither Ray nor TensorFlow. `break_file` spoils such photos, for the demo and the tests of what happens to damaged ones.

Benign and malignant differ only in the severity that `skinray.drawing` turns into three signs: asymmetry, border and
colour. It is drawn once a lesion, from the middle 96 % of a unit normal around `-SEVERITY_GAP / 2` (benign) or
`+SEVERITY_GAP / 2` (malignant). The classes overlap on purpose: over a million lesions a class, the severity itself
separates them with an ROC-AUC of 0.992, the three signs together with 0.988, one sign alone with 0.981. A model that scores
higher on a large test set is reading something it should not.

Everything else is independent of the label: what else is drawn, the size of the file, age, sex, site, and every name.

Drawn lesions are no substitute for real ones: a model trained on them knows nothing about skin.
"""

import csv
import functools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from skinray.drawing import paint_lesion, photograph, skin_colour

MALIGNANT_SHARE = 0.3
"""The share of the lesions that is malignant."""

SEVERITY_GAP = 2.9
"""The distance between the classes' mean severities."""

METADATA_COLUMNS = ("image_id", "lesion_id", "patient_id", "label", "age", "sex", "site")

SITES = (
    "abdomen",
    "acral",
    "back",
    "chest",
    "ear",
    "face",
    "foot",
    "genital",
    "hand",
    "lower extremity",
    "neck",
    "scalp",
    "trunk",
    "upper extremity",
)
"""Where a lesion sits, in the words of HAM10000's `localization` column."""

BROKEN_KINDS = ("truncated", "empty", "text", "header_only", "zeros")
"""The ways `break_file` knows to spoil a photo."""

# Cut off either end of a class's severities: a few wildly misleading lesions would decide the AUC of a small
# test set.
_SEVERITY_TAIL = 0.02
_JPEG_QUALITY = 88


@dataclass(frozen=True)
class _LesionPlan:
    """What `draw_dataset` decides about one lesion before anything is drawn."""

    lesion_id: str
    patient_id: str
    malignant: bool
    severity: float
    age: str
    sex: str
    site: str
    patient_seed: int
    lesion_seed: int
    photo_seeds: dict[str, int]  # by image_id


def draw_dataset(output: Path, photos: int, seed: int, workers: int = 1) -> None:
    """Writes `output/images/<image_id>.jpg` and `output/metadata.csv`.

    A patient has 1 to 5 lesions, a lesion 1 to 4 photos, and the rows come in the order of their opaque
    image_ids. The table's columns are `METADATA_COLUMNS`: label is `benign` or `malignant`, age in years, and
    age, sex and site are empty where unknown. The same photos and seed give the same bytes with any number of
    workers. The table is written last.

    Args:
        output: The folder to write to; made when missing.
        photos: The number of photos, at least 1.
        seed: Any integer from 0 up.
        workers: The number of processes that draw.

    Raises:
        ValueError: `photos` or `workers` is below 1.
        FileExistsError: `output/images` holds files that are no part of this data set.
    """
    if photos < 1 or workers < 1:
        raise ValueError(f"photos and workers must be at least 1, got photos={photos}, workers={workers}")
    plans = _plan(photos, seed)
    images = output / "images"
    images.mkdir(parents=True, exist_ok=True)
    expected = {f"{image_id}.jpg" for plan in plans for image_id in plan.photo_seeds}
    strangers = sorted(path.name for path in images.iterdir() if path.name not in expected)
    if strangers:
        raise FileExistsError(f"{images} already holds {len(strangers)} other files, such as {strangers[0]}; use an empty folder")
    draw = functools.partial(_write_photos, images)
    if workers == 1:
        for plan in plans:
            draw(plan)
    else:
        # Spawned, not forked: the caller may have threads running, TensorFlow's or Ray's.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for _ in pool.map(draw, plans, chunksize=8):
                pass
    _write_metadata(output / "metadata.csv", plans)


def break_file(data: bytes, how: str) -> bytes:
    """Spoils the bytes of a JPEG so that no decoder gets the photo back.

    Args:
        data: The bytes of a readable JPEG file.
        how: One of `BROKEN_KINDS`: `truncated` keeps the first half, `empty` nothing, `text` is an HTML error
            page as a failed download leaves it, `header_only` ends where the pixels would start, `zeros` only
            has the same length.

    Returns:
        The spoilt bytes.

    Raises:
        ValueError: `how` is not one of `BROKEN_KINDS`.
    """
    if how == "truncated":
        return data[: len(data) // 2]
    if how == "empty":
        return b""
    if how == "text":
        return b"<html><body><h1>404 Not Found</h1></body></html>\n"
    if how == "header_only":
        return data[: data.index(b"\xff\xda")]  # the start-of-scan marker
    if how == "zeros":
        return bytes(len(data))
    raise ValueError(f"how must be one of {', '.join(BROKEN_KINDS)}, got {how!r}")


def _plan(photos: int, seed: int) -> list[_LesionPlan]:
    """Decides patients, lesions, labels and names for a data set of so many photos."""
    rng = np.random.default_rng(seed)
    photos_per_lesion = _parts(photos, (0.4, 0.3, 0.2, 0.1), rng)
    lesions = len(photos_per_lesion)
    lesions_per_patient = _parts(lesions, (0.35, 0.3, 0.2, 0.1, 0.05), rng)
    patients = len(lesions_per_patient)
    malignant, severities = _severities(lesions, rng)

    image_numbers = iter(rng.choice(10_000_000, photos, replace=False))
    lesion_numbers = iter(rng.choice(10_000_000, lesions, replace=False))
    patient_numbers = iter(rng.choice(10_000_000, patients, replace=False))
    # Every patient, lesion and photo has a seed of its own, so none depends on what else is drawn, or when.
    seeds = iter(np.random.SeedSequence(seed).generate_state(patients + lesions + photos, np.uint64))

    plans: list[_LesionPlan] = []
    for lesions_here in lesions_per_patient:
        patient_id, patient_seed = f"PAT_{next(patient_numbers):07d}", int(next(seeds))
        age = 5 * round(float(np.clip(rng.normal(52, 17), 5, 90)) / 5)
        age_text = "" if rng.random() < 0.04 else str(age)
        sex = str(rng.choice(["male", "female", ""], p=[0.52, 0.44, 0.04]))
        for _ in range(lesions_here):
            index = len(plans)
            plans.append(
                _LesionPlan(
                    lesion_id=f"LES_{next(lesion_numbers):07d}",
                    patient_id=patient_id,
                    malignant=bool(malignant[index]),
                    severity=float(severities[index]),
                    age=age_text,
                    sex=sex,
                    site="" if rng.random() < 0.04 else str(rng.choice(SITES)),
                    patient_seed=patient_seed,
                    lesion_seed=int(next(seeds)),
                    photo_seeds={f"SYN_{next(image_numbers):07d}": int(next(seeds)) for _ in range(photos_per_lesion[index])},
                )
            )
    return plans


def _parts(total: int, shares: tuple[float, ...], rng: np.random.Generator) -> list[int]:
    """Cuts a total into random parts of 1, 2, ... with the given shares; the last part takes what is left."""
    parts: list[int] = []
    while total > 0:
        part = min(int(rng.choice(len(shares), p=shares)) + 1, total)
        parts.append(part)
        total -= part
    return parts


def _severities(lesions: int, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Returns which lesions are malignant and how severe each looks, both [lesions]."""
    malignant = np.zeros(lesions, dtype=np.bool_)
    malignant[: max(round(MALIGNANT_SHARE * lesions), min(lesions - 1, 1))] = True
    rng.shuffle(malignant)
    severities = np.empty(lesions)
    for members, mean in ((malignant, SEVERITY_GAP / 2), (~malignant, -SEVERITY_GAP / 2)):
        count = int(members.sum())
        # One draw from each of `count` equally likely slices: small data sets overlap like large ones.
        slices = (rng.permutation(count) + rng.random(count)) / max(count, 1)
        shares = _SEVERITY_TAIL + (1 - 2 * _SEVERITY_TAIL) * slices
        severities[members] = [NormalDist(mean).inv_cdf(share) for share in shares]
    return malignant, severities


def _write_photos(images: Path, plan: _LesionPlan) -> None:
    """Draws and writes all photos of one lesion."""
    skin = skin_colour(np.random.default_rng(plan.patient_seed))
    lesion = paint_lesion(plan.severity, np.random.default_rng(plan.lesion_seed))
    for image_id, photo_seed in plan.photo_seeds.items():
        photo, _ = photograph(lesion, skin, np.random.default_rng(photo_seed))
        photo.save(images / f"{image_id}.jpg", quality=_JPEG_QUALITY)


def _write_metadata(path: Path, plans: list[_LesionPlan]) -> None:
    """Writes the table, one row a photo, sorted by image_id."""

    def rows() -> Iterator[tuple[str, ...]]:
        for plan in plans:
            label = "malignant" if plan.malignant else "benign"
            for image_id in plan.photo_seeds:
                yield image_id, plan.lesion_id, plan.patient_id, label, plan.age, plan.sex, plan.site

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(METADATA_COLUMNS)
        writer.writerows(sorted(rows()))
