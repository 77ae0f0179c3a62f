"""The authors' own checkpoint files: what is in them, as components of a model folder.

A file is known by its keys: each network by one tensor that only it has, wherever the file keeps it. So the published
pipelines (haoheliu/AudioLDM2), the training repository's VAE and HiFi-GAN, AudioMAE's and LAION-CLAP's files are read
in one way. Every tensor of a file is used, carried, or on the list of what is left out (`LEFT_OUT`); any other stops
the reading.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from audioldm2_jax.checkpoints.atomic_folder import FolderError
from audioldm2_jax.checkpoints.model_folder import Component, build, variable_shapes
from audioldm2_jax.checkpoints.parameter_names import to_flax, torch_key, torch_shapes
from audioldm2_jax.checkpoints.tensors import agree, precision
from audioldm2_jax.checkpoints.torch_pickle import read_pickle
from audioldm2_jax.checkpoints.upstream.configs import CONFIGS, SPEECH_TOKENS
from audioldm2_jax.checkpoints.upstream.parameter_names import ORIGINALS
from audioldm2_jax.components import ComponentSpec, spec_of
from audioldm2_jax.diffusion.schedule import NoiseSchedule

Tensors = dict[str, np.ndarray]

#: The tensor by which a network is found; the group is its place in the file.
_KEY_PATTERNS = {
    "unet": r"(|.*\.)input_blocks\.0\.0\.weight",
    "vae": r"(|.*\.)encoder\.conv_in\.weight",
    "vocoder": r"(|.*\.)conv_pre\.bias",
    "text_encoder": r"(|.*\.)text_branch\.embeddings\.word_embeddings\.weight",
    "t5": r"(|.*\.)encoder\.final_layer_norm\.weight",
    "phonemes": r"(|.*\.)text_encoder\.emb\.weight",
    "language_model": r"(|.*\.)wpe\.weight",
    "projection_model": r"(|.*\.)start_of_sequence_tokens\.weight",
    "audiomae": r"(|.*\.)cls_token",
}
COMPONENT = {"t5": "text_encoder_2", "phonemes": "text_encoder_2"}
# The authors rank clips with this CLAP; another one, in place of a condition, makes the embeddings that count.
_RANKING_CLAP = "clap.model."
POSITIONS = "learnable_positional_embedding"

LEFT_OUT = (
    ("moving averages, which the authors' tool does not play", r"model_ema\."),
    (
        "the noise schedule's other tables, which follow from its betas",
        r"(alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|lvlb_weights|logvar)$",
    ),
    ("filters of mel spectrograms, which are computed", r"(.*\.)?(mel_transform|(spectrogram|logmel)_extractor)\."),
    (
        "CLAP's classifier of AudioSet and its second projections, which only its training uses",
        r"(.*\.)?(audio_branch\.(tscam_conv|head)|(text|audio)_transform)\.",
    ),
    (
        "index tables and masks, which are computed",
        r".*\.(relative_position_index|attn_mask|position_ids|token_type_ids|h\.\d+\.attn\.(masked_)?bias)$",
    ),
    ("discriminator and losses of the VAE's training", r"(first_stage_model\.)?loss\."),
)
"""(reason, pattern) of what no folder needs."""


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
      components: by their names in a model folder.
      schedule: the noise schedule, where the file is of a whole pipeline.
      left_out: reasons, and how many tensors were left out for each.
      notes: what a user should know of it.
    """

    components: dict[str, Component]
    schedule: NoiseSchedule | None
    left_out: dict[str, int]
    notes: tuple[str, ...]


def read_original(path: str | os.PathLike) -> Checkpoint:
    """Reads a checkpoint file of the authors, or of AudioMAE, HiFi-GAN or LAION-CLAP.

    Raises:
      FolderError: for a file that cannot be read (`read_pickle`), holds no network that is known, or holds tensors
        that are missing, unexpected, doubled or of another shape, with their list.
    """
    try:
        return arrange(read_pickle(path))
    except (FolderError, ValueError) as error:
        message = str(error)
        raise FolderError(message if str(path) in message else f"{path}: {message}") from None


