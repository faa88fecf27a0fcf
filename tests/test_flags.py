"""Settings: defaults, then YAML, then flags; whatever is wrong is one line that names the value."""

import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from skinray.config import PrepareSettings, ScoreSettings, VerbSettings
from skinray.errors import ConfigError
from skinray.flags import resolve
from skinray.training_config import AugmentationSettings, ModelSettings, SearchSettings, TrainSettings
from skinray.verbs import VERBS

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.yaml"))
RECIPES = sorted((Path(__file__).parents[1] / "jobs" / "recipes").glob("*.yaml"))
TRAIN = ("--data", "shards", "--output", "run")
PREPARE = ("--catalog", "ham10000", "--source", "raw", "--output", "shards")
SCORE = ("--bundle", "bundle", "--input", "photos", "--output", "predictions")

WriteYaml = Callable[[str], str]


@pytest.fixture
def write_yaml(tmp_path: Path) -> WriteYaml:
    def write(text: str) -> str:
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def train(*flags: str) -> TrainSettings:
    return resolve(TrainSettings, "train", [*TRAIN, *flags])


def refusal(settings_type: type[VerbSettings], *arguments: str) -> str:
    """The message with which settings are refused, after checking that it is one line."""
    with pytest.raises(ConfigError) as caught:
        resolve(settings_type, "verb", arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


def required_flags(settings_type: type[VerbSettings], given: dict[str, Any]) -> list[str]:
    names = [name for name, field in settings_type.model_fields.items() if field.is_required() and name not in given]
    return [word for name in names for word in (f"--{name.replace('_', '-')}", f"some/{name}")]


# Precedence


def test_defaults_hold_when_nothing_is_said() -> None:
    resolved = train()
    assert (resolved.epochs, resolved.model.name, resolved.augmentation.zoom) == (10, "resnet50", 0.1)


def test_yaml_wins_over_defaults(write_yaml: WriteYaml) -> None:
    resolved = train("--config", write_yaml("epochs: 3\nlearning_rate: 1e-4\n"))
    assert (resolved.epochs, resolved.learning_rate, resolved.num_workers) == (3, 1e-4, 2)


def test_flags_win_over_yaml(write_yaml: WriteYaml) -> None:
    resolved = train("--config", write_yaml("epochs: 3\nseed: 5\n"), "--epochs", "7")
    assert (resolved.epochs, resolved.seed) == (7, 5)


def test_flags_win_wherever_config_stands(write_yaml: WriteYaml) -> None:
    assert train("--epochs", "7", f"--config={write_yaml('epochs: 3')}").epochs == 7


def test_a_flag_can_give_back_the_default_that_yaml_changed(write_yaml: WriteYaml) -> None:
    resolved = train("--config", write_yaml("epochs: 3\ntensorboard: false"), "--epochs", "10", "--tensorboard")
    assert (resolved.epochs, resolved.tensorboard) == (10, True)


def test_nested_groups_are_merged_key_by_key(write_yaml: WriteYaml) -> None:
    path = write_yaml("model:\n  name: mobilenet\n  dropout: 0.5\naugmentation:\n  zoom: 0\n")
    resolved = train("--config", path, "--model.dropout", "0.3", "--augmentation.no-flip")
    assert resolved.model == ModelSettings(name="mobilenet", dropout=0.3)
    assert resolved.augmentation == AugmentationSettings(flip=False, zoom=0)


def test_required_settings_may_stand_in_yaml(write_yaml: WriteYaml) -> None:
    resolved = resolve(TrainSettings, "train", ["--config", write_yaml("data: a\noutput: b\n")])
    assert (resolved.data, resolved.output) == ("a", "b")


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "model:\n"])
def test_an_empty_file_or_group_is_all_defaults(write_yaml: WriteYaml, text: str) -> None:
    assert train("--config", write_yaml(text)).recorded() == train().recorded()


def test_the_last_config_is_read_as_the_last_of_any_flag_wins(tmp_path: Path) -> None:
    for epochs in (3, 4):
        (tmp_path / f"{epochs}.yaml").write_text(f"epochs: {epochs}")
    assert train("--config", str(tmp_path / "3.yaml"), "--config", str(tmp_path / "4.yaml")).epochs == 4


def test_recorded_settings_are_what_changes_the_output(write_yaml: WriteYaml) -> None:
    recorded = train("--config", write_yaml("epochs: 3"), "--dry-run").recorded()
    assert recorded == train("--epochs", "3").recorded()
    assert not {"config", "dry_run"} & set(recorded)


