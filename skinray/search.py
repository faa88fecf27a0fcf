"""Hyperparameter search: Ray Tune draws settings, each trial is a training run, the best one's bundle is kept.

<output>/trials/<name>/   a training run each, named after what was drawn
<output>/search.json      every trial with its settings and best validation ROC-AUC, best first
<output>/bundle/          the best trial's
<output>/_manifest.json   written last

The draws follow from the seed, so the same command after a kill draws the same trials: finished ones are known at once, the
one that was cut off goes on from its checkpoint, and all are compared by the epochs that they had before.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.variant_generator import generate_variants

from skinray import file_listing, outputs, storage
from skinray.errors import ConfigError, TrainingError
from skinray.shards import PreparedDataset, open_dataset
from skinray.step_timing import SAID_EVERY_S
from skinray.telemetry import say
from skinray.training import (
    absolute_weights,
    check_can_start,
    initial_weights_of,
    run_identity,
    train,
    with_absolute_paths,
)
from skinray.training_config import SearchSettings, TrainSettings, with_changes
from skinray.training_log import read_history
from skinray.worker_group import reason_of

RESULTS_NAME = "search.json"
_METRIC = "validation_auc"


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        bundle_uri: The best trial's bundle.
        model_id: Its id.
        best: Its settings that were drawn.
        trials: Every trial: name, what was drawn, best validation ROC-AUC, epochs done, why it failed; best first.
    """

    bundle_uri: str
    model_id: str
    best: dict[str, Any]
    trials: list[dict[str, Any]]


def search(settings: SearchSettings) -> SearchResult:
    """Tries settings, or goes on with a search that was cut off, or returns what a finished one found.

    Raises:
        ConfigError: The space names a setting that is none, or values that it cannot have.
        TrainingError: No trial ended.
        What `train` raises.
    """
    settings = with_absolute_paths(settings)
    dataset = open_dataset(settings.data)
    space = parse_space(settings)
    identity = run_identity(settings, dataset) | {"space": settings.space, "trials": settings.trials}
    manifest_uri = storage.join(settings.output, storage.MANIFEST_NAME)
    if storage.exists(manifest_uri):
        manifest = storage.read_json(manifest_uri)
        if manifest.get("identity") == json.loads(json.dumps(identity)):
            say(f"search: {settings.output} is finished already; nothing to do")
            return SearchResult(**{name: manifest[name] for name in SearchResult.__dataclass_fields__})
    _check_trials(settings, dataset, space)
    outputs.claim_folder(settings.output, "search", identity, keep=True)
    trials = _run_trials(settings, space)
    best = next((trial for trial in trials if trial["finished"]), None)
    if best is None:
        raise TrainingError(f"{settings.output}: no trial ended")
    run_uri = storage.join(settings.output, "trials", best["name"])
    bundle_uri = storage.join(settings.output, "bundle")
    file_listing.copy_folder(storage.join(run_uri, "bundle"), bundle_uri)
    run = storage.read_json(storage.join(run_uri, storage.MANIFEST_NAME))
    found = SearchResult(bundle_uri, run["model_id"], best["drawn"], trials)
    storage.write_json(storage.join(settings.output, RESULTS_NAME), trials)
    manifest = {"kind": "skinray-search", "schema_version": 1, "identity": identity, **found.__dict__}
    outputs.publish_folder(storage.normalize(settings.output), manifest)
    return found


def parse_space(settings: SearchSettings) -> dict[str, Any]:
    """What Ray Tune draws from: setting -> distribution.

    Raises:
        ConfigError: The space names a setting that is none, or values that it cannot have, or a trial's do not go together.
    """
    space = {name: parse_draw(name, text) for name, text in settings.space.items()}
    _check_space(settings, space)
    for drawn in draws(settings, space):
        try:
            trial_settings(settings, drawn)
        except ValueError as error:
            raise ConfigError(f"space: a trial would have {in_words(drawn)}, which cannot be: {_without_types(error)}") from error
    return space


def draws(settings: SearchSettings, space: dict[str, Any]) -> list[dict[str, Any]]:
    """What the trials will be given, in their order: it follows from the seed."""
    generator = np.random.default_rng(settings.seed)
    return [
        variant["config"]
        for _ in range(settings.trials)
        for _, variant in generate_variants({"config": space}, random_state=generator)
    ]


