"""The mesh `data` × `fsdp` and where every array lies on it.

Examples are split over both axes; parameters, averages and optimiser state over `fsdp` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# A leaf below this many elements a device is not worth a gather of its own.
SMALLEST_SHARD = 4096
T = TypeVar("T")


def make_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over all devices of all hosts; the first axis goes from slice to slice of TPUs.

    Args:
        axes: sizes by name, as in the recipe's `mesh`; one may be -1, and takes what is left. 0, which leaves it
            open, is 1 beside such a one, or else takes what is left.
        devices: others than those that JAX finds.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or slices do not divide the first.
    """
    devices = jax.devices() if devices is None else devices
    count, open_ = len(devices), 1 if -1 in axes.values() else -1
    axes = {name: size or open_ for name, size in axes.items()}
    known = int(np.prod([size for size in axes.values() if size != -1]))
    sizes = [count // known if size == -1 else size for size in axes.values()]
    if any(size < 1 for size in sizes) or int(np.prod(sizes)) != count:
        raise ValueError(
            f"mesh {axes} does not fit {count} devices: choose sizes whose product is {count}; "
            "-1 on one axis takes what is left"
        )
    types = (jax.sharding.AxisType.Auto,) * len(axes)
    parts = slices(devices)
    if parts == 1:
        return jax.make_mesh(tuple(sizes), tuple(axes), axis_types=types, devices=devices)
    if sizes[0] % parts:
        raise ValueError(
            f"mesh {axes} does not fit {parts} slices of {count // parts} chips: its first axis has to be a multiple "
            f"of {parts}, since that is what goes from slice to slice"
        )
    within, across = (sizes[0] // parts, *sizes[1:]), (parts, *[1] * (len(sizes) - 1))
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, across, devices), tuple(axes), axis_types=types)


def slices(devices: Sequence[jax.Device]) -> int:
    """Returns how many slices of TPUs the devices are of; 1 for others.

    GPUs have such numbers as well, one a host; their hosts are taken in order, whatever the axes.
    """
    return len({getattr(one, "slice_index", None) for one in devices if one.platform == "tpu"}) or 1


def all_devices() -> Mesh:
    """Returns the mesh of one axis, `data`, over all devices of all hosts."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def check_batch(batch_size: int, accumulate: int, mesh: Mesh, stage: str) -> None:
    """Raises ValueError unless every microbatch splits evenly over the devices."""
    devices = mesh.devices.size
    unit = max(accumulate, 1) * devices
    if accumulate < 1 or batch_size < 1 or batch_size % unit:
        below = max(batch_size, 0) // unit * unit
        nearest = {below, below + unit} - {0}
        raise ValueError(
            f"train.{stage}.batch_size={batch_size} in {accumulate} microbatches does not split evenly "
            f"over {devices} devices: "
            f"choose a multiple of {unit}; the nearest are {' and '.join(map(str, sorted(nearest)))}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of every array of a batch: its first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def state_sharding(tree: Any, mesh: Mesh) -> Any:
    """Returns a sharding for every leaf: its first axis that `fsdp` divides; small leaves are whole.

    On a mesh without the axis `fsdp` all leaves are whole.
    """
    size = mesh.shape.get("fsdp", 1)
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _state_spec(leaf.shape, size)), tree)


def _state_spec(shape: Sequence[int], size: int) -> PartitionSpec:
    if not is_shared(shape, size):
        return PartitionSpec()
    first = next(axis for axis, extent in enumerate(shape) if extent % size == 0)
    return PartitionSpec(*[None] * first, "fsdp")


def is_shared(shape: Sequence[int], size: int) -> bool:
    """Returns whether an array of the state is split over an axis `fsdp` of `size` devices."""
    return size > 1 and any(extent % size == 0 for extent in shape) and np.prod(shape) >= SMALLEST_SHARD * size


def shared_out(tree: Any) -> Any:
    """Returns a tree of `jax.ShapeDtypeStruct` on a mesh with every leaf split over all of its devices.

    One that has no axis to be split so stays as it is.
    """

    def split(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        mesh = leaf.sharding.mesh
        axes = [axis for axis, extent in enumerate(leaf.shape) if extent and extent % mesh.size == 0]
        if not axes:
            return leaf
        widest = max(axes, key=lambda axis: leaf.shape[axis])
        place = NamedSharding(mesh, PartitionSpec(*[None] * widest, mesh.axis_names))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(split, tree)


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the global batch that this host's contiguous slots are a part of."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def place(tree: Any, shardings: Any) -> Any:
    """Returns the tree's arrays laid out as `shardings`: one for all leaves, or a tree of them.

    Every host has all of each array and puts its own part on its own devices; nothing goes from host to host.
    (`device_put` would first compare what the hosts have, with a copy of each host's on every device.)
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_place, tree, shardings)


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if jax.process_count() == 1 or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(leaf), sharding))
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def spread(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree of arrays [rows, ...] with the rows shared out among the devices; the last row fills up.

    Every host has all rows.
    """

    def spread_rows(x: jax.Array | np.ndarray) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(spread_rows(jax.random.key_data(x)))
        rows = np.minimum(np.arange(-(-len(x) // mesh.size) * mesh.size), len(x) - 1)
        if isinstance(x, jax.Array) and not x.is_fully_addressable:  # it lies on several hosts already
            return jax.jit(lambda x: x[rows], out_shardings=batch_sharding(mesh))(x)
        return place(x if len(rows) == len(x) else np.asarray(x)[rows], batch_sharding(mesh))

    return jax.tree.map(spread_rows, tree)


def within(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """Returns a function that is traced knowing the mesh, so that `on_each_device` divides its examples."""

    def on_mesh(*args: Any, **kwargs: Any) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    on_mesh.__name__ = getattr(function, "func", function).__name__  # which profiles show
    return on_mesh


def gathered(tree: Any) -> Any:
    """Returns a tree that is laid out as by `state_sharding` whole on every device, to compute with.

    Its gradients are laid out as the tree is: summed over the devices and shared out in one exchange. Left to itself,
    the compiler goes on computing with parts here and there, and exchanges activations between the layers. In a
    function that does not know a mesh (`within`), or on a mesh without the axis `fsdp`, the tree stays as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("fsdp", 1) == 1:
        return tree
    return jax.tree.map(lambda leaf: _gathered(leaf, _state_spec(leaf.shape, mesh.shape["fsdp"])), tree)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, PartitionSpec())


_gathered.defvjp(
    lambda leaf, spec: (_gathered(leaf, spec), None),
    lambda spec, _, grad: (jax.lax.with_sharding_constraint(grad, spec),),
)


def knows_devices() -> bool:
    """Returns whether `on_each_device` can be used here: the mesh is known, or there is one device alone."""
    return not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1


def on_each_device(function: Callable[..., T], *arrays: jax.Array) -> T:
    """Returns what `function` makes of the examples (the first axis) of each device by itself.

    For kernels, which the compiler does not divide among devices as it does all else.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:  # 0: there is none
        return function(*arrays)
    examples = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=examples, out_specs=examples, check_vma=False)(*arrays)
