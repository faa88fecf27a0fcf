"""A worker that waits for ever is told to stop; one that works is left alone."""

import threading
import time

import pytest

from skinray.watchdog import Watchdog


def test_silence_longer_than_the_timeout_aborts_once_and_says_for_how_long() -> None:
    reasons: list[str] = []
    aborted = threading.Event()

    def abort(reason: str) -> None:
        reasons.append(reason)
        aborted.set()

    Watchdog(0.2, abort)
    assert aborted.wait(timeout=10)
    time.sleep(0.5)
    assert len(reasons) == 1
    assert "collective_timeout_s" in reasons[0]


def test_beats_keep_it_quiet_and_stop_ends_it() -> None:
    def abort(reason: str) -> None:
        pytest.fail(reason)

    threads = threading.active_count()
    watchdog = Watchdog(1.0, abort)
    for _ in range(12):
        time.sleep(0.1)
        watchdog.beat()
    watchdog.stop()
    for _ in range(40):
        if threading.active_count() == threads:
            return
        time.sleep(0.05)
    pytest.fail("the watchdog's thread goes on")


def test_an_aborted_collective_is_an_error_with_the_reason() -> None:
    """In a process of its own, because what is aborted stays aborted."""
    import subprocess
    import sys

    script = """
import json, os, socket
with socket.socket() as one, socket.socket() as two:
    one.bind(("127.0.0.1", 0)); two.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1], two.getsockname()[1]]
os.environ["TF_CONFIG"] = json.dumps(
    {"cluster": {"worker": [f"127.0.0.1:{port}" for port in ports[:1]]}, "task": {"type": "worker", "index": 0}})
import tensorflow as tf
from tensorflow.python.ops import collective_ops
from skinray.watchdog import Watchdog, abort_collectives
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
Watchdog(1.0, abort_collectives)
try:
    with tf.device("CPU:0"):  # a group of two of which only one ever comes
        collective_ops.all_reduce(tf.constant(1.0), group_size=2, group_key=1, instance_key=1)
except tf.errors.OpError as error:
    print("ended:", error.message)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "ended:" in done.stdout, done.stderr[-2000:]
    assert "collective_timeout_s" in done.stdout
