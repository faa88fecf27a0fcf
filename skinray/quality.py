"""How well a photo was taken: measures and flags, made where it is decoded. Notices beside a prediction; they refuse nothing.

A flag says what the pixels show and not why: a smooth lesion on smooth skin can look blurred, and a very dark skin underexposed.
Every photo is reduced to the same few pixels first, so that the answers hardly depend on the size that a model wants.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from skinray.levels import LINEAR_LIGHT, median

QUALITY_MEASURES = ("sharpness", "brightness", "contrast")
"""Names of the float32 values that `quality` gives, in the order of columns."""

QUALITY_FLAGS = ("blurred", "underexposed", "overexposed", "small", "vignetted", "marked")
"""Names of the bool values that `quality` gives, in the order of columns."""

# The side to which every photo is reduced; a blur by 1 % of the photo's side shows in it as surely as at 112 and 128.
_SIDE = 96
# Sharpness is that of the sharpest tenth of tiles of so many pixels. Of the whole photo it would be that of the lesion's
# border, and smooth but sharp lesions would look blurred.
_TILE = 8
_SHARPEST = 90
# Levels, about the noise of rounding: a tile without differences is not sharp, whatever the noise in it looks like.
_ROUNDING = 0.5

# Below it lie 0.1 % of HAM10000 and of the nine-class ISIC collection and none of ISIC 2020; all of 400 of their photos blurred
# by a Gaussian whose standard deviation is 1 % of the side, and three quarters of those blurred by 0.67 %.
_BLURRED = 0.585
# L* 31 and 94. No photo of the three collections is underexposed, hardly any darkened by a stop, two thirds by three, all by
# four; well exposed skin of L* 31 and less is, too. 0.1 % of HAM10000 and 4 % of ISIC 2020 are overexposed, a third of those
# brightened by a stop, 95 % of HAM10000 brightened by two.
_DARK, _BRIGHTEST = 75, 0.05
_BURNT, _BURNT_SHARE = 240, 0.2
# Where a photo shows 20 mm, 128 pixels are 0.16 mm each: about as wide as the lines of a pigment network.
_SMALL_PX = 128
# Side of a corner, its level, and that as a share of the photo's median. 4.3 % of HAM10000 and 4.5 % of the nine-class
# collection: nearly all of 120 looked at had a round field of view or a black margin. Every drawn field of view of up to 1.25
# times half the side was found; corners that are only shaded are not.
_CORNER, _BLACK, _BLACK_SHARE = 9, 50, 0.4
# Levels by which ink is bluer than red, bluer than the photo's own median, and greener than both; violet, which skin takes on
# too, must also be bluer than green. 0.4 % of HAM10000 and of the nine-class collection are marked: 8 of those 15 and 5 of those
# 10 have ink, the others are blue lesions and bluish photos. Of photos with four dots drawn near the corners, 99 % are found with
# blue and green ones, 76 % with violet ones of 4 % of the side and 92 % of 7 %. Pale violet is found rarely; black ink, ruler
# ticks, and ink across the middle are not (a search for evenly spaced lines at the edges found lesions first).
_TINT_STEP, _BLUER_THAN_TINT, _BLUER, _VIOLET_BLUER, _VIOLET, _GREENER = 4, 50, 40, 15, 50, 20
_INK_SHARE = 0.002


def quality(pixels: npt.NDArray[np.uint8], width_px: int, height_px: int) -> dict[str, np.float32 | np.bool_]:
    """Measures and flags of one photo.

    Args:
        pixels: uint8 [size, size, 3] sRGB, as `skinray.images.decode_photo` gives them.
        width_px: Width of the photo as stored, in pixels.
        height_px: Height of the photo as stored, in pixels.

    Returns:
        By the names of `QUALITY_MEASURES` and `QUALITY_FLAGS`:

        * sharpness: 0.5 (nothing finer than the reduced photo shows) to 1; mean difference of neighbours over that of pixels two
          apart, in the sharpest tenth of the photo's tiles. Compare Crete et al. 2007, doi:10.1117/12.702790.
        * brightness, contrast: mean and standard deviation of L*, 0 to 100, as if the photo were grey.
        * blurred: no tenth of the photo is sharp. Never set below 96 pixels, which do not show it.
        * underexposed, overexposed: even the brightest twentieth is dark; a fifth of the photo is burnt out.
        * small: the shorter side has fewer than 128 pixels.
        * vignetted: two corners or more are black beside the rest: a round field of view, or a black margin.
        * marked: blue, violet or green ink or plastic beside the photo's middle.
    """
    reduced = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=1.0)
    grey = reduced.convert("L")
    # Of 256 counts everything about light is told ten times faster than of the pixels.
    shares = np.array(grey.histogram()) / _SIDE**2
    brightness = float(shares @ _LIGHTNESS)
    contrast = float(np.sqrt(shares @ (_LIGHTNESS - brightness) ** 2))
    levels = np.asarray(grey)
    sharpness = _sharpness(levels)
    measures = {"sharpness": sharpness, "brightness": brightness, "contrast": contrast}
    flags = {
        "blurred": len(pixels) >= _SIDE and sharpness < _BLURRED,
        "underexposed": shares[_DARK:].sum() < _BRIGHTEST,
        "overexposed": shares[_BURNT:].sum() > _BURNT_SHARE,
        "small": min(width_px, height_px) < _SMALL_PX,
        "vignetted": _is_vignetted(levels, int(np.searchsorted(shares.cumsum(), 0.5))),
        "marked": _is_marked(np.asarray(reduced)),
    }
    return {
        **{name: np.float32(measures[name]) for name in QUALITY_MEASURES},
        **{name: np.bool_(flags[name]) for name in QUALITY_FLAGS},
    }


def _lightness_of_greys() -> npt.NDArray[np.float64]:
    """CIELAB's L* of the grey levels 0 to 255 (IEC 61966-2-1, CIE 15:2004)."""
    return np.where(LINEAR_LIGHT > 216 / 24389, 116 * np.cbrt(LINEAR_LIGHT) - 16, 24389 / 27 * LINEAR_LIGHT)


