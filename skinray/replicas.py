"""The workers as one: MultiWorkerMirroredStrategy and the few things that the training loop asks of it."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Precision = Literal["float32", "bfloat16", "float16", "float64"]


class Replicas:
    """This worker's place among all; must be made before any other TensorFlow operation of the process.

    Args:
        rank: Of this worker, from 0.
        num_workers: How many there are.
        gpus: GPUs of each worker; 0 computes on CPUs.
    """

    def __init__(self, rank: int, num_workers: int, gpus: int) -> None:
        if not gpus:
            # Ray leaves all of the machine's visible to a process that has been given none, and the strategy takes all it sees.
            tf.config.set_visible_devices([], "GPU")
        implementation = tf.distribute.experimental.CommunicationImplementation
        # Without timeout_seconds: TensorFlow 2.21 keeps a sleeping thread for every collective until its timeout has passed,
        # and BatchNorm alone makes over a hundred collectives a step. At 600 s, MobileNet's workers held 10,000 threads after
        # two minutes and were aborted after four, when a thread could not be made. `Watchdog` does this instead.
        options = tf.distribute.experimental.CommunicationOptions(
            implementation=implementation.NCCL if gpus else implementation.RING
        )
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        self.rank, self.num_workers = rank, num_workers
        self.local = max(1, gpus)

    def feed(self, values: npt.NDArray[Any]) -> Any:
        """Divides this worker's share of a batch evenly among its GPUs."""
        if self.local == 1:
            return tf.constant(values)
        parts = np.split(values, self.local)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group % self.local])
        )

    def collect(self, values: Any) -> tf.Tensor:
        """What `feed` divides, put together again: this worker's share."""
        parts = self.strategy.experimental_local_results(values)
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=0)

    def sum(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The sum over all workers, known to all; every worker must call it. Where all but one are zero it is exact."""
        if self.num_workers == 1:
            return values
        nothing = np.zeros_like(values)
        whole: Any = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(values if context.replica_id_in_sync_group % self.local == 0 else nothing)
        )
        return np.asarray(self._summed(whole))

    @tf.function  # type: ignore[untyped-decorator]
    def _summed(self, values: Any) -> tf.Tensor:
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)


def fastest_precision(cpu_flags: str | None = None) -> Precision:
    """What `precision: auto` means for this process, on this machine.

    Args:
        cpu_flags: The processor's flags; none: this machine's.

    Returns:
        On GPUs bfloat16 from compute capability 8.0 (Ampere) on, float16 from 7.0 (Volta's tensor cores) on; on CPUs bfloat16
        where there is arithmetic for it: without, it is slower than float32. float32 otherwise.
    """
    gpus = tf.config.get_visible_devices("GPU")
    if gpus:
        capability = min(tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus)
        return "bfloat16" if capability >= (8, 0) else "float16" if capability >= (7, 0) else "float32"
    if cpu_flags is None:
        about = Path("/proc/cpuinfo")
        cpu_flags = about.read_text() if about.exists() else ""
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(cpu_flags.split()) else "float32"


def dtype_policy(precision: Precision) -> str:
    """Keras' name for it: in half precision the weights stay float32."""
    return f"mixed_{precision}" if precision in ("bfloat16", "float16") else precision
