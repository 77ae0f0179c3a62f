"""A PyTorch network and its Flax twin with the same random weights."""

from typing import Any

import jax
import numpy as np
import torch

from audioldm2_jax.checkpoints.parameter_names import Names, to_flax, to_torch


def randomise(twin: torch.nn.Module, scale: float = 0.1) -> torch.nn.Module:
    """Adds noise to every parameter and running statistic, so that none stays at 0 or 1; sets eval mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*twin.named_parameters(), *twin.named_buffers()]:
            if value.is_floating_point():
                noise = scale * torch.randn(value.shape, generator=generator)
                value.add_(noise.abs() if name.endswith("running_var") else noise)
    return twin.eval()


def state_dict(twin: torch.nn.Module) -> dict[str, np.ndarray]:
    return {key: value.numpy().copy() for key, value in twin.state_dict().items()}


def carry_over(twin: torch.nn.Module, target: Any, names: Names, tied: tuple[str, ...] = ()) -> Any:
    """The twin's weights as Flax variables, once the way back has given every tensor bit for bit.

    target: what `jax.eval_shape` of the Flax network's `init` returns; tied: second names of one tensor.
    """
    tensors = state_dict(twin)
    variables, unused = to_flax(tensors, target, names)
    back = to_torch(variables, names, unused)
    assert back.keys() == tensors.keys() - set(tied)
    for key, value in back.items():
        assert value.dtype == tensors[key].dtype and np.array_equal(value, tensors[key]), key
    return variables


def shapes(network: Any, *inputs: Any, **options: Any) -> Any:
    """The shapes of the network's variables; allocates nothing."""
    return jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs, **options))


def count(variables: Any) -> int:
    """The number of parameters, without statistics."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))


def relative_error(ours: Any, theirs: Any) -> float:
    """The largest difference over the largest magnitude of what is expected."""
    theirs = theirs.detach().float().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs, np.float32)
    ours = np.asarray(ours, np.float32)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
