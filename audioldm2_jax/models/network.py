"""A module together with its variables."""

from typing import Any

from flax import linen as nn
from flax import struct


@struct.dataclass
class Network:
    """A Linen module and its variables, as one value that is called and may cross `jit` and `grad`.

    Attributes:
      module: static: a change of module compiles anew.
      variables: the collections of the module, `{"params": ..., "batch_stats": ...}`; the leaves of this
        pytree.
    """

    module: nn.Module = struct.field(pytree_node=False)
    variables: Any

    def __call__(
        self, *args: Any, method: str | None = None, rngs: Any = None, mutable: Any = False, **kwargs: Any
    ) -> Any:
        """`module.apply` with these variables."""
        return self.module.apply(self.variables, *args, method=method, rngs=rngs, mutable=mutable, **kwargs)
