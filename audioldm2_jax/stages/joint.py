"""Joint fine-tuning: the UNet learns to live with the LOA that GPT-2 writes, and GPT-2 what the UNet needs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from audioldm2_jax.audio.front_ends import front_ends
from audioldm2_jax.conditioning.conditions import Conditions, drop_captions
from audioldm2_jax.conditioning.loa import encode_prompt, generate_loa, teacher_forced_loa
from audioldm2_jax.diffusion.objective import denoising_loss, encode
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.models.network import Network
from audioldm2_jax.models.unet import UNet
from audioldm2_jax.rngs import Rngs
from audioldm2_jax.stages.base import Objective, Stage, module_fields
from audioldm2_jax.stages.diffusion import TEXT, init_unet, sample_mels, unet_component
from audioldm2_jax.stages.language_model import (
    GROUPS,
    caption_weight,
    init_language,
    language_components,
    language_groups,
    language_modules,
    language_networks,
    loa_distance,
    true_loa,
)


class JointStage(Stage):
    """One loss over both halves [arXiv 2308.05734, section 4.3; TF latent_diffusion/ddpm.py].

    The UNet sees the true LOA of a share of the examples and the generated LOA of the others, whose gradient reaches
    GPT-2; GPT-2 goes on regressing the true LOA. A dropped caption is the empty caption for T5, CLAP and so GPT-2,
    as in diffusers; with `unconditional=zeros` the UNet then sees zeros for the LOA, as in the authors' code.
    """

    name = "joint"
    reads = (
        "audio.mel",
        "audio.fbank",
        "loa.pooling",
        "scheduler",
        "models.audiomae",
        "models.clap.projection_dim",
        "models.t5",
    )
    batch_fields = ("waveform", *TEXT, "captioned")

    @classmethod
    def needs(cls, config):
        trains_t5 = config.train.joint.train_t5
        return ("audiomae", "text_encoder", "vae") + (() if trains_t5 else ("text_encoder_2",))

    @classmethod
    def continues(cls, config):
        return cls.makes(config)

    @classmethod
    def makes(cls, config):
        return ("unet", *(GROUPS[group] for group in language_groups(config, cls.name)))

    def setup(self):
        if self.hparams.unconditional not in ("language_model", "zeros"):
            raise ValueError(
                f"train.joint.unconditional={self.hparams.unconditional!r}: choose language_model or zeros"
            )
        self.ends = front_ends(self.config)
        self.modules = language_modules(self.config)
        self.groups = language_groups(self.config, self.name)
        self.unet = UNet(**module_fields(self.config, "unet"), remat=self.config.remat)
        self.schedule = NoiseSchedule.from_config(self.config.scheduler.to_dict())
        self.scale = self.components["vae"].config["scaling_factor"]

    def init(self, key):
        first, second = jax.random.split(key)
        language = init_language(self.config, self.modules, self.groups, first)
        return {"unet": init_unet(self.unet, second), **language}, {}

    def initial(self):
        groups = {"unet": "unet"} | {group: GROUPS[group] for group in self.groups}
        return {name: tree for group, part in groups.items() for name, tree in self.given(group, part).items()}

    def weigh(self, batch):
        return {**batch, "caption_weight": caption_weight(batch["captioned"])}

    def objectives(self, variant):
        return (Objective("joint", ("unet", *self.groups), self._loss),)

    def _loss(self, params, outputs, state, frozen, batch, rngs: Rngs):
        uniform = rngs.uniform("guidance dropout")
        text, dropped = drop_captions(batch, uniform, self.hparams.guidance_dropout, self.empty_text)
        networks = language_networks(self, params, frozen)
        prefix, states, mask = encode_prompt(
            self.network("text_encoder", frozen),
            networks["t5"],
            networks["projection"],
            text,
            dropout_key=self.dropout("t5", "t5 dropout", params, rngs),
        )
        loa = true_loa(self, frozen, batch)
        dropout = [self.dropout("gpt2", name, params, rngs) for name in ("generation dropout", "gpt2 dropout")]
        made = generate_loa(networks["gpt2"], prefix, loa.shape[1], dropout_key=dropout[0])
        predicted = teacher_forced_loa(networks["gpt2"], prefix, loa, dropout_key=dropout[1])
        language = loa_distance(predicted, loa, self.hparams.loss, batch["caption_weight"])

        # A clip without a caption has nothing to generate from; a dropped one must not see the clip's own LOA.
        true = rngs.uniform("true loa") < self.hparams.true_loa_share
        true = (true | ~batch["captioned"]) & ~dropped
        seen = jnp.where(true[:, None, None], loa, made)
        if self.hparams.unconditional == "zeros":
            seen = jnp.where(dropped[:, None, None], 0.0, seen)
        latents = encode(self.network("vae", frozen), self.ends.log_mel(batch["waveform"]), self.scale, rngs)
        unet = Network(self.unet, {"params": params["unet"]})
        given = Conditions(seen, states, mask)
        denoising = denoising_loss(unet, self.schedule, latents, given, rngs, self.hparams)
        loss = denoising + self.hparams.language_weight * language
        return loss, ({"denoising": denoising, "loa": language}, state)

    def sample(self, params, state, frozen, batch, key):
        networks = language_networks(self, params, frozen)
        nothing, everything = jnp.ones(batch["waveform"].shape[0]), jnp.zeros(batch["waveform"].shape[0])

        def conditions(uniform):
            text, _ = drop_captions(batch, uniform, 0.5, self.empty_text)
            prefix, states, mask = encode_prompt(
                self.network("text_encoder", frozen), networks["t5"], networks["projection"], text
            )
            tokens = jax.eval_shape(lambda: true_loa(self, frozen, batch)).shape[1]
            return Conditions(generate_loa(networks["gpt2"], prefix, tokens), states, mask)

        given, uncond = conditions(nothing), conditions(everything)
        if self.hparams.unconditional == "zeros":
            uncond = uncond._replace(loa=jnp.zeros_like(uncond.loa))
        return sample_mels(self, Network(self.unet, {"params": params["unet"]}), frozen, batch, given, uncond, key)

    def results(self, params, state, frozen, batch):
        unet = unet_component(self.config, self.unet, params["unet"], self.components["vae"])
        return {"unet": unet, **language_components(self, params)}
