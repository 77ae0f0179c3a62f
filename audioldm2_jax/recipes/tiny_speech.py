"""The recipes `speech-tiny`, tiny of speech, and `unified-tiny`, of all kinds of sound by one model that speaks."""

from __future__ import annotations

from ml_collections import ConfigDict

from audioldm2_jax.recipes import paper, tiny


def recipe() -> ConfigDict:
    """The recipe `tiny` made one of speech: finer mels, phonemes for captions, an unpooled LOA."""
    config = paper.speech(tiny.recipe())
    _shrink(config, "text_encoder_2")
    return config


def unified() -> ConfigDict:
    """The recipe `tiny` with the mels and the LOA of `speech-tiny`, and its phonemes beside T5."""
    config = paper.unified(tiny.recipe())
    _shrink(config, "text_encoder_3")
    return config


def _shrink(config: ConfigDict, encoder: str) -> None:
    """Gives a tiny recipe that speaks its front end and sizes; `encoder` is the text encoder that reads phonemes."""
    config.audio.mel.hop_length = 256  # 16 ms: consonants are short
    config.text.phoneme_length = 64
    config.data.update(silence="trim", cache_records=4096)  # twice as many as tiny: words come in more ways than notes
    config.models[encoder].update(
        hidden_size=128,
        num_hidden_layers=2,
        ffn_dim=256,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    config.models.language_model.n_positions = 256
    config.models.vocoder.update(upsample_rates=(8, 8, 4), upsample_kernel_sizes=(32, 32, 16))
    train = config.train
    train.vae.crop_frames = 64  # a second: words are understood as well as with whole clips
    train.vocoder.segment_samples = 7680
    # Words need a UNet that looks for each sound where it stands in the LOA, and many small steps. Two thirds of the
    # variance of the latents are the VAE's noise, of which there is nothing to learn: hence their mode.
    for stage in (train.diffusion, train.joint):
        stage.update(guided_attention=1.0, posterior="mode")
    train.diffusion.update(steps=2400, batch_size=8, heldout_every=800)
    # Of 128 tokens each says the next: GPT-2 looks at the phonemes only where it has to, and is told where.
    train.language_model.update(
        steps=1000,
        batch_size=16,
        optimizer="muon",
        token_dropout=1.0,
        scheduled_sampling=1.0,
        guided_attention=1.0,
        heldout_every=500,
    )
    # What GPT-2 writes is smoother than the LOA of a clip; the UNet learns to live with it.
    train.joint.update(scheduled_sampling=1.0, true_loa_share=0.25)
