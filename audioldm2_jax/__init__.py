"""AudioLDM 2 in JAX: every stage trainable, the weights readable both ways with PyTorch.

`from audioldm2_jax import AudioLDM2` gives the pipeline. The package itself imports nothing, so that the processes that
read data, which unpickle objects of it, do without JAX.
"""

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audioldm2_jax.generation.pipeline import AudioLDM2

__all__ = ["AudioLDM2"]

# Of transformers only the tokenizers are used: it need not say that it found no PyTorch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

#: Where the names of `__all__` are; imported when one is asked for.
_MODULES = {"AudioLDM2": "generation.pipeline"}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
