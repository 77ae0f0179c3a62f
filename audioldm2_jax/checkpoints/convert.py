"""From one form of weights to another: the authors' files, model folders, run folders, the hub.

What is written appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from audioldm2_jax.checkpoints import hub, model_folder, model_index
from audioldm2_jax.checkpoints.atomic_folder import (
    FolderError,
    copy_part,
    new_folder,
    read_json,
    replace_folder,
    write_json,
)
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.checkpoints.torch_pickle import ENDINGS
from audioldm2_jax.checkpoints.upstream.buffers import CLAP_MEL
from audioldm2_jax.checkpoints.upstream.reader import read_original
from audioldm2_jax.checkpoints.upstream.writer import write_original
from audioldm2_jax.components import spec_of
from audioldm2_jax.data import phonemes, text
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.models.unet import contexts_per_level
from audioldm2_jax.runtime import object_folders, object_store
from audioldm2_jax.runtime.object_folders import local_copy
from audioldm2_jax.runtime.storage import local_path, scheme_of

_HUB_TOKENIZERS = {"tokenizer": ("roberta-base", "clap", 512), "tokenizer_2": ("google/flan-t5-large", "t5", 128)}
"""Where the authors have their tokenizers from, their kind, and the most tokens that they take."""


_FILES = (".pth", ".pt", ".ckpt")
_UNIFIED = (
    "This is a unified model: its GPT-2 reads CLAP, T5 and phonemes. diffusers' pipelines read two texts, so the "
    "folder is for this package alone, and diffusers refuses it."
)


class Report(NamedTuple):
    """What was done.

    Attributes:
      found: what the source is, in words.
      networks: of each component its name, its parameters, and its class and sizes in words.
      left_out: reasons, and how many tensors of the source were left out for each.
      notes: what the user should know.
      written: names of what lies in the destination.
    """

    found: str
    networks: tuple[tuple[str, int, str], ...]
    left_out: Mapping[str, int]
    notes: tuple[str, ...]
    written: tuple[str, ...]


class _Model(NamedTuple):
    found: str
    components: dict[str, Component]
    schedule: tuple[NoiseSchedule, str] | None = None  # with the scheduler's class
    folder: Path | None = None  # with the parts that are copied as they are
    left_out: Mapping[str, int] = {}
    notes: tuple[str, ...] = ()


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    tokenizers: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> Report:
    """Brings weights into a model folder, or into a checkpoint file of the authors.

    Args:
      source: a checkpoint file of the authors (`upstream/reader.py`), a model folder, some of its networks, the folder
        of a run, or a hub id; a path or an address in a store.
      destination: the folder, which must not exist or be empty; or a file ending in .pth, .pt or .ckpt, in which the
        weights are as the authors have them (`upstream/writer.py`); a path or an address.
      tokenizers: a folder or hub id with `tokenizer/` and `tokenizer_2/`, for the authors' files, which hold none; by
        default those that the authors use, from the hub or its cache.
      overwrite: whether a model folder, or a file, that is there already may be replaced.

    Raises:
      FolderError: for a source that cannot be read or does not fit, with the list of what does not; tokenizers that
        cannot be had; a destination that is in the way or cannot be written. Nothing is written then.
      StorageError: for an address that is not served, or does not answer.
    """
    typed = os.fspath(source)
    if scheme_of(os.fspath(destination)):
        _check_address(typed, os.fspath(destination), overwrite)
    if scheme_of(typed):
        path = local_copy(typed, "--from") if Path(typed.strip()).suffix in ENDINGS else model_folder.fetched(typed)
    else:
        path = local_path(typed, "--from")
    with _placed(path, os.fspath(destination), overwrite) as target:
        is_file = path.is_file() or (not path.exists() and path.suffix in ENDINGS)
        model = _from_file(path) if is_file else _from_folder(path if path.exists() else typed.strip())
        notes = model.notes
        if target.suffix in _FILES:
            notes = (*notes, *write_original(target, model.components, model.schedule and model.schedule[0]))
            written = (target.name,)
        else:
            with _replacing(target) as partial:
                _write(model, partial, tokenizers)
                written = tuple(sorted(path.name for path in partial.iterdir()))
    return Report(model.found, _summary(model.components), model.left_out, notes, written)


@contextlib.contextmanager
def _placed(source: Path, destination: str, overwrite: bool) -> Iterator[Path]:
    """The path to write to; for an address a temporary one, from which it is uploaded if nothing goes wrong."""
    if not scheme_of(destination):
        target = local_path(destination, "--to")
        _check_destination(source, target, overwrite)
        yield target
        return
    address = object_store.normalized(destination, "--to")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / address.rpartition("/")[2]
        yield target
        object_folders.upload(target, address)


def _from_file(path: Path) -> _Model:
    checkpoint = read_original(path)
    schedule = checkpoint.schedule and (checkpoint.schedule, "DDIMScheduler")
    found = f"the authors' pipeline {path}" if schedule else f"a checkpoint of {', '.join(checkpoint.components)}"
    return _Model(found, checkpoint.components, schedule, left_out=checkpoint.left_out, notes=checkpoint.notes)


def _from_folder(source: str | os.PathLike) -> _Model:
    path = model_folder.published(Path(source))
    whole = not path.is_dir() or (path / model_index.FILE).is_file()
    if whole:
        path = model_folder.locate_model(source if not path.is_dir() else path)
    names = [name for name in model_index.PARTS if (path / name / "config.json").is_file()]
    if not names:
        raise FolderError(f"{source} holds no network of AudioLDM 2.")
    components = {name: model_folder.read_component(path, name) for name in names}
    kind = read_json(path / model_index.FILE)["_class_name"] if whole else ", ".join(names)
    notes = (_UNIFIED,) if kind == model_index.UNIFIED_PIPELINE else ()
    schedule = model_folder.read_scheduler(path) if whole else None
    return _Model(f"a folder of {kind}", components, schedule, path, notes=notes)


def _check_destination(source: Path, target: Path, overwrite: bool) -> None:
    if target.is_file() or target.suffix in _FILES:
        _check_file(target, overwrite)
    if source.exists() and (
        source.resolve().is_relative_to(target.resolve()) or target.resolve().is_relative_to(source.resolve())
    ):
        raise FolderError(f"{target} and {source} lie within each other; choose another destination.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise FolderError(
            f"{target} exists and is not empty; choose another folder, or pass --overwrite to replace it."
        )
    networks = [name for name in model_index.PARTS if (target / name / "config.json").is_file()]
    if not networks and not (target / model_index.FILE).is_file():
        raise FolderError(f"{target} is no model folder, so it is not replaced; choose another folder.")


def _check_address(source: str, destination: str, overwrite: bool) -> None:
    """Looks at what lies at an address before gigabytes are read; what is replaced is a model folder, or a file."""
    address = object_store.normalized(destination, "--to")
    if scheme_of(source):
        ends = [f"{one}/" for one in (object_store.normalized(source, "--from"), address)]
        if ends[0].startswith(ends[1]) or ends[1].startswith(ends[0]):
            raise FolderError(f"{address} and {source.strip()} lie within each other; choose another destination.")
    there = object_store.listing(address)
    if not there:
        return
    if not overwrite:
        raise FolderError(f"{address} exists; choose another address, or pass --overwrite to replace it.")
    is_file, wants_file = "" in there, Path(address).suffix in _FILES
    configs = {f"{name}/config.json" for name in model_index.PARTS} | {model_index.FILE, object_folders.UPLOADING}
    if is_file != wants_file or not (is_file or configs & there.keys()):
        raise FolderError(f"{address} is no model {'file' if wants_file else 'folder'}, so it is not replaced.")


def _check_file(target: Path, overwrite: bool) -> None:
    if target.suffix not in _FILES:
        raise FolderError(f"{target} is a file; choose a folder, or a file ending in {', '.join(_FILES)}.")
    if target.is_dir():
        raise FolderError(f"{target} is a folder, but its name is that of a file; choose another name.")
    if target.exists() and not overwrite:
        raise FolderError(f"{target} exists; choose another file, or pass --overwrite to replace it.")


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place if nothing goes wrong."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, target)
    except OSError as error:
        raise FolderError(
            f"{target} cannot be written: {error.strerror or error}. Free some space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(model: _Model, path: Path, tokenizers: str | os.PathLike | None) -> None:
    # The tokenizers first: if they cannot be had, gigabytes need not be written before that is said.
    if model.schedule and model.folder is None:
        for name in ("tokenizer", "tokenizer_2"):
            if {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}[name] in model.components:
                _write_tokenizer(path, name, model.components, tokenizers)
        front_end = dataclasses.asdict(CLAP_MEL)
        model_folder.write_feature_extractor(
            path, seconds=front_end.pop("samples") / CLAP_MEL.sampling_rate, **front_end
        )
    elif model.schedule:
        for name in model_index.COPIED:
            if (model.folder / name).is_dir():
                copy_part(model.folder / name, path, name)
    for name, part in model.components.items():
        model_folder.write_component(path, name, part.config, part.variables, part.unused)
    if model.schedule:
        model_folder.write_scheduler(path, *model.schedule)
        model_index.write(path)


def _write_tokenizer(
    path: Path, name: str, components: Mapping[str, Component], source: str | os.PathLike | None
) -> None:
    if name == "tokenizer_2" and components["text_encoder_2"].config.get("model_type") == "vits":
        with new_folder(path / name) as target:
            phonemes.write_tokenizer(target)
        return
    if source is not None:
        given = local_copy(os.fspath(source), "--tokenizers")
        given = given if given.is_dir() else hub.fetch_folders(str(source).strip(), [name], None)
        copy_part(given / name, path, name)
        return
    repository, kind, length = _HUB_TOKENIZERS[name]
    try:
        loaded = text.load(repository, kind, length)
    except ValueError as error:
        raise FolderError(
            f"{error}\nThe authors' files hold no tokenizers: give --tokenizers a folder (or hub id) with tokenizer/ "
            f"and tokenizer_2/, such as any AudioLDM 2 model folder, or let {repository} be fetched from the hub."
        ) from None
    with new_folder(path / name) as target:
        loaded.save(target)
        config = read_json(target / "tokenizer_config.json")
        write_json(target / "tokenizer_config.json", config | {"model_max_length": length})


def _summary(components: Mapping[str, Component]) -> tuple[tuple[str, int, str], ...]:
    return tuple(
        (
            name,
            sum(int(np.size(leaf)) for leaf in jax.tree.leaves(part.variables["params"])),
            f"{spec_of(name, part.config).class_name}: {_sizes(name, part.config)}",
        )
        for name, part in components.items()
    )


def _sizes(name: str, config: Mapping[str, Any]) -> str:
    """The sizes of a network in a few words."""
    if name == "unet":
        channels = list(config["block_out_channels"])
        contexts = contexts_per_level(config["cross_attention_dim"], len(channels))[-1]
        return f"channels {channels}, contexts {list(contexts)}"
    if name == "vae":
        return (
            f"channels {list(config['block_out_channels'])}, {config['latent_channels']} latent channels, "
            f"scaling factor {config.get('scaling_factor', 1.0):.6g}"
        )
    if name == "vocoder":
        return (
            f"{config['model_in_dim']} bands to {config['sampling_rate']} Hz, {config['upsample_initial_channel']} "
            f"channels, rates {list(config['upsample_rates'])}"
        )
    if name == "text_encoder":
        audio = config.get("audio_config", {})
        return f"embeddings of {config.get('projection_dim', 512)}, audio blocks {list(audio.get('depths', []))}"
    if name == "language_model":
        return f"{config['n_layer']} layers of {config['n_embd']}, writes {config.get('max_new_tokens')} tokens"
    if name == "projection_model":
        return f"{config['text_encoder_dim']} and {config['text_encoder_1_dim']} to {config['langauge_model_dim']}"
    if name == "audiomae":
        return f"fbank of {list(config['img_size'])}, {config['depth']} layers of {config['embed_dim']}"
    layers, width = (("num_layers", "d_model"), ("num_hidden_layers", "hidden_size"))["hidden_size" in config]
    return f"{config[layers]} layers of {config[width]}, vocabulary {config['vocab_size']}"
