"""CLAP: a caption and its clip close together in one space, other pairs of the batch far apart."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from audioldm2_jax.rngs import Rngs, dropout_arguments
from audioldm2_jax.stages.base import Objective, Stage

# exp of it multiplies the cosine. LAION-CLAP clips the parameter so after each step (training/train.py); a bound in the
# loss would have no gradient above it.
MAX_LOGIT_SCALE = math.log(100)
SCALES = ("logit_scale_a", "logit_scale_t")


class ClapStage(Stage):
    """Symmetric contrastive loss over the whole batch [arXiv 2211.06687; LAION-AI/CLAP clap_module/loss.py]."""

    name = "clap"
    reads = ("audio.clap",)

    @classmethod
    def reads_fields(cls, config):
        return ("waveform", "clap_ids", "clap_mask", "captioned")

    @classmethod
    def learns_from(cls, config):
        return ("captioned",)

    @classmethod
    def makes(cls, config):
        return ("text_encoder",)

    def setup(self):
        self.module = self.modules["text_encoder"]

    def constrain(self, params):
        clipped = {name: jnp.clip(params["text_encoder"][name], 0.0, MAX_LOGIT_SCALE) for name in SCALES}
        return {**params, "text_encoder": {**params["text_encoder"], **clipped}}

    def indivisible(self):
        return "the loss compares the examples of a batch with each other"

    def objectives(self, variant):
        return (Objective("contrast", ("text_encoder",), self._loss),)

    def _loss(self, params, outputs, state, frozen, batch, rngs: Rngs):
        variables = {"params": params["text_encoder"], **state["text_encoder"]}
        (text, audio), updated = self.module.apply(
            variables,
            batch["clap_ids"],
            batch["clap_mask"],
            self.ends.clap_mel(batch["waveform"]),
            use_running_average=not rngs.training,
            mutable=["batch_stats"],
            **dropout_arguments(rngs.step("dropout")),
        )
        scales = [params["text_encoder"][name] for name in SCALES]
        loss, accuracy = contrast(audio, text, *scales, batch["captioned"])
        return loss, ({"accuracy": accuracy}, {**state, "text_encoder": updated})

    def results(self, params, state, frozen, batch):
        return {"text_encoder": self.component("text_encoder", params, state)}


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
