"""The model folder: the layout of a diffusers pipeline, read and written without PyTorch.

    model_index.json                     which class each component is
    unet/ vae/ projection_model/         config.json, diffusion_pytorch_model.safetensors
    text_encoder/ text_encoder_2/        config.json, model.safetensors
    language_model/ vocoder/
    tokenizer/ tokenizer_2/              tokenizer.json and what belongs to it
    scheduler/ feature_extractor/        scheduler_config.json, preprocessor_config.json
    audiomae/                            beyond diffusers, and not in the index
    text_encoder_3/ tokenizer_3/         of unified models, which no pipeline of diffusers plays: the index says so

Each subfolder that we write holds a manifest of SHA-256 digests, which is checked on reading; folders written
by others have none. A subfolder appears whole or not at all.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from audioldm2_jax.audio.mel import ClapMelSettings
from audioldm2_jax.checkpoints import config_json, hub, model_index
from audioldm2_jax.checkpoints.atomic_folder import (
    MANIFEST,
    FolderError,
    check_manifest,
    copy_part,
    new_folder,
    read_json,
    write_json,
)
from audioldm2_jax.checkpoints.parameter_names import to_flax, torch_views
from audioldm2_jax.checkpoints.tensors import read_tensors, write_tensors
from audioldm2_jax.components import NOT_IN_CONFIG, ComponentSpec, spec_of
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.models.network import Network
from audioldm2_jax.runtime import object_folders, object_store
from audioldm2_jax.runtime.storage import local_path, scheme_of

# Types of what is read of CLAP's front end.
_FEATURE_EXTRACTOR = {
    **dict.fromkeys(("sampling_rate", "fft_window_size", "hop_length", "feature_size"), int),
    **dict.fromkeys(("frequency_min", "frequency_max", "max_length_s"), float),
}
# What a config.json says of the file it came with, not of the network; transformers would load in such a precision.
_OF_THE_SOURCE = {"dtype", "torch_dtype", "_name_or_path"}


class Component(NamedTuple):
    """One network of a model folder.

    Attributes:
      module: the Linen module.
      variables: its collections (`params`, `batch_stats`), float32 NumPy arrays when read.
      config: what its config.json says, and where that is silent, what is then meant (`ComponentSpec.defaults`).
      unused: tensors that belong to the file and that the module does not use, by their PyTorch names.
    """

    module: nn.Module
    variables: Any
    config: dict[str, Any]
    unused: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def network(self) -> Network:
        """The module with its variables."""
        return Network(self.module, self.variables)


def build(name: str, config: Mapping[str, Any], dtype: Any = jnp.float32) -> nn.Module:
    """The Linen module of component `name` (a key of `SPECS`) as its config.json describes it.

    Raises:
      FolderError: where a key is missing, or has a value that our network does not play.
    """
    spec = spec_of(name, config)
    for fault in config_json.mistyped(config, spec.types):
        raise FolderError(f"{name}/config.json has {fault}.")
    for key, wanted, found in config_json.differences(spec.required, config):
        raise FolderError(f"{name}/config.json has {key}={found!r}; only {wanted!r} is supported.")
    config = config_json.merge(config_json.merge(spec.defaults, spec.required), config)
    fields = [f for f in dataclasses.fields(spec.network) if f.name not in NOT_IN_CONFIG]
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in config]
    if missing:
        raise FolderError(f"{name}/config.json lacks {', '.join(missing)}; is it a {spec.class_name}?")
    try:
        config = spec.from_config(config)
    except ValueError as error:
        raise FolderError(f"{name}/config.json describes no {spec.class_name}: {error}") from error
    values = {f.name: config_json.frozen(config[f.name]) for f in fields if f.name in config}
    return spec.network(**values, dtype=dtype)


def variable_shapes(name: str, config: Mapping[str, Any]) -> Any:
    """The variables of component `name` as its config.json describes it, as `jax.ShapeDtypeStruct`s.

    Raises:
      FolderError: as `build`.
    """
    return _traced(name, json.dumps(config, sort_keys=True))


@functools.lru_cache(maxsize=32)
def _traced(name: str, config: str) -> Any:
    """Remembered, since to trace a network takes seconds, and converting one needs its shapes several times."""
    module, spec = build(name, json.loads(config)), spec_of(name, json.loads(config))
    try:
        return jax.eval_shape(lambda: module.init(jax.random.key(0), *spec.dummy_inputs(module)))
    except Exception as error:  # whatever sizes that do not fit each other make a network raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FolderError(f"{name}/config.json describes no {spec.class_name}: {reason}") from error


def write_component(
    folder: str | os.PathLike,
    name: str,
    config: Mapping[str, Any],
    variables: Any,
    unused: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes `folder/name`: config.json and the weights as safetensors, in the place of an earlier one.

    Args:
      folder: the model folder; made where it is missing.
      name: a key of `SPECS`.
      config: the network's fields and whatever else its config.json should say (`scaling_factor` of the VAE,
        `sample_size` of the UNet, `max_new_tokens` of the language model).
      variables: the network's collections; their leaves are read once each, in the tree's order, while they are
        written.
      unused: tensors to be written back, by their PyTorch names, save those that the component's class does
        not have; PyTorch's buffers are made where missing.

    Raises:
      FolderError: where the folder cannot be written.
      ValueError: where the variables are not those of the network (from the renamer).
    """
    spec = spec_of(name, config)
    unused = {
        key: value
        for key, value in (unused or {}).items()
        if not any(re.search(pattern, key) for pattern in spec.dropped)
    }
    config = _written_config(spec, config, unused)
    tensors = torch_views(variables, spec.names)
    buffers = spec.buffers(config_json.merge(spec.defaults, config), tensors)
    tensors |= {key: np.asarray(value) for key, value in (buffers | unused).items()}
    with new_folder(Path(folder) / name) as target:
        write_json(target / "config.json", config)
        write_tensors(tensors, target / spec.weights_file)


