"""Refuses what is no photo of skin before a model names a lesion in it: rules of a few numbers, which err towards accepting.

It catches the wrong folder and the wrong file, and no ill will. Refused at 224 pixels, all photos of each collection:

    HAM10000 (4,001)                                0.1 %
    nine-class ISIC collection (2,359)              0.6 %: lesions under much hair, dark ones on bluish white; 6 of 15 melanomas
    ISIC 2020 (208)                                 0.5 %, one photo under hair
    HAM10000 darkened up to the darkest skin        0 of 334 at each of four steps
    HAM10000 in grey                                0.6 % of 334
    HAM10000 overexposed by 30 %, by 60 %           1.8 %, 15 % of 334: what is burnt out is of exactly one colour
    ImageNet photos of other things (42)            83 %; 76 % when cut to their middle; 48 % at 48 pixels
    drawn windows and charts, also as JPEG          all

Not caught: a page that text fills, a smooth gradient, a close-up of skin that is no lesion, and what is as smooth or as red as
skin (of those photos a strawberry, a lipstick, a woman with hair spray, a monkey's face, a slope of lava...). A letter with wide
margins is caught.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from skinray.levels import median

REASONS = {
    "blank": "it shows nothing",
    "graphic": "it is drawn or written, as a screenshot or a page",
    "not_skin": "it does not look like skin",
}
"""What `refusal` answers for a photo that is refused -> the reason for a person."""

# The side to which every photo is reduced.
_SIDE = 64

# Of lit levels: black margins are below it, and 45 % or more of every photo of HAM10000, ISIC 2020 and the nine-class collection
# are lit. The least standard deviation of their levels is 4.7.
_BLACK, _LEAST_LIT, _LEAST_VARIETY = 16, 0.1, 1.0
# No photo of the three collections reaches 0.45; drawn windows, charts and sparse pages have more, also as JPEG of quality 50.
_MOST_FLAT = 0.6
# Edges are steps of so many levels between neighbours, and skin has the more of them the redder it is (lesions on pale skin,
# hair). The line is that which catches most of 42 ImageNet photos of other things while each of the three collections loses no
# more than 1 %; a logistic regression of the same two numbers gave the same slope. Chosen without one photo, such a line catches
# 86 % of those left out.
_EDGE, _MOST_EDGES, _EDGES_OF_REDNESS = 24, 0.07, 0.6
# Median of (red - green) / (red + green): saturated sky and lawn are below it, no photo of the three collections is below -0.12.
_LEAST_REDNESS = -0.15
# At most 16 in the three collections at 224 pixels; 82 or more for noise of any size.
_ROW_STEP, _MOST_ROUGH = 7, 30


def refusal(pixels: npt.NDArray[np.uint8]) -> str:
    """Why a photo is none of skin.

    Args:
        pixels: uint8 [size, size, 3] sRGB, as `skinray.images.decode_photo` gives them.

    Returns:
        "" for a photo that may be judged, or the first of these that holds:

        * blank: hardly any pixel is lit, or those that are show one and the same colour.
        * graphic: large areas of exactly one colour, as screenshots, pages and drawings have and photos have not.
        * not_skin: noise, more strong edges than skin of such redness has, or greener or bluer than any light makes skin.
    """
    reduced = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=1.0)
    colours = np.asarray(reduced).astype(np.int16)
    red, green, blue = (colours[..., channel] for channel in range(3))
    light = (2 * red + 5 * green + blue) >> 3
    lit = light > _BLACK
    if np.count_nonzero(lit) < _LEAST_LIT * lit.size or float(light[lit].std()) < _LEAST_VARIETY:
        return "blank"
    if _flat_share(colours, lit) > _MOST_FLAT:
        return "graphic"
    some_red, some_green = red[::2, ::2], green[::2, ::2]
    redness = median((some_red - some_green) / (some_red + some_green + 16))
    if (
        _roughness(pixels) > _MOST_ROUGH
        or redness < _LEAST_REDNESS
        or _edge_share(light) > _MOST_EDGES + _EDGES_OF_REDNESS * redness
    ):
        return "not_skin"
    return ""


def _flat_share(colours: npt.NDArray[np.int16], lit: npt.NDArray[np.bool_]) -> float:
    """The share of lit pixels that are exactly as their right neighbour; black margins do not count."""
    packed = (colours[..., 0].astype(np.int32) << 16) | (colours[..., 1].astype(np.int32) << 8) | colours[..., 2]
    return float(np.count_nonzero((packed[:, 1:] == packed[:, :-1]) & lit[:, 1:]) / np.count_nonzero(lit))


def _roughness(pixels: npt.NDArray[np.uint8]) -> float:
    """Mean difference in levels of neighbours as they came: reducing would have averaged noise to smooth grey."""
    green = pixels[::_ROW_STEP, :, 1].astype(np.int16)
    return float(np.abs(green[:, 1:] - green[:, :-1]).mean())


def _edge_share(light: npt.NDArray[np.int16]) -> float:
    across, down = np.abs(light[:, 1:] - light[:, :-1]), np.abs(light[1:] - light[:-1])
    return float((np.count_nonzero(across > _EDGE) + np.count_nonzero(down > _EDGE)) / (across.size + down.size))
