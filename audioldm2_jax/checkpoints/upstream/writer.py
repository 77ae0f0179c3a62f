"""A model folder's networks as a checkpoint file of the authors: the way back from `reader.py`.

The authors' classes load strictly, so a file holds all that they do (`upstream/buffers.py`).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from audioldm2_jax.checkpoints import buffers
from audioldm2_jax.checkpoints.atomic_folder import FolderError
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.checkpoints.parameter_names import to_torch
from audioldm2_jax.checkpoints.upstream import buffers as upstream_buffers
from audioldm2_jax.checkpoints.upstream.parameter_names import ORIGINALS
from audioldm2_jax.checkpoints.upstream.reader import (
    COMPONENT,
    POSITIONS,
    arrange,
    network_of,
    shapes_of,
    upstream_names,
)
from audioldm2_jax.components import spec_of
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.models.clap import Clap
from audioldm2_jax.models.unet import UNet, contexts_per_level, per_level

Tensors = dict[str, np.ndarray]

_CONDITIONS = "cond_stage_models.0."
#: Where the file of a pipeline keeps its networks, CLAP and T5 once for each of their uses.
_PLACES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "vocoder": ("first_stage_model.vocoder.",),
    "text_encoder": (f"{_CONDITIONS}cond_stage_models.0.model.", "clap.model."),
    "t5": (f"{_CONDITIONS}cond_stage_models.1.model.", "cond_stage_models.1.model."),
    "phonemes": (f"{_CONDITIONS}cond_stage_models.1.",),
    "audiomae": (f"{_CONDITIONS}cond_stage_models.2.audiomae.model.",),
    "projection_model": (_CONDITIONS,),
    "language_model": (f"{_CONDITIONS}model.",),
}
_LABELS = {**_PLACES, "text_encoder": (f"{_CONDITIONS}model.", "clap.model.")}
_TEXT = {**_PLACES, "text_encoder": ("clap.model.",), "t5": (f"{_CONDITIONS}model.",)}
_AVERAGE = 0.9999  # the decay that the authors train with
_VERSION = (
    "The authors' build_model loads the file, as it does theirs, with the transformers that their setup.py asks for "
    "(4.30.2); from 4.31 on it refuses both for position_ids."
)
_NO_AUDIOMAE = (
    "There is no audiomae/: in its place the file holds zeros, which the authors' build_model takes. Sound from text "
    "does not use it; encoding a clip does."
)
_NO_DECODER = (
    "AudioMAE's encoder goes over; its decoder is of another form than in the authors' pipelines, which do not use it: "
    "zeros stand in its place."
)
_NO_CLAP = "There is no audio tower of CLAP: in its place the file holds zeros, so clips cannot be ranked with it."


def write_original(
    path: str | os.PathLike, components: Mapping[str, Component], schedule: NoiseSchedule | None = None
) -> tuple[str, ...]:
    """Writes a checkpoint file, whole or not at all: of a pipeline, or of one network but the UNet.

    A pipeline's file holds what its folder holds, the noise schedule, the latent scale, as moving averages the weights
    themselves, and all else that the authors' classes load (`upstream/buffers.py`).

    Args:
      path: the file.
      components: by their names in a model folder.
      schedule: the noise schedule of a pipeline; None for one network.

    Returns:
      what the user should know of the file.

    Raises:
      FolderError: where PyTorch is missing, the model is a unified one, the schedule or several networks have no place
        in such a file, or the file cannot be written.
    """
    if "text_encoder_3" in components:
        raise FolderError(
            f"{path} is not written: the model is a unified one, whose GPT-2 reads CLAP, T5 and phonemes; the authors' "
            "classes have no place for a third text encoder, and would play it without. Keep it as a folder (--to "
            "FOLDER)."
        )
    try:
        import torch
    except ImportError:
        raise FolderError(f"Writing {path} takes PyTorch: pip install torch (the build for CPU will do).") from None
    tensors, notes = upstream_pipeline(components, schedule) if schedule else (_single(components), ())
    _check_read_back(path, tensors, components)
    # One storage for all copies of a tensor.
    shared = {id(value): torch.from_numpy(value) for value in tensors.values()}
    state = {key: shared[id(value)] for key, value in tensors.items()}
    only = next(iter(components), "") if schedule is None else ""
    partial = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"generator" if only == "vocoder" else "state_dict": state}, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # PyTorch says so when the disk is full
        raise FolderError(f"{path} cannot be written: {error}. Free some space or choose another place.") from error
    finally:
        partial.unlink(missing_ok=True)
    return notes


def _check_read_back(path: str | os.PathLike, tensors: Tensors, components: Mapping[str, Component]) -> None:
    """Refuses networks that the authors' classes would be other than they are: their files hold tensors and no sizes.

    Raises:
      FolderError: with what would be read instead.
    """
    try:
        read = arrange(dict(tensors)).components
    except (FolderError, ValueError) as error:
        raise FolderError(f"{path} is not written, for it could not be read again: {error}") from None
    differing = []
    for name, part in components.items():
        theirs = read[name].module if name in read else part.module
        if type(theirs) is not type(part.module):
            continue
        ours, other = _what_counts(part.module), _what_counts(theirs)
        other_keys = [key for key in ours if _differs(ours[key], other[key])]
        differing += [f"{name}: {key} is {ours[key]}, and would be {other[key]}" for key in other_keys]
    if differing:
        raise FolderError(
            "\n  ".join(
                [
                    f"{path} is not written: the authors' files leave to their classes what this model has otherwise:",
                    *differing,
                ]
            )
        )


def _what_counts(module: nn.Module) -> dict[str, Any]:
    """The fields of a module that decide what it computes, each in one spelling."""
    fields = {field.name: getattr(module, field.name, None) for field in dataclasses.fields(module)}
    if isinstance(module, UNet):
        levels = len(module.block_out_channels)
        fields["cross_attention_dim"] = contexts_per_level(module.cross_attention_dim, levels)
        for key in ("layers_per_block", "attention_head_dim", "transformer_layers_per_block"):
            fields[key] = per_level(key, fields[key], levels)
    return _plain(fields)


def _differs(ours: Any, theirs: Any) -> bool:
    """Whether something that we say is otherwise there; what only they say is left out of account."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return any(_differs(value, theirs.get(key)) for key, value in ours.items())
    return ours != theirs


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if not _IRRELEVANT.search(key)}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


