"""What several test modules share: a bucket, a Ray and a trained model on this machine, and the real photos."""

import contextlib
import fcntl
import io
import os
import shutil
import socket
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from skinray.shards import PreparedDataset
    from skinray.training import TrainedModel
    from skinray.training_config import TrainSettings
    from tests.faulty_s3 import FaultyProxy

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("shared machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def s3_proxy() -> Iterator["FaultyProxy"]:
    """An S3 server on 127.0.0.1 and the proxy in front of it, through which all tests talk to it.

    It is always there, because Ray's processes keep the endpoint that they were started with: what it does wrong, which is
    nothing, can be changed while they run.
    """
    from moto.server import ThreadedMotoServer

    from tests.faulty_s3 import FaultyProxy

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = FaultyProxy(*server.get_host_and_port())
    yield proxy
    proxy.close()
    server.stop()


@pytest.fixture(scope="session")
def s3_endpoint(s3_proxy: "FaultyProxy") -> Iterator[str]:
    """The URL of an S3 server on 127.0.0.1.

    The process's own environment points at it until the session ends, so that processes started meanwhile (Ray's) find it too.
    """
    import s3fs

    endpoint = s3_proxy.endpoint
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        # s3fs keeps its instances, with the endpoint and the credentials that they were made with.
        s3fs.S3FileSystem.clear_instance_cache()
        yield endpoint
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_bucket(s3_endpoint: str) -> str:
    """The s3:// URI of a new, empty bucket."""
    import s3fs

    name = f"test-{uuid.uuid4().hex}"
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(name)
    return f"s3://{name}"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, or an empty bucket."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_bucket")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos that SKINRAY_TEST_DATA names."""
    folder = os.environ.get("SKINRAY_TEST_DATA")
    if not folder:
        pytest.skip("needs the real photos: set SKINRAY_TEST_DATA to their folder")
    if not (Path(folder) / "ham10000").is_dir():
        pytest.skip(f"needs the real photos: SKINRAY_TEST_DATA={folder} has no ham10000 folder")
    return Path(folder)


@pytest.fixture(scope="session")
def ray_cluster(s3_endpoint: str) -> Iterator[None]:
    """A local Ray that all tests share; its processes find the S3 server too, through the environment they inherit."""
    from skinray import telemetry

    telemetry.set_library_defaults()
    import ray
    import ray.data

    # A short path, because Ray puts Unix sockets below it and their paths must stay under 108 characters.
    folder = tempfile.mkdtemp(prefix="skinray-")
    with warnings.catch_warnings(), telemetry.without_dashboard():
        warnings.simplefilter("ignore")  # Ray's own, at start
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
            object_store_memory=1_000_000_000,
        )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def shared_folder(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that all processes of this test run share; the others wait until whoever came first has filled it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def drawn_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic data set of 240 photos in the layout that `prepare --catalog synthetic` reads."""
    from skinray.synthetic import draw_dataset

    with shared_folder(tmp_path_factory, "drawn") as folder:
        if not (folder / "photos").exists():
            draw_dataset(folder / "unfinished", 240, seed=1)
            (folder / "unfinished").rename(folder / "photos")
    return folder / "photos"


@pytest.fixture(scope="session")
def prepared(ray_cluster: None, drawn_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> "PreparedDataset":
    """The drawn photos as shards."""
    from skinray.config import PrepareSettings
    from skinray.preparation import prepare_dataset

    settings = {"catalog": "synthetic", "source": str(drawn_photos), "validation_fraction": 0.2, "shard_mb": 1.2}
    with shared_folder(tmp_path_factory, "prepared") as folder:
        return prepare_dataset(PrepareSettings(**settings, output=str(folder / "dataset")))


def toy_settings(data: str, output: Path, **changes: Any) -> "TrainSettings":
    """Settings of a training run that takes seconds: the sequential CNN on photos of 48 pixels."""
    from skinray.images import Preprocessing
    from skinray.training_config import AugmentationSettings, ModelSettings, TrainSettings

    return TrainSettings(
        **{
            "data": data,
            "output": str(output),
            "model": ModelSettings(name="cnn_sequential", dropout=0.0),
            "preprocessing": Preprocessing(image_size_px=48),
            "augmentation": AugmentationSettings(flip=False, rotation_turns=0, zoom=0, brightness=0, contrast=0),
            "epochs": 2,
            "global_batch_size": 16,
            "learning_rate": 3e-3,
            **changes,
        }
    )


# Of `drawing_settings`.
EPOCHS, CHECKPOINT_STEPS = 3, 3


def drawing_settings(data: str, output: Path, **changes: Any) -> "TrainSettings":
    """A run of three epochs of eight steps that draws at random wherever training can, and checkpoints every third step.

    In float64, because rounding in float32 grows from step to step and would hide an error of the method.
    """
    from skinray.training_config import AugmentationSettings, ModelSettings

    same = {
        "augmentation": AugmentationSettings(),
        "model": ModelSettings(name="cnn_sequential", dropout=0.3),
        "epochs": EPOCHS,
        "checkpoint_steps": CHECKPOINT_STEPS,
        "weight_averaging": 0.9,
        "clip_norm": 1.0,
        "precision": "float64",
    }
    return toy_settings(data, output, **same, **changes)


@pytest.fixture(scope="session")
def trained_drawing(prepared: "PreparedDataset", tmp_path_factory: pytest.TempPathFactory) -> "TrainedModel":
    """What two undisturbed workers make of `drawing_settings`."""
    from skinray.training import train

    with shared_folder(tmp_path_factory, "drawing") as folder:
        return train(drawing_settings(prepared.uri, folder / "run"))


@pytest.fixture(scope="session")
def trained(prepared: "PreparedDataset", tmp_path_factory: pytest.TempPathFactory) -> "TrainedModel":
    """A model that two workers trained for two short epochs."""
    from skinray.training import train

    with shared_folder(tmp_path_factory, "trained") as folder:
        return train(toy_settings(prepared.uri, folder / "run"))


@dataclass(frozen=True)
class Demo:
    """What `skinray demo` left and said."""

    output: Path
    printed: str
    said: str


@pytest.fixture(scope="session")
def demo(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demo, run once; its model is the one of all tests that has learnt something."""
    from skinray.cli import main

    output = tmp_path_factory.mktemp("demo") / "demo"
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        assert main(["demo", "--output", str(output), "--photos", "700"]) == 0
    return Demo(output, printed.getvalue(), said.getvalue())


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
