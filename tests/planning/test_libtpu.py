"""With the TPUs' own compiler: what the estimate rests on. `pip install '.[tpu]'`; no TPU is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("libtpu")
ROOT = Path(__file__).parents[2]


def python(code: str, *arguments: str) -> str:
    """A process of its own, so that libtpu is in none of the others."""
    begin = "import jax; jax.config.update('jax_platforms', 'cpu')\n"
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", begin + code, *arguments], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name, least", [("v5e:1x1", 0.85), ("v5p:2x2x1", 0.85), ("v6e:1x1", 0.65)])
def test_a_plain_product_is_near_the_peak(name, least):
    """8192³ in bfloat16; what the compiler's cycles say must be no faster than the chip is."""
    code = """
import sys
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from audioldm2_jax.planning import hlo, timeline, topology
from audioldm2_jax.runtime import sharding
where = topology.parse(sys.argv[1])
mesh = sharding.make_mesh({"data": -1}, topology.devices(where))
x = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=jax.sharding.NamedSharding(mesh, PartitionSpec()))
compiled = jax.jit(jnp.matmul).lower(x, x).compile()
flops = compiled.cost_analysis()["flops"]
assert flops == 2 * 8192**3, flops
print(flops / where.chip.flops / timeline.run(hlo.parse(compiled.as_text()), where).seconds)
"""
    assert least < float(python(code, name)) <= 1


def test_the_stored_program_is_what_the_compiler_makes():
    """In other versions the text may differ; what is read of it must not."""
    code = """
import json
import small_program
from audioldm2_jax.planning import hlo, timeline, topology
four = topology.parse("v5e:2x2")
text = small_program.compiled().as_text()
made = [timeline.run(hlo.parse(one), four) for one in (text, small_program.shortened(text))]
print(json.dumps([one.to_dict() for one in made]))
"""
    whole, shortened = json.loads(python(code))
    assert whole == shortened
    counts = {kind: tally["count"] for kind, _, tally in whole["collectives"]}
    assert counts == {"all-gather": 2, "reduce-scatter": 2, "all-reduce": 1} and not whole["notes"]


def test_slices_are_the_first_axis_of_the_mesh():
    code = """
from audioldm2_jax.planning import topology
from audioldm2_jax.runtime import sharding
mesh = sharding.make_mesh({"data": -1, "fsdp": 4}, topology.devices(topology.parse("v5e:2x4", 2)))
print([[device.slice_index for device in row] for row in mesh.devices])
try:
    sharding.make_mesh({"data": 1, "fsdp": -1}, topology.devices(topology.parse("v5e:2x2", 2)))
except ValueError as error:
    print(error)
"""
    rows, error = python(code).splitlines()
    assert json.loads(rows) == [[0] * 4] * 2 + [[1] * 4] * 2
    assert "its first axis has to be a multiple of 2" in error


@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_compiler_takes_the_kernels_of_attention(name):
    """On every device the kernels of its own examples, forward and backward, and nothing is exchanged for them."""
    code = """
import sys
import jax.numpy as jnp
from audioldm2_jax.models.layers import attend
from audioldm2_jax.planning import hlo, timeline, topology
from audioldm2_jax.runtime import sharding
where = topology.parse(sys.argv[1])
mesh = sharding.make_mesh({"data": 2, "fsdp": 2}, topology.devices(where))
def of(tokens):
    return jax.ShapeDtypeStruct((8, tokens, 8, 32), jnp.bfloat16, sharding=sharding.batch_sharding(mesh))
for queries, keys in ((1024, 1024), (1024, 8), (513, 513)):
    gradient = jax.grad(lambda *given: attend(*given).astype(jnp.float32).sum(), (0, 1, 2))
    compiled = jax.jit(sharding.within(mesh, gradient)).lower(of(queries), of(keys), of(keys)).compile()
    made = timeline.run(hlo.parse(compiled.as_text()), where)
    (kernel,) = made.kernels.values()
    # Scores are of 128 lanes, three times; weighted sums of 32, four times; queries fill 128 lanes, keys 16 rows.
    scores = -(-queries // 128) * 128 * -(-keys // 16) * 16
    assert kernel.count == 2 and kernel.flops == 2 * 2 * scores * 256 * (3 * 4 + 4), kernel
    assert not made.collectives and not made.notes, (made.collectives, made.notes)
"""
    python(code, name)


@pytest.mark.slow
def test_the_command(tmp_path):
    """The whole of it, on a stage that compiles in a minute or two; the second time nothing is compiled."""
    command = [sys.executable, str(ROOT / "launch" / "plan.py"), "--config", "music", "--stage", "audiomae"]
    command += ["--topology=v5e:2x2", "--config.mesh.fsdp=2", f"--config.compilation_cache={tmp_path / 'xla'}"]
    command += [f"--json={tmp_path / 'plan.json'}", f"--picture={tmp_path / 'plan.png'}", "--price=1.2"]
    plans = []
    for said in ("compiling for v5e:2x2", "compiled before"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
        assert said in done.stderr and "MFU" in done.stdout and "all-gather" in done.stdout
        plans.append(json.loads((tmp_path / "plan.json").read_text()))
    assert plans[0] == plans[1] and plans[0]["parameters"]["trained"] == {"audiomae": 1_547_596}
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
