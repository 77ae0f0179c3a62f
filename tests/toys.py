"""Stages of a few numbers: what the loop does, without networks to compile."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from smallest import Said, get_config

from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages.base import Objective, Stage
from audioldm2_jax.training import loop

WIDTH = 6


class Line(Stage):
    """Regression with noise from the keys of the examples; `traced` counts how often each variant was traced."""

    name = "audiomae"

    @classmethod
    def makes(cls, config):
        return ()

    def setup(self):
        self.traced: list = []

    def init(self, key):
        return {"line": {"kernel": jax.random.normal(key, (WIDTH, WIDTH)), "bias": jnp.zeros(WIDTH)}}, {}

    def objectives(self, variant):
        return (Objective("fit", ("line",), lambda *given: self._loss(variant, *given)),)

    def _loss(self, variant, params, outputs, state, frozen, batch, rngs):
        self.traced.append(variant)
        noise = rngs.normal("noise", (WIDTH,))
        made = batch["waveform"] @ params["line"]["kernel"] + params["line"]["bias"]
        return jnp.mean((made - noise) ** 2), ({}, state)


class Alternating(Line):
    """Two kinds of steps."""

    def variant(self, step):
        return ("even", "odd")[step % 2]


class Duel(Stage):
    """A generator and a critic over one forward pass, and model state that counts the critic's updates."""

    name = "vocoder"
    forward_groups = ("generator",)

    @classmethod
    def makes(cls, config):
        return ()

    def setup(self):
        self.forwards = 0

    def init(self, key):
        first, second = jax.random.split(key)
        return {
            "generator": {"kernel": jax.random.normal(first, (WIDTH, WIDTH))},
            "critic": {"kernel": jax.random.normal(second, (WIDTH, WIDTH)), "bias": jnp.zeros(WIDTH)},
        }, {"critic": {"updates": jnp.zeros(())}}

    def forward(self, params, state, frozen, batch, rngs, variant):
        self.forwards += 1
        noise = rngs.normal("noise", (WIDTH,))
        return jnp.tanh((batch["waveform"] + noise) @ params["generator"]["kernel"])

    def objectives(self, variant):
        return (Objective("critic", ("critic",), self.critic), Objective("generator", ("generator",), self.generator))

    def discriminator(self, params, made):
        return jnp.tanh(made @ params["critic"]["kernel"] + params["critic"]["bias"])

    def critic(self, params, outputs, state, frozen, batch, rngs):
        fake = jax.lax.stop_gradient(outputs)
        loss = jnp.mean((self.discriminator(params, batch["waveform"]) - 1) ** 2) + jnp.mean(
            self.discriminator(params, fake) ** 2
        )
        return loss, ({"fake": fake.mean()}, {**state, "critic": {"updates": state["critic"]["updates"] + 1}})

    def generator(self, params, outputs, state, frozen, batch, rngs):
        # The generator's own parameters appear beside what flows through the outputs: both have to count.
        penalty = jnp.mean(params["generator"]["kernel"] ** 2)
        return jnp.mean((self.discriminator(params, outputs) - 1) ** 2) + penalty, ({}, state)


def config(**hparams: object) -> ConfigDict:
    """The smallest recipe with `hparams` on both toys."""
    config = get_config()
    for stage in (Line, Duel):
        config.train[stage.name].update({"batch_size": 8, **hparams})
    return config


def rows(step: int, size: int = 8) -> np.ndarray:
    """The examples of a step."""
    return np.random.default_rng(step).standard_normal((size, WIDTH), np.float32)


def data(step: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches from a step on."""
    while True:
        yield {"waveform": rows(step)}
        step += 1


def mesh(stage: Stage) -> Mesh:
    """That of its config."""
    return sharding.make_mesh(stage.config.mesh)


def train(stage: Stage, folder: Path, stop_after: int | None = None, batches=data, **more) -> tuple:
    """Trains; returns (what the loop returned or raised, what it said)."""
    said, asked = Said(), []

    def should_stop() -> bool:
        asked.append(None)
        return len(asked) == stop_after

    try:
        return loop.train(stage, mesh(stage), batches, folder, said, should_stop, **more), said
    except loop.Stopped as stop:
        return stop, said
