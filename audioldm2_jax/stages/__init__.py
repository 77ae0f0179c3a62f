"""The training stages, in the order in which they build on each other."""

from audioldm2_jax.stages.audiomae import AudioMAEStage
from audioldm2_jax.stages.base import Stage
from audioldm2_jax.stages.clap import ClapStage
from audioldm2_jax.stages.diffusion import DiffusionStage
from audioldm2_jax.stages.joint import JointStage
from audioldm2_jax.stages.language_model import LanguageModelStage
from audioldm2_jax.stages.vae import VAEStage
from audioldm2_jax.stages.vocoder import VocoderStage

STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        AudioMAEStage,
        ClapStage,
        VAEStage,
        VocoderStage,
        DiffusionStage,
        LanguageModelStage,
        JointStage,
    )
}
