"""Theirs of train_step.py: the same step of diffusers' UNet in PyTorch."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2UNet2DConditionModel
from flax_step import GPU, SCALING_FACTOR, Ours
from ml_collections import ConfigDict

from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.recipe_components import latent_frames, recipe_fields, recipe_spec
from audioldm2_jax.stages.diffusion import no_text

DEVICE = "cuda" if GPU else "cpu"


class Theirs:
    """The same step of diffusers' UNet in PyTorch."""

    def __init__(self, config: ConfigDict, ours: Ours, compiled: bool):
        self.hparams = ours.stage.hparams
        if GPU and not torch.cuda.is_available():
            raise RuntimeError("JAX has a GPU and torch has none: install torch with CUDA")
        spec, fields = recipe_spec(config, "unet"), recipe_fields(config, "unet")
        fields |= spec.required | spec.to_config(fields, {})
        fields["sample_size"] = latent_frames(config, ours.stage.components["vae"].config)
        with torch.device(DEVICE):
            self.unet = AudioLDM2UNet2DConditionModel.from_config(fields).train()
        self.forward = torch.compile(self.unet, dynamic=False) if compiled else self.unet
        self.params = list(self.unet.parameters())
        self.average = [p.detach().clone() for p in self.params]
        matrices = [p for p in self.params if p.ndim > 1]
        groups = [{"params": matrices, "weight_decay": self.hparams.weight_decay}]
        groups += [{"params": [p for p in self.params if p.ndim <= 1], "weight_decay": 0.0}]
        betas = (self.hparams.b1, self.hparams.b2)
        self.optimizer = torch.optim.AdamW(groups, lr=self.hparams.learning_rate, betas=betas, fused=GPU or None)
        schedule = NoiseSchedule.from_config(config.scheduler.to_dict())
        self.kept = self._tensor(np.asarray(schedule.alphas_cumprod, np.float32))
        batch = {each: self._tensor(np.asarray(leaf)) for each, leaf in ours.batch.items()}
        self.mean, self.logvar = (batch[each].movedim(-1, 1).contiguous() for each in ("latent_mean", "latent_logvar"))
        self.loa = next(leaf for each, leaf in batch.items() if each.startswith("loa_"))
        nothing = [self._tensor(each) for each in no_text(config, len(self.mean))]
        self.text, self.mask = (batch.get(each, none) for each, none in zip(("t5_states", "t5_mask"), nothing))
        self.empty = self._tensor(ours.stage.empty_text.get("t5_states", nothing[0][:1]))
        self.dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(config.dtype)
        self.steps = 0
        if GPU:
            torch.cuda.reset_peak_memory_stats()

    def _tensor(self, array: Any) -> Any:
        array = np.asarray(array)
        return torch.tensor(array.astype(np.float32) if array.dtype.kind == "V" else array, device=DEVICE)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._step()
        if GPU:
            torch.cuda.synchronize()

    def _step(self) -> None:
        hparams, rows = self.hparams, len(self.mean)
        draws, repeat = hparams.noise_draws, partial(torch.repeat_interleave, repeats=hparams.noise_draws, dim=0)
        latents = repeat((self.mean + torch.exp(0.5 * self.logvar) * torch.randn_like(self.mean)) * SCALING_FACTOR)
        timesteps = torch.randint(0, len(self.kept), (rows * draws,), device=DEVICE)
        noise, kept = torch.randn_like(latents), self.kept[timesteps][:, None, None, None]
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        dropped = (torch.rand(rows, device=DEVICE) < hparams.guidance_dropout)[:, None, None]
        given = {
            "encoder_hidden_states": repeat(torch.where(dropped, 0.0, self.loa)),
            "encoder_hidden_states_1": repeat(torch.where(dropped, self.empty, self.text)),
            "encoder_attention_mask_1": repeat(self.mask),
        }
        with torch.autocast(DEVICE, self.dtype, enabled=self.dtype is not None):
            output = self.forward(noisy, timesteps, return_dict=False, **given)[0]
        torch.nn.functional.mse_loss(output.float(), noise).backward()
        if hparams.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.params, hparams.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        decay = min(hparams.ema, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.params, 1 - decay)

    def close(self) -> None:
        """Gives its memory back, also what torch.compile still holds on to."""
        self.__dict__.clear()
        torch.compiler.reset()
        gc.collect()
        if GPU:
            torch.cuda.empty_cache()

    def memory(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 1e9 if GPU else None
