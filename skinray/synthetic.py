"""Draws photos of skin lesions: the data set of the demo and of the tests, in place of a download.

It stands before everything else: `draw_dataset` writes a folder that the catalog reader of `prepare` takes
like any public archive. Nothing else of the package is imported, and neither Ray nor TensorFlow.

Benign and malignant differ only in what a dermatologist looks at, the A, B and C of the ABCD rule:

* asymmetry: the outline departs from an ellipse;
* border: notched and streaked instead of smooth;
* colour: dark, light, red and blue-grey patches lie about instead of one hue in concentric shades.

Each of the three follows a *severity* drawn once a lesion, from the middle 96 % of a unit normal around
`-SEVERITY_GAP / 2` (benign) or `+SEVERITY_GAP / 2` (malignant), blurred once more for each sign on its own.
The classes overlap on purpose: over a million lesions a class, the severity itself separates them with an
ROC-AUC of 0.992, the three signs together with 0.988, one sign alone with 0.981. A model that scores higher
on a large test set is reading something it should not.

Everything else is independent of the label: the lesion's area, its mean colour (patches are balanced around
it), its contrast and fine texture, skin, light, pose, hair, gel bubbles, rulers, vignettes, blur, noise, the
size of the file, age, sex, site, and every name. Noise is drawn strong enough that the bytes of a JPEG follow
it and not the border.

Drawn lesions are no substitute for real ones: a model trained on them knows nothing about skin.
"""

import csv
import functools
import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Floats = NDArray[np.float32]

Affine = tuple[float, float, float, float, float, float]
"""Pillow's (a, b, c, d, e, f): a photo's pixel (x, y) shows the canvas at (a x + b y + c, d x + e y + f)."""

WIDTH_PX, HEIGHT_PX = 600, 450
"""The size of every photo, that of HAM10000."""

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
# Standard deviation of each sign around the severity.
_SIGN_BLUR = 0.45
_JPEG_QUALITY = 88

# Drawing happens at half size and is enlarged: four times faster, and real dermoscopic photos are no sharper.
_HALF_WIDTH, _HALF_HEIGHT = WIDTH_PX // 2, HEIGHT_PX // 2

# A lesion is painted once, upright, on a square canvas that reaches two mean radii from its centre.
_CANVAS_PX = 256
_CANVAS_REACH = 2.0

# Optical densities of a unit of melanin for red, green and blue: it swallows blue most and so looks brown.
_MELANIN = np.array([0.62, 0.95, 1.10], dtype=np.float32)
# The two ways in which a patch departs from the lesion's mean, in log RGB: shade, and blue-grey or red.
_LIGHTER = np.array([0.85, 1.00, 1.05], dtype=np.float32)
_BLUER = np.array([-0.50, 0.12, 0.60], dtype=np.float32)


@dataclass(frozen=True)
class _Lesion:
    """One lesion on its canvas: the same for all its photos.

    Attributes:
        transmittance: The light it lets back relative to the bare skin, [3, 256, 256], 1 outside the lesion.
        inside: Distance inwards from its border in mean radii, [256, 256], positive inside.
        radius_px: Its mean radius in a photo of half size at zoom 1.
    """

    transmittance: Floats
    inside: Floats
    radius_px: float


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


