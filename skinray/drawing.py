"""How one lesion is painted and photographed: numbers in, one photo and where the lesion is in it out.

`skinray.synthetic` decides which patients, lesions and photos a data set has, calls this module for each photo and writes
what it returns. Nothing here knows of labels, names or files; nothing else of the package is imported, and neither Ray nor
TensorFlow.

Lesions differ in how suspicious they look only in what a dermatologist looks at, the A, B and C of the ABCD rule:

* asymmetry: the outline departs from an ellipse;
* border: notched and streaked instead of smooth;
* colour: dark, light, red and blue-grey patches lie about instead of one hue in concentric shades.

Each of the three follows one *severity* a lesion, blurred once more for each sign on its own. Everything else is
independent of it: the lesion's area, its mean colour (patches are balanced around it), its contrast and fine texture, skin,
light, pose, hair, gel bubbles, rulers, vignettes, blur and noise. Noise is drawn strong enough that the bytes of a JPEG
follow it and not the border.

A lesion is painted once (`paint_lesion`) and photographed as often as wanted (`photograph`); the same generators give the
same pixels.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Floats = NDArray[np.float32]

Affine = tuple[float, float, float, float, float, float]
"""Pillow's (a, b, c, d, e, f): a photo's pixel (x, y) shows the canvas at (a x + b y + c, d x + e y + f)."""

WIDTH_PX, HEIGHT_PX = 600, 450
"""The size of every photo, that of HAM10000."""

# Standard deviation of each sign around the severity.
_SIGN_BLUR = 0.45

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
class Lesion:
    """One lesion on its canvas: the same for all its photos.

    Attributes:
        transmittance: The light it lets back relative to the bare skin, [3, 256, 256], 1 outside the lesion.
        inside: Distance inwards from its border in mean radii, [256, 256], positive inside.
        radius_px: Its mean radius in a photo of half size at zoom 1.
    """

    transmittance: Floats
    inside: Floats
    radius_px: float


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
    skin = skin_colour(np.random.default_rng(patient_seed))
    lesion = paint_lesion(severity, np.random.default_rng(lesion_seed))
    photo, pose = photograph(lesion, skin, np.random.default_rng(photo_seed))
    return np.array(photo), _mask(lesion, pose)


def skin_colour(rng: np.random.Generator) -> Floats:
    """Draws one patient's skin: fair for most, brown for some.

    Args:
        rng: The patient's.

    Returns:
        RGB from 0 to 1, float32 [3].
    """
    fair, brown = np.array([0.93, 0.76, 0.68]), np.array([0.66, 0.46, 0.35])
    return np.asarray(fair + (brown - fair) * rng.beta(1.2, 2.5) + rng.normal(0, 0.012, 3), dtype=np.float32)


def paint_lesion(severity: float, rng: np.random.Generator) -> Lesion:
    """Paints one lesion on its canvas: the three signs follow the severity, nothing else does.

    Args:
        severity: As for `draw_lesion`.
        rng: The lesion's: draws shape, colours and size.

    Returns:
        The lesion, to be photographed any number of times.
    """
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
    return Lesion(transmittance.astype(np.float32), inside, radius_px=float(rng.uniform(42, 68)))


def photograph(lesion: Lesion, skin: Floats, rng: np.random.Generator) -> tuple[Image.Image, Affine]:
    """Takes one photo of a lesion.

    Args:
        lesion: From `paint_lesion`.
        skin: RGB from 0 to 1, float32 [3], from `skin_colour`.
        rng: The photo's: draws pose, zoom, light, hair, vignette and noise.

    Returns:
        The RGB photo, 600 x 450, and the pose it was taken in: where a photo of half size shows the lesion's canvas.
    """
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


@functools.cache
def _canvas_polar() -> tuple[Floats, Floats]:
    """The canvas' pixels in polar form, [256, 256] each: angle in radians, distance in mean radii."""
    axis = (np.arange(_CANVAS_PX, dtype=np.float32) + 0.5) * (2 * _CANVAS_REACH / _CANVAS_PX) - _CANVAS_REACH
    return np.arctan2(axis[:, None], axis[None, :]), np.hypot(axis[:, None], axis[None, :])


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


def _noise(rng: np.random.Generator, cells: int, width: int, height: int) -> Floats:
    """Smooth noise, mean 0, standard deviation 1, [height, width], with `cells` bumps across the width."""
    rows = max(2, round(cells * height / width))
    grid = rng.standard_normal((rows, cells), dtype=np.float32)
    field = np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    field = field - field.mean()
    return np.asarray(field / field.std(), dtype=np.float32)


def _pose(lesion: Lesion, rng: np.random.Generator) -> Affine:
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


def _mask(lesion: Lesion, pose: Affine) -> NDArray[np.bool_]:
    """Where the lesion is in the photo taken in this pose, bool [450, 600]."""
    across_x, across_y, across, down_x, down_y, down = pose
    full_size = (across_x / 2, across_y / 2, across, down_x / 2, down_y / 2, down)
    return _place(lesion.inside, (WIDTH_PX, HEIGHT_PX), full_size, -1.0) > 0


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
