"""How light the skin of a photo is, estimated from its edge: an estimate of the photo as much as of the person.

Light, camera and white balance move it by as much as neighbouring skin tones differ. It serves to notice that a model judges
darker photos worse, and not to describe anybody.
"""

import math

import numpy as np
import numpy.typing as npt

from skinray.levels import LINEAR_LIGHT, median

# The edge of a dermoscopic photo that is looked at, as a share of its side; the lesion is in the middle.
_EDGE = 0.15
# Every so many pixels is enough for a median.
_STEP = 4
# Lightness of what is taken for skin: below lie hair and the dark corners of a round field of view, above reflections.
_SKIN_LIGHTNESS = (25.0, 95.0)
_LEAST_SHARE = 0.2

# Upper ends in degrees; Chardon et al. 1991, doi:10.1111/j.1467-2494.1991.tb00561.x, as Del Bino and Bernerd 2013,
# doi:10.1111/bjd.12529, name them.
TONES = ((-30.0, "dark"), (10.0, "brown"), (28.0, "tan"), (41.0, "intermediate"), (55.0, "light"), (math.inf, "very light"))


def ita_degrees(pixels: npt.NDArray[np.uint8]) -> float:
    """The individual typology angle of the skin around a lesion.

    Args:
        pixels: uint8 [height, width, 3] sRGB.

    Returns:
        atan2(L* - 50, b*) in degrees, of the median pixel of the photo's edge, larger for lighter skin; NaN where too little of
        the edge can be skin. Source: Chardon et al. 1991.
    """
    height, width = pixels.shape[:2]
    sampled = pixels[::_STEP, ::_STEP]
    down, across = (
        np.minimum(np.arange(0, size, _STEP), size - 1 - np.arange(0, size, _STEP)) / size for size in (height, width)
    )
    edge = sampled[(down[:, np.newaxis] < _EDGE) | (across[np.newaxis, :] < _EDGE)]
    lightness, yellowness = _lightness_and_yellowness(edge)
    skin = (lightness > _SKIN_LIGHTNESS[0]) & (lightness < _SKIN_LIGHTNESS[1])
    if np.count_nonzero(skin) < _LEAST_SHARE * len(edge):
        return float("nan")
    return math.degrees(math.atan2(median(lightness[skin]) - 50, median(yellowness[skin])))


def _lightness_and_yellowness(colours: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """CIELAB's L* and b* of sRGB colours uint8 [N, 3], under D65 (IEC 61966-2-1, CIE 15:2004)."""
    linear = LINEAR_LIGHT[colours]
    y = linear @ np.array([0.2126729, 0.7151522, 0.0721750])
    z = linear @ np.array([0.0193339, 0.1191920, 0.9503041]) / 1.08883
    root_y, root_z = (np.where(value > 216 / 24389, np.cbrt(value), (24389 / 27 * value + 16) / 116) for value in (y, z))
    return 116 * root_y - 16, 200 * (root_y - root_z)


def tones(angles_degrees: npt.NDArray[np.floating]) -> npt.NDArray[np.str_]:
    """The name of each angle's class, str [N]; "unknown" for NaN."""
    names = np.array([name for _, name in TONES])
    classes = names[np.searchsorted([end for end, _ in TONES[:-1]], np.nan_to_num(angles_degrees), side="right")]
    return np.where(np.isnan(angles_degrees), "unknown", classes)
