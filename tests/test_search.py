"""Settings drawn at random, poor trials stopped, the best one kept; a rerun draws the same."""

import json
import os
import time
from pathlib import Path

import pytest

from skinray.bundle import load_bundle
from skinray.errors import ConfigError
from skinray.search import RESULTS_NAME, SearchResult, parse_draw, search, trial_name
from skinray.shards import PreparedDataset
from skinray.training_config import SearchSettings
from tests.conftest import toy_settings


def settings(data: str, output: Path, **changes: object) -> SearchSettings:
    toy = toy_settings(data, output, epochs=2, num_workers=1, steps_per_epoch=2)
    space = {"learning_rate": "log 1e-6 1e-1", "balance": "choice class_weights sampling"}
    return SearchSettings(**{**toy.model_dump(), "space": space, "trials": 2, "grace_epochs": 1, **changes})


@pytest.fixture(scope="module")
def found(prepared: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    # With relative paths, which trials must not look up in the working folders that Ray gives them.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("search"))
        return search(settings(os.path.relpath(prepared.uri), Path("run")))


@pytest.mark.ray
@pytest.mark.slow
def test_every_trial_is_told_and_the_best_is_kept(found: SearchResult) -> None:
    run = Path(found.bundle_uri).parent
    assert json.loads((run / RESULTS_NAME).read_text()) == found.trials
    assert len(found.trials) == len({trial["name"] for trial in found.trials}) == 2
    aucs = [trial["validation_auc"] for trial in found.trials]
    assert aucs == sorted(aucs, reverse=True)
    best = next(trial for trial in found.trials if trial["finished"])
    assert best["drawn"] == found.best
    kept = load_bundle(found.bundle_uri)
    assert kept.model_id == found.model_id
    recorded = kept.metadata["training_settings"]
    assert (recorded["learning_rate"], recorded["balance"]) == (found.best["learning_rate"], found.best["balance"])
    assert kept.metadata["validation"]["roc_auc"] == pytest.approx(best["validation_auc"])


@pytest.mark.ray
@pytest.mark.slow
def test_a_finished_search_reruns_as_a_no_op(found: SearchResult, prepared: PreparedDataset) -> None:
    started = time.monotonic()
    assert search(settings(prepared.uri, Path(found.bundle_uri).parent)) == found
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("learning_rate", "log 0 1"),
        ("learning_rate", "log 1e-2 1e-4"),
        ("learning_rate", "normal 0 1"),
        ("learning_rate", "uniform a b"),
        ("learning_rate", "uniform 1"),
        ("transfer.frozen_epochs", "int 0.5 2"),
        ("balance", "choice"),
        ("balance", ""),
    ],
)
def test_a_draw_that_is_none_is_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"space.{name}"):
        parse_draw(name, text or " x")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"learning_rat": "log 1e-4 1e-2"}, "learning_rat"),
        ({"model.dropout": "uniform 0 1.5"}, "model.dropout.*1.5"),
        ({"balance": "choice none all"}, "balance.*'all'"),
        ({"num_workers": "choice 1 3"}, "num_workers.*3"),
    ],
)
def test_a_space_that_no_trial_could_have_is_refused_before_the_first(
    space: dict[str, str], words: str, prepared: PreparedDataset, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        search(settings(prepared.uri, tmp_path / "run", space=space))
    assert not (tmp_path / "run").exists()


def test_a_trial_is_named_after_its_draw_alone() -> None:
    assert trial_name({"a": 1, "b": 0.5}) == trial_name({"b": 0.5, "a": 1}) != trial_name({"a": 2, "b": 0.5})


def test_a_search_needs_something_to_search() -> None:
    with pytest.raises(ValueError, match="at least one setting"):
        SearchSettings(data="d", output="o")