_LIGHTNESS = _lightness_of_greys()


def _sharpness(grey: npt.NDArray[np.uint8]) -> float:
    levels = grey.astype(np.int16)
    inner = levels[1:-1, 1:-1]
    near = np.abs(levels[1:-1, 2:] - inner) + np.abs(levels[2:, 1:-1] - inner)
    far = np.abs(levels[1:-1, 2:] - levels[1:-1, :-2]) + np.abs(levels[2:, 1:-1] - levels[:-2, 1:-1])
    ratios = np.sort(((_tile_means(near) + _ROUNDING) / (_tile_means(far) + 2 * _ROUNDING)).ravel())
    return float(min(1.0, ratios[len(ratios) * _SHARPEST // 100]))


def _tile_means(values: npt.NDArray[np.int16]) -> npt.NDArray[np.float64]:
    tiles = len(values) // _TILE
    cut = values[: tiles * _TILE, : tiles * _TILE]
    means: npt.NDArray[np.float64] = cut.reshape(tiles, _TILE, tiles, _TILE).sum(axis=(1, 3)) / _TILE**2
    return means


def _is_vignetted(levels: npt.NDArray[np.uint8], median: int) -> bool:
    near, far = slice(None, _CORNER), slice(-_CORNER, None)
    corners = sorted(int(levels[rows, columns].sum()) / _CORNER**2 for rows in (near, far) for columns in (near, far))
    return corners[1] < min(_BLACK, _BLACK_SHARE * median)


def _is_marked(colours: npt.NDArray[np.uint8]) -> bool:
    red, green, blue = (colours[..., channel].astype(np.int16) for channel in range(3))
    bluer = blue - red
    # Against the photo's own tint, because some archives' white balance makes all skin bluish.
    tint = median(bluer[::_TINT_STEP, ::_TINT_STEP])
    violet = (blue - green > _VIOLET) & (bluer > max(_VIOLET_BLUER, tint + _BLUER_THAN_TINT))
    ink = violet | (bluer > max(_BLUER, tint + _BLUER_THAN_TINT)) | (green - np.maximum(red, blue) > _GREENER)
    quarter = _SIDE // 4
    middle = int(np.count_nonzero(ink[quarter:-quarter, quarter:-quarter]))
    # Lesions can be as blue as ink, but lie in the middle.
    return int(np.count_nonzero(ink)) - middle > max(middle, _INK_SHARE * ink.size)
