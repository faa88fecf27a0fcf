"""Settings drawn at random, poor trials stopped, the best one kept; a rerun draws the same."""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler

from skinray import storage
from skinray.bundle import load_bundle
from skinray.errors import ConfigError, SkinrayError
from skinray.search import (
    RESULTS_NAME,
    SearchResult,
    TrialTeller,
    _run_trials,
    build_scheduler,
    draws,
    parse_draw,
    parse_space,
    search,
    trial_name,
)
from skinray.shards import PreparedDataset
from skinray.training_config import SearchSettings
from skinray.verbs import VERBS
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
    assert len(found.trials) == 2
    asked = settings("d", Path("o"))
    foreseen = [trial_name(drawn) for drawn in draws(asked, parse_space(asked))]
    assert sorted(foreseen) == sorted(trial["name"] for trial in found.trials)
    assert [trial["error"] for trial in found.trials] == [None, None]
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


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_that_was_killed_finds_the_same_and_trains_no_epoch_again(
    found: SearchResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What a kill before the end leaves. Whoever was stopped is stopped again, at the same epoch.
    run = tmp_path / "run"
    shutil.copytree(Path(found.bundle_uri).parent, run)
    shutil.rmtree(run / "bundle")
    manifest = json.loads((run / storage.MANIFEST_NAME).read_text())
    (run / storage.MANIFEST_NAME).unlink()
    storage.write_json(str(run / storage.INCOMPLETE_NAME), {"kind": "search", "settings": manifest["identity"]})
    histories = {path: path.read_bytes() for path in run.glob("trials/*/history.jsonl")}
    again = search(settings(manifest["identity"]["settings"]["data"], run))
    assert again.trials == found.trials
    assert again.model_id == found.model_id
    assert {path: path.read_bytes() for path in run.glob("trials/*/history.jsonl")} == histories
    said = capsys.readouterr().err
    assert "search: trial 1 of 2: learning_rate" in said
    assert "search: trial 2 of 2: " in said
    assert "finished; best validation ROC-AUC" in said


def test_the_poorer_half_is_stopped_but_not_at_the_end() -> None:
    scheduler = build_scheduler(settings("d", Path("o"), epochs=8, grace_epochs=2))
    scheduler.set_search_properties("validation_auc", "max")

    def stopped_at(name: str, aucs: list[float]) -> int | None:
        trial = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, trial)
        for epoch, auc in enumerate(aucs, start=1):
            if scheduler.on_trial_result(None, trial, {"epoch": epoch, "validation_auc": auc}) == "STOP":
                return epoch
        return None

    assert stopped_at("first", [0.8] * 8) is None
    assert stopped_at("better", [0.9] * 8) is None
    assert stopped_at("between, in the poorer half", [0.84] * 8) == 2
    assert stopped_at("in the better half of these", [0.845] * 8) == 4, "again after twice as many epochs"
    assert stopped_at("worst at its end", [0.95] * 7 + [0.1]) is None
    assert isinstance(build_scheduler(settings("d", Path("o"), epochs=2, grace_epochs=2)), FIFOScheduler)


