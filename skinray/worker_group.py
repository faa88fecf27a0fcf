"""Starts training workers that know of each other, through Ray Train.

Ray's own TensorflowTrainer does this too. But whoever touches it imports TensorFlow, and one that does is Ray Train's
controller, which computes nothing: 6 seconds of every start here (one reading). So the backend stands here,
without TensorFlow.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util import get_node_ip_address

from skinray.errors import ConfigError, TrainingError
from skinray.telemetry import say
from skinray.training_config import TrainSettings

# Ray Train waits a minute for its workers to start, and tries again so often.
START_ATTEMPTS = 60
_ROOM_SAID_EVERY_S = 60.0


class _Peers(BackendConfig):
    """Makes Ray Train tell every worker the addresses of all, as TF_CONFIG, which MultiWorkerMirroredStrategy reads."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _PeersBackend


class _PeersBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002, Ray Train calls it so
        addresses = worker_group.execute(_free_address)
        told = [worker_group.execute_single_async(rank, _tell_peers, addresses, rank) for rank in range(len(worker_group))]
        ray.get(told)


def _free_address() -> str:
    """This worker's machine and a port that nothing listens on."""
    address: str = get_node_ip_address()  # type: ignore[no-untyped-call]
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _tell_peers(addresses: list[str], rank: int) -> None:
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}})


def check_room(num_workers: int, cpus: int, gpus: int) -> None:
    """Refuses what the cluster cannot start, unless it may grow.

    Args:
        num_workers: How many are to run at a time.
        cpus: CPUs of each.
        gpus: GPUs of each.

    Raises:
        ConfigError: There is no room for them, and no autoscaler.
    """
    room, machines = _room(cpus, gpus)
    if room < num_workers and not may_grow(os.environ):
        raise ConfigError(
            f"{num_workers} workers with {cpus} CPUs and {gpus} GPUs each: the cluster has room for {room}, on {machines} "
            "machines; lower num_workers, cpus_per_worker or gpus_per_worker"
        )


def _room(cpus: int, gpus: int) -> tuple[int, int]:
    """How many workers the cluster has room for now, busy or not, and on how many machines."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return room_for_workers(machines, cpus, gpus), len(machines)


def room_for_workers(machines: Sequence[Mapping[str, float]], cpus: int, gpus: int) -> int:
    """How many workers fit on machines with these resources; none can lie on two."""
    return sum(
        int(min(machine.get(name, 0) // each for name, each in (("CPU", cpus), ("GPU", gpus)) if each)) for machine in machines
    )


def may_grow(environment: Mapping[str, str]) -> bool:
    """False on a cluster that surely has no autoscaler, which would start machines for what is asked.

    KubeRay tells every container the cluster's name, and how it started Ray: on the head without Ray's own monitor where it
    runs an autoscaler beside it. On its other machines this cannot be told.

    Args:
        environment: Of this process.
    """
    started = environment.get("KUBERAY_GEN_RAY_START_CMD", "")
    if "--head" in started:
        return "--no-monitor" in started
    return "RAY_CLUSTER_NAME" in environment or os.path.exists(os.path.expanduser("~/ray_bootstrap_config.yaml"))


def survived(max_failures: int) -> FailureConfig:
    """So many failures of workers, and an hour in all without room for them: then the run is given up."""
    return FailureConfig(max_failures=max_failures, controller_failure_limit=START_ATTEMPTS)


class _Trainer(DataParallelTrainer):
    """Leaves Ctrl-C to the command that runs it.

    Ray Train's own handler ends the process with 0 while workers train, does nothing at the first two when they are done, and
    stays in place afterwards.
    """

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller


def run_workers(
    worker: Callable[[dict[str, Any]], None], config: dict[str, Any], settings: TrainSettings, run: ray.train.RunConfig
) -> None:
    """Runs a function on every worker, to its end.

    Args:
        worker: What each of them calls with `config`.
        config: Whatever can be pickled.
        settings: How many workers, with what.
        run: Where checkpoints go, and how often a failure is survived.

    Raises:
        TrainingError: A worker failed more often than that, or there was no room for them.
    """
    # As a reference, because the controller unpickles what it is given, and with it would import what the classes need.
    stored = ray.put(config)
    trainer = _Trainer(
        lambda known: worker(ray.get(known["config"])),
        train_loop_config={"config": stored},
        backend_config=_Peers(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker={"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker},
        ),
        run_config=run,
    )
    with _lack_of_room_said(settings):
        try:
            trainer.fit()
        except BaseException as error:
            if trainer.controller is not None:
                # With it go its workers, also on a Ray that goes on after this command.
                ray.kill(trainer.controller)
            # The second is what remains of a controller that could not start or was lost.
            if isinstance(error, (ray.train.TrainingFailedError, ray.exceptions.RayError)):
                raise TrainingError(f"training failed: {reason_of(error)}") from error
            raise


def reason_of(error: object) -> str:
    """The last line of the (first worker's) traceback that an error or a text ends with: the exception itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(" ")]
    return lines[-1] if lines else type(error).__name__


@contextlib.contextmanager
def _lack_of_room_said(settings: TrainSettings) -> Iterator[None]:
    """Says every minute that workers wait for machines that are not there (yet, or any more); Ray Train waits silently."""
    done = threading.Event()

    def watch() -> None:
        while True:
            room, _ = _room(settings.cpus_per_worker, settings.gpus_per_worker)
            if room < settings.num_workers:
                say(f"waiting for room for {settings.num_workers} workers, there is room for {room}")
            if done.wait(_ROOM_SAID_EVERY_S):
                return

    thread = threading.Thread(target=watch, daemon=True, name="room")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)
