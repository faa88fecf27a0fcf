"""Starts training workers that know of each other, through Ray Train.

Ray's own TensorflowTrainer does this too. But whoever touches it imports TensorFlow, and one that does is Ray Train's
controller, which computes nothing: 6 seconds of every start here (one reading). So the backend stands here,
without TensorFlow.
"""

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util import get_node_ip_address

from skinray.errors import ConfigError


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
    """Refuses what the cluster cannot start; Ray Train would wait for it for ever, because a cluster may grow.

    Args:
        num_workers: How many are to run at a time.
        cpus: CPUs of each.
        gpus: GPUs of each.

    Raises:
        ConfigError: There is no room for them, and no autoscaler.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    room = room_for_workers(machines, cpus, gpus)
    if room < num_workers and not _grows():
        raise ConfigError(
            f"{num_workers} workers with {cpus} CPUs and {gpus} GPUs each: the cluster has room for {room}, on {len(machines)} "
            "machines; lower num_workers, cpus_per_worker or gpus_per_worker"
        )


def room_for_workers(machines: Sequence[Mapping[str, float]], cpus: int, gpus: int) -> int:
    """How many workers fit on machines with these resources; none can lie on two."""
    return sum(
        int(min(machine.get(name, 0) // each for name, each in (("CPU", cpus), ("GPU", gpus)) if each)) for machine in machines
    )


def _grows() -> bool:
    """True on a cluster with an autoscaler, which starts machines for what is asked."""
    return "RAY_CLUSTER_NAME" in os.environ or os.path.exists(os.path.expanduser("~/ray_bootstrap_config.yaml"))


def run_workers(
    worker: Callable[[dict[str, Any]], None], config: dict[str, Any], scaling: ray.train.ScalingConfig, run: ray.train.RunConfig
) -> None:
    """Runs a function on every worker, to its end.

    Args:
        worker: What each of them calls with `config`.
        config: Whatever can be pickled.
        scaling: How many workers, with what.
        run: Where checkpoints go, and how often a failure is survived.

    Raises:
        ray.train.TrainingFailedError: A worker failed more often than that.
    """
    # As a reference, because the controller unpickles what it is given, and with it would import what the classes need.
    stored = ray.put(config)
    DataParallelTrainer(
        lambda known: worker(ray.get(known["config"])),
        train_loop_config={"config": stored},
        backend_config=_Peers(),
        scaling_config=scaling,
        run_config=run,
    ).fit()
