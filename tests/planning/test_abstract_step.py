"""The step that is planned is the one that training runs: the same arguments, in the same places, the same program."""

from types import SimpleNamespace

import jax
import pytest
from smallest import Said, components, get_config

from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.planning import abstract_step, estimate
from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import run, step


class Reached(Exception):
    pass


def described(tree):
    """Shape, dtype and place of every array, by its name."""
    return {
        jax.tree_util.keystr(path): (leaf.shape, leaf.dtype, leaf.sharding.is_fully_replicated)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def mesh_of(stage):
    return sharding.make_mesh(get_config().mesh)


def trained(config, stage, monkeypatch, lowered):
    """The arguments with which training takes its first step and, if it is to be lowered, the text of that step."""
    seen = {}
    compiled = step.compiled

    def watched(*arguments):
        jitted = compiled(*arguments)

        def trace(state, frozen, batch, variant):
            seen["arguments"] = [described(tree) for tree in (state, frozen, batch)]
            if lowered:
                seen["text"] = jitted.lower(state, frozen, batch, variant=variant).as_text()
            seen["variant"] = variant
            raise Reached

        return SimpleNamespace(trace=trace)  # which comes before the first step

    monkeypatch.setattr(step, "compiled", watched)
    run.prepare(config)
    with pytest.raises(Reached):
        run.train_stage(config, stage, Said())
    return seen


@pytest.mark.parametrize("stage, cache", [("clap", False), ("vae", False), ("diffusion", False), ("diffusion", True)])
def test_planned_is_what_is_trained(tmp_path, monkeypatch, stage, cache):
    config = get_config()
    config.run_dir, config.stages = str(tmp_path / "run"), stage
    config.data.cache = str(tmp_path / "cache") if cache else "off"
    config.loa.training_poolings = (2,)
    config.train[stage].update(batch_size=2 * jax.device_count(), optimizer="adamw")
    for name, part in components(STAGES[stage], config).items():
        model_folder.write_component(tmp_path / "from", name, part.config, part.variables)
        config.init_from[name] = str(tmp_path / "from")
    lowered = stage != "diffusion"  # whose text holds the VAE's measured scale and the tokens of the empty caption
    real = trained(config, stage, monkeypatch, lowered)
    monkeypatch.undo()
    planned = abstract_step.build(config, stage, mesh_of)
    assert planned.cached == cache
    assert [described(tree) for tree in (planned.state, planned.frozen, planned.batch)] == real["arguments"]
    if lowered:
        assert planned.trace(real["variant"]).lower().as_text() == real["text"]


def test_variants_are_those_of_the_whole_run():
    config = get_config()
    config.train.vae.update(steps=400_000, discriminator_start=25_000)
    shares = abstract_step.variants(abstract_step.build(config, "vae", mesh_of).stage)
    assert len(shares) == 2 and max(shares.values()) == pytest.approx(375 / 400, abs=0.01)


def test_parameters_and_bytes():
    config = get_config()
    built = abstract_step.build(config, "vae", mesh_of)
    counted = estimate.parameters(built)
    weights = sum(leaf.size for leaf in jax.tree.leaves(built.state["params"]))
    assert sum(counted["trained"].values()) == weights and counted["frozen"] == {}
    sizes = estimate.bytes_of_arguments(built)
    assert sizes["parameters"] == 4 * weights and sizes["optimizer"] >= 4 * weights  # Muon has one moment
    assert sizes["batch"] == config.train.vae.batch_size // jax.device_count() * (10240 * 4 + 4)
