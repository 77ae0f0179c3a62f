"""Whether the parts of a recipe fit each other.

Some facts stand in a recipe several times: the length of a clip, the frames that AudioMAE takes, the widths at which
networks meet. Here they are compared, before anything is written, downloaded or compiled. What has to fit inside a
network the network itself knows: `recipe_components.check_networks`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

from audioldm2_jax.audio import mel
from audioldm2_jax.conditioning.conditions import text_encoders, text_kinds, text_width
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.models.unet import contexts_per_level
from audioldm2_jax.recipe_resolve import FBANK_RATE, RecipeError, tables

_OF_CLAP, _ENDS = 3, 2  # places of GPT-2's prefix: SOS, CLAP and EOS; SOS and EOS of each other text
_LOA_CONTEXTS = 2  # of a UNet's level: the first of its contexts see the LOA, later ones the text


def check(config: ConfigDict, stages: Sequence[str]) -> list[str]:
    """Compares what `stages` read of the recipe.

    Returns:
        what fits and yet may surprise, a line each.

    Raises:
        RecipeError: the first thing that does not fit.
    """
    faults = (fault for name, checks in _CHECKS.items() if name in stages for one in checks for fault in one(config))
    for fault in itertools.chain(_counts(config, stages), faults):
        raise RecipeError(fault)
    audio = config.audio
    notes = []
    if {"clap", "language_model", "joint"} & {*stages} and audio.clap.seconds < 0.75 * audio.seconds:
        notes.append(
            f"CLAP takes the first {audio.clap.seconds:g} s of each clip of {audio.seconds:g} s "
            "(--config.audio.clap.seconds)"
        )
    if "clap" in stages and audio.clap.seconds != int(audio.clap.seconds):
        notes.append(
            f"audio.clap.seconds={audio.clap.seconds:g} is no whole number: with the published model, transformers' "
            "ClapFeatureExtractor, and so diffusers, cannot rank clips"
        )
    if audio.mel.fmax < 0.9 * audio.sampling_rate / 2:
        notes.append(
            f"the mel ends at {audio.mel.fmax:g} Hz: what is above, up to {audio.sampling_rate / 2:g} Hz, is not "
            "learnt (--config.audio.mel.fmax)"
        )
    return notes


# The least that a count may be, of `train.STAGE` and of `data`.
_LEAST = {
    **dict.fromkeys(("steps", "batch_size", "accumulate", "log_every", "keep", "heldout_clips"), 1),
    **dict.fromkeys(("noise_draws", "crops"), 1),
    **dict.fromkeys(("warmup", "save_every", "sample_every", "heldout_every"), 0),
}
# What words and shares of `train.STAGE` may be; further numbers of it are finite and not below 0.
_CHOICES = {
    "optimizer": ("adamw", "muon"),
    "decay": ("constant", "cosine", "exponential"),
    "loss": ("mse", "l1"),
    "unconditional": ("language_model", "zeros"),
    "text": ("captions", "none"),
    "posterior": ("sample", "mode"),
}
_DTYPES = ("float32", "bfloat16")  # float16 would need its loss scaled
_CHOICES_OF_DATA = {"segment": ("random", "sounding"), "short": ("pad", "repeat"), "silence": ("keep", "trim")}
_SHARES = ("guidance_dropout", "true_loa_share", "token_dropout", "scheduled_sampling", "mask_ratio", "ema")
_LEAST_OF_DATA = {"workers": 0, "threads": 0, "prefetch": 0, "examples": 1, "cache_records": 0, "cache_crops": 1}


def _counts(config: ConfigDict, stages: Sequence[str]) -> Iterator[str]:
    sections = {f"train.{name}": (config.train[name], _LEAST) for name in stages}
    for where, (section, least) in {**sections, "data": (config.data, _LEAST_OF_DATA)}.items():
        for key, count in least.items():
            if key in section and section[key] < count:
                yield f"{where}.{key}={section[key]}: it has to be at least {count}"
    for where, (section, _) in sections.items():
        yield from _values(where, section)
    if config.dtype not in _DTYPES:
        yield f"dtype={config.dtype!r}: choose from {', '.join(_DTYPES)}"
    if config.side_by_side < 1:
        yield f"side_by_side={config.side_by_side}: it has to be at least 1, which is one stage after the other"
    if config.samples.clips and not 1 <= config.samples.steps <= config.scheduler.num_train_timesteps:
        yield (
            f"samples.steps={config.samples.steps}: choose 1 to scheduler.num_train_timesteps="
            f"{config.scheduler.num_train_timesteps}"
        )
    if config.data.cache.strip().lower() in ("", "none", "false", "no", "true", "on"):
        yield f"data.cache={config.data.cache!r}: choose off, auto or a folder"
    for key, known in _CHOICES_OF_DATA.items():
        if config.data[key] not in known:
            yield f"data.{key}={config.data[key]!r}: choose from {', '.join(known)}"
    if not 0 <= config.data.heldout_share < 1:
        yield f"data.heldout_share={config.data.heldout_share}: it has to be at least 0 and below 1"


def _values(where: str, section: ConfigDict) -> Iterator[str]:
    """Yields what is wrong with words and numbers of a section of `train`."""
    for key, value in section.items():
        if key in _CHOICES and value not in _CHOICES[key]:
            yield f"{where}.{key}={value!r}: choose from {', '.join(_CHOICES[key])}"
        elif key in _SHARES and not 0 <= value <= 1:
            yield f"{where}.{key}={value}: it has to be from 0 to 1"
        elif isinstance(value, float) and not 0 <= value < math.inf:
            yield f"{where}.{key}={value}: it has to be a number that is not below 0"
        elif key == "profile" and not (len(value) == 2 and 0 <= value[0] <= value[1]):
            yield f"{where}.{key}={value}: it has to be the first and the last step, (0, 0) for none"
        elif key == "timestep_logits" and len(value) not in (0, 2):
            yield f"{where}.{key}={value}: it has to be a mean and a deviation, or () for uniform timesteps"


def _sound(config: ConfigDict) -> Iterator[str]:
    audio = config.audio
    if audio.sampling_rate < 1 or not 0 < audio.seconds < math.inf:
        yield f"audio.sampling_rate={audio.sampling_rate} and audio.seconds={audio.seconds} have to be positive"
    for key in ("n_mels", "n_fft", "hop_length"):
        if audio.mel[key] < 1:
            yield f"audio.mel.{key}={audio.mel[key]} has to be positive"
    try:
        mel.MelSettings(sampling_rate=audio.sampling_rate, **audio.mel)
    except ValueError as error:
        yield f"audio.mel with audio.sampling_rate={audio.sampling_rate}: {error}"
    if _samples(config) <= max((audio.mel.n_fft - audio.mel.hop_length) // 2, audio.mel.hop_length - 1):
        yield (
            f"audio.seconds={audio.seconds:g} are {_samples(config)} samples, too few for a mel of audio.mel.n_fft="
            f"{audio.mel.n_fft}: make clips longer"
        )


def _samples(config: ConfigDict) -> int:
    return round(config.audio.seconds * config.audio.sampling_rate)


def _fbank(config: ConfigDict) -> Iterator[str]:
    audio, size = config.audio, tuple(config.models.audiomae.img_size)
    patch = config.models.audiomae.patch_size
    if patch < 1 or any(side % patch for side in size):
        yield f"models.audiomae.patch_size={patch} does not divide models.audiomae.img_size={size}"
    yield from _audiomae(config.models.audiomae)
    if (audio.fbank.frames, audio.fbank.n_mels) != size:
        yield (
            f"audio.fbank is {audio.fbank.frames} frames × {audio.fbank.n_mels} bands and models.audiomae.img_size "
            f"{size}: make them the same"
        )
    seen = audio.fbank.frames / FBANK_RATE
    if seen < 0.97 * audio.seconds:
        wanted = math.ceil(audio.seconds * FBANK_RATE / 64) * 64
        yield (
            f"AudioMAE would see the first {seen:g} s of clips of {audio.seconds:g} s: set audio.fbank.frames={wanted} "
            f"and models.audiomae.img_size=({wanted},{audio.fbank.n_mels}), or audio.seconds={seen:g}"
        )


def _audiomae(network: ConfigDict) -> Iterator[str]:
    for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
        if network[heads] < 1 or network[width] % network[heads]:
            yield f"models.audiomae.{heads}={network[heads]} does not divide models.audiomae.{width}={network[width]}"
    patches = math.prod(side // network.patch_size for side in network.img_size)
    if network.positions and math.prod(network.positions) != patches:
        yield (
            f"models.audiomae.positions={network.positions} are {math.prod(network.positions)} places, and "
            f"models.audiomae.img_size={network.img_size} has {patches} patches: () is their own grid"
        )


def _poolings(config: ConfigDict) -> Iterator[str]:
    steps = config.models.audiomae.img_size[0] // config.models.audiomae.patch_size
    if not config.loa.training_poolings:
        yield "loa.training_poolings=(): name one λ at least"
    for key in ("pooling", "training_poolings"):
        value = config.loa[key]
        for pooling in value if isinstance(value, tuple | list) else (value,):
            if not 1 <= pooling <= steps:
                yield f"loa.{key}={value}: AudioMAE's grid has {steps} steps in time, so λ is 1 to {steps}"


def _clap(config: ConfigDict) -> Iterator[str]:
    clap, tower, text = (
        config.audio.clap,
        config.models.text_encoder.audio_config,
        config.models.text_encoder.text_config,
    )
    try:
        settings = mel.ClapMelSettings(
            samples=round(clap.seconds * clap.sampling_rate), **{k: v for k, v in clap.items() if k != "seconds"}
        )
    except ValueError as error:
        yield f"audio.clap: {error}"
        return
    if clap.n_mels != tower.num_mel_bins:
        yield (
            f"audio.clap.n_mels={clap.n_mels} and models.text_encoder.audio_config.num_mel_bins={tower.num_mel_bins}: "
            "make them the same"
        )
    most = tower.spec_size**2 // tower.num_mel_bins
    if settings.frames > most:
        yield (
            f"audio.clap.seconds={clap.seconds:g} are {settings.frames} frames, and "
            f"models.text_encoder.audio_config.spec_size={tower.spec_size} takes {most}: "
            "shorten the one, or enlarge the other or audio.clap.hop_length"
        )
    room = text.max_position_embeddings - 2
    if config.text.clap_length > room:
        yield (
            f"text.clap_length={config.text.clap_length}, and models.text_encoder.text_config.max_position_embeddings="
            f"{text.max_position_embeddings} leaves room for {room} tokens"
        )


def _words(config: ConfigDict) -> Iterator[str]:
    text = config.text
    for (_, tokenizer, section), key in zip(
        tables(config), ("models.text_encoder.text_config", "models.text_encoder_2")
    ):
        rows = section.vocab_size
        if not text[tokenizer] and text.vocabulary > rows:
            yield (
                f"text.vocabulary={text.vocabulary} is more words than the network's table has rows: set "
                f"--config.{key}.vocab_size={text.vocabulary} (now {rows}), or --config.text.vocabulary={rows}"
            )


def _latents(config: ConfigDict) -> Iterator[str]:
    audio, models = config.audio, config.models
    vae = 2 ** (len(models.vae.block_out_channels) - 1)
    unit = vae * 2 ** (len(models.unet.block_out_channels) - 1)
    frames = _samples(config) // audio.mel.hop_length
    if frames % unit:
        fitting = max(round(frames / unit), 1) * unit * audio.mel.hop_length / audio.sampling_rate
        yield (
            f"audio.seconds={audio.seconds:g} at audio.sampling_rate={audio.sampling_rate} are {frames} mel frames of "
            f"audio.mel.hop_length={audio.mel.hop_length} samples, no multiple of the {unit} that VAE and UNet halve "
            f"together: set audio.seconds={fitting:.6g}"
        )
    if audio.mel.n_mels % unit:
        yield f"audio.mel.n_mels={audio.mel.n_mels} is no multiple of the {unit} that VAE and UNet halve together"
    channels = models.vae.latent_channels, models.unet.in_channels, models.unet.out_channels
    if len({*channels}) > 1:
        yield (
            "models.vae.latent_channels, models.unet.in_channels and models.unet.out_channels are "
            f"{channels[0]}, {channels[1]} and {channels[2]}: make them the same"
        )


def _schedule(config: ConfigDict) -> Iterator[str]:
    try:
        NoiseSchedule.from_config(config.scheduler.to_dict())
    except ValueError as error:
        yield f"scheduler: {error}"


def _vae(config: ConfigDict) -> Iterator[str]:
    factor, stage = 2 ** (len(config.models.vae.block_out_channels) - 1), config.train.vae
    if stage.crop_frames % factor or stage.crop_frames < 1:
        yield f"train.vae.crop_frames={stage.crop_frames} is no multiple of the {factor} frames of a latent"
    if config.audio.mel.n_mels % factor:
        yield f"audio.mel.n_mels={config.audio.mel.n_mels} is no multiple of the {factor} bands of a latent"


def _vocoder(config: ConfigDict) -> Iterator[str]:
    rates, hop = tuple(config.models.vocoder.upsample_rates), config.audio.mel.hop_length
    if math.prod(rates) != hop:
        yield (
            f"models.vocoder.upsample_rates={rates} make {math.prod(rates)} samples of a mel frame, and "
            f"audio.mel.hop_length is {hop}: make them the same"
        )
    segment = config.train.vocoder.segment_samples
    if segment % hop or segment < 1:
        yield f"train.vocoder.segment_samples={segment} is no multiple of audio.mel.hop_length={hop}"


def _unet_contexts(config: ConfigDict) -> Iterator[str]:
    models = config.models
    widths = (
        ("models.audiomae.embed_dim", models.audiomae.embed_dim),
        ("models.text_encoder_2.d_model", text_width(config, "text_encoder_2")),
    )
    try:
        levels = contexts_per_level(models.unet.cross_attention_dim, len(models.unet.block_out_channels))
    except ValueError as error:
        yield f"models.unet: {error}"
        return
    speech = "t5" not in text_kinds(config)
    for contexts in levels:
        if speech and len(contexts) > _LOA_CONTEXTS:
            yield (
                f"models.unet.cross_attention_dim={models.unet.cross_attention_dim} has contexts for text states, and "
                "the UNet of a model of speech sees the LOA alone: leave them out"
            )
        for place, dim in enumerate(contexts):
            key, width = widths[place >= _LOA_CONTEXTS]
            if dim is not None and dim != width:
                yield (
                    f"models.unet.cross_attention_dim={models.unet.cross_attention_dim} has {dim} where {key} is "
                    f"{width}: the UNet attends to that"
                )


def _language(config: ConfigDict) -> Iterator[str]:
    models, loa = config.models, config.loa
    if models.language_model.n_embd != models.audiomae.embed_dim:
        yield (
            f"models.language_model.n_embd={models.language_model.n_embd} and "
            f"models.audiomae.embed_dim={models.audiomae.embed_dim}: GPT-2 writes AudioMAE's features: "
            "make them the same"
        )
    time, bands = (side // models.audiomae.patch_size for side in models.audiomae.img_size)
    tokens = (time // loa.pooling) * (bands // min(loa.pooling, bands))
    lengths = {f"text.{kind}_length": config.text[f"{kind}_length"] for kind in text_encoders(config).values()}
    places = _OF_CLAP + sum(length + _ENDS for length in lengths.values()) + tokens
    if places - 1 > models.language_model.n_positions:
        read = " and ".join(f"{key}={length}" for key, length in lengths.items())
        yield (
            f"GPT-2 reads {read} tokens and writes {tokens} of the LOA (loa.pooling="
            f"{loa.pooling}), {places} places with those around them, and models.language_model.n_positions is "
            f"{models.language_model.n_positions}: enlarge it to {places}, shorten the captions or pool more"
        )


Check = Callable[[ConfigDict], Iterator[str]]
_CHECKS: dict[str, tuple[Check, ...]] = {
    "audiomae": (_sound, _fbank),
    "clap": (_sound, _clap, _words),
    "vae": (_sound, _vae),
    "vocoder": (_sound, _vocoder),
    "diffusion": (_sound, _fbank, _poolings, _schedule, _latents, _unet_contexts, _words),
    "language_model": (_sound, _fbank, _poolings, _language, _clap, _words),
    "joint": (_sound, _fbank, _poolings, _schedule, _latents, _unet_contexts, _language, _clap, _words),
}
"""What each stage reads."""
