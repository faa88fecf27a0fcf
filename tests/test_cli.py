import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

import skinray
from skinray import file_listing, storage
from skinray.cli import main
from skinray.shards import PreparedDataset, read_photos
from skinray.training import TrainedModel
from skinray.verbs import VERBS
from tests.test_comparing import evaluation
from tests.test_screening_report import published, run_rows

REPOSITORY = Path(__file__).parent.parent


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, and what standard error says after the line with the resolved settings."""
    code = main(arguments)
    captured = capsys.readouterr()
    said = "".join(line for line in captured.err.splitlines(keepends=True) if line.startswith("skinray:"))
    assert "Traceback" not in captured.err
    return code, captured.out, said


def test_the_overview_names_every_verb_and_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name in VERBS:
        assert f"\n  {name} " in overview
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        assert "--dry-run" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == skinray.__version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scan"], "'scan'"),
        (["prepare", "--catalog", "ham"], "'ham'"),
        (["train", "--data", "x"], "--output"),
        (["train", "--data", "x", "--output", "y", "--epochs", "0"], "epochs"),
        (["train", "--data", "x", "--output", "y", "--batchsize", "8"], "--batchsize"),
        (["score", "--config", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_bad_settings_are_one_line_and_exit_code_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, said = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said.count("\n") == 1
    assert words in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prepare", "--catalog", "ham10000", "--source", "{tmp}/none", "--output", "{tmp}/out"], "none"),
        (["prepare", "--catalog", "ham10000", "--source", "{tmp}/empty", "--output", "{tmp}/out"], "HAM10000_metadata.csv"),
        (["train", "--data", "{tmp}/empty", "--output", "{tmp}/out"], "not a prepared data set"),
        (["evaluate", "--bundle", "{tmp}/empty", "--data", "{tmp}/empty", "--output", "{tmp}/out"], "bundle"),
        (["score", "--bundle", "{tmp}/none", "--input", "{tmp}/empty", "--output", "{tmp}/out"], "bundle"),
        (["score", "--bundle", "gs://bucket/b", "--input", "{tmp}/empty", "--output", "{tmp}/out"], "gs://"),
        (["demo", "--output", "{tmp}/empty"], "already exists"),
        (["report", "--predictions", "{tmp}/empty", "--output", "{tmp}/out"], "no published run"),
    ],
)
@pytest.mark.ray
def test_what_cannot_be_done_is_one_line_exit_code_1_and_leaves_nothing(
    ray_cluster: None, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    code, out, said = run(capsys, *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert (code, out) == (1, "")
    assert said.count("\n") == 1
    assert words in said
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.ray
def test_a_dry_run_counts_and_writes_nothing(
    prepared: PreparedDataset,
    trained: TrainedModel,
    drawn_photos: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "out")
    folder = tmp_path_factory.mktemp("evaluations")
    first, second = evaluation(folder / "first", "aaa", 1), evaluation(folder / "second", "bbb", 2)
    run_of_50 = published(folder / "runs", run_rows(50))
    folds = read_photos(prepared)["fold"].dropna()
    in_folds, last_fold = len(folds), int((folds == 4).sum())
    expected = {
        ("prepare", "--catalog", "synthetic", "--source", str(drawn_photos), "--output", out): "shards",
        ("train", "--data", prepared.uri, "--output", out): f"{prepared.rows('train'):,} training",
        (
            "evaluate",
            "--bundle",
            trained.bundle_uri,
            "--data",
            prepared.uri,
            "--output",
            out,
        ): f"{prepared.rows('test'):,} photos",
        ("score", "--bundle", trained.bundle_uri, "--input", str(drawn_photos), "--output", out): "240 photos",
        ("nightly", "--bundle", trained.bundle_uri, "--input", str(drawn_photos), "--output", out): "240 photos",
        ("report", "--predictions", run_of_50, "--output", out): "50 photos",
        ("audit", "--data", prepared.uri, "--output", out): "240 prepared photos",
        ("serve", "--bundle", trained.bundle_uri): trained.model_id,
        ("demo", "--output", out): "900 photos",
        ("benchmark", "score"): "resnet50",
        (
            "cross-validate",
            "--data",
            prepared.uri,
            "--output",
            out,
        ): f"fold 4: {in_folds - last_fold:,} training and {last_fold:,}",
        ("search", "--data", prepared.uri, "--output", out, "--space", "seed", "int 0 9"): "10 trials over seed: int 0 9",
        ("verify", "distributed"): "50 SGD steps",
        ("compare", "--first", first, "--second", second, "--output", out): "aaa against bbb on 300 photos",
        ("ensemble", "--bundles", trained.bundle_uri, "--flips", "--data", prepared.uri, "--output", out): trained.model_id,
    }
    assert {arguments[0] for arguments in expected} == set(VERBS)
    for arguments, words in expected.items():
        code, printed, _ = run(capsys, *arguments, "--dry-run")
        assert code == 0
        assert words in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_the_whole_way_through_an_object_store(
    ray_cluster: None, s3_bucket: str, drawn_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(drawn_photos.rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{s3_bucket}/raw/{path.relative_to(drawn_photos)}", path.read_bytes())
    prepare = ["prepare", "--catalog", "synthetic", "--source", f"{s3_bucket}/raw", "--output", f"{s3_bucket}/data"]
    assert run(capsys, *prepare)[0] == 0
    toy = ["--model.name", "cnn_sequential", "--preprocessing.image-size-px", "48", "--epochs", "1", "--num-workers", "1"]
    train = ["train", "--data", f"{s3_bucket}/data", "--output", f"{s3_bucket}/run", *toy]
    assert run(capsys, *train)[0] == 0
    assert run(capsys, *train)[0] == 0, "a finished run reruns as a no-op there too"
    score = ["score", "--bundle", f"{s3_bucket}/run/bundle", "--input", f"{s3_bucket}/raw", "--output", f"{s3_bucket}/scores"]
    code, printed, _ = run(capsys, *score)
    assert code == 0
    assert "240 scored" in printed
    files = file_listing.list_files(f"{s3_bucket}/scores")
    (manifest,) = [path for path in files if path.endswith(storage.MANIFEST_NAME)]
    assert storage.read_json(f"{s3_bucket}/scores/{manifest}")["statuses"] == {"scored": 240}
    assert run(capsys, *prepare)[0] == 0, "nothing is new, nothing is done"
    code, _, said = run(capsys, *prepare, "--seed", "1")
    assert (code, said.count("\n")) == (1, 1)
    assert "was prepared with other settings" in said


@pytest.mark.parametrize("entry_point", sorted(path.name for path in (REPOSITORY / "jobs").glob("*.py")))
def test_every_job_is_the_verb_of_its_name_and_has_its_settings_beside_it(entry_point: str) -> None:
    verb = entry_point.removesuffix(".py").replace("_", "-")
    job = REPOSITORY / "jobs" / entry_point
    printed = subprocess.run([sys.executable, str(job), "--help"], capture_output=True, text=True, check=True, timeout=120)
    assert f"usage: skinray {verb}" in printed.stdout
    assert isinstance(yaml.safe_load(job.with_suffix(".yaml").read_text()), dict)


# What a cluster says whose dashboard, or whose job agent some seconds later, has not started yet.
STARTING = ("No available agent", "Failed to connect to Ray")


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_is_submitted_to_a_cluster_on_this_machine(prepared: PreparedDataset, drawn_photos: Path, tmp_path: Path) -> None:
    """What README says of `ray job submit`, on a machine that has never run Ray: its home is new."""
    from tests.conftest import free_port

    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PYTHONWARNINGS": "default",
    }

    def call(*command: str) -> None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, cwd=REPOSITORY)
        if any(words in done.stdout + done.stderr for words in STARTING) and time.monotonic() < deadline:
            time.sleep(0.5)
            return call(*command)
        assert done.returncode == 0, done.stdout + done.stderr

    ports = {"port": free_port(), "dashboard-port": free_port(), "dashboard-agent-listen-port": free_port()}
    folder = Path(tempfile.mkdtemp(prefix="skinray-"))
    deadline = time.monotonic() + 120
    call("ray", "get-auth-token", "--generate")
    start = ["ray", "start", "--head", "--num-cpus", "2", "--temp-dir", str(folder), "--disable-usage-stats", "--block"]
    cluster = subprocess.Popen(
        [*start, *(word for name, port in ports.items() for word in (f"--{name}", str(port)))],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        submit = ["ray", "job", "submit", "--address", address, "--working-dir", str(REPOSITORY), "--", "python"]
        toy = ["--model.name", "cnn_sequential", "--preprocessing.image-size-px", "48", "--epochs", "1", "--num-workers", "1"]
        call(*submit, "jobs/train.py", "--data", prepared.uri, "--output", str(tmp_path / "run"), *toy)
        bundle = str(tmp_path / "run" / "bundle")
        call(*submit, "jobs/score.py", "--bundle", bundle, "--input", str(drawn_photos), "--output", str(tmp_path / "scores"))
        (manifest,) = (tmp_path / "scores").rglob(storage.MANIFEST_NAME)
        assert json.loads(manifest.read_text())["statuses"] == {"scored": 240}
    finally:
        cluster.terminate()
        cluster.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.parametrize("where", ["task", "pipeline"])
def test_what_a_worker_says_reaches_the_person_as_one_line(ray_cluster: None, where: str) -> None:
    import ray
    import ray.data

    from skinray.cli import explained
    from skinray.errors import StorageError

    def fail(block: object) -> object:
        raise StorageError("cannot write s3://bucket/part: access denied")

    def run_it() -> None:
        if where == "task":
            ray.get(ray.remote(fail).remote(None))
        else:
            ray.data.range(1).map_batches(fail).materialize()

    with pytest.raises(Exception, match="access denied") as caught:
        run_it()
    known = explained(caught.value)
    assert type(known) is StorageError
    assert str(known) == "cannot write s3://bucket/part: access denied"


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    from skinray.cli import explained

    assert explained(ZeroDivisionError()) is None
