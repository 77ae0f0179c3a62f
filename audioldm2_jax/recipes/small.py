"""The recipe `small`: tiny with more of everything."""

from __future__ import annotations

from ml_collections import ConfigDict

from audioldm2_jax.recipes import tiny


def recipe() -> ConfigDict:
    """The recipe `tiny` with 5.12 s clips and wider networks, for two and a half hours of two CPU cores."""
    config = tiny.recipe()
    config.audio.seconds = 5.12
    config.audio.fbank.frames = 512
    config.audio.clap.update(seconds=5.0, hop_length=960)
    config.data.cache_records = 4096
    models = config.models
    models.audiomae.update(img_size=(512, 128), embed_dim=192, num_heads=6)
    models.language_model.update(n_embd=192, n_layer=6, n_head=6)
    models.vae.update(block_out_channels=(24, 48, 96))
    models.unet.update(
        block_out_channels=(48, 96, 160),
        cross_attention_dim=((192,), (192,), (None, 192, 128)),
        attention_head_dim=(1, 2, 2),
    )
    models.vocoder.update(upsample_initial_channel=256, resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3),))
    train = config.train
    train.audiomae.steps, train.clap.steps, train.language_model.steps = 1200, 600, 2000
    train.vae.update(steps=800, crop_frames=128, discriminator_start=800)
    train.vocoder.update(steps=14_000, discriminator_start=14_000)
    # Joint: with the LOA of captions the UNet is what is heard; of 1,400 steps fewer instruments are recognised.
    train.diffusion.steps, train.joint.steps = 1700, 4000
    for stage in train.values():
        stage.heldout_every = max(stage.steps // 4, 300)
    return config
