"""What several hosts do together: agree, wait for each other, gather."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def to_host(tree: Any) -> Any:
    """Returns a tree of whole NumPy arrays from one whose arrays may lie on several hosts. Called by all hosts."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def wait_for_hosts(what: str) -> None:
    """Returns once all hosts have called it with the same `what`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def any_host(flag: bool) -> bool:
    """Returns whether `flag` is set on any host. Called by all hosts."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())
