"""The language model: GPT-2 learns to write the language of audio of a clip from its caption."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from audioldm2_jax.audio.front_ends import front_ends
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.conditioning.conditions import drop_captions
from audioldm2_jax.conditioning.loa import audiomae_loa, encode_prompt, teacher_forced_loa
from audioldm2_jax.models.gpt2 import GPT2
from audioldm2_jax.models.network import Network
from audioldm2_jax.models.projection import ProjectionModel
from audioldm2_jax.models.t5 import T5Encoder
from audioldm2_jax.rngs import Rngs
from audioldm2_jax.stages.base import Objective, Stage, module_fields
from audioldm2_jax.stages.diffusion import TEXT

# Group of the stage → component of the model folder.
GROUPS = {"gpt2": "language_model", "projection": "projection_model", "t5": "text_encoder_2"}


class LanguageModelStage(Stage):
    """Regression of the true LOA, token after token, teacher-forced [arXiv 2308.05734, section 3.2].

    Where T5 does not come pretrained (`train_t5`) it is trained along.
    """

    name = "language_model"
    reads = ("audio.fbank", "loa.pooling", "models.audiomae", "models.clap.projection_dim", "models.t5")
    batch_fields = ("waveform", *TEXT, "captioned")

    @classmethod
    def needs(cls, config):
        return ("audiomae", "text_encoder") + (() if config.train[cls.name].train_t5 else ("text_encoder_2",))

    @classmethod
    def makes(cls, config):
        return tuple(GROUPS[group] for group in language_groups(config, cls.name))

    def setup(self):
        self.ends = front_ends(self.config)
        self.modules = language_modules(self.config)
        self.groups = language_groups(self.config, self.name)

    def init(self, key):
        return init_language(self.config, self.modules, self.groups, key), {}

    def initial(self):
        return {name: tree for group in self.groups for name, tree in self.given(group, GROUPS[group]).items()}

    def weigh(self, batch):
        return {**batch, "caption_weight": caption_weight(batch["captioned"])}

    def objectives(self, variant):
        return (Objective("loa", self.groups, self._loss),)

    def _loss(self, params, outputs, state, frozen, batch, rngs: Rngs):
        text, _ = drop_captions(batch, rngs.uniform("guidance dropout"), self.hparams.guidance_dropout, self.empty_text)
        networks = language_networks(self, params, frozen)
        prefix, _, _ = encode_prompt(
            self.network("text_encoder", frozen),
            networks["t5"],
            networks["projection"],
            text,
            dropout_key=self.dropout("t5", "t5 dropout", params, rngs),
        )
        loa = true_loa(self, frozen, batch)
        made = teacher_forced_loa(
            networks["gpt2"], prefix, loa, dropout_key=self.dropout("gpt2", "gpt2 dropout", params, rngs)
        )
        return loa_distance(made, loa, self.hparams.loss, batch["caption_weight"]), ({}, state)

    def results(self, params, state, frozen, batch):
        return language_components(self, params)


def language_groups(config, stage: str) -> tuple[str, ...]:
    """Returns the groups that the language model's half of stage `stage` trains."""
    return ("gpt2", "projection") + (("t5",) if config.train[stage].train_t5 else ())


def language_modules(config) -> dict:
    """Returns the modules of the language model's half, by group."""
    dtype = jnp.dtype(config.dtype)
    projection = ProjectionModel(
        text_encoder_dim=config.models.clap.projection_dim,
        text_encoder_1_dim=config.models.t5.d_model,
        langauge_model_dim=config.models.gpt2.n_embd,
        dtype=dtype,
    )
    gpt2, t5 = GPT2(**module_fields(config, "gpt2")), T5Encoder(**module_fields(config, "t5"))
    return {"gpt2": gpt2, "projection": projection, "t5": t5}


def init_language(config, modules: dict, groups: tuple[str, ...], key: jax.Array) -> dict:
    """Returns new parameters of `groups`."""
    models, one = config.models, jnp.ones((1, 1), jnp.int32)
    clap, text = jnp.zeros((1, 1, models.clap.projection_dim)), jnp.zeros((1, 1, models.t5.d_model))
    arguments = {
        "gpt2": (jnp.zeros((1, 1, models.gpt2.n_embd)), one, jnp.zeros((1, 1), jnp.int32)),
        "projection": (clap, text, one, one),
        "t5": (jnp.zeros((1, 1), jnp.int32), one),
    }
    keys = dict(zip(arguments, jax.random.split(key, len(arguments))))
    return {group: modules[group].init(keys[group], *arguments[group])["params"] for group in groups}


def language_networks(stage: Stage, params, frozen) -> dict[str, Network]:
    """Returns the language model's networks by group, those that are not trained from the frozen ones."""
    return {
        group: Network(module, {"params": params[group]}) if group in params else stage.network(GROUPS[group], frozen)
        for group, module in stage.modules.items()
    }


def true_loa(stage: Stage, frozen, batch) -> jax.Array:
    """Returns the LOA of the batch's own clips, at the recipe's pooling."""
    fbank = stage.ends.kaldi_fbank(batch["waveform"])
    return audiomae_loa(stage.network("audiomae", frozen), fbank, stage.config.loa.pooling)


def caption_weight(captioned: jax.Array) -> jax.Array:
    """Returns weights [batch] whose mean product with a loss is that loss's mean over the captioned examples.

    Where none has a caption they are all 0.
    """
    return captioned * (captioned.shape[0] / jnp.maximum(captioned.sum(), 1))


def loa_distance(made: jax.Array, loa: jax.Array, kind: str, weight: jax.Array) -> jax.Array:
    """Returns the distance of LOAs [batch, tokens, dim], a mean over elements and over examples by their weights.

    mse is the mean squared error [arXiv 2308.05734, eq. 5]. l1 is the mean absolute error, once: TF's training_step
    (modules/audiomae/sequence_gen/sequence_input.py) adds to it the error of a few generated tokens with
    `use_ar_gen_loss`, and without it, as in its configs, the same error again. In the joint stage
    `language_weight=2.0` is that sum; alone, AdamW makes nothing of the factor.

    Raises:
        ValueError: `kind` is neither.
    """
    if kind not in ("mse", "l1"):
        raise ValueError(f"loss={kind!r} of the language model: choose mse or l1")
    difference = made.astype(jnp.float32) - loa
    distance = (jnp.square(difference) if kind == "mse" else jnp.abs(difference)).mean((1, 2))
    return (distance * weight).mean()


def language_components(stage: Stage, params) -> dict[str, Component]:
    """Returns the trained networks as components of the model folder, with what they carried in."""
    models = stage.config.models
    audiomae = models.audiomae
    grid = [extent // audiomae.patch_size for extent in audiomae.img_size]
    pooling = stage.config.loa.pooling
    tokens = (grid[0] // pooling) * (grid[1] // min(pooling, grid[1]))
    projection = stage.modules["projection"]
    configs = {
        "gpt2": models.gpt2.to_dict() | {"max_new_tokens": tokens},
        "projection": {
            name: getattr(projection, name) for name in ("text_encoder_dim", "text_encoder_1_dim", "langauge_model_dim")
        },
        "t5": models.t5.to_dict(),
    }
    carried = {group: stage.components.get(GROUPS[group]) for group in stage.groups}
    return {
        GROUPS[group]: Component(
            stage.modules[group],
            {"params": params[group]},
            configs[group],
            carried[group].unused if carried[group] else {},
        )
        for group in stage.groups
    }
