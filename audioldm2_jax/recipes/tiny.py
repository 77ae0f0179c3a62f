"""The recipe `tiny`: the whole system in minutes on two CPU cores."""

from __future__ import annotations

from ml_collections import ConfigDict

from audioldm2_jax.recipes import paper


def recipe() -> ConfigDict:
    """Every network in its real topology, small enough to train in minutes on two CPU cores."""
    config = paper.base()
    config.update(
        {
            "stages": "audiomae,vae,diffusion,clap,language_model,vocoder,joint",
            "side_by_side": 2,
            "dtype": "float32",
        }
    )
    config.audio.seconds = 2.56
    # A vocoder repeats itself from hop to hop while the mel stands still: after 40 ms its lines are 25 Hz apart.
    config.audio.mel.hop_length = 640
    # The vocoder learns in a quarter of the steps what it learns of logarithms: loudness it only has to pass on.
    config.audio.mel.compression = 0.5
    config.audio.fbank.frames = 256
    config.audio.clap.seconds = 2.0  # whole seconds, as ClapFeatureExtractor wants them
    config.data.update({"workers": 0, "threads": 1, "prefetch": 4, "cache": "auto", "cache_records": 2048})
    config.text.update(
        {"clap_tokenizer": "", "t5_tokenizer": "", "clap_length": 40, "t5_length": 28, "vocabulary": 512}
    )
    config.init_from.update(dict.fromkeys(config.init_from, ""))
    config.loa.update({"pooling": 4, "training_poolings": (4,)})
    config.scheduler.prediction_type = "v_prediction"
    config.models.audiomae.update(
        img_size=(256, 128),
        embed_dim=160,
        depth=4,
        num_heads=5,
        decoder_embed_dim=96,
        decoder_depth=2,
        decoder_num_heads=3,
    )
    config.models.text_encoder.projection_dim = 128
    config.models.text_encoder.text_config.update(
        vocab_size=512,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=42,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.models.text_encoder.audio_config.update(
        spec_size=128,
        window_size=4,
        patch_size=8,
        patch_stride=(8, 8),
        hidden_dropout_prob=0.0,
        patch_embeds_hidden_size=32,
        hidden_size=128,
        depths=(2, 2, 2),
        num_attention_heads=(1, 2, 4),
        num_classes=16,
    )
    config.models.text_encoder_2.update(
        vocab_size=512, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    config.models.language_model.update(
        n_embd=160, n_layer=4, n_head=5, n_positions=128, resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0
    )
    config.models.vae.update(block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8)
    config.models.unet.update(
        block_out_channels=(32, 48, 96),
        layers_per_block=1,
        # A list a level: the wide one attends to the LOA alone, the deep one to itself, the LOA and the text.
        cross_attention_dim=((160,), (160,), (None, 160, 128)),
        attention_head_dim=(1, 1, 1),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    config.models.vocoder.update(
        upsample_initial_channel=128,
        upsample_rates=(8, 5, 4, 4),
        upsample_kernel_sizes=(32, 20, 16, 16),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
    )
    config.models.patch_discriminator.widths = (8, 16, 32, 64)
    config.models.period_discriminator.update(periods=(2, 5, 11), channels=(8, 16, 32, 32))
    config.models.scale_discriminator.update(scales=2, channels=(8, 16, 32, 32), groups=(1, 1, 1, 1))
    train = config.train
    train.audiomae.update(steps=900, batch_size=16, learning_rate=1.5e-3, warmup=30, mask_ratio=0.75, augment=False)
    train.clap.update(steps=150, batch_size=64, optimizer="muon", learning_rate=2e-3, warmup=30, decay="cosine")
    # Neither VAE nor vocoder gets as far as their discriminators: to compile these takes as long as hundreds of steps.
    train.vae.update(
        steps=700,
        batch_size=4,
        optimizer="muon",
        learning_rate=5e-3,
        warmup=30,
        decay="cosine",
        crop_frames=64,  # the whole clip
        kl_weight=30.0,  # latents that hold little else than what is audible: the UNet learns them sooner
        discriminator_start=700,
    )
    # Many small steps: a narrow network on half a second of each clip.
    train.vocoder.update(
        steps=8000,
        batch_size=4,
        optimizer="muon",
        learning_rate=4e-3,
        warmup=20,
        decay="cosine",
        b1=0.9,
        b2=0.999,
        weight_decay=0.0,
        clip_norm=10.0,
        ema=0.999,
        segment_samples=7680,
        # From the partials it learns the pitch, in few steps; from the mels what is noise. With much of the latter it
        # fills the gaps between the partials.
        partials_weight=1.0,
        mel_weight=0.15,
        mel_scales=((2048, 128), (512, 40), (256, 20)),
        discriminator_start=8000,
    )
    # Many clips a step, from the cache: the held-out loss falls further than with several noises of few.
    train.diffusion.update(
        steps=500,
        batch_size=32,
        timestep_logits=(-1.0, 0.9),  # mostly where noise is about as strong as the signal: timbre is decided there
        optimizer="muon",
        learning_rate=3e-3,
        warmup=50,
        decay="cosine",
        text="none",
    )
    # The mean of the LOA is most of it, and a bias has to walk there: hence the large steps.
    train.language_model.update(
        steps=600, batch_size=32, learning_rate=4e-3, warmup=30, decay="cosine", train_text_encoder_2=True
    )
    # Most of the UNet's steps: with the LOA of the captions, which is not as sharp as that of the clips.
    # Not by Muon: the same loss after as many steps, each of twice the time.
    train.joint.update(
        steps=1050,
        batch_size=8,
        timestep_logits=(-1.0, 0.9),
        learning_rate=5e-4,
        warmup=20,
        decay="cosine",
        train_text_encoder_2=True,
    )
    for stage in train.values():
        stage.update(log_every=10, save_every=500, sample_every=0, ema=stage.ema and 0.99, heldout_clips=16)
        stage.heldout_every = -(-stage.steps // min(max(stage.steps // 300, 1), 4))  # the last one at the end
    train.vocoder.update(log_every=50, save_every=2500)
    for name in ("vae", "vocoder"):
        train[name].sample_every = 10_000
    config.samples.steps = 25
    return config
