"""What diffusers and transformers make of a model folder that we wrote."""

import diffusers
import torch
import transformers
from diffusers.pipelines.audioldm2 import modeling_audioldm2

from audioldm2_jax.checkpoints import atomic_folder
from audioldm2_jax.components import spec_of


def component(path, name) -> torch.nn.Module:
    """Component `name` as PyTorch's class reads it, which finds every key it wants, and no other."""
    class_name = spec_of(name, atomic_folder.read_json(path / name / "config.json")).class_name
    owner = next(module for module in (transformers, diffusers, modeling_audioldm2) if hasattr(module, class_name))
    twin, info = getattr(owner, class_name).from_pretrained(path / name, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return twin