def _check_trials(settings: SearchSettings, dataset: PreparedDataset, space: dict[str, Any]) -> None:
    """Refuses before the output is claimed what `train` would refuse in a trial."""
    built = set()
    for drawn in draws(settings, space):
        chosen = trial_settings(settings, drawn)
        check_can_start(chosen, dataset, [chosen.fold])
        model = chosen.model
        network = (
            model.name, model.weights, model.mobilenet_alpha, chosen.preprocessing.image_size_px, chosen.transfer.from_layer
        )  # fmt: skip
        if network not in built:
            initial_weights_of(chosen, dataset)
            built.add(network)


def parse_draw(name: str, text: str) -> Any:
    """What Ray Tune draws a setting from.

    Args:
        name: The setting, for messages.
        text: "log LOW HIGH", "uniform LOW HIGH", "int LOW HIGH" or "choice VALUE ...".

    Raises:
        ConfigError: The text is none of these.
    """
    kind, *words = text.split()
    try:
        if kind == "choice" and words:
            values = [_value(word) for word in words]
            return ray.tune.choice([absolute_weights(value) for value in values] if name == "model.weights" else values)
        low, high = (float(word) for word in words)
        if kind == "log" and 0 < low < high:
            return ray.tune.loguniform(low, high)
        if kind == "uniform" and low < high:
            return ray.tune.uniform(low, high)
        if kind == "int" and low < high and low.is_integer() and high.is_integer():
            return ray.tune.randint(int(low), int(high) + 1)
    except ValueError:
        pass
    raise ConfigError(
        f'space.{name}: {text!r} is neither "log LOW HIGH", "uniform LOW HIGH", "int LOW HIGH" nor "choice VALUE ..."'
    )


def _value(word: str) -> Any:
    try:
        return json.loads(word)  # numbers, true, false, null
    except ValueError:
        return word


def _check_space(settings: SearchSettings, space: dict[str, Any]) -> None:
    """Refuses before the first trial what its settings would refuse after hours."""
    if "epochs" in space:
        raise ConfigError("space.epochs: trials are compared epoch by epoch and all have equally many; set epochs itself")
    for name, drawn in space.items():
        whole_numbers = isinstance(drawn, ray.tune.search.sample.Integer)  # their upper end is not drawn itself
        ends = drawn.categories if hasattr(drawn, "categories") else [drawn.lower, drawn.upper - whole_numbers]
        for value in ends:
            try:
                with_changes(settings, {name: value})
            except ValueError as error:
                raise ConfigError(f"space.{name}: {value!r} cannot be set: {_without_types(error)}") from error


def _without_types(error: ValueError) -> str:
    """One line of what pydantic says."""
    return " ".join(str(error).split("[type=")[0].split())


def _run_trials(settings: SearchSettings, space: dict[str, Any]) -> list[dict[str, Any]]:
    def trial(drawn: dict[str, Any]) -> None:
        chosen = trial_settings(settings, drawn)
        # What a search that was killed had trained: those who come after are compared with it, and who was stopped is again.
        for record in read_history(chosen.output):
            ray.tune.report(_reported(record, finished=False))
        trained = train(chosen, on_epoch=lambda record: ray.tune.report(_reported(record, finished=False)))
        ray.tune.report(_reported(trained.history[-1], finished=True))

    tuner = ray.tune.Tuner(
        # The trial itself only waits, and must not take a core from its workers; Tune wants to be asked for something.
        ray.tune.with_resources(trial, {"cpu": 0, "memory": 1}),
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            metric=_METRIC,
            mode="max",
            num_samples=settings.trials,
            max_concurrent_trials=settings.concurrent_trials,
            scheduler=build_scheduler(settings),
            search_alg=BasicVariantGenerator(random_state=settings.seed, max_concurrent=settings.concurrent_trials),
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=storage.path_of(settings.output),
            storage_filesystem=storage.arrow_filesystem(settings.output),
            verbose=0,
            callbacks=[TrialTeller(settings)],
            failure_config=ray.tune.FailureConfig(max_failures=settings.max_failures),
        ),
    )
    rows = []
    found = tuner.fit()
    results = [found[number] for number in range(len(found))]
    done = [bool((result.metrics or {}).get("done")) for result in results]
    if sum(done) + found.num_errors < settings.trials:
        raise KeyboardInterrupt  # Tune takes a signal for a wish to end early, and returns what there is
    for result, is_done in zip(results, done, strict=True):
        metrics, drawn = result.metrics or {}, dict(result.config or {})
        rows.append(
            {
                "name": trial_name(drawn),
                "drawn": drawn,
                "validation_auc": metrics.get("best_auc"),
                "epochs": metrics.get("epoch", 0),
                "finished": bool(metrics.get("finished", False)),
                "error": None if is_done else reason_of(result.error),
            }
        )
    return sorted(rows, key=lambda row: -(row["validation_auc"] or 0.0))


