"""An ensemble is a bundle like any other: its own thresholds, the same answer everywhere."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from skinray.bundle import load_bundle, save_bundle
from skinray.classifier import Classifier
from skinray.cli import main
from skinray.config import EnsembleSettings
from skinray.ensembling import Ensembled, make_ensemble
from skinray.errors import ConfigError
from skinray.metrics import roc_auc
from skinray.shards import PreparedDataset
from skinray.training import TrainedModel

pytestmark = [pytest.mark.ray]


@pytest.fixture(scope="module")
def made(trained: TrainedModel, prepared: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Ensembled:
    output = tmp_path_factory.mktemp("ensemble") / "run"
    return make_ensemble(EnsembleSettings(bundles=(trained.bundle_uri,), flips=True, data=prepared.uri, output=str(output)))


def test_its_thresholds_are_those_of_its_own_scores_on_validation(made: Ensembled, prepared: PreparedDataset) -> None:
    rows = pd.read_parquet(Path(made.bundle_uri).parent / "validation.parquet")
    positive, scores = rows["label"].to_numpy(str) == "malignant", rows["malignancy_score"].to_numpy(np.float64)
    assert len(rows) == prepared.rows("validation")
    assert roc_auc(positive, scores) == pytest.approx(made.validation_auc)
    points = load_bundle(made.bundle_uri).operating_points.points
    assert np.mean(scores[positive] >= points["sensitivity_95"].threshold) == pytest.approx(points["sensitivity_95"].sensitivity)
    assert points["sensitivity_95"].sensitivity >= 0.95


def test_it_says_what_it_gained_over_its_member_and_how_sure_that_is(made: Ensembled, trained: TrainedModel) -> None:
    (member,) = made.members
    assert (member.model_id, member.validation_auc) == (trained.model_id, pytest.approx(trained.validation_auc))
    assert member.gain is not None
    assert member.gain.value == pytest.approx(made.validation_auc - trained.validation_auc, abs=1e-6)
    assert member.gain.low <= member.gain.value <= member.gain.high


def test_it_says_the_same_of_a_photo_and_its_mirror_image(made: Ensembled, trained: TrainedModel) -> None:
    bundle = load_bundle(made.bundle_uri)
    assert bundle.model_id == made.model_id != trained.model_id
    assert bundle.metadata["ensemble"] == {"members": [trained.model_id], "networks": ["cnn_sequential"], "flips": True}
    photos = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    classifier = Classifier(bundle)
    np.testing.assert_allclose(classifier.probabilities(photos), classifier.probabilities(photos[:, :, ::-1]), atol=1e-6)
    assert not (Path(made.bundle_uri).parent / "draft").exists()


def with_metadata(bundle_uri: str, copy: Path, **metadata: object) -> str:
    """A copy of a bundle that says something else of itself."""
    bundle = load_bundle(bundle_uri)
    changed = {**bundle.metadata, **metadata}
    save_bundle(str(copy), bundle.load_model(), bundle.preprocessing, bundle.labels, bundle.operating_points, changed, "")
    return str(copy)


def test_it_names_the_networks_of_all_its_members(trained: TrainedModel, prepared: PreparedDataset, tmp_path: Path) -> None:
    members = (trained.bundle_uri, with_metadata(trained.bundle_uri, tmp_path / "other", network="mobilenet"))
    pair = make_ensemble(EnsembleSettings(bundles=members, data=prepared.uri, output=str(tmp_path / "run")))
    assert load_bundle(pair.bundle_uri).networks == ("cnn_sequential", "mobilenet")
    card = (Path(pair.bundle_uri) / "README.md").read_text()
    assert "# cnn_sequential + mobilenet: benign, malignant" in card
    assert "(the mean of 2 models; each one's epoch was chosen on these photos" in card


def test_members_that_do_not_belong_together_are_refused(
    trained: TrainedModel, prepared: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**load_bundle(trained.bundle_uri).metadata["training_settings"], "fold": 1}
    for uri, words in (
        (with_metadata(trained.bundle_uri, tmp_path / "elsewhere", dataset={"sha256": "another"}), "was not trained on"),
        (with_metadata(trained.bundle_uri, tmp_path / "fold", training_settings=settings), "cross-validate"),
    ):
        settings = EnsembleSettings(bundles=(trained.bundle_uri, uri), data=prepared.uri, output=str(tmp_path / "run"))
        with pytest.raises(ConfigError, match=words):
            make_ensemble(settings)
        flags = ["--bundles", trained.bundle_uri, uri, "--data", prepared.uri, "--output", str(tmp_path / "run")]
        assert main(["ensemble", *flags, "--dry-run"]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="no ensemble"):
        EnsembleSettings(bundles=(trained.bundle_uri,), data=prepared.uri, output=str(tmp_path / "run"))
