"""A small training step compiled for v5e:2x2, with what timelines have to read: `python small_program.py` prints it.

fsdp gathers weights and scatters gradients, a scan is a loop, a Pallas kernel is a custom call, and modules, the
backward pass, rematerialisation and a named scope are in the operations' names. small_program.hlo is what libtpu
0.0.42.1 of JAX 0.10.2 made of it, shortened.
"""

import functools
import re

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding, PartitionSpec

from audioldm2_jax.planning import topology
from audioldm2_jax.runtime import sharding

BATCH, WIDTH, ROUNDS = 512, 1024, 5
KERNEL_FLOPS = 123_456_789


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(WIDTH, use_bias=False, name="proj")(nn.gelu(x))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.remat(Block)(name="block_0")(x)
        return Block(name="block_1")(x)


def _double(x_ref, out_ref):
    out_ref[...] = x_ref[...] * 2.0


def double(x):
    cost = pl.CostEstimate(flops=KERNEL_FLOPS, transcendentals=0, bytes_accessed=8 * x.size)
    return pl.pallas_call(_double, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), cost_estimate=cost)(x)


def step(mesh, params, x):
    def loss(params):
        y = Net().apply(params, x)
        y, _ = jax.lax.scan(lambda y, _: (jnp.tanh(y), None), y, length=ROUNDS)
        return (y**2).mean()

    grads = jax.grad(loss)(params)
    with jax.named_scope("optimizer"):
        new = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    whole = jax.shard_map(double, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    return new, whole(jnp.ones((8, 128)))


def compiled():
    """The step for the four chips of v5e:2x2, data 2 × fsdp 2."""
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2}, topology.devices(topology.parse("v5e:2x2")))
    x = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32, sharding=sharding.batch_sharding(mesh))
    shapes = jax.eval_shape(lambda: Net().init(jax.random.key(0), jnp.zeros((1, WIDTH))))
    places = sharding.state_sharding(shapes, mesh)
    params = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    whole = NamedSharding(mesh, PartitionSpec())
    return (
        jax.jit(functools.partial(step, mesh), donate_argnums=0, out_shardings=(places, whole))
        .lower(params, x)
        .compile()
    )


_KEPT = r'"estimated_cycles":"\d+"|"known_trip_count":\{[^}]*\}|"cost_estimate":\{[^}]*\}'


def shortened(text: str) -> str:
    """Without source lines, what fusions do inside, and the compiler's own settings but those that planning reads."""
    text = re.sub(r"\n(FileNames|FunctionNames|FileLocations|StackFrames)\n(\d.*\n)+", "\n", text)
    text = re.sub(
        r"backend_config=(\{.*)", lambda found: f"backend_config={{{','.join(re.findall(_KEPT, found[1]))}}}", text
    )
    text = re.sub(r" stack_frame_id=\d+|, frontend_attributes=\{[^}]*\}|, use_global_device_ids=true", "", text)
    inside = r"\n%[\w.]*fus\w*computation[\w.]* \(.*\{\n(?:(?!.*(?:all-|custom-call)).*\n)*?\}\n"
    text = re.sub(inside, "\n", text)
    return re.sub(r",? ?\b(aliasing_output|output_to_operand_aliasing)=\{.*?\}\}(?=,)", "", text)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    print(shortened(compiled().as_text()), end="")
