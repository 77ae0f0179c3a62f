"""A model folder's networks as a checkpoint file of the authors: the way back from `originals.py`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.weights.components import kind_of
from audioldm2_jax.weights.folder import Component
from audioldm2_jax.weights.names import to_torch
from audioldm2_jax.weights.original_names import ORIGINALS
from audioldm2_jax.weights.originals import COMPONENT, POSITIONS, network_of, original_names, shapes_of
from audioldm2_jax.weights.store import FolderError

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


def write_original(
    path: str | os.PathLike, components: Mapping[str, Component], schedule: NoiseSchedule | None = None
) -> None:
    """Writes a checkpoint file, whole or not at all: of a pipeline, or of one network.

    A pipeline's file holds what its folder holds, the betas, the latent scale, and as moving averages the weights
    themselves. What the authors' classes compute when they are made, or never use (CLAP's filters and its classifier),
    is not in it, so their `load_state_dict` needs strict=False.

    Args:
      path: the file.
      components: by their names in a model folder.
      schedule: the noise schedule of a pipeline; None for one network.

    Raises:
      FolderError: where PyTorch is missing, the schedule or several networks have no place in such a file, or the file
        cannot be written.
    """
    try:
        import torch
    except ImportError:
        raise FolderError(f"Writing {path} takes PyTorch: pip install torch (the build for CPU will do).") from None
    tensors = _pipeline(components, schedule) if schedule else _single(components)
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
        raise FolderError(f"{path} cannot be written: {error}. Make room or choose another place.") from error
    finally:
        partial.unlink(missing_ok=True)


def _single(components: Mapping[str, Component]) -> Tensors:
    if len(components) != 1:
        raise FolderError(f"A file of the authors holds one network or a whole pipeline, not {', '.join(components)}.")
    ((name, part),) = components.items()
    return _authors(network_of(name, part.config), part)


def _pipeline(components: Mapping[str, Component], schedule: NoiseSchedule) -> Tensors:
    if schedule.prediction_type != "epsilon":
        raise FolderError(f"The authors' files predict epsilon, not {schedule.prediction_type}.")
    places = _PLACES if "language_model" in components else _TEXT if "text_encoder_2" in components else _LABELS
    tensors: Tensors = {
        "betas": np.asarray(schedule.betas, np.float32),
        "scale_factor": np.array(components["vae"].config["scaling_factor"], np.float32),
        "model_ema.decay": np.array(_AVERAGE, np.float32),
        "model_ema.num_updates": np.array(0, np.int32),
    }
    for name, part in components.items():
        network = network_of(name, part.config)
        own = _authors(network, part)
        for place in places[network]:
            tensors |= {place + key: value for key, value in own.items()}
    # diffusers keeps the positions of the phonemes with the projection, the authors with their encoder.
    if _CONDITIONS + POSITIONS in tensors:
        tensors[f"{places['phonemes'][0]}{POSITIONS}"] = tensors.pop(_CONDITIONS + POSITIONS)
    weights = {key: value for key, value in tensors.items() if key.startswith("model.")}
    averages = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": value for key, value in weights.items()}
    return tensors | averages


def _authors(network: str, part: Component) -> Tensors:
    """A network's tensors by the authors' names, without their place."""
    original, kind = ORIGINALS[network], kind_of(COMPONENT.get(network, network), part.config)
    names = original_names(network, shapes_of(network, part.config)[1], part.config)
    ours = to_torch(part.variables, kind.names)
    tensors = {theirs: ours[key] for theirs, key in names.items()}
    for key, value in part.passengers.items():
        theirs = original.name(key, part.config)
        if original.passenger(theirs) == key:  # else a table that the authors compute, or a network of another class
            tensors[theirs] = np.array(value)
    return original.close(tensors)
