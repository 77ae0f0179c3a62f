"""The paper's recipes, and all hyperparameters with their units and sources.

Sources in brackets: paper = arXiv 2308.05734; A2 = haoheliu/AudioLDM2; TF = haoheliu/AudioLDM-training-finetuning;
MAE = facebookresearch/AudioMAE; HG = jik876/hifi-gan. Keys below `models` are the keys of the component's config.json.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """The paper's base model at 16 kHz: 10.24 s clips, UNet of 347M parameters, for pods and GPU hosts."""
    return ConfigDict(
        {
            "recipe": "",
            "seed": 0,
            "run_dir": "runs/audioldm2",
            # How long all of it trains, as a multiple: the steps of every stage, and with them warm-up, decay, the
            # start of discriminators, the intervals of logs, saves and evaluation, and `data.cache_records`; but not
            # what of these is set to another number than the recipe's.
            "budget": 1.0,
            # Comma-separated. Side by side, each starts in this order as soon as its inputs are there and a core is
            # free; else they run in the order in which they build on each other.
            "stages": "audiomae,vae,vocoder,diffusion,language_model,joint",
            # Stages trained side by side, each in a process of its own with its share of the CPU cores.
            # Only for CPU: an accelerator is one stage's at a time.
            "side_by_side": 1,
            "compilation_cache": "",  # folder; empty: ~/.cache/audioldm2_jax/xla; "off": none
            # Devices on each axis; -1: all that are left; 0: chosen for each stage (training/mesh_choice.py).
            "mesh": {"data": -1, "fsdp": 0},
            # Seconds in which a step, its batch or a save has to come; else the run writes its stacks and ends with 75.
            # Compiling and evaluation do not count. 0: they may take any time.
            "stall_seconds": 1800,
            "dtype": "bfloat16",  # of the computation; parameters and optimiser state stay float32
            "remat": False,  # recompute the UNet's blocks in the backward pass, for memory
            "audio": {
                "sampling_rate": 16000,  # Hz, of the waveform in the batch
                "seconds": 10.24,  # length of a clip
                # The VAE's and the vocoder's front end [TF audioldm_train/utilities/audio/stft.py]; Hz.
                "mel": {
                    "n_fft": 1024,
                    "hop_length": 160,
                    "n_mels": 64,
                    "fmin": 0.0,
                    "fmax": 8000.0,
                    "compression": 0.0,  # exponent of the magnitudes; 0: their logarithm, as in the paper
                },
                # AudioMAE's [MAE dataset.py]: 16 kHz, 10 ms frames.
                "fbank": {"frames": 1024, "n_mels": 128},
                # CLAP's [transformers ClapFeatureExtractor].
                "clap": {
                    "sampling_rate": 48000,
                    "seconds": 10.0,
                    "n_fft": 1024,
                    "hop_length": 480,
                    "n_mels": 64,
                    "fmin": 50.0,
                    "fmax": 14000.0,
                },
            },
            "data": {
                "source": "",  # builtin:music, tfds:NAME, tfds:/folder, or a path: data/sources.py
                "heldout_share": 0.02,  # of the records of all but the embedded corpus, by hash
                "absent": "refuse",  # captions in a folder of recordings that are not there: refuse, or skip
                "max_unreadable": 0.25,  # share of the records drawn that cannot be read, above which training stops
                "segment": "sounding",  # of longer recordings: sounding [TF], or random: data/clips.py
                "short": "pad",  # recordings shorter than a clip: pad with silence [TF], or repeat
                "silence": "keep",  # around what is said: keep, or trim
                "audio_feature": "",  # TFDS, Hugging Face: name of the audio feature; empty: the only one there is
                "text_feature": "",  # TFDS, Hugging Face: name of the caption feature; empty: found by its usual names
                "examples": 1_000_000,  # clips an epoch of the embedded corpus; they are made, not stored
                "workers": 8,  # processes that read and crop; 0: threads of this one
                "threads": 4,  # reading threads a worker
                "prefetch": 8,  # batches held ready
                # Folder of what frozen networks make of the data, computed once and read by the stages after them; off:
                # computed in every step; auto: RUN_DIR/cache for the embedded corpus, where that saves time, else off.
                "cache": "off",
                "cache_records": 0,  # the first of the source; 0: all
                "cache_crops": 1,  # of each record, at fixed places; from sound every crop is a new one
            },
            "text": {
                "clap_tokenizer": "roberta-base",  # hub id or folder; empty: trained on the captions
                "t5_tokenizer": "google/flan-t5-large",
                "phoneme_tokenizer": "",  # of speech: a folder; empty: the authors' table of symbols
                "clap_length": 77,  # tokens [TF]
                "t5_length": 128,
                "phoneme_length": 310,  # of speech, the end among them [A2]
                "vocabulary": 0,  # of tokenizers that are trained here
            },
            # Where a component starts from instead of from scratch: a model folder, a component folder or a hub id.
            "init_from": {
                "model": "",  # a whole model to go on from; the recipe's sizes and front ends become its own
                "audiomae": "",
                "text_encoder": "laion/larger_clap_general",
                "text_encoder_2": "google/flan-t5-large",
                "language_model": "gpt2",
                "projection_model": "",
                "vae": "",
                "vocoder": "",
                "unet": "",
            },
            "loa": {
                "pooling": 8,  # λ of generation and of the language model [paper 3.2]
                "training_poolings": (1, 2, 4, 8),  # λ drawn for each diffusion step [paper 4.3]
            },
            "scheduler": {
                "beta_start": 0.0015,
                "beta_end": 0.0195,
                "beta_schedule": "scaled_linear",
                "num_train_timesteps": 1000,
                "prediction_type": "epsilon",
                "clip_sample": False,
                "set_alpha_to_one": False,
                "steps_offset": 1,
                "timestep_spacing": "leading",
            },
            "models": {
                "audiomae": {
                    "img_size": (1024, 128),
                    "patch_size": 16,
                    "embed_dim": 768,
                    "depth": 12,
                    "num_heads": 12,
                    "decoder_embed_dim": 512,
                    "decoder_depth": 16,
                    "decoder_num_heads": 16,
                    "positions": (),  # grid of the position tables; (): the patches' own; published weights: (8, 64)
                },
                "text_encoder": {
                    "projection_dim": 512,
                    "logit_scale_init_value": 14.285714285714285,
                    "text_config": {
                        "vocab_size": 50265,
                        "hidden_size": 768,
                        "num_hidden_layers": 12,
                        "num_attention_heads": 12,
                        "intermediate_size": 3072,
                        "max_position_embeddings": 514,
                        "hidden_dropout_prob": 0.1,
                        "attention_probs_dropout_prob": 0.1,
                    },
                    "audio_config": {
                        "spec_size": 256,
                        "num_mel_bins": 64,
                        "window_size": 8,
                        "patch_size": 4,
                        "patch_stride": (4, 4),
                        "patch_embeds_hidden_size": 128,
                        "hidden_size": 1024,
                        "depths": (2, 2, 12, 2),
                        "num_attention_heads": (4, 8, 16, 32),
                        "num_classes": 527,
                        "hidden_dropout_prob": 0.1,
                    },
                },
                "text_encoder_2": {
                    "model_type": "t5",  # reads captions; of speech vits, which reads phonemes
                    "vocab_size": 32128,
                    "d_model": 1024,
                    "d_kv": 64,
                    "d_ff": 2816,
                    "num_layers": 24,
                    "num_heads": 16,
                    "relative_attention_num_buckets": 32,
                    "relative_attention_max_distance": 128,
                    "dropout_rate": 0.1,
                    "layer_norm_epsilon": 1e-6,
                },
                "language_model": {
                    "n_embd": 768,
                    "n_layer": 12,
                    "n_head": 12,
                    "n_positions": 1024,
                    "layer_norm_epsilon": 1e-5,
                    "resid_pdrop": 0.1,
                    "attn_pdrop": 0.1,
                    "embd_pdrop": 0.1,
                },
                "vae": {
                    "in_channels": 1,
                    "out_channels": 1,
                    "latent_channels": 8,
                    "block_out_channels": (128, 256, 512),
                    "layers_per_block": 2,
                    "norm_num_groups": 32,
                },
                "unet": {
                    "in_channels": 8,
                    "out_channels": 8,
                    "block_out_channels": (128, 256, 384, 640),
                    "layers_per_block": 2,
                    "cross_attention_dim": (None, 768, 1024),
                    "attention_head_dim": (4, 8, 12, 20),
                    "transformer_layers_per_block": 1,
                    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
                    "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
                    "norm_num_groups": 32,
                },
                "vocoder": {
                    "upsample_initial_channel": 1024,
                    "upsample_rates": (5, 4, 2, 2, 2),
                    "upsample_kernel_sizes": (16, 16, 8, 4, 4),
                    "resblock_kernel_sizes": (3, 7, 11),
                    "resblock_dilation_sizes": ((1, 3, 5),) * 3,
                    "leaky_relu_slope": 0.1,
                    "normalize_before": False,
                },
                # The discriminators are trained and thrown away: no config.json has them.
                "patch_discriminator": {"widths": (64, 128, 256, 512)},
                "period_discriminator": {"periods": (2, 3, 5, 7, 11), "channels": (32, 128, 512, 1024, 1024)},
                "scale_discriminator": {
                    "scales": 3,
                    "channels": (128, 128, 256, 512, 1024, 1024, 1024),
                    "groups": (1, 4, 16, 16, 16, 16, 1),
                },
            },
            "train": {
                "audiomae": _training(
                    steps=125_000,
                    batch_size=512,
                    learning_rate=2e-4,
                    warmup=11_000,
                    decay="cosine",
                    b2=0.95,
                    weight_decay=1e-4,
                    mask_ratio=0.8,
                    augment=True,  # circular roll and gain Beta(10, 10) + 0.5 [MAE dataset.py]
                ),
                "clap": _training(
                    steps=100_000, batch_size=512, learning_rate=1e-4, warmup=3_000, decay="cosine", b2=0.99
                ),
                "vae": _training(
                    steps=400_000,
                    batch_size=32,
                    learning_rate=8e-6,
                    warmup=0,
                    b1=0.5,
                    b2=0.9,
                    weight_decay=0.0,
                    clip_norm=0.0,
                    crop_frames=1024,  # mel frames of a training crop
                    crops=1,  # of each clip
                    kl_weight=1000.0,  # on the mean over elements [TF autoencoder losses]
                    discriminator_weight=0.5,
                    discriminator_start=25_000,
                ),
                "vocoder": _training(
                    steps=1_000_000,
                    batch_size=64,
                    learning_rate=2e-4,
                    warmup=0,
                    decay="exponential",
                    decay_rate=0.999,  # every decay_every steps: one epoch in HG
                    decay_every=1000,
                    b1=0.8,
                    b2=0.99,
                    weight_decay=0.01,
                    ema=0.0,
                    clip_norm=0.0,
                    segment_samples=8000,  # a whole number of hops; HG: 8192 at a hop of 256
                    crops=1,  # of each clip
                    mel_weight=45.0,
                    mel_scales=(),  # (n_fft, n_mels) of further mels in the loss; their hop is a quarter of n_fft
                    convergence_weight=0.0,  # of the mel's spectral convergence, beside its L1
                    partials_weight=0.0,  # of the distance to the partials with phases of the frames [audio/sinusoids]
                    feature_weight=2.0,
                    discriminator_start=0,
                ),
                "diffusion": _training(
                    steps=800_000,
                    batch_size=128,
                    learning_rate=1e-4,
                    warmup=10_000,
                    noise_draws=1,  # noises a clip: more of them share the work of the frozen networks
                    timestep_logits=(),  # mean and deviation of log(t / (1 - t)); (): uniform timesteps [paper]
                    posterior="sample",  # latents drawn from what the VAE says of them, or its mode, the mean
                    guided_attention=0.0,  # weight of attention to the LOA of other places (`attention_away`)
                    guidance_dropout=0.1,
                    text="captions",  # what the UNet's text context holds: captions, or none (T5 is not trained yet)
                ),
                "language_model": _training(
                    steps=100_000,
                    batch_size=128,
                    learning_rate=2e-4,
                    warmup=1_000,
                    loss="mse",  # mse [paper eq. 5] or l1 (see `loa_distance` in conditioning/loa.py)
                    guidance_dropout=0.1,
                    token_dropout=0.0,  # of the true tokens that GPT-2 reads, the largest share that is hidden from it
                    scheduled_sampling=0.0,  # share of steps in which it reads its own tokens, reached at half of them
                    guided_attention=0.0,  # weight of attention to other phonemes than those of the moment
                    train_text_encoder_2=False,
                ),
                "joint": _training(
                    steps=200_000,
                    batch_size=128,
                    learning_rate=1e-4,
                    warmup=1_000,
                    noise_draws=1,
                    timestep_logits=(),
                    posterior="sample",
                    guided_attention=0.0,
                    guidance_dropout=0.1,
                    scheduled_sampling=0.0,  # share of the examples in which GPT-2 reads its own tokens
                    true_loa_share=0.25,  # of the examples whose UNet sees the clip's own LOA [paper 4.3]
                    unconditional="language_model",  # or zeros [A2 ddpm.py]
                    loss="mse",
                    language_weight=1.0,
                    train_text_encoder_2=False,
                ),
            },
            # Clips that are shown when the run ends, and how they, and a stage's samples, are denoised.
            "samples": {"clips": 6, "steps": 200, "guidance_scale": 3.5},
        }
    )


