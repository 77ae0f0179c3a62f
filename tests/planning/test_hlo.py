"""What is read of the compiler's text; small_program.hlo is the compiler's own (small_program.py)."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audioldm2_jax.planning import hlo

SMALL = Path(__file__).with_name("small_program.hlo").read_text(encoding="utf-8")


def test_instructions_of_the_entry():
    program = hlo.parse(SMALL)
    entry = program.computations[program.entry]
    assert sum(one.opcode == "parameter" for one in entry) == 3  # two weights and the batch
    known = {one.name for one in entry}
    assert all(name in known for one in entry for name in one.operands if one.opcode != "constant")
    (kernel,) = [one for one in entry if one.target == "tpu_custom_call"]
    assert kernel.declared("flops") == 123_456_789 and kernel.declared("bytes_accessed") == 8192
    assert kernel.bytes == 8 * 128 * 4 and kernel.cycles is None


def test_loops_run_as_often_as_their_condition_says():
    program = hlo.parse(SMALL)
    loops = [one for one in program.computations[program.entry] if one.opcode == "while"]
    assert [program.trips(loop) for loop in loops] == [5, 5]


def test_text_without_a_program():
    with pytest.raises(hlo.HloError, match="no ENTRY"):
        hlo.parse("HloModule nothing\n")


@pytest.mark.parametrize(
    "shape, size",
    [
        ("f32[8,64]{1,0:T(8,128)S(1)}", 2048),
        ("(bf16[3]{0:T(4)(2,1)}, s32[]{:S(4)}, /*index=2*/pred[7])", 6 + 4 + 7),
        ("f8e4m3fn[16]{0}", 16),
        ("u32[0,5]{1,0}", 0),
        ("token[]", 0),
    ],
)
def test_bytes_of_shapes(shape, size):
    assert hlo.shape_bytes(shape) == size


@pytest.mark.parametrize(
    "rest, groups",
    [
        ("replica_groups={{0,1},{2,3}}, dimensions={0}", [[0, 1], [2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['axis_0'=4] {'axis_0'}, x", [[0, 1, 2, 3]]),
        (
            "replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}, x",
            [[0, 1], [2, 3]],
        ),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, x", [[0, 2], [1, 3]]),
        ("replica_groups={}, x", [[0, 1, 2, 3]]),
    ],
)
def test_groups_of_collectives(rest, groups):
    assert sorted(hlo.groups(rest, 4)) == sorted(groups)


@pytest.mark.parametrize(
    "op_name, module, phase",
    [
        (
            "jit(step)/transpose(jvp(UNet))/UNet.predict/up_blocks_0/up_blocks_0.attend/attentions_1/mul",
            "UNet/up_blocks_0/attentions_1",
            "backward",
        ),
        (
            "jit(step)/jvp(UNet)/UNet.cross_attention_kv/up_blocks_0.cross_attention_kv/dot_general",
            "UNet/up_blocks_0",
            "forward",
        ),
        (
            "jit(step)/transpose(jvp(Net))/rematted_computation/block_0/proj/dot_general",
            "Net/block_0/proj",
            "recomputed",
        ),
        ("jit(step)/jvp(vmap(jit(_normal)))/jit(_normal_real)/jit(_uniform)/sub", "", "forward"),
        ("jit(step)/optimizer/mul", "optimizer", "forward"),
        ("jit(step)/jvp()/while/body/closed_call/tanh", "", "forward"),
        ("jit(step)/optimizer/mul;jit(step)/Net/add", "optimizer", "forward"),
        ("", "", "forward"),
    ],
)
def test_modules_of_operations(op_name, module, phase):
    path, found = hlo.module_of(op_name)
    assert ("/".join(path), found) == (module, phase)


@given(st.text(max_size=200))
def test_any_op_name_has_a_module(op_name):
    path, phase = hlo.module_of(op_name)
    assert all(path) and phase in ("forward", "backward", "recomputed")


@given(st.text(alphabet="%(){}=,. abc01\n", max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        hlo.parse(f"ENTRY %main (a: f32[]) -> f32[] {{\n{text}\n}}\n")
    except hlo.HloError:
        pass
