"""Whether the Hugging Face hub can be reached, asked once, so that a machine without a network is told so at once.

The hub's own library asks for every file of a repository and repeats each request for half a minute.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

_SECONDS = 5  # until the hub counts as out of reach, unless HF_HUB_ETAG_TIMEOUT says otherwise


@functools.cache
def hub_reachable() -> bool:
    """Returns whether the hub answers; False without asking where the environment says HF_HUB_OFFLINE.

    The hub is that of HF_ENDPOINT, through the proxies of the environment.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    seconds = constants.HF_HUB_ETAG_TIMEOUT if os.environ.get("HF_HUB_ETAG_TIMEOUT") else _SECONDS
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception:  # whatever the network may raise
        return False
    return True


def no_folder(name: str) -> str:
    """Returns where a folder `name` was looked for and is not, for a message; the hub's ids look like paths."""
    looked_for = str(Path(name).absolute())
    return f"{name} does not exist" if looked_for == name else f"{name} is no folder here ({looked_for} does not exist)"


def out_of_reach(name: str) -> str:
    """Returns why the repository `name` is not here, and where its files may be put, for a message."""
    from huggingface_hub import constants

    asked = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    return (
        f"it is not in the hub's cache {constants.HF_HUB_CACHE}, and {asked}; run `hf download {name}` where there is "
        "a network and copy that cache"
    )
