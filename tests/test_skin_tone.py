"""The angle follows the skin's colour, and not the lesion, the dark corners or hair."""

import math

import numpy as np
import pytest

from skinray.skin_tone import ita_degrees, tones

# sRGB of skin from light to dark, with the angles that the definition gives.
LIGHT, TAN, DARK = (238, 206, 179), (190, 140, 105), (80, 55, 45)


def photo(skin: tuple[int, int, int], size: int = 96) -> np.ndarray:
    pixels = np.empty((size, size, 3), np.uint8)
    pixels[:] = skin
    return pixels


def test_lighter_skin_has_a_larger_angle() -> None:
    angles = [ita_degrees(photo(skin)) for skin in (DARK, TAN, LIGHT)]
    assert angles == sorted(angles)
    assert angles[2] > 41
    assert angles[0] < -30


def test_the_angle_is_that_of_cielab() -> None:
    # L* 65.2 and b* 32.0.
    assert ita_degrees(photo((188, 152, 99))) == pytest.approx(math.degrees(math.atan2(15.2, 32.0)), abs=1.0)


def test_lesion_corners_and_hair_do_not_count() -> None:
    plain = photo(TAN)
    busy = plain.copy()
    busy[30:66, 30:66] = (60, 30, 20)
    row, column = np.ogrid[:96, :96]
    busy[(row - 48) ** 2 + (column - 48) ** 2 > 60**2] = 5
    busy[::9] = 10
    assert ita_degrees(busy) == pytest.approx(ita_degrees(plain), abs=0.5)


def test_a_photo_without_skin_has_no_angle() -> None:
    assert math.isnan(ita_degrees(photo((0, 0, 0))))
    assert math.isnan(ita_degrees(photo((255, 255, 255))))


def test_every_angle_has_a_name() -> None:
    angles = np.array([-80, -30.1, -29.9, 15, 30, 45, 60, np.nan])
    assert tones(angles).tolist() == ["dark", "dark", "brown", "tan", "intermediate", "light", "very light", "unknown"]
