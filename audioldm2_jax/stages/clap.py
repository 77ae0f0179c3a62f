"""CLAP: a caption and its clip close together in one space, other pairs of the batch far apart."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from audioldm2_jax.audio.front_ends import front_ends
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.models.clap import Clap
from audioldm2_jax.rngs import Rngs, dropout_arguments
from audioldm2_jax.stages.base import Objective, Stage, module_fields

# exp of it multiplies the cosine. LAION-CLAP clips the parameter so after each step (training/train.py); a bound in the
# loss would have no gradient above it.
MAX_LOGIT_SCALE = math.log(100)
SCALES = ("logit_scale_a", "logit_scale_t")


class ClapStage(Stage):
    """Symmetric contrastive loss over the whole batch [arXiv 2211.06687; LAION-AI/CLAP clap_module/loss.py]."""

    name = "clap"
    reads = ("audio.clap",)
    batch_fields = ("waveform", "clap_ids", "clap_mask", "captioned")

    @classmethod
    def makes(cls, config):
        return ("text_encoder",)

    def setup(self):
        self.ends = front_ends(self.config)
        self.module = Clap(**module_fields(self.config, "clap"))

    def init(self, key):
        ids = jnp.zeros((1, self.config.text.clap_length), jnp.int32)
        mel = jnp.zeros((1, self.ends.clap.frames, self.ends.clap.n_mels))
        variables = self.module.init(key, ids, jnp.ones_like(ids), mel)
        return {"clap": variables["params"]}, {"clap": {"batch_stats": variables["batch_stats"]}}

    def initial(self):
        return self.given("clap", "text_encoder")

    def constrain(self, params):
        clipped = {name: jnp.clip(params["clap"][name], 0.0, MAX_LOGIT_SCALE) for name in SCALES}
        return {**params, "clap": {**params["clap"], **clipped}}

    def indivisible(self):
        return "the loss compares the examples of a batch with each other"

    def objectives(self, variant):
        return (Objective("contrast", ("clap",), self._loss),)

    def _loss(self, params, outputs, state, frozen, batch, rngs: Rngs):
        variables = {"params": params["clap"], **state["clap"]}
        (text, audio), updated = self.module.apply(
            variables,
            batch["clap_ids"],
            batch["clap_mask"],
            self.ends.clap_mel(batch["waveform"]),
            use_running_average=not rngs.training,
            mutable=["batch_stats"],
            **dropout_arguments(rngs.step("dropout")),
        )
        scales = [params["clap"][name] for name in SCALES]
        loss, accuracy = contrast(audio, text, *scales, batch["captioned"])
        return loss, ({"accuracy": accuracy}, {**state, "clap": updated})

    def results(self, params, state, frozen, batch):
        variables = {"params": params["clap"], **state["clap"]}
        return {"text_encoder": Component(self.module, variables, self.config.models.clap.to_dict(), {})}


def contrast(
    audio: jax.Array, text: jax.Array, scale_audio: jax.Array, scale_text: jax.Array, captioned: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the symmetric cross-entropy of matching clips and captions, and how often a clip finds its caption.

    Args:
        audio, text: [batch, dim], of length one.
        scale_audio, scale_text: logarithms of the inverse temperatures of the two directions.
        captioned: [batch] bool; clips without a caption take no part.
    """
    cosine = audio.astype(jnp.float32) @ text.astype(jnp.float32).T
    absent = jnp.where(captioned, 0.0, -1e9)
    labels = jnp.arange(audio.shape[0])
    by_audio = cosine * jnp.exp(scale_audio) + absent[None, :]
    by_text = cosine.T * jnp.exp(scale_text) + absent[None, :]
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    weight = captioned / jnp.maximum(captioned.sum(), 1)
    loss = (weight * (cross_entropy(by_audio, labels) + cross_entropy(by_text, labels))).sum() / 2
    return loss, (weight * (by_audio.argmax(-1) == labels)).sum()