def test_recorded_settings_resolve_to_themselves(write_yaml: WriteYaml) -> None:
    recorded = train("--epochs", "3", "--model.name", "vgg16", "--preprocessing.fit", "center_crop").recorded()
    again = resolve(TrainSettings, "train", ["--config", write_yaml(yaml.safe_dump(recorded))])
    assert again.recorded() == recorded


def test_settings_are_frozen() -> None:
    resolved = train()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        resolved.epochs = 3  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        resolved.model.name = "vgg16"  # type: ignore[misc]


# Refusals


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("epoks: 3", ("epoks", "did you mean epochs"), id="unknown"),
        pytest.param("model:\n  nam: vgg16", ("model.nam", "did you mean name"), id="unknown in a group"),
        pytest.param("quux: 3", ("quux", "known are"), id="unknown and like nothing"),
        pytest.param("1: 2", ("unknown setting 1",), id="a key that is no text"),
        pytest.param("epochs: three", ("epochs", "three", "integer"), id="text for a number"),
        pytest.param("epochs: 2.5", ("epochs", "2.5", "integer"), id="a fraction for a whole number"),
        pytest.param("epochs: true", ("epochs", "True"), id="a truth value for a number"),
        pytest.param("epochs: [3]", ("epochs", "[3]", "integer"), id="a list for a number"),
        pytest.param("epochs:", ("epochs", "None", "integer"), id="nothing for a number"),
        pytest.param("data: 5", ("data", "5", "string"), id="a number for text"),
        pytest.param("tensorboard: maybe", ("tensorboard", "maybe", "boolean"), id="neither true nor false"),
        pytest.param("epochs: 0", ("epochs", "not 0", "greater than or equal to 1"), id="below the range"),
        pytest.param("learning_rate: .nan", ("learning_rate", "nan"), id="not a number"),
        pytest.param("learning_rate: .inf", ("learning_rate", "inf"), id="infinite"),
        pytest.param("model:\n  dropout: 1.5", ("model.dropout", "1.5", "less than 1"), id="above the range, in a group"),
        pytest.param("preprocessing:\n  image_size_px: 8", ("preprocessing.image_size_px", "not 8", "16"), id="small photo"),
        pytest.param("preprocessing:\n  version: 2", ("preprocessing.version", "not 2"), id="another preprocessing"),
        pytest.param("optimizer: rmsprop", ("optimizer", "not 'rmsprop'", "'adamw', 'adam' or 'sgd'"), id="not a choice"),
        pytest.param("model:\n  name: vgg", ("model.name", "not 'vgg'", "vgg16"), id="not a choice, in a group"),
        pytest.param("model: vgg16", ("model", "group", "vgg16"), id="a value for a group"),
        pytest.param("model: false", ("model", "group", "False"), id="a false value for a group"),
        pytest.param("model: []", ("model", "group", "[]"), id="an empty list for a group"),
        pytest.param("- epochs", ("list",), id="a list for the file"),
        pytest.param("false", ("bool",), id="a false value for the file"),
        pytest.param("epochs", ("str",), id="text for the file"),
        pytest.param("epochs: [", ("not YAML", "line 1"), id="not YAML: open bracket"),
        pytest.param("epochs: 'x", ("not YAML", "line 1"), id="not YAML: open quote"),
        pytest.param("a:\n\t- b", ("not YAML", "line 2"), id="not YAML: tab"),
        pytest.param("\x00", ("not YAML",), id="not YAML: zero byte"),
    ],
)
def test_bad_yaml_is_one_line_with_the_file_the_setting_and_the_value(
    write_yaml: WriteYaml, text: str, named: tuple[str, ...]
) -> None:
    path = write_yaml(text)
    message = refusal(TrainSettings, "--config", path, *TRAIN)
    for part in (f"--config {path}", *named):
        assert part in message


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    message = refusal(TrainSettings, "--config", str(path), *TRAIN)
    assert str(path) in message
    assert "not YAML" in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    message = refusal(TrainSettings, "--config", str(tmp_path / "nope.yaml"), *TRAIN)
    assert message == f"--config {tmp_path / 'nope.yaml'}: No such file or directory"


