"""What is drawn depends on the seed, the step and the place in the global batch, and on nothing that a restart would lose."""

import numpy as np
import numpy.typing as npt
import pytest

from skinray.training_config import AugmentationSettings

OFF = {"flip": False, "rotation_turns": 0.0, "zoom": 0.0, "brightness": 0.0, "contrast": 0.0}
EVERYTHING = {
    "flip": True, "rotation_turns": 0.5, "zoom": 0.2, "brightness": 0.1, "contrast": 0.2, "saturation": 0.4, "colour_cast": 0.1,
    "vignette": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def changed(
    photos: npt.NDArray[np.uint8], seed: tuple[int, int], replica: int = 0, replicas: int = 1, **settings: float
) -> npt.NDArray[np.float32]:
    import tensorflow as tf

    from skinray.augmentation import Augmentation

    augment = Augmentation(AugmentationSettings.model_validate({**OFF, **settings}))
    step = tf.function(lambda pixels, seed, replica: augment(pixels, seed, replica, replicas))
    return np.asarray(step(tf.constant(photos), tf.constant(seed, tf.int32), tf.constant(replica)), np.float32)


def test_the_same_seed_draws_the_same_in_another_process_life(photos: npt.NDArray[np.uint8]) -> None:
    assert np.array_equal(changed(photos, (1, 2), **EVERYTHING), changed(photos, (1, 2), **EVERYTHING))


@pytest.mark.parametrize("other", [(2, 2), (1, 3)], ids=["run", "step"])
def test_another_run_or_step_draws_something_else(photos: npt.NDArray[np.uint8], other: tuple[int, int]) -> None:
    assert not np.array_equal(changed(photos, (1, 2), **EVERYTHING), changed(photos, other, **EVERYTHING))


@pytest.mark.parametrize("replicas", [2, 3, 6])
@pytest.mark.parametrize("only", [None, *EVERYTHING])
def test_a_photo_is_changed_alike_however_many_workers_share_the_batch(
    photos: npt.NDArray[np.uint8], replicas: int, only: str | None
) -> None:
    settings = EVERYTHING if only is None else {only: EVERYTHING[only]}
    whole = changed(photos, (1, 2), **settings)
    shares = np.split(photos, replicas)
    parts = [changed(share, (1, 2), replica, replicas, **settings) for replica, share in enumerate(shares)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-3)


def test_nothing_switched_on_changes_nothing(photos: npt.NDArray[np.uint8]) -> None:
    assert np.array_equal(changed(photos, (1, 2)), photos)


def test_a_flip_keeps_every_pixel_and_both_directions_are_drawn_for_each_photo() -> None:
    photos = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    kinds = set()
    for before, after in zip(photos, changed(photos, (1, 2), flip=True), strict=True):
        turns = {"none": before, "left-right": before[:, ::-1], "up-down": before[::-1], "both": before[::-1, ::-1]}
        (kind,) = [name for name, turned in turns.items() if np.array_equal(turned, after)]
        kinds.add(kind)
    assert kinds == {"none", "left-right", "up-down", "both"}


@pytest.mark.parametrize(
    "settings",
    [
        {"brightness": 0.5},
        {"contrast": 0.5},
        {"rotation_turns": 0.5},
        {"zoom": 0.5},
        {"saturation": 0.9},
        {"colour_cast": 0.5},
        {"vignette": 1.0},
    ],
)
def test_levels_stay_between_0_and_255(photos: npt.NDArray[np.uint8], settings: dict[str, float]) -> None:
    result = changed(photos, (1, 2), **settings)
    assert result.shape == photos.shape
    assert result.min() >= 0
    assert result.max() <= 255
    assert not np.array_equal(result, photos)


def test_saturation_keeps_grey_and_moves_colours() -> None:
    grey = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), 12).reshape(25, 2, 2, 3)
    np.testing.assert_allclose(changed(grey, (1, 2), saturation=0.9), grey, atol=1e-3)
    red = np.tile(np.array([180, 100, 90], np.uint8), (25, 2, 2, 1))
    spread = np.ptp(changed(red, (1, 2), saturation=0.5)[:, 0, 0], axis=-1)
    assert spread.min() < 70 < 110 < spread.max(), "some paler, some stronger than 90 levels"


def test_a_colour_cast_is_one_factor_a_channel_of_a_photo(photos: npt.NDArray[np.uint8]) -> None:
    dark = photos // 2 + 1
    factors = changed(dark, (1, 2), colour_cast=0.2) / dark
    assert np.ptp(factors, axis=(1, 2)).max() < 1e-4
    assert len(np.unique(factors[:, 0, 0].round(4))) == 18
    assert factors.min() >= 0.8
    assert factors.max() <= 1.2


def test_a_vignette_darkens_the_corners_of_its_share_of_photos_and_no_middle() -> None:
    white = np.full((200, 33, 33, 3), 200, np.uint8)
    result = changed(white, (1, 2), vignette=0.3)
    dark = result[:, 0, 0, 0] < 199
    assert 0.2 < dark.mean() < 0.4
    np.testing.assert_allclose(result[:, 16, 16], 200, atol=1e-3)
    assert result[dark, 0, 0].mean() < 100
    assert (result[dark].mean(axis=(1, 2, 3)) > 100).all(), "the lesion stays in sight"