def speech(config: ConfigDict) -> ConfigDict:
    """Makes a recipe of captions one of speech: GPT-2 reads CLAP's embedding and phonemes, the UNet sees the LOA alone.

    Its LOA is not pooled (λ = 1: of 10.24 s 512 tokens), and the UNet is fine-tuned with that of the clips, so that no
    gradient goes back through the tokens that GPT-2 writes [A2 utils.py, its configs of speech].
    """
    config.text.update(t5_tokenizer="", t5_length=0)
    config.init_from.text_encoder_2 = ""
    config.loa.update(pooling=1, training_poolings=(1,))
    with config.unlocked():
        config.models.text_encoder_2 = _phonemes()
    config.models.unet.cross_attention_dim = (None, config.models.audiomae.embed_dim)
    config.train.diffusion.text = "none"
    config.train.language_model.train_text_encoder_2 = True
    config.train.joint.update(train_text_encoder_2=True, true_loa_share=1.0)
    return config


def unified(config: ConfigDict) -> ConfigDict:
    """Makes a recipe of captions one of a model that also speaks. Not in the paper, whose models do one or the other.

    GPT-2 reads CLAP's embedding, T5's states and phonemes; a clip without a caption has the caption "", one in which
    nothing is said, or nobody knows what, no phonemes. The UNet sees the LOA and T5's states, as in the paper's full
    model. The LOA is that of the paper's speech, unpooled, for all kinds of sound, and as there no gradient goes back
    through the tokens that GPT-2 writes.
    """
    config.loa.update(pooling=1, training_poolings=(1,))
    config.train.joint.true_loa_share = 1.0
    with config.unlocked():
        config.models.text_encoder_3 = _phonemes()
        config.init_from.text_encoder_3 = ""
        config.train.language_model.train_text_encoder_3 = True
        config.train.joint.train_text_encoder_3 = True
    return config