def test_a_folder_as_file_is_refused(tmp_path: Path) -> None:
    assert refusal(TrainSettings, "--config", str(tmp_path), *TRAIN) == f"--config {tmp_path}: Is a directory"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        pytest.param(("--epoks", "3"), ("--epoks 3",), id="unknown"),
        pytest.param(("--model.nam", "vgg16"), ("--model.nam vgg16",), id="unknown in a group"),
        pytest.param(("stray",), ("stray",), id="a word too many"),
        pytest.param(("--epoks\n", "3"), ("--epoks",), id="unknown, with a line break"),
        pytest.param(("--epochs", "three"), ("--epochs", "three"), id="text for a number"),
        pytest.param(("--seed", "1.5"), ("--seed", "1.5"), id="a fraction for a whole number"),
        pytest.param(("--epochs",), ("--epochs", "needs a value"), id="no value"),
        pytest.param(("--config",), ("--config", "needs a value"), id="no file"),
        pytest.param(("--epochs", "0"), ("epochs", "greater than or equal to 1", "not 0"), id="below the range"),
        pytest.param(("--learning-rate", "nan"), ("learning_rate", "not nan"), id="not a number"),
        pytest.param(("--learning-rate", "inf"), ("learning_rate", "not inf"), id="infinite"),
        pytest.param(("--preprocessing.image-size-px", "8"), ("image_size_px", "not 8"), id="small photo"),
        pytest.param(("--optimizer", "rmsprop"), ("--optimizer", "'rmsprop'", "adamw, adam, sgd"), id="not a choice"),
        pytest.param(("--preprocessing.version", "2"), ("--preprocessing.version", "'2'"), id="not a numeric choice"),
        pytest.param(("--model.name", "vgg16", "--preprocessing.image-size-px", "31"), ("31", "at least 32"), id="small for it"),
        pytest.param(("--model.mobilenet-alpha", "0.03"), ("mobilenet_alpha", "0.03"), id="no channel left"),
        pytest.param(("--seed", "-1"), ("seed", "not -1"), id="negative seed"),
        pytest.param(("--seed", str(2**31)), ("seed", str(2**31)), id="large seed"),
        pytest.param(("--class-weights", "maybe"), ("maybe",), id="a value for a switch"),
    ],
)
def test_a_bad_flag_is_one_line_with_the_flag_and_the_value(flags: tuple[str, ...], named: tuple[str, ...]) -> None:
    message = refusal(TrainSettings, *TRAIN, *flags)
    for part in named:
        assert part in message


def test_every_missing_setting_is_named() -> None:
    message = refusal(PrepareSettings, "--source", "raw")
    assert message.startswith("missing setting --catalog, --output;")


def test_an_unknown_flag_is_said_before_missing_ones() -> None:
    assert "--epoks" in refusal(TrainSettings, "--epoks", "3")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--global-batch-size", "33"), "33 is not a multiple of 2"),
        (("--num-workers", "3"), "32 is not a multiple of 3"),
        (("--num-workers", "2", "--gpus-per-worker", "3"), "32 is not a multiple of 6"),
    ],
)
def test_the_global_batch_is_a_multiple_of_the_replicas(flags: tuple[str, ...], named: str) -> None:
    assert named in refusal(TrainSettings, *TRAIN, *flags)


def test_rules_across_settings_hold_between_yaml_and_flags(write_yaml: WriteYaml) -> None:
    path = write_yaml("global_batch_size: 33")
    assert "33 is not a multiple of 2" in refusal(TrainSettings, *TRAIN, "--config", path)
    assert train("--config", path, "--num-workers", "3").global_batch_size == 33


def test_fractions_leave_something_to_train_on() -> None:
    message = refusal(PrepareSettings, *PREPARE, "--test-fraction", "0.9", "--validation-fraction", "0.1")
    assert "0.9" in message
    assert "0.1" in message


@pytest.mark.parametrize("run_id", ["", "a/b", "a b", "x" * 65, "nightly\n", "é"])
def test_a_run_id_is_a_plain_file_name(run_id: str) -> None:
    message = refusal(ScoreSettings, *SCORE, f"--run-id={run_id}")
    assert "run_id" in message
    assert repr(run_id) in message


KEYS = st.sampled_from([*PrepareSettings.model_fields, "epoks", "line\nbreak", "", "model.name"]) | st.integers()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=12),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(string.ascii_letters, max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(KEYS, VALUES, max_size=3))
@example(content={"line\nbreak": 1})
def test_any_yaml_gives_settings_or_one_line(write_yaml: WriteYaml, content: dict[Any, Any]) -> None:
    path = write_yaml(yaml.safe_dump(content))
    try:
        resolved = resolve(PrepareSettings, "prepare", ["--config", path, *PREPARE])
    except ConfigError:
        refusal(PrepareSettings, "--config", path, *PREPARE)
    else:
        assert set(content) <= set(PrepareSettings.model_fields)
        PrepareSettings.model_validate(resolved.model_dump())


# The files beside the entry points


def verb_of(path: Path) -> str:
    """The verb that a file of jobs/ or of its recipes is for: the recipe's own command says so."""
    if path.parent.name == "recipes":
        (command,) = re.findall(r"^#   skinray (\S+) --config", path.read_text(), re.MULTILINE)[:1]
        return str(command)
    return path.stem.replace("_", "-")


