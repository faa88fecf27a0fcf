"""The median is NumPy's."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from skinray.levels import LINEAR_LIGHT, median


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_the_median_is_that_of_numpy(values: list[float]) -> None:
    assert median(np.array(values)) == np.median(values)


@given(st.lists(st.integers(-255, 255), min_size=4, max_size=4))
def test_of_whole_numbers_in_a_picture_too(values: list[int]) -> None:
    picture = np.array(values, np.int16).reshape(2, 2)
    assert median(picture) == np.median(picture)


def test_light_rises_from_none_to_all() -> None:
    assert LINEAR_LIGHT[0] == 0
    assert LINEAR_LIGHT[255] == 1
    assert (np.diff(LINEAR_LIGHT) > 0).all()
    assert abs(LINEAR_LIGHT[188] - 0.5029) < 1e-4  # half of the light is level 188