# Of training alone, of AudioMAE's decoder (whose form is the authors' own), or of how a module is used; and what keeps
# a norm from dividing by zero: transformers says 1e-12 of CLAP where the authors have 1e-5, which beside variances of
# about 1 is rounding.
_IRRELEVANT = re.compile(
    r"dropout|pdrop|_prob$|drop_path|^decoder_|^logit_scale|^layer_norm_eps(ilon)?$"
    r"|^(dtype|remat|parent|name|num_classes|model_type)$"
)


def _single(components: Mapping[str, Component]) -> Tensors:
    if len(components) != 1:
        raise FolderError(f"A file of the authors holds one network or a whole pipeline, not {', '.join(components)}.")
    ((name, part),) = components.items()
    if name == "unet":
        raise FolderError("The authors' files hold a UNet only in a whole pipeline: give the whole model folder.")
    return _authors(network_of(name, part.config), part)


def upstream_pipeline(components: Mapping[str, Component], schedule: NoiseSchedule) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors of a pipeline's file, and what the user should know of them; see `write_original`."""
    if schedule.prediction_type != "epsilon":
        raise FolderError(
            f"The authors' files hold networks that predict epsilon, and this one predicts {schedule.prediction_type}: "
            "it can only be written as a folder (--to FOLDER)."
        )
    places = _PLACES if "language_model" in components else _TEXT if "text_encoder_2" in components else _LABELS
    components, notes = _completed(components)
    tensors: Tensors = {
        **upstream_buffers.schedule_tables(schedule.betas),
        "scale_factor": np.array(components["vae"].config["scaling_factor"], np.float32),
        "model_ema.decay": np.array(_AVERAGE, np.float32),
        "model_ema.num_updates": np.array(0, np.int32),
    }
    filters = upstream_buffers.clap_filters()
    for name, part in components.items():
        network = network_of(name, part.config)
        own = _authors(network, part)
        if network == "audiomae" and not _has_plain_decoder(part):
            own = {key: value for key, value in own.items() if not key.startswith("decoder_blocks.")}
            own |= upstream_buffers.plain_decoder(part.module.decoder_embed_dim)
        for place in places[network]:
            tensors |= {place + key: value for key, value in own.items()}
            if network == "text_encoder":
                wrapper = place.removesuffix("model.") + "mel_transform."
                tensors |= {wrapper + key: value for key, value in filters.items()}
    # diffusers keeps the positions of the phonemes with the projection, the authors with their encoder.
    if _CONDITIONS + POSITIONS in tensors:
        tensors[f"{places['phonemes'][0]}{POSITIONS}"] = tensors.pop(_CONDITIONS + POSITIONS)
    weights = {key: value for key, value in tensors.items() if key.startswith("model.")}
    averages = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": value for key, value in weights.items()}
    return tensors | averages, notes


def _completed(components: Mapping[str, Component]) -> tuple[dict[str, Component], tuple[str, ...]]:
    """With zeros for the networks that a folder may lack and the authors' classes load, and what to say of that."""
    components, notes = dict(components), [_VERSION]
    clap = components.get("text_encoder")
    if clap is None or not isinstance(clap.module, Clap):
        components["text_encoder"] = upstream_buffers.whole_clap(clap)
        notes.append(_NO_CLAP)
    if "language_model" not in components:
        components.pop("audiomae", None)
    elif "audiomae" not in components:
        components["audiomae"] = upstream_buffers.no_audiomae()
        notes.append(_NO_AUDIOMAE)
    elif not _has_plain_decoder(components["audiomae"]):
        notes.append(_NO_DECODER)
    return components, tuple(notes)


def _has_plain_decoder(audiomae: Component) -> bool:
    return any(key.startswith("plain_decoder_blocks.") for key in audiomae.unused)


def _authors(network: str, part: Component) -> Tensors:
    """A network's tensors by the authors' names, without their place."""
    original, spec = ORIGINALS[network], spec_of(COMPONENT.get(network, network), part.config)
    module, shapes = shapes_of(network, part.config)
    ours = to_torch(part.variables, spec.names)
    tensors = {theirs: ours[key] for theirs, key in upstream_names(network, shapes, part.config).items()}
    made = upstream_buffers.BESIDE[network](module, ours) if network in upstream_buffers.BESIDE else {}
    for key, value in part.unused.items():
        theirs = original.name(key, part.config)
        if original.unused_name(theirs) != key:  # a table that the authors compute, or a network of another class
            continue
        if key == buffers.WORD_TABLE:
            stands_for_nothing = len(value) == buffers.EMPTY_VOCABULARY
        else:
            stands_for_nothing = theirs in made and made[theirs].shape != value.shape
        if not stands_for_nothing:
            tensors[theirs] = np.array(value)
    return made | original.to_upstream(tensors)
