"""The Ray that a command works on: the cluster that it runs on, or one of its own on this machine."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from skinray import telemetry


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names (as it does inside a submitted job), or starts one on this machine.

    A cluster of our own listens on 127.0.0.1 only and ends with the command. One that this process has joined already is
    used and left running.
    """
    import ray
    import ray.data

    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"address": "local", "include_dashboard": False}
    # Progress is said by the driver; the workers' own output stays in Ray's logs, where it can be looked up.
    # It says at every start that it made a token, which is as it should be.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    with telemetry.without_dashboard() if own else contextlib.nullcontext():
        ray.init(**own, log_to_driver=False, logging_level=logging.WARNING, configure_logging=True)
    for name in ("ray.data", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()