def arrange(tensors: Tensors) -> Checkpoint:
    """Returns the components in a file's tensors, by the authors' names.

    Raises:
      FolderError: no network is known, or tensors are missing, unexpected, doubled or of another shape.
    """
    left_out = Counter()
    kept: Tensors = {}
    for key, value in tensors.items():
        reason = next((reason for reason, pattern in LEFT_OUT if re.match(pattern, key)), None)
        if reason is None:
            kept[key] = value
        else:
            left_out[reason] += 1
    places = find_places(kept)
    if not places:
        raise FolderError(f"no network of AudioLDM 2 is in it; it begins with {', '.join(list(tensors)[:5])}.")
    parts, rest = _cut(kept, places)
    _check_whole({network for network, _ in parts}, rest)
    schedule, scale = _schedule(rest), rest.pop("scale_factor", None)
    if rest:
        raise FolderError(_problems([f"unexpected: {key} {value.shape}" for key, value in rest.items()]))
    parts, notes = _without_copies(parts)
    components = {}
    for (network, place), part in parts.items():
        config = _config(network, place, part, speech=any(name == "phonemes" for name, _ in parts), scale=scale)
        components[COMPONENT.get(network, network)] = _component(network, place, part, config)
    _finish(components)
    if "vae" in components and scale is None:
        notes.append("The file does not know the scale of the latents: vae/config.json says 1.0.")
    if "audiomae" in components and components["audiomae"].config["decoder_depth"] == 0:
        notes.append("AudioMAE's decoder is not of the published form: it is carried along; only the encoder works.")
    return Checkpoint(components, schedule, dict(left_out), tuple(notes))


def find_places(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Where the networks of a file are: the beginning of its tensors' names → the network (a key of `ORIGINALS`).

    Raises:
      FolderError: two networks share a place.
    """
    places: dict[str, str] = {}
    for key in tensors:
        for network, sign in _KEY_PATTERNS.items():
            match = re.fullmatch(sign, key)
            if match:
                if places.setdefault(match[1], network) != network:
                    raise FolderError(f"two networks, {places[match[1]]} and {network}, share the names {match[1]}*.")
    return places


def _check_whole(networks: set[str], rest: Tensors) -> None:
    """A file with a UNet, or with what belongs to one, is that of a pipeline."""
    needed = {"unet", "vae", "vocoder"}
    if "unet" not in networks and not rest.keys() & {"betas", "scale_factor"}:
        return
    missing = [f"missing: the {network}" for network in sorted(needed - networks)]
    missing += [f"missing: {key}" for key in ("betas", "scale_factor") if key not in rest]
    if not networks & {"text_encoder", "t5"}:
        missing.append("missing: CLAP or T5")
    if "language_model" in networks or "projection_model" in networks:
        wanted = {"language_model", "projection_model", "text_encoder"}
        missing += [f"missing: the {network}" for network in sorted(wanted - networks)]
        if not networks & {"t5", "phonemes"}:
            missing.append("missing: T5, or the encoder of phonemes")
    if missing:
        raise FolderError(_problems(missing))


def _cut(tensors: Tensors, places: Mapping[str, str]) -> tuple[dict[tuple[str, str], Tensors], Tensors]:
    """The tensors of each (network, place), by their names there, and those of none."""
    parts: dict[tuple[str, str], Tensors] = {(network, place): {} for place, network in places.items()}
    rest: Tensors = {}
    longest_first = sorted(places, key=len, reverse=True)
    for key, value in tensors.items():
        place = next((place for place in longest_first if key.startswith(place)), None)
        if place is None:
            rest[key] = value
        else:
            parts[places[place], place][key.removeprefix(place)] = value
    # The authors keep the positions of the phonemes with their encoder, diffusers with the projection.
    for (network, _), part in list(parts.items()):
        if network == "phonemes" and POSITIONS in part:
            projection = next((other for (name, _), other in parts.items() if name == "projection_model"), None)
            if projection is None:
                raise FolderError(f"{POSITIONS} stands without the projection that it belongs to.")
            projection[POSITIONS] = part.pop(POSITIONS)
    return parts, rest


def _without_copies(parts: dict[tuple[str, str], Tensors]) -> tuple[dict[tuple[str, str], Tensors], list[str]]:
    """One of each network: files hold CLAP and T5 once for each of their uses."""
    kept: dict[str, tuple[str, Tensors]] = {}
    notes = []
    for (network, place), part in sorted(parts.items(), key=lambda item: item[0][1] == _RANKING_CLAP):
        if network not in kept:
            kept[network] = place, part
            continue
        first, other = kept[network]
        differing = [key for key in part.keys() | other.keys() if not agree(part.get(key), other.get(key))]
        if differing and place == _RANKING_CLAP:
            notes.append(f"The CLAP at {place}* differs from that at {first}*, which makes the conditions and is kept.")
        elif differing:
            listed = [f"duplicate: {place}{key} differs from {first}{key}" for key in sorted(differing)]
            raise FolderError(_problems(listed))
    return {(network, place): part for network, (place, part) in kept.items()}, notes


def _config(network: str, place: str, part: Tensors, speech: bool, scale: np.ndarray | None) -> dict[str, Any]:
    try:
        config = CONFIGS[network](ORIGINALS[network].from_upstream(part))
    except FolderError as error:
        raise FolderError(f"the {network} at {place}*: {error}") from None
    if network == "language_model" and speech:
        config["max_new_tokens"] = SPEECH_TOKENS
    if network == "vae":
        # A file of the VAE alone does not know it.
        config["scaling_factor"] = 1.0 if scale is None else float(scale)
    return config


def _component(network: str, place: str, part: Tensors, config: dict[str, Any]) -> Component:
    original = ORIGINALS[network]
    module, target = shapes_of(network, config)
    ours = upstream_names(network, target, config)
    tensors, problems = {}, []
    for key, value in original.from_upstream(part).items():
        known = ours.get(key) or original.unused_name(key)
        if known is None:
            problems.append(f"unexpected: {place}{key} {value.shape}")
        else:
            tensors[known] = value
    problems += [f"missing: {place}{key}" for key, known in ours.items() if known not in tensors]
    if problems:
        raise FolderError(_problems(problems))
    try:
        variables, unused = to_flax(tensors, target, _spec(network, config).names)
    except ValueError as error:
        problems = _misshapen(network, place, part, torch_shapes(target, _spec(network, config).names), ours)
        raise FolderError(_problems(problems) if problems else f"the {network} at {place}*: {error}") from None
    return Component(module, variables, config, unused)


def _misshapen(
    network: str, place: str, part: Tensors, wanted: Mapping[str, tuple[int, ...]], ours: Mapping[str, str]
) -> list[str]:
    """What of a part has not the shape that it should have in the authors' form, by the names in the file."""
    empty = {theirs: np.broadcast_to(np.float32(0), wanted[key]) for theirs, key in ours.items()}
    problems = []
    for key, value in ORIGINALS[network].to_upstream(empty).items():
        # A vocoder's weights may be there as length and direction; the latter has the shape of the whole.
        spellings = (key, f"{key}_v", re.sub("weight$", "parametrizations.weight.original1", key))
        found = next((name for name in spellings if name in part), None)
        if found and part[found].shape != value.shape:
            problems.append(f"shape: {place}{found} is {part[found].shape} and should be {value.shape}")
    return problems


def shapes_of(network: str, config: Mapping[str, Any]) -> tuple[nn.Module, Any]:
    """The module of a network (a key of `ORIGINALS`) and the shapes of its variables."""
    name = COMPONENT.get(network, network)
    return build(name, config), variable_shapes(name, config)


def network_of(name: str, config: Mapping[str, Any]) -> str:
    """The network (a key of `ORIGINALS`) that component `name` of a folder is."""
    if name != "text_encoder_2":
        return name
    return "phonemes" if config.get("model_type") == "vits" else "t5"


def upstream_names(network: str, target: Any, config: Mapping[str, Any]) -> dict[str, str]:
    """The authors' names of all of a network's tensors → our PyTorch names; target: its variables or their shapes."""
    names = _spec(network, config).names
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(target)[0]]
    ours = [torch_key(tuple(str(part.key) for part in path), names) for path in paths]
    return {ORIGINALS[network].name(key, config): key for key in ours}


