"""What is drawn depends on the seed, the step and the place in the global batch, and on nothing that a restart would lose."""

import numpy as np
import numpy.typing as npt
import pytest

from skinray.training_config import AugmentationSettings

OFF = {"flip": False, "rotation_turns": 0.0, "zoom": 0.0, "brightness": 0.0, "contrast": 0.0}


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
    everything = AugmentationSettings().model_dump()
    assert np.array_equal(changed(photos, (1, 2), **everything), changed(photos, (1, 2), **everything))


@pytest.mark.parametrize("other", [(2, 2), (1, 3)], ids=["run", "step"])
def test_another_run_or_step_draws_something_else(photos: npt.NDArray[np.uint8], other: tuple[int, int]) -> None:
    everything = AugmentationSettings().model_dump()
    assert not np.array_equal(changed(photos, (1, 2), **everything), changed(photos, other, **everything))


@pytest.mark.parametrize("replicas", [2, 3, 6])
@pytest.mark.parametrize("only", [None, "flip", "rotation_turns", "zoom", "brightness", "contrast"])
def test_a_photo_is_changed_alike_however_many_workers_share_the_batch(
    photos: npt.NDArray[np.uint8], replicas: int, only: str | None
) -> None:
    everything = AugmentationSettings().model_dump()
    settings = everything if only is None else {only: everything[only]}
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


@pytest.mark.parametrize("settings", [{"brightness": 0.5}, {"contrast": 0.5}, {"rotation_turns": 0.5}, {"zoom": 0.5}])
def test_levels_stay_between_0_and_255(photos: npt.NDArray[np.uint8], settings: dict[str, float]) -> None:
    result = changed(photos, (1, 2), **settings)
    assert result.shape == photos.shape
    assert result.min() >= 0
    assert result.max() <= 255
    assert not np.array_equal(result, photos)
