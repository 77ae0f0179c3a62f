"""model_index.json: which class each component of a model folder is, as diffusers' pipelines find them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from audioldm2_jax.checkpoints.atomic_folder import FolderError, read_json, write_json
from audioldm2_jax.components import SPECS, spec_of

FILE = "model_index.json"
PARTS = tuple(SPECS)
"""The networks of a model folder."""
UNIFIED_PIPELINE = "AudioLDM2UnifiedPipeline"
"""What the index calls the pipeline of a unified model. diffusers has none of that name."""
_THIRD = ("text_encoder_3", "tokenizer_3")  # of unified models alone
_PIPELINES = ("AudioLDM2Pipeline", "AudioLDMPipeline", UNIFIED_PIPELINE)
_OTHERS = {
    "tokenizer": "RobertaTokenizerFast",
    "tokenizer_2": "T5TokenizerFast",
    "tokenizer_3": "VitsTokenizer",
    "feature_extractor": "ClapFeatureExtractor",
}
COPIED = tuple(_OTHERS)
"""The tokenizers and the front end of CLAP, which are copied from folder to folder as they are."""
_PACKAGE = __name__.split(".")[0]


def write(folder: str | os.PathLike) -> None:
    """Writes model_index.json, with which diffusers finds the components, each of the class that its folder holds.

    The pipeline is AudioLDM2Pipeline, or AudioLDMPipeline where nothing but CLAP conditions the UNet. A component
    that the pipeline has and the folder has not is written as [null, null]. Neither reads three texts: that of a
    unified model is `UNIFIED_PIPELINE`, and since AudioLDM2Pipeline.from_pretrained does not look at that name, and
    leaves out components that it does not know, its projection model is of a class of this package, which stops it.

    Raises:
      FolderError: where a component's config.json cannot be read, or the scheduler is missing.
    """
    path = Path(folder)
    specs = {name: spec_of(name, read_json(path / name / "config.json")) for name in PARTS if (path / name).is_dir()}
    classes = {name: [spec.library, spec.class_name] for name, spec in specs.items() if spec.library}
    classes["scheduler"] = ["diffusers", read_json(path / "scheduler/scheduler_config.json")["_class_name"]]
    classes |= {name: ["transformers", kind] for name, kind in _OTHERS.items() if (path / name).is_dir()}
    if specs.get("projection_model") and not specs["projection_model"].library:
        classes["projection_model"] = [_PACKAGE, specs["projection_model"].class_name]
    if "tokenizer_2" in classes and classes.get("text_encoder_2") == ["transformers", "VitsModel"]:
        classes["tokenizer_2"] = ["transformers", "VitsTokenizer"]
    pipeline, parts = "AudioLDM2Pipeline", [*(name for name in PARTS if SPECS[name].library), "scheduler", *_OTHERS]
    if "text_encoder_3" in specs:
        pipeline = UNIFIED_PIPELINE
    else:
        parts = [name for name in parts if name not in _THIRD]
    labelled = "unet" in specs and read_json(path / "unet/config.json").get("class_embed_type")
    if labelled and "language_model" not in specs:
        pipeline, parts = "AudioLDMPipeline", ["unet", "vae", "vocoder", "text_encoder", "scheduler", "tokenizer"]
        classes["text_encoder"] = ["transformers", "ClapTextModelWithProjection"]
    index = {"_class_name": pipeline, "_diffusers_version": "0.33.0"}
    index |= {name: classes.get(name, [None, None]) for name in sorted(parts)}
    target = path / FILE
    write_json(target.with_suffix(".partial"), index)
    os.replace(target.with_suffix(".partial"), target)


def read(folder: str | os.PathLike) -> dict[str, Any]:
    """The content of model_index.json.

    Raises:
      FolderError: where there is none, or it is of another pipeline.
    """
    if not (Path(folder) / FILE).is_file():
        raise FolderError(f"{folder} has no {FILE}: give the path of a model folder.")
    index = read_json(Path(folder) / FILE)
    if index.get("_class_name") not in _PIPELINES:
        raise FolderError(f"{folder} holds a {index.get('_class_name')}, not an {' or '.join(_PIPELINES)}.")
    for name in (*PARTS, *_OTHERS, "scheduler"):
        entry = index.get(name)
        if entry is not None and not (isinstance(entry, list) and len(entry) == 2):
            raise FolderError(
                f"{Path(folder) / FILE} has {name}={entry!r}; it has to be [library, class] or [null, null]."
            )
    return index


def parts(folder: str | os.PathLike) -> list[str]:
    """The networks that a model folder has: those that its index names, and audiomae/ where there is one.

    Raises:
      FolderError: from `read`.
    """
    index = read(folder)
    return [name for name in PARTS if (index.get(name) or [None])[0] or (Path(folder) / name).is_dir()]
