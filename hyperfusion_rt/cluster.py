"""A Ray cluster, reached in one way by all that runs on one."""

from __future__ import annotations

import contextlib
import logging
import signal
from typing import Any

from hyperfusion_rt.errors import HyperFusionError, MissingExtraError


def connect(address: str | None) -> Any:
    """The module `ray`, with the cluster at `address`, unless this process has one already.

    Args:
        address: None takes `RAY_ADDRESS`, or starts a cluster on this machine.

    Raises:
        MissingExtraError: Ray is not installed.
        HyperFusionError: the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray", "`executor` ray") from None
    if ray.is_initialized():
        return ray
    # Ray takes the signal for itself, and would end the process before its table is written.
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # Ray raises plain ones, where a node starts too slowly, say
        raise HyperFusionError(f"Ray: cannot reach a cluster: {error}", code="ray-failed") from None
    with contextlib.suppress(ValueError):  # not in the main thread: there are no handlers
        signal.signal(signal.SIGTERM, terminated)
    # It tells of workers that died on standard output, which is for results, and has no option.
    with contextlib.suppress(AttributeError):
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    return ray