@pytest.mark.parametrize("path", [*JOBS, *RECIPES], ids=lambda path: path.stem)
def test_every_job_file_resolves_for_its_verb(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    settings_type = VERBS[verb_of(path)].settings
    resolved = resolve(settings_type, verb_of(path), ["--config", str(path), *required_flags(settings_type, content)])
    recorded = resolved.recorded()
    for name, value in content.items():
        assert recorded[name] == (recorded[name] | value if isinstance(value, dict) else value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_opens_with_its_command_hardware_hours_and_result(path: Path) -> None:
    text = path.read_text()
    assert f"--config jobs/recipes/{path.name}" in text
    opening = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    for word in ("Hardware:", "Hours:", "Result:"):
        (line,) = [line for line in opening if line.startswith(word)]
        assert "measured" in line.lower() or "expected" in line.lower(), "says which of the two it is"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_file_has_its_entry_point(path: Path) -> None:
    source = path.with_suffix(".py").read_text()
    assert f'main(["{verb_of(path)}", *sys.argv[1:]])' in source


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_names_every_setting(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        resolve(VERBS[verb].settings, verb, ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name, field in VERBS[verb].settings.model_fields.items():
        if name in ("stage", "what", "json_file"):
            continue  # a positional, and a flag with a shorter name
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel)
        assert f"--{name.replace('_', '-')}{'.' if nested else ''}" in text


def test_two_splits_cannot_both_be_kept() -> None:
    arguments = ["--catalog", "folders", "--source", "a", "--output", "b", "--keep-split", "--previous", "c"]
    with pytest.raises(ConfigError, match="keep_split and previous each say which split to keep"):
        resolve(PrepareSettings, "prepare", arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("target: own", "target own and classes belong together"),
        ("classes: {a: [mel], b: [nv]}", "target own and classes belong together"),
        ("target: own\nclasses: {a: [mel], b: [nv]}", "malignant_classes must name some"),
        ("target: own\nclasses: {a: [mel], b: [nv]}\nmalignant_classes: [a, b]", "malignant_classes must name some"),
        ("target: own\nclasses: {a: [mel], b: [nv]}\nmalignant_classes: [c]", "malignant_classes c are not among"),
    ],
)
def test_a_target_of_the_users_own_must_be_complete(write_yaml: Callable[[str], str], changes: str, words: str) -> None:
    arguments = ["--catalog", "folders", "--source", "a", "--output", "b", "--config", write_yaml(changes)]
    with pytest.raises(ConfigError, match=words):
        resolve(PrepareSettings, "prepare", arguments)


def test_a_target_of_the_users_own_in_yaml(write_yaml: Callable[[str], str]) -> None:
    path = write_yaml("target: own\nclasses: {b: [mel, scc], a: [nv]}\nmalignant_classes: [b]\nlabels: {naevus: nv}")
    resolved = resolve(PrepareSettings, "prepare", ["--catalog", "csv", "--source", "a", "--output", "b", "--config", path])
    assert list(resolved.classes) == ["b", "a"]
    assert resolved.classes["b"] == ("mel", "scc")
    assert resolved.labels == {"naevus": "nv"}


def test_names_and_values_on_the_command_line_stand_in_place_of_the_files(write_yaml: WriteYaml) -> None:
    search = write_yaml("space:\n  learning_rate: log 1e-4 2e-3\n  seed: int 0 9\n")
    space = resolve(SearchSettings, "search", ["--config", search, *TRAIN]).space
    assert space == {"learning_rate": "log 1e-4 2e-3", "seed": "int 0 9"}
    flags = ("--space", "model.dropout", "uniform 0 0.5", "seed", "int 0 3")
    space = resolve(SearchSettings, "search", ["--config", search, *TRAIN, *flags]).space
    assert space == {"model.dropout": "uniform 0 0.5", "seed": "int 0 3"}
    prepare = write_yaml("target: own\nclasses: {b: [mel, scc], a: [nv]}\nmalignant_classes: [b]\nlabels: {naevus: nv}")
    flags = ("--labels", "mole", "nv", "--classes", "b", "mel", "c", "nv,own label")
    resolved = resolve(PrepareSettings, "prepare", ["--config", prepare, *PREPARE, *flags])
    assert (resolved.labels, resolved.classes) == ({"mole": "nv"}, {"b": ("mel",), "c": ("nv", "own label")})
    assert "'seed' has no VALUE" in refusal(SearchSettings, *TRAIN, "--space", "seed")