def _spec(network: str, config: Mapping[str, Any]) -> ComponentSpec:
    return spec_of(COMPONENT.get(network, network), config)


def _schedule(rest: Tensors) -> NoiseSchedule | None:
    """The noise schedule of the file's betas; diffusers' offset makes its steps the authors'."""
    betas = rest.pop("betas", None)
    if betas is None:
        return None
    exact = max(precision(betas), 5e-6)  # float32 holds seven digits, half precision three
    start, end = (float(f"{beta:.{6 if exact < 1e-5 else 3}g}") for beta in betas[[0, -1]])
    schedule = NoiseSchedule(len(betas), start, end, "scaled_linear", "epsilon", steps_offset=1, set_alpha_to_one=False)
    # The authors' square root, steps and square are in double precision.
    if not np.allclose(schedule.betas, betas, rtol=2 * exact, atol=0):
        raise FolderError("its betas are not linear in their square root, as the authors' are.")
    return schedule


def _finish(components: dict[str, Component]) -> None:
    """What one component's config says of another."""
    if "unet" in components and "vae" in components:
        levels = len(components["vae"].config["block_out_channels"])
        components["unet"].config["sample_size"] = components["vae"].config["sample_size"] // 2 ** (levels - 1)


def _problems(problems: list[str]) -> str:
    listed, more = problems[:20], len(problems) - 20
    if more > 0:
        listed.append(f"... and {more} more")
    return "\n  ".join(["these do not fit:", *listed])