def _phonemes() -> ConfigDict:
    """The text encoder of VITS [arXiv 2106.06103; A2 latent_diffusion/modules/phoneme_encoder]."""
    return ConfigDict(
        {
            "model_type": "vits",
            "vocab_size": 183,
            "hidden_size": 192,
            "num_hidden_layers": 6,
            "num_attention_heads": 2,
            "window_size": 4,
            "use_bias": True,
            "ffn_dim": 768,
            "ffn_kernel_size": 3,
            "hidden_dropout": 0.1,
            "attention_dropout": 0.1,
            "activation_dropout": 0.1,
            "layer_norm_eps": 1e-5,
        }
    )


def large() -> ConfigDict:
    """The paper's large model: the same system around a UNet of 718M parameters."""
    config = base()
    config.models.unet.update(transformer_layers_per_block=2, cross_attention_dim=(None, 768, 1024, None))
    config.remat = True
    return config


def fullband() -> ConfigDict:
    """The base system on a 48 kHz VAE (256 bands, 16 latent channels) and vocoder."""
    config = base()
    config.audio.sampling_rate = 48000
    config.audio.mel.update(n_fft=2048, hop_length=480, n_mels=256, fmin=20.0, fmax=24000.0)
    config.models.vae.update(block_out_channels=(128, 256, 512, 1024), latent_channels=16)
    config.models.unet.update(in_channels=16, out_channels=16)
    config.models.vocoder.update(
        upsample_initial_channel=1536,
        upsample_rates=(6, 5, 4, 2, 2),
        upsample_kernel_sizes=(12, 10, 8, 4, 4),
        resblock_kernel_sizes=(3, 7, 11, 15),
        resblock_dilation_sizes=((1, 3, 5),) * 4,
    )
    config.train.vocoder.segment_samples = 24000
    return config


