"""The mean of several models is a model like any other."""

from pathlib import Path

import keras
import numpy as np
import pytest

from skinray.clinical import CLINICAL_WIDTH
from skinray.ensemble import averaged, flipped
from skinray.model import build_model, with_probabilities
from skinray.training_config import ModelSettings


@pytest.mark.parametrize("clinical", [False, True])
def test_an_ensemble_says_the_mean_of_its_members_and_survives_a_file(clinical: bool, tmp_path: Path) -> None:
    settings = ModelSettings(name="cnn_functional", clinical_input=clinical)
    members = [with_probabilities(build_model(settings, 32, 3)) for _ in range(3)]
    photos = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    inputs = [photos, *(np.random.default_rng(1).random((4, *each.shape[1:]), np.float32) for each in members[0].inputs[1:])]
    given = inputs if clinical else photos
    expected = np.mean([member(given, training=False).numpy() for member in members], axis=0)
    averaged(members).save(tmp_path / "model.keras")
    whole = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(whole(given, training=False).numpy(), expected, atol=1e-6)
    assert [each.name for each in whole.inputs] == [each.name for each in members[0].inputs]


def test_a_single_member_is_itself() -> None:
    member = with_probabilities(build_model(ModelSettings(name="cnn_sequential"), 32, 2))
    photos = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    expected = member(photos, training=False).numpy()
    np.testing.assert_allclose(averaged([member])(photos, training=False).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("clinical", [False, True])
def test_the_mean_over_flips_does_not_change_when_the_photo_is_flipped(clinical: bool, tmp_path: Path) -> None:
    settings = ModelSettings(name="cnn_functional", clinical_input=True) if clinical else ModelSettings(name="cnn_sequential")
    keras.utils.set_random_seed(1)
    model = with_probabilities(build_model(settings, 32, 3))
    generator = np.random.default_rng(0)
    photos = generator.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    known = [generator.random((4, CLINICAL_WIDTH), dtype=np.float32)] if clinical else []

    def said(of: keras.Model, pixels: np.ndarray) -> np.ndarray:
        return np.asarray(of([pixels, *known] if clinical else pixels, training=False))

    mirrors = [photos, photos[:, ::-1], photos[:, :, ::-1], photos[:, ::-1, ::-1]]
    flipped(model).save(tmp_path / "flipped.keras")
    stored = keras.saving.load_model(tmp_path / "flipped.keras")
    expected = np.mean([said(model, pixels) for pixels in mirrors], axis=0)
    for pixels in mirrors:
        np.testing.assert_allclose(said(stored, pixels), expected, atol=1e-6)