def read_component(
    folder: str | os.PathLike, name: str, dtype: Any = jnp.float32, variant: str | None = None
) -> Component:
    """Reads one network into a module built from its config.json alone, and its variables.

    Args:
      folder: the model folder, the folder of this one network, or the hub id of either.
      name: a key of `SPECS`.
      dtype: of the module's computation; parameters are float32.
      variant: of the weights, "fp16", say; by default those without a variant, or else the only one there is.

    Raises:
      FolderError: where it is missing, damaged, or not what its config says; with the file and the reason.
    """
    path = locate(folder, name, variant)
    check_manifest(path)
    config = read_json(path / "config.json")
    module = build(name, config, dtype)
    spec = spec_of(name, config)
    config = config_json.merge(spec.defaults, config)
    target = variable_shapes(name, config)
    tensors = read_tensors(path, variant)
    try:
        variables, unused = to_flax(tensors, target, spec.names)
    except ValueError as error:
        raise FolderError(f"{path}: {error}") from None
    return Component(module, variables, config, unused)


def copy_component(source: str | os.PathLike, folder: str | os.PathLike, name: str) -> None:
    """Brings a network from `source` (as in `read_component`) into the model folder.

    Files that we wrote are copied; others are read and written anew, since they may lack what diffusers needs.

    Raises:
      FolderError: where the source cannot be read or the folder not be written.
    """
    path = locate(source, name)
    if (path / MANIFEST).is_file():
        check_manifest(path)
        copy_part(path, folder, name)
    else:
        part = read_component(path, name)
        write_component(folder, name, part.config, part.variables, part.unused)


def published(folder: Path) -> Path:
    """The model folder of a run folder; any other folder as it is.

    Raises:
      FolderError: the run has not published it yet.
    """
    if (folder / "model" / model_index.FILE).is_file():
        return folder / "model"
    if (folder / "stages").is_dir():
        raise FolderError(f"The run in {folder} has not finished: it has no model/ yet. Run the training again.")
    return folder


def locate(source: str | os.PathLike, name: str, variant: str | None = None) -> Path:
    """The folder of network `name`: inside a model folder, itself, or fetched from the hub or a store into a cache.

    Raises:
      FolderError: where there is no such thing.
      StorageError: for an address that is not served, or does not answer.
    """
    if scheme_of(os.fspath(source)):
        return _with_config(fetched(os.fspath(source), name), source, name)
    path = local_path(os.fspath(source), "the model's folder")
    if not path.exists():
        folder = name if hub.fetch_file(str(source).strip(), f"{name}/config.json") else ""
        path = hub.fetch_folders(str(source).strip(), [folder], variant)
    return _with_config(path, source, name)


def locate_config(source: str | os.PathLike, name: str) -> Path:
    """The folder of the config.json of network `name`; of what is on the hub nothing else is fetched.

    Raises:
      FolderError, StorageError: as `locate`.
    """
    if scheme_of(os.fspath(source)):
        return locate(source, name)
    path = local_path(os.fspath(source), "the model's folder")
    if not path.exists():
        found = [hub.fetch_file(str(source).strip(), file) for file in (f"{name}/config.json", "config.json")]
        path = next((file.parent for file in found if file), path)
    return _with_config(path, source, name)


def _with_config(path: Path, source: str | os.PathLike, name: str) -> Path:
    """The folder of network `name`, which is `path` or in it; `source` is how the user names it."""
    for candidate in (path / name, path):
        if (candidate / "config.json").is_file():
            return candidate
    raise FolderError(f"{source} has no {name}/config.json; is it an AudioLDM 2 model folder?")


def fetched(address: str, name: str = "") -> Path:
    """The copy of network `name`, by default of all, at an address of a model folder, a run or the network itself.

    Raises:
      FolderError: there is nothing, or the run has not published its model yet.
      StorageError: as `object_store.listing`.
    """
    address = object_store.normalized(address, "the model's folder")
    names = object_folders.whole(object_store.listing(address))
    if f"model/{model_index.FILE}" in names:
        return object_folders.cached(f"{address}/model", name)
    if any(one.startswith("stages/") for one in names):
        raise FolderError(f"The run in {address} has not finished: it has no model/ yet. Run the training again.")
    inside = name and any(one.startswith(f"{name}/") for one in names)
    return object_folders.cached(address, name if inside else "")


