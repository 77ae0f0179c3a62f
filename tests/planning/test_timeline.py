"""The time of a compiled step, of small_program.hlo and of texts of a few lines whose times are known."""

from pathlib import Path

import pytest

from audioldm2_jax.planning import hlo, timeline, topology

SMALL = Path(__file__).with_name("small_program.hlo").read_text(encoding="utf-8")
CHIP = topology.CHIPS["v5e"]
FOUR = topology.parse("v5e:2x2")


def run(*lines: str, other: str = "", where: topology.Topology = FOUR) -> timeline.Timeline:
    body = "\n".join(f"  {line}" for line in lines)
    return timeline.run(hlo.parse(f"{other}\nENTRY %main (a: f32[]) -> f32[] {{\n{body}\n}}\n"), where)


def work(name: str, cycles: int) -> str:
    return (
        f'%{name} = f32[8]{{0}} fusion(%a), kind=kLoop, calls=%f, metadata={{op_name="jit(step)/Net/mul"}}, '
        f'backend_config={{"estimated_cycles":"{cycles}"}}'
    )


def test_cycles_are_added_by_module():
    made = run(work("x", 1500), work("y", 3000))
    assert made.seconds == pytest.approx(3e-6) and made.modules == {(("Net",), "forward"): pytest.approx(3e-6)}


def test_a_collective_that_computation_hides_costs_nothing():
    bytes_ = 45_000_000  # on one link of 45 GB/s a millisecond
    array = f"f32[{bytes_ // 4}]{{0}}"
    start = f"%s = ({array}, {array}) collective-permute-start(%a), source_target_pairs={{{{0,1}},{{1,0}}}}"
    done = f"%d = f32[{bytes_ // 4}]{{0}} collective-permute-done(%s)"
    hidden = run(start, work("x", 3_000_000), done)  # two milliseconds
    assert hidden.seconds == pytest.approx(2e-3)
    (tally,) = hidden.collectives.values()
    assert tally.seconds == pytest.approx(1e-3, rel=0.01) and tally.exposed == 0
    waited = run(start, work("x", 750_000), done)  # half a millisecond
    assert waited.seconds == pytest.approx(1e-3, rel=0.01)
    alone = run(start, done, work("x", 750_000))
    assert alone.seconds == pytest.approx(1.5e-3, rel=0.01)
    assert alone.collectives["collective-permute", "ICI"].exposed == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize(
    ("start", "wanted"),
    [
        ("(f32[256]{0}, f32[1024]{0}, u32[]) copy-start(%a)", 4096),
        ("((f32[1024]{0}), f32[256]{0}, s32[]) slice-start(%a), slice={[0:256]}", 1024),
        ("((f32[1024]{0}, s32[]), f32[256]{0}, s32[]) dynamic-slice-start(%a, %i)", 1024),
        ("((f32[1024]{0}, f32[256]{0}, s32[]), f32[1024]{0}, s32[]) dynamic-update-slice-start(%a, %x, %i)", 1024),
    ],
)
def test_of_a_part_only_its_bytes_are_copied(start, wanted):
    kind = start.split(") ")[-1].split("-start")[0]
    made = run(f"%s = {start}", f"%d = f32[256]{{0}} {kind}-done(%s)")
    assert made.copies.bytes == wanted and made.copies.count == 1


def test_two_collectives_share_their_links():
    array = "f32[11250000]{0}"
    lines = [
        f"%{name} = ({array}, {array}) collective-permute-start(%a), source_target_pairs={{{{0,1}}}}"
        for name in ("s", "t")
    ]
    lines += [f"%d{name} = f32[11250000]{{0}} collective-permute-done(%{name})" for name in ("s", "t")]
    assert run(*lines).seconds == pytest.approx(2e-3, rel=0.01)


def test_rings():
    array = "f32[25000000]{0}"  # 100 MB
    seconds = {
        kind: run(f"%x = {array} {kind}(%a), replica_groups={{{{0,1,2,3}}}}").seconds
        for kind in ("all-gather", "all-reduce")
    }
    assert seconds["all-gather"] == pytest.approx(0.75 * 1e8 / 90e9, rel=0.01)
    assert seconds["all-reduce"] == pytest.approx(2 * seconds["all-gather"])


