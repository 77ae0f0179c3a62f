"""What figures of the compiler mean, and how a plan reads."""

from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from audioldm2_jax.planning import estimate, hlo, report, timeline, topology
from audioldm2_jax.planning.abstract_step import AbstractStep

SMALL = Path(__file__).with_name("small_program.hlo").read_text(encoding="utf-8")
FOUR = topology.parse("v5e:2x2")
GB = 10**9


def step(params: int, frozen: int, samples: int) -> AbstractStep:
    """A step whose state has twice as many further numbers; weights shared out over fsdp 2, float32."""
    mesh = AbstractMesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def array(size: int, *spec: object) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size,), "float32", sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    weights = array(params, "fsdp")
    state = {"params": {"unet": weights}, "opt": {"m": weights}, "ema": {"unet": weights}, "model_state": {}}
    batch = {"waveform": array(samples, ("data", "fsdp"))}
    return AbstractStep(None, state, {"vae": array(frozen)}, batch, mesh, False, None)


def setting(**changes: object) -> estimate.Setting:
    usual = {
        "config": "music:base",
        "stage": "diffusion",
        "variant": "8",
        "variants": 4,
        "cached": False,
        "mesh": {"data": 2, "fsdp": 2},
        "batch_size": 16,
        "steps": 86_400,
        "accumulate": 1,
        "remat": False,
        "price": 2.0,
    }
    return estimate.Setting(**usual | changes)


def fitting(temporaries: float) -> dict:
    """Figures of a step of which the compiler made small_program.hlo."""
    line = timeline.run(hlo.parse(SMALL), FOUR).to_dict()
    memory = {"arguments": 7 * GB, "outputs": 6 * GB, "aliased": 6 * GB, "temporaries": temporaries, "code": 0}
    return {"fits": True, "flops": 2e9, "bytes": 3e9, "memory": memory, "timeline": line, "compile_seconds": 1.0}


FLOPS = 6e9  # of a step, on all chips
STEP = step(params=GB, frozen=GB // 8, samples=4 * GB // 1000)  # a chip: 3 × 2 GB, 0.5 GB, 4 MB


def test_memory_by_kind():
    plan = estimate.estimate(setting(), FOUR, fitting(4e9), STEP, FLOPS)
    kinds = plan["memory"]["kinds"]
    assert kinds["parameters"] == kinds["optimizer"] == kinds["average"] == 2 * GB
    assert kinds["frozen networks"] == GB // 2 and kinds["batch"] == 4_000_000
    assert kinds["padding of these"] == 7 * GB - 6_504_000_000
    assert plan["memory"]["total"] == pytest.approx(11e9)
    # 16.9 GB hold 7 GB that stay and 2.5 times the 4 GB of four clips.
    assert plan["advice"]["batch_size"] == 4 * int((15.75 * 2**30 - 6.996e9) / 1.001e9)
    assert "smallest" not in plan["advice"]  # one chip cannot share weights out over two


def test_time_days_and_cost():
    plan = estimate.estimate(setting(), FOUR, fitting(4e9), STEP, FLOPS)
    seconds = plan["seconds"]
    assert plan["mfu"] == pytest.approx(FLOPS / 4 / seconds / 197e12)
    assert plan["examples_per_second"] == pytest.approx(16 / seconds)
    assert plan["days"] == pytest.approx(seconds) and plan["chip_hours"] == pytest.approx(96 * seconds)
    assert plan["cost"] == pytest.approx(192 * seconds)
    assert plan["roofline"]["arithmetic"] == pytest.approx(2e9 / 197e12)
    assert plan["roofline"]["memory"] == pytest.approx(3e9 / 819e9)


def test_a_smaller_slice_that_would_do():
    wide = topology.parse("v5e:4x4")
    plan = estimate.estimate(setting(), wide, fitting(0.1e9), STEP, FLOPS)
    assert plan["advice"]["smallest"] == "v5e:2x2"


def test_what_does_not_fit_says_by_how_much_and_what_to_do():
    figures = {"fits": False, "needed": 22e9, "compile_seconds": 1.0}
    plan = estimate.estimate(setting(), FOUR, figures, STEP, FLOPS)
    lines = "\n".join(report.lines(plan))
    assert "DOES NOT FIT by 5.09 GB" in lines and "MFU" not in lines
    # 6.5 GB stay; the others are of four clips a chip, 3.9 GB each.
    assert "--config.train.diffusion.batch_size=8" in lines
    assert "--config.remat=True" in lines and "accumulate=2" in lines
    assert "fsdp" not in plan["advice"]  # with all four chips 3 GB less are needed, and that is too few
    less = estimate.estimate(setting(), FOUR, figures | {"needed": 19e9}, STEP, FLOPS)
    assert less["advice"]["fsdp"] == 4


def test_no_batch_fits_where_the_state_does_not():
    plan = estimate.estimate(
        setting(), FOUR, {"fits": False, "needed": 60e9, "compile_seconds": 1.0}, step(9 * GB, 1, 4000), FLOPS
    )
    assert "batch_size" not in plan["advice"]


def test_the_report_names_what_is_not_estimated():
    plan = estimate.estimate(setting(), FOUR, fitting(4e9), STEP, FLOPS)
    lines = "\n".join(report.lines(plan))
    for said in (
        "reduce-scatter",
        "ICI",
        "custom kernel tpu_custom_call",
        "at 60% of the peak",
        "optimizer",
        "variant 8 of 4",
    ):
        assert said in lines
    assert "parameters trained: 1,000,000,000 (unet 1,000,000,000)" in lines and "USD at 2 a chip hour" in lines


def test_modules_below_a_block_are_one_by_kind():
    modules = [
        ["UNet/up_blocks_0/attentions_0/norm", "forward", 1.0],
        ["UNet/up_blocks_0/attentions_1", "backward", 2.0],
    ]
    assert report.grouped(modules) == {"UNet/up_blocks_0/attentions": {"forward": 1.0, "backward": 2.0}}


def test_picture():
    plan = estimate.estimate(setting(), FOUR, fitting(4e9), STEP, FLOPS)
    assert report.picture(plan).startswith(b"\x89PNG")