def locate_model(source: str | os.PathLike, variant: str | None = None) -> Path:
    """The model folder `source`: its path or that of the run that published it, or a hub id or address: fetched.

    Raises:
      FolderError: where there is no such thing, or it is the folder of another pipeline.
      StorageError: for an address that is not served, or does not answer.
    """
    if scheme_of(os.fspath(source)):
        path = fetched(os.fspath(source))
        model_index.read(path)
        return path
    path = published(local_path(os.fspath(source), "the model's folder"))
    if not path.exists():
        index = hub.fetch_file(str(source).strip(), model_index.FILE)
        if index is None:
            raise FolderError(f"{source} on the hub has no {model_index.FILE}: it is no AudioLDM 2 model.")
        model_index.read(index.parent)
        path = hub.fetch_folders(str(source).strip(), (*model_index.PARTS, *model_index.COPIED, "scheduler"), variant)
    model_index.read(path)
    return path


def write_scheduler(folder: str | os.PathLike, schedule: NoiseSchedule, class_name: str = "DDIMScheduler") -> None:
    """Writes scheduler/scheduler_config.json."""
    with new_folder(Path(folder) / "scheduler") as target:
        write_json(target / "scheduler_config.json", schedule.to_config(class_name))


def read_scheduler(folder: str | os.PathLike) -> tuple[NoiseSchedule, str]:
    """The noise schedule and the name of the scheduler's class.

    Raises:
      FolderError: where it is missing, damaged, or asks for something unsupported.
    """
    path = Path(folder) / "scheduler"
    check_manifest(path)
    config = read_json(path / "scheduler_config.json")
    for fault in config_json.mistyped(config, config_json.types_of(NoiseSchedule) | {"_class_name": str}):
        raise FolderError(f"{path}/scheduler_config.json: {fault}.")
    try:
        return NoiseSchedule.from_config(config), config.get("_class_name", "DDIMScheduler")
    except (ValueError, TypeError) as error:
        raise FolderError(f"{path}/scheduler_config.json: {error}") from None


def write_feature_extractor(
    folder: str | os.PathLike,
    *,
    sampling_rate: int,
    seconds: float,
    n_fft: int,
    hop_length: int,
    n_mels: int,
    fmin: float,
    fmax: float,
) -> None:
    """Writes feature_extractor/: CLAP's front end (a recipe's `audio.clap`), for diffusers to rank clips.

    transformers' ClapFeatureExtractor reads any number of seconds, but takes clips only if it is an integer.
    """
    config = {
        "feature_extractor_type": "ClapFeatureExtractor",
        "feature_size": n_mels,
        "sampling_rate": sampling_rate,
        "hop_length": hop_length,
        "max_length_s": int(seconds) if seconds == int(seconds) else seconds,
        "fft_window_size": n_fft,
        "padding_value": 0.0,
        "return_attention_mask": False,
        "frequency_min": fmin,
        "frequency_max": fmax,
        "truncation": "rand_trunc",
        "padding": "repeatpad",
    }
    with new_folder(Path(folder) / "feature_extractor") as target:
        write_json(target / "preprocessor_config.json", config)


def read_feature_extractor(folder: str | os.PathLike) -> ClapMelSettings:
    """CLAP's front end.

    Raises:
      FolderError: where it is missing, damaged, or of another kind.
    """
    path = Path(folder) / "feature_extractor"
    check_manifest(path)
    file = path / "preprocessor_config.json"
    config = read_json(file)
    if config.get("feature_extractor_type") != "ClapFeatureExtractor":
        raise FolderError(
            f"{file} says {config.get('feature_extractor_type')}; only ClapFeatureExtractor is supported."
        )
    for fault in config_json.mistyped(config, _FEATURE_EXTRACTOR):
        raise FolderError(f"{file}: {fault}.")
    try:
        return ClapMelSettings(
            sampling_rate=config["sampling_rate"],
            n_fft=config["fft_window_size"],
            hop_length=config["hop_length"],
            n_mels=config["feature_size"],
            fmin=float(config["frequency_min"]),
            fmax=float(config["frequency_max"]),
            samples=round(config["max_length_s"] * config["sampling_rate"]),
        )
    except KeyError as error:
        raise FolderError(f"{file} says nothing of {error}; copy or publish the model folder again.") from None
    except (ValueError, TypeError) as error:
        raise FolderError(f"{file}: {error}") from None


def _written_config(spec: ComponentSpec, config: Mapping[str, Any], unused: Mapping[str, np.ndarray]) -> dict[str, Any]:
    plain = config_json.plain(config)
    for key, wanted, found in config_json.differences(spec.required, plain):
        raise FolderError(f"The config of a {spec.class_name} has {key}={found!r}; only {wanted!r} is supported.")
    named = {"_class_name": spec.class_name}
    if spec.model_type:
        named = {"architectures": [spec.class_name], "model_type": spec.model_type}
    said = spec.to_config(plain, unused) | named
    return config_json.merge(config_json.merge(spec.required, config_json.without(_OF_THE_SOURCE, plain)), said)