def _training(**stage: object) -> dict:
    """What every stage has, then what the stage adds or changes."""
    return {
        "steps": 0,
        "batch_size": 0,  # examples a step, over all hosts
        "accumulate": 1,  # microbatches a step
        "optimizer": "adamw",  # or muon
        "learning_rate": 0.0,
        "warmup": 0,  # steps of linear warm-up
        "decay": "constant",  # after the warm-up: constant, cosine (to 0 at the last step) or exponential
        "decay_rate": 1.0,
        "decay_every": 1,
        "b1": 0.9,
        "b2": 0.999,
        "weight_decay": 0.01,  # not on biases, norms and embeddings' tables
        "clip_norm": 1.0,  # of the gradient of each objective; 0: not clipped
        # Updates in a row that are skipped, as loss or gradient is not finite, before the stage stops; 0: it goes on.
        # Not in the paper; max_consecutive_errors of optax.apply_if_finite.
        "max_skipped_updates": 10,
        "ema": 0.9999,  # warmed up: min(ema, (1 + n) / (10 + n)) [TF ema.py]; 0: none
        "log_every": 50,
        "save_every": 5000,
        "keep": 3,  # checkpoints
        "heldout_every": 1000,  # steps between two losses on held-out data, and at the end; 0: never
        "heldout_clips": 128,  # whose loss that is, filled up to whole batches
        "sample_every": 10_000,  # and at the end; 0: never
        "profile": (0, 0),  # first and last step, counted from 1, of which XProf gets a profile; 0 and 0: none
        **stage,
    }
