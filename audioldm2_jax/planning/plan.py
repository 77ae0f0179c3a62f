"""Plans the training of a stage on chips that are not here (`audioldm2-jax plan`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from audioldm2_jax import recipe_check, recipe_resolve
from audioldm2_jax.planning import abstract_step, compiling, estimate, topology
from audioldm2_jax.runtime import sharding, start
from audioldm2_jax.stages import STAGES, Stage
from audioldm2_jax.training import fine_tuning, flops, mesh_choice


class PlanError(ValueError):
    """What was asked for cannot be planned."""


class Request(NamedTuple):
    """What to plan: see the flags of commands/plan.py."""

    config: ConfigDict
    name: str
    stage: str
    topology: str
    slices: int = 1
    variant: str = ""
    price: float | None = None


def plan(request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the plan, as JSON has it (`estimate.estimate`). Nothing runs on the chips, and no data is read.

    Call it before JAX has opened its devices: it is told to use the CPU.

    Raises:
        PlanError, TopologyError, RecipeError, CompileError, FolderError: in one line, with what to do.
    """
    stage = request.stage
    if stage not in STAGES:
        raise PlanError(f"--stage={stage}: there is no such stage; choose from {', '.join(STAGES)}")
    slices = topology.parse(request.topology, request.slices)
    config = _resolve(request.config, stage)
    if config.train[stage].steps < 1:
        raise PlanError(f"train.{stage}.steps={config.train[stage].steps}: this recipe does not train the stage")
    jax.config.update("jax_platforms", "cpu")
    devices, hparams = topology.devices(slices), config.train[stage]
    sharding.check_batch(hparams.batch_size, hparams.accumulate, sharding.make_mesh(config.mesh, devices), stage)

    def mesh_of(built: Stage) -> Mesh:
        axes, why = mesh_choice.choose(config.mesh, built, devices, slices.chip.memory)
        if why:
            say(why)
        return sharding.make_mesh(axes, devices)

    built = compiling.with_progress(
        lambda: abstract_step.build(config, stage, mesh_of), f"building the step of {stage}", say
    )
    variant, variants = _variant(built, request.variant)
    traced = compiling.with_progress(lambda: built.trace(variant), "tracing it", say)
    folder = None if config.compilation_cache == "off" else start.compilation_cache_folder(config.compilation_cache)
    figures = compiling.figures(traced.lower(), slices, folder and _writable(folder / "plans", say), say)
    setting = estimate.Setting(
        config=request.name,
        stage=stage,
        variant="" if variant is None else str(variant),
        variants=variants,
        cached=built.cached,
        mesh=dict(built.mesh.shape),
        batch_size=hparams.batch_size,
        steps=hparams.steps,
        accumulate=hparams.accumulate,
        remat=config.remat if "unet" in STAGES[stage].makes(config) else None,
        price=request.price,
    )
    return estimate.estimate(setting, slices, figures, built, flops.count(traced, "tpu"))


def _resolve(config: ConfigDict, stage: str) -> ConfigDict:
    """Returns the recipe as a run would have it."""
    config, _ = recipe_resolve.follow(recipe_resolve.resolve_paths(config))
    config, _ = fine_tuning.resolve(config)
    recipe_check.check(config, [stage])
    return config


def _variant(built: abstract_step.AbstractStep, asked: str) -> tuple[Any, int]:
    """Returns the variant to compile, and how many there are: the one asked for, that of evaluation, or the usual one.

    Raises:
        PlanError: there is none of that name.
    """
    shares = abstract_step.variants(built.stage)
    if asked:
        named = [variant for variant in shares if str(variant) == asked]
        if not named:
            raise PlanError(f"--variant={asked}: {built.stage.name} has {', '.join(map(str, shares))}")
        return named[0], len(shares)
    usual = built.stage.heldout_variant
    return (usual if usual in shares else max(shares, key=lambda variant: shares[variant])), len(shares)


def _writable(folder: Path, say: Callable[[str], None]) -> Path | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    say(f"{folder} cannot be written: the figures are not kept (--config.compilation_cache)")
    return None