def test_what_trials_do_is_said_and_not_too_often(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    teller = TrialTeller(settings("d", Path("o"), trials=12), clock=lambda: now[0])
    error_file = tmp_path / "error.txt"
    error_file.write_text("Failure # 1\nTraceback\n  File\n\nValueError: x\n")
    trial = SimpleNamespace(trial_id="a", config={"learning_rate": 0.00123456}, error_file=str(error_file))
    teller.on_trial_start(trial=trial)
    for epoch in range(1, 5):
        now[0] += 6
        result = {"finished": False, "epoch": epoch, "validation_auc": 0.5 + epoch / 100, "best_auc": 0.6}
        teller.on_trial_result(trial=trial, result=result)
    trial.last_result = result
    teller.on_trial_complete(trial=trial)
    trial.last_result = result | {"done": True}
    teller.on_trial_complete(trial=trial)
    teller.on_trial_recover(trial=trial)
    teller.on_trial_error(trial=trial)
    assert capsys.readouterr().err.splitlines() == [
        "search: trial 1 of 12: learning_rate 0.00123",
        "search: trial 1 of 12: epoch 2 of 2, validation ROC-AUC 0.5200",
        "search: trial 1 of 12: epoch 4 of 2, validation ROC-AUC 0.5400",
        "search: trial 1 of 12: stopped, poorer than half of the others so far; best validation ROC-AUC 0.6000 of 4 epochs",
        "search: trial 1 of 12: failed, goes on from its checkpoint: ValueError: x",
        "search: trial 1 of 12: failed: ValueError: x",
    ]


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
        ({"epochs": "int 5 20"}, "epochs.*equally many"),
        ({"seed.of": "int 1 5"}, "seed.of.*seed is one setting"),
        ({"num_workers": "choice 1 2", "global_batch_size": "int 16 64"}, "not a multiple of 2"),
        ({"num_workers": "choice 16"}, "16 workers .* has room for 4"),
        ({"model.weights": "choice /nowhere/x.weights.h5", "model.name": "choice mobilenet"}, "/nowhere/x"),
    ],
)
def test_a_space_that_no_trial_could_have_is_refused_before_the_first(
    space: dict[str, str], words: str, prepared: PreparedDataset, tmp_path: Path
) -> None:
    with pytest.raises(SkinrayError, match=words):
        search(settings(prepared.uri, tmp_path / "run", space=space, trials=4))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("space", [{"learning_rat": "log 1e-4 1e-2"}, {"num_workers": "choice 3"}])
def test_a_dry_run_checks_the_space(space: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="space"):
        VERBS["search"].dry_run(settings("d", tmp_path / "run", space=space))


class Tuned:
    """In place of Ray Tune: trials that ended as they are told to."""

    def __init__(self, *ends: SimpleNamespace) -> None:
        self.ends = ends
        self.num_errors = sum(end.error is not None for end in ends)
        self.asked: dict[str, Any] = {}

    def __call__(self, *_: Any, **asked: Any) -> "Tuned":
        self.asked = asked
        return self

    def fit(self) -> "Tuned":
        return self

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> SimpleNamespace:
        return self.ends[number]


def ended(done: bool = True, error: Exception | None = None) -> SimpleNamespace:
    metrics = {"best_auc": 0.7, "epoch": 2, "finished": True, "done": done}
    return SimpleNamespace(metrics=None if error else metrics, config={"learning_rate": 0.1}, error=error)


@pytest.mark.parametrize("ends", [[ended()], [ended(), ended(done=False)]])
def test_a_search_that_was_interrupted_does_not_pass_for_a_finished_one(
    ends: list[SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.tune.Tuner", Tuned(*ends))
    asked = settings("d", tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        _run_trials(asked, parse_space(asked))


def test_a_trial_that_was_lost_is_tried_again_and_in_the_end_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Tuned(ended(error=RuntimeError("ray::trial\n  File x\nskinray.errors.TrainingError: no\n")), ended())
    monkeypatch.setattr("ray.tune.Tuner", tuned)
    asked = settings("d", tmp_path / "run", max_failures=3)
    assert [(row["finished"], row["error"]) for row in _run_trials(asked, parse_space(asked))] == [
        (True, None),
        (False, "skinray.errors.TrainingError: no"),
    ]
    assert tuned.asked["run_config"].failure_config.max_failures == 3


def test_a_trial_is_named_after_its_draw_alone() -> None:
    assert trial_name({"a": 1, "b": 0.5}) == trial_name({"b": 0.5, "a": 1}) != trial_name({"a": 2, "b": 0.5})


def test_a_search_needs_something_to_search() -> None:
    with pytest.raises(ValueError, match="at least one setting"):
        SearchSettings(data="d", output="o")