def draw_lesion(
    severity: float, *, patient_seed: int, lesion_seed: int, photo_seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draws one photo of one lesion.

    Args:
        severity: How suspicious the lesion looks: around -1.45 if benign, +1.45 if malignant, 0 undecided.
        patient_seed: Decides the skin.
        lesion_seed: Decides the lesion itself: shape, colours, size.
        photo_seed: Decides this photo of it: pose, zoom, light, hair, vignette, noise.

    Returns:
        The photo, uint8 RGB [450, 600, 3], and where the lesion is, bool [450, 600].
    """
    skin = _skin_colour(np.random.default_rng(patient_seed))
    lesion = _paint_lesion(severity, np.random.default_rng(lesion_seed))
    photo, pose = _photograph(lesion, skin, np.random.default_rng(photo_seed))
    return np.array(photo), _mask(lesion, pose)


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
    skin = _skin_colour(np.random.default_rng(plan.patient_seed))
    lesion = _paint_lesion(plan.severity, np.random.default_rng(plan.lesion_seed))
    for image_id, photo_seed in plan.photo_seeds.items():
        photo, _ = _photograph(lesion, skin, np.random.default_rng(photo_seed))
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


def _noise(rng: np.random.Generator, cells: int, width: int, height: int) -> Floats:
    """Smooth noise, mean 0, standard deviation 1, [height, width], with `cells` bumps across the width."""
    rows = max(2, round(cells * height / width))
    grid = rng.standard_normal((rows, cells), dtype=np.float32)
    field = np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    field = field - field.mean()
    return np.asarray(field / field.std(), dtype=np.float32)


@functools.cache
def _canvas_polar() -> tuple[Floats, Floats]:
    """The canvas' pixels in polar form, [256, 256] each: angle in radians, distance in mean radii."""
    axis = (np.arange(_CANVAS_PX, dtype=np.float32) + 0.5) * (2 * _CANVAS_REACH / _CANVAS_PX) - _CANVAS_REACH
    return np.arctan2(axis[:, None], axis[None, :]), np.hypot(axis[:, None], axis[None, :])


def _skin_colour(rng: np.random.Generator) -> Floats:
    """One patient's skin, RGB [3] from 0 to 1: fair for most, brown for some."""
    fair, brown = np.array([0.93, 0.76, 0.68]), np.array([0.66, 0.46, 0.35])
    return np.asarray(fair + (brown - fair) * rng.beta(1.2, 2.5) + rng.normal(0, 0.012, 3), dtype=np.float32)


def _outline(asymmetry: float, border: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Shapes a lesion of unit mean radius.

    Args:
        asymmetry: From 0, an ellipse, to 1, lopsided and lobed.
        border: From 0, smooth, to 1, notched and streaked.
        rng: Draws the shape.

    Returns:
        On the canvas, [256, 256] each: the distance inwards from the border in mean radii, and the distance
        from the centre as a share of the border's, 0 at the centre and 1 at the border.
    """
    turn = np.linspace(-np.pi, np.pi, 721)
    radius = 1 + rng.uniform(0.02, 0.16) * np.cos(2 * (turn + rng.uniform(0, np.pi)))
    for waves in (1, 3, 4, 5):
        amplitude = (0.015 + 0.16 * asymmetry) / math.sqrt(waves) * rng.uniform(0.5, 1.2)
        radius += amplitude * np.cos(waves * turn + rng.uniform(0, 2 * np.pi))
    # Streaks crowd on one side, so the same border is smooth elsewhere.
    crowding = 0.6 + 0.4 * np.cos(turn + rng.uniform(0, 2 * np.pi))
    for waves in range(8, 27, 2):
        amplitude = (0.003 + 0.040 * border) * math.sqrt(8 / waves) * rng.normal()
        radius += amplitude * crowding * np.cos(waves * turn + rng.uniform(0, 2 * np.pi))

    angle, distance = _canvas_polar()
    radius_here = np.interp(angle, turn, np.maximum(radius, 0.35)).astype(np.float32)
    inside = radius_here - distance + (0.015 + 0.07 * border) * _noise(rng, 30, _CANVAS_PX, _CANVAS_PX)
    # The level that leaves the area of the unit circle, whatever the outline: area must not tell the label.
    outside_px = round(inside.size * (1 - np.pi / (2 * _CANVAS_REACH) ** 2))
    inside -= np.partition(inside, outside_px, axis=None)[outside_px]
    return inside, distance / radius_here


def _paint_lesion(severity: float, rng: np.random.Generator) -> _Lesion:
    """Paints one lesion on its canvas: the three signs follow the severity, nothing else does."""
    asymmetry, border, colour = 1 / (1 + np.exp(-1.7 * (severity + rng.normal(0, _SIGN_BLUR, 3))))
    inside, relative = _outline(float(asymmetry), float(border), rng)

    # Shades: concentric in a harmless lesion, scattered in a suspicious one, about as strong in both.
    contrast = rng.uniform(0.22, 0.38)
    rings = rng.choice([-1, 1]) * np.cos(np.minimum(relative, 1.1) * rng.uniform(2.6, 4.2)) * 1.4
    patches = np.tanh(1.6 * _noise(rng, 9, _CANVAS_PX, _CANVAS_PX)) * 1.3
    shade = contrast * (math.sqrt(1 - colour) * rings + math.sqrt(colour) * patches)
    # Hues: one in a harmless lesion, blue-grey and red patches in a suspicious one.
    hue = (0.03 + 0.30 * colour) * np.tanh(1.6 * _noise(rng, 9, _CANVAS_PX, _CANVAS_PX))
    # A net of pigment, equally fine and strong in both classes.
    net = rng.uniform(0.04, 0.13) * (0.8 - np.abs(_noise(rng, 72, _CANVAS_PX, _CANVAS_PX)))
    log_colour = (shade - net) * _LIGHTER[:, None, None] + hue * _BLUER[:, None, None]
    transmittance = np.exp(log_colour, dtype=np.float32)

    softness = rng.uniform(0.025, 0.09)
    cover = 1 / (1 + np.exp(-np.clip(inside / softness, -20, 20)))
    # Exactly the mean colour that was drawn, whatever the patches: mean colour must not tell the label.
    tint = rng.normal(0, 0.06, 3).astype(np.float32)
    mean_colour = np.exp(-rng.uniform(0.55, 1.15) * _MELANIN + tint)
    painted = (transmittance * cover).sum(axis=(1, 2)) / cover.sum()
    transmittance *= (mean_colour / painted)[:, None, None]
    transmittance = 1 + cover * (transmittance - 1)
    return _Lesion(transmittance.astype(np.float32), inside, radius_px=float(rng.uniform(42, 68)))


def _photograph(lesion: _Lesion, skin: Floats, rng: np.random.Generator) -> tuple[Image.Image, Affine]:
    """Takes one photo of a lesion: the RGB photo, 600 x 450, and the pose it was taken in."""
    pose = _pose(lesion, rng)
    half_size = (_HALF_WIDTH, _HALF_HEIGHT)
    planes = np.stack([_place(plane, half_size, pose, 1.0) for plane in lesion.transmittance])
    exposure = rng.uniform(0.90, 1.08) * rng.normal(1, 0.025, 3).astype(np.float32)
    planes *= (skin * exposure)[:, None, None] * _skin_texture(rng) * _light(rng)
    bands = (np.clip(planes, 0, 1) * 255).astype(np.uint8)
    photo = Image.merge("RGB", [Image.fromarray(band) for band in bands])
    photo = photo.filter(ImageFilter.BoxBlur(rng.uniform(0.0, 0.8)))
    photo = photo.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
    _add_artifacts(photo, rng)

    # Sensor noise, the sum of two uniform bytes: a normal would cost a fifth of the whole photo's time.
    pair = np.frombuffer(rng.bytes(2 * WIDTH_PX * HEIGHT_PX), dtype=np.uint8).reshape(2, HEIGHT_PX, WIDTH_PX)
    strength = rng.uniform(3.0, 6.5)
    scale = strength / (math.sqrt(2 / 12) * 256)
    grain = Image.fromarray((pair.sum(axis=0, dtype=np.float32) * np.float32(scale)).astype(np.uint8))
    return ImageChops.add(photo, Image.merge("RGB", [grain] * 3), offset=-round(255 * scale)), pose


def _mask(lesion: _Lesion, pose: Affine) -> NDArray[np.bool_]:
    """Where the lesion is in the photo taken in this pose, bool [450, 600]."""
    across_x, across_y, across, down_x, down_y, down = pose
    full_size = (across_x / 2, across_y / 2, across, down_x / 2, down_y / 2, down)
    return _place(lesion.inside, (WIDTH_PX, HEIGHT_PX), full_size, -1.0) > 0


def _pose(lesion: _Lesion, rng: np.random.Generator) -> Affine:
    """Draws how the camera is held: where a photo of half size shows the lesion's canvas."""
    radius_px = min(lesion.radius_px * rng.uniform(0.85, 1.2), 74.0)
    scale = _CANVAS_PX / (2 * _CANVAS_REACH) / radius_px
    turn = rng.uniform(0, 2 * np.pi)
    centre_x = _HALF_WIDTH / 2 + rng.uniform(-18, 18)
    centre_y = _HALF_HEIGHT / 2 + rng.uniform(-9, 9)
    cosine, sine = scale * math.cos(turn), scale * math.sin(turn)
    middle = _CANVAS_PX / 2
    return (
        cosine,
        -sine,
        middle - cosine * centre_x + sine * centre_y,
        sine,
        cosine,
        middle - sine * centre_x - cosine * centre_y,
    )


def _place(canvas: Floats, size: tuple[int, int], affine: Affine, outside: float) -> Floats:
    """Lays a canvas into a photo of `size` (width, height), which is `outside` where the canvas ends."""
    placed = Image.fromarray(canvas).transform(
        size, Image.Transform.AFFINE, affine, resample=Image.Resampling.BILINEAR, fillcolor=outside
    )
    return np.array(placed, dtype=np.float32)


def _skin_texture(rng: np.random.Generator) -> Floats:
    """Blotches, fine relief and flushed areas of the skin around 1, [3, 225, 300]."""
    blotches = 0.025 * _noise(rng, 5, _HALF_WIDTH, _HALF_HEIGHT)
    relief = rng.uniform(0.008, 0.022) * _noise(rng, 75, _HALF_WIDTH, _HALF_HEIGHT)
    flush = 0.025 * _noise(rng, 9, _HALF_WIDTH, _HALF_HEIGHT)
    shade = 1 + blotches + relief
    return np.stack([shade, shade - flush, shade - flush])


def _light(rng: np.random.Generator) -> Floats:
    """Uneven light, and on some photos the dark corners of a dermatoscope's tube, [225, 300]."""
    x = np.linspace(-1, 1, _HALF_WIDTH, dtype=np.float32)[None, :]
    y = np.linspace(-0.75, 0.75, _HALF_HEIGHT, dtype=np.float32)[:, None]
    light = 1 + rng.uniform(-0.08, 0.08) * x + rng.uniform(-0.08, 0.08) * y
    distance = np.hypot(x, y)
    light = light * (1 - rng.uniform(0.0, 0.22) * distance**2)
    if rng.random() < 0.35:
        edge = rng.uniform(0.93, 1.15)
        light = light * (0.04 + 0.96 / (1 + np.exp((distance - edge) / rng.uniform(0.008, 0.04))))
    return np.asarray(light, dtype=np.float32)


def _add_artifacts(photo: Image.Image, rng: np.random.Generator) -> None:
    """Draws hair, gel bubbles and a ruler into a photo, each on some of the photos only."""
    if rng.random() < 0.6:
        layer = Image.new("L", photo.size)
        _draw_hair(ImageDraw.Draw(layer), rng)
        shade = rng.uniform(0.4, 1.6)
        colour = tuple(int(value * shade) for value in (62, 44, 34))
        photo.paste(colour, mask=layer.filter(ImageFilter.BoxBlur(0.7)))
    if rng.random() < 0.3:
        layer = Image.new("L", photo.size)
        draw = ImageDraw.Draw(layer)
        for _ in range(rng.integers(1, 9)):
            x, y, radius = rng.uniform(0, WIDTH_PX), rng.uniform(0, HEIGHT_PX), rng.uniform(3, 14)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=110, fill=24, width=2)
            draw.ellipse((x - radius / 2, y - radius / 2, x - radius / 5, y - radius / 5), fill=230)
        photo.paste((255, 252, 248), mask=layer.filter(ImageFilter.BoxBlur(0.7)))
    if rng.random() < 0.15:
        draw = ImageDraw.Draw(photo)
        top = rng.random() < 0.5
        step = rng.uniform(9, 14)
        for tick in range(int(WIDTH_PX / step)):
            length = 26 if tick % 10 == 0 else 18 if tick % 5 == 0 else 11
            start = 0 if top else HEIGHT_PX - length
            draw.line((tick * step, start, tick * step, start + length), fill=(40, 38, 40), width=2)


def _draw_hair(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draws up to 16 curved hairs that run roughly the same way."""
    way = rng.uniform(0, np.pi)
    along = np.linspace(-1, 1, 13)
    for _ in range(rng.integers(1, 17)):
        angle = way + rng.normal(0, 0.35)
        half_length, bend = rng.uniform(50, 200), rng.normal(0, 30)
        straight, aside = half_length * along, bend * along**2
        x = rng.uniform(0, WIDTH_PX) + straight * math.cos(angle) - aside * math.sin(angle)
        y = rng.uniform(0, HEIGHT_PX) + straight * math.sin(angle) + aside * math.cos(angle)
        points = [(float(one), float(other)) for one, other in zip(x, y, strict=True)]
        draw.line(points, fill=int(rng.uniform(120, 245)), width=int(rng.integers(1, 4)), joint="curve")