def build_scheduler(settings: SearchSettings) -> Any:
    """Compares trials after `grace_epochs` epochs, twice as many, and so on: one poorer than half of those before it is stopped.

    Not after the last epoch, when everything is paid for: who comes so far finishes, and the best of these wins.
    """
    if settings.epochs <= settings.grace_epochs:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return ASHAScheduler(
        time_attr="epoch",
        max_t=settings.epochs - 1,
        grace_period=settings.grace_epochs,
        reduction_factor=2,
        stop_last_trials=False,
    )


class TrialTeller(ray.tune.Callback):
    """Says on the driver what the trials do, whose own lines stay in Ray's logs.

    Args:
        settings: Of the search.
        clock: Seconds that only grow.
    """

    def __init__(self, settings: SearchSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._trials, self._epochs, self._clock = settings.trials, settings.epochs, clock
        self._names: dict[str, str] = {}
        self._said = clock()

    def on_trial_start(self, *_: Any, **told: Any) -> None:
        """Says what was drawn."""
        say(f"{self._name(told['trial'])}: {in_words(told['trial'].config)}")

    def on_trial_result(self, *_: Any, **told: Any) -> None:
        """Says how far it is, when the last such line is old enough."""
        result = told["result"]
        if not result["finished"] and self._clock() - self._said >= SAID_EVERY_S:
            self._said = self._clock()
            epoch = f"epoch {result['epoch']} of {self._epochs}"
            say(f"{self._name(told['trial'])}: {epoch}, validation ROC-AUC {result[_METRIC]:.4f}")

    def on_trial_complete(self, *_: Any, **told: Any) -> None:
        """Says how it ended."""
        trial, last = told["trial"], told["trial"].last_result
        if not last.get("done"):
            return  # the whole search was interrupted
        how = "finished" if last["finished"] else "stopped, poorer than half of the others so far"
        say(f"{self._name(trial)}: {how}; best validation ROC-AUC {last['best_auc']:.4f} of {last['epoch']} epochs")

    def on_trial_recover(self, *_: Any, **told: Any) -> None:
        """Says why it is begun again, from its last checkpoint."""
        say(f"{self._name(told['trial'])}: failed, goes on from its checkpoint: {_failure_of(told['trial'])}")

    def on_trial_error(self, *_: Any, **told: Any) -> None:
        """Says why it failed."""
        say(f"{self._name(told['trial'])}: failed: {_failure_of(told['trial'])}")

    def _name(self, trial: Any) -> str:
        return self._names.setdefault(trial.trial_id, f"search: trial {len(self._names) + 1} of {self._trials}")


def _failure_of(trial: Any) -> str:
    # Not trial.get_error(), which looks where the file will have been copied to a little later.
    return reason_of(Path(trial.error_file).read_text())


def in_words(drawn: dict[str, Any]) -> str:
    """What was drawn, for a person."""
    return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in drawn.items())


def _reported(record: dict[str, Any], finished: bool) -> dict[str, Any]:
    return {_METRIC: record[_METRIC], "best_auc": record["best_auc"], "epoch": record["epoch"], "finished": finished}


def trial_settings(settings: SearchSettings, drawn: dict[str, Any]) -> TrainSettings:
    """The training settings of one trial."""
    output = storage.join(settings.output, "trials", trial_name(drawn))
    return with_changes(settings, {**drawn, "output": output})


def trial_name(drawn: dict[str, Any]) -> str:
    """A folder's name for what was drawn: short, and the same for the same draw."""
    return storage.sha256_of(json.dumps(drawn, sort_keys=True).encode())[:10]