def test_what_leaves_a_slice_takes_the_slower_link():
    two = topology.parse("v5e:2x2", 2)
    line = "%x = f32[25000000]{0} all-reduce(%a), replica_groups=[1,8]<=[8]"
    made = run(line, where=two)
    # Within each slice as a ring of four, then a quarter of it from each chip to the other slice and back.
    expected = 2 * 0.75 * 1e8 / 90e9 + 2 * 0.5 * 25e6 / 3.125e9
    assert made.seconds == pytest.approx(expected, rel=0.02) and [*made.collectives] == [("all-reduce", "DCN")]
    within = run("%x = f32[25000000]{0} all-reduce(%a), replica_groups=[2,4]<=[8]", where=two)
    assert [*within.collectives] == [("all-reduce", "ICI")]


def test_custom_kernels_run_at_a_share_of_the_peak():
    kernel = (
        '%k = f32[1024]{0} custom-call(%a), custom_call_target="tpu_custom_call", '
        'backend_config={"cost_estimate":{"flops":"%d","bytes_accessed":"%d"}}'
    )
    by_arithmetic = run(kernel.replace("%d", "197000000000", 1).replace("%d", "8", 1))
    assert by_arithmetic.seconds == pytest.approx(1e-3 / 0.6)
    by_bytes = run(kernel.replace("%d", "8", 1).replace("%d", "819000000", 1))
    assert by_bytes.seconds == pytest.approx(1e-3 / 0.6) and not by_bytes.notes
    silent = run('%k = f32[1024]{0} custom-call(%a), custom_call_target="mine"')
    assert silent.kernels["mine"].bytes == 4096 and silent.seconds > 0
    assert any("mine does not say its arithmetic" in note for note in silent.notes)


def test_what_has_no_estimate_counts_by_its_bytes():
    made = run("%a = f32[819000000]{0} parameter(0)", "%r = f32[819000000]{0} reshape(%a)")
    assert made.others["reshape"].count == 1 and made.seconds == pytest.approx(8e-3)


def test_loops_and_branches():
    parts = "\n".join(
        f"%{name} (p: f32[]) -> f32[] {{\n  {work('w', cycles)}\n}}"
        for name, cycles in (("once", 1500), ("long", 6000))
    )
    loop = '%w = f32[] while(%a), condition=%c, body=%once, backend_config={"known_trip_count":{"n":"7"}}'
    assert run(loop, other=parts).seconds == pytest.approx(7e-6)
    unknown = run(loop.split(", backend")[0], other=parts)
    assert unknown.seconds == pytest.approx(1e-6) and "loops of unknown length" in str(unknown.notes)
    branches = run("%b = f32[] conditional(%a, %a), branch_computations={%once, %long}", other=parts)
    assert branches.seconds == pytest.approx(4e-6) and "branches" in str(branches.notes)


def test_the_compilers_own_program():
    made = timeline.run(hlo.parse(SMALL), FOUR)
    counts = {kind: tally.count for (kind, link), tally in made.collectives.items() if link == "ICI"}
    # Two weights are gathered, their gradients scattered, and what is left summed over the axis `data`.
    assert counts == {"all-gather": 2, "reduce-scatter": 2, "all-reduce": 1}
    weights = 1024 * 1024
    assert made.collectives["all-gather", "ICI"].bytes == 2 * weights * 2  # bfloat16
    assert made.collectives["reduce-scatter", "ICI"].bytes == 2 * weights * 4
    gathered = made.collectives["all-gather", "ICI"]
    assert 0 < gathered.exposed < gathered.seconds  # of two, one is hidden in part
    assert made.kernels["tpu_custom_call"].flops == 123_456_789
    times = {("/".join(path), phase) for path, phase in made.modules}
    assert {("Net/block_0/proj", "forward"), ("Net/block_1/proj", "backward"), ("optimizer", "forward")} <= times
    accounted = sum(made.modules.values()) + made.copies.exposed
    for tallies in (made.collectives, made.kernels, made.others):
        accounted += sum(tally.exposed for tally in tallies.values())
    assert accounted == pytest.approx(made.seconds)
