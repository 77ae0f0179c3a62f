"""Every form in which transformers and diffusers hold a component: read, written again, and read by diffusers whole.

Written again, a component is bit by bit what it was, or, where it came in half precision, what that is in float32.
"""

import by_diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoencoderKL
from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_folder import CONFIGS

from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.checkpoints.atomic_folder import FolderError


def unet(contexts=(None, 24, 16), **fields):
    levels = len(CONFIGS["unet"]["block_out_channels"])
    config = CONFIGS["unet"] | {"cross_attention_dim": [list(contexts)] * levels}
    config = {key: value for key, value in config.items() if key != "attention_head_dim"} | fields
    return AudioLDM2UNet2DConditionModel(**config)


def gpt2(of):
    config = CONFIGS["language_model"] | {"vocab_size": 11, "bos_token_id": 10, "eos_token_id": 10}
    return of(transformers.GPT2Config(**config))


def t5(of):
    return of(transformers.T5Config(**CONFIGS["text_encoder_2"], feed_forward_proj="gated-gelu"))


def clap():
    return transformers.ClapModel(transformers.ClapConfig(**CONFIGS["text_encoder"]))


# The published models: base and music are the first form of each component.
FORMS = {
    "unet, base": ("unet", lambda: unet(attention_head_dim=[1, 2])),
    "unet, large": ("unet", lambda: unet((None, 24, 16, None), transformer_layers_per_block=2, attention_head_dim=2)),
    "unet, without head counts": ("unet", unet),
    "vae": ("vae", lambda: AutoencoderKL(**CONFIGS["vae"], down_block_types=["DownEncoderBlock2D"] * 2,
                                         up_block_types=["UpDecoderBlock2D"] * 2)),
    "vocoder": ("vocoder", lambda: transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(
        **CONFIGS["vocoder"]))),
    "projection_model": ("projection_model", lambda: AudioLDM2ProjectionModel(12, 16, 24)),
    "clap": ("text_encoder", clap),
    "gpt2 with head": ("language_model", lambda: gpt2(transformers.GPT2LMHeadModel)),
    "gpt2 without head": ("language_model", lambda: gpt2(transformers.GPT2Model)),
    "t5 encoder": ("text_encoder_2", lambda: t5(transformers.T5EncoderModel)),
    "whole t5": ("text_encoder_2", lambda: t5(transformers.T5ForConditionalGeneration)),
}  # fmt: skip
HALVED = ("vae", "vocoder", "projection_model", "clap", "gpt2 with head", "t5 encoder")


def twin_of(form):
    """A component of PyTorch's class with random weights, and its name in the model folder."""
    name, make = FORMS[form]
    torch.manual_seed(0)
    twin = make()
    for parameter in twin.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return name, twin


def rewritten(source, name, target):
    """Reads the component, writes it, and has PyTorch's class read it."""
    part = model_folder.read_component(source, name)
    model_folder.write_component(target, name, part.config, part.variables, part.unused)
    return by_diffusers.component(target, name)


@pytest.mark.parametrize(("form", "half"), [*((form, False) for form in FORMS), *((form, True) for form in HALVED)])
def test_read_written_and_read_by_diffusers(form, half, tmp_path):
    name, twin = twin_of(form)
    if half:
        twin = twin.to(torch.float16)
    twin.save_pretrained(tmp_path / "source" / name, variant="fp16" if half else None)
    again = rewritten(tmp_path / "source", name, tmp_path / "target")
    found, used = again.state_dict(), 0
    for key, value in twin.state_dict().items():
        if form == "whole t5" and key.startswith(("decoder.", "lm_head.")):
            continue  # nobody's
        key = f"transformer.{key}" if form == "gpt2 without head" else key
        wanted = value.float() if value.is_floating_point() else value
        assert found[key].dtype == wanted.dtype and torch.equal(found[key], wanted), key
        used += 1
    tied = {"gpt2 without head": 1}  # lm_head.weight is wte
    assert used == len(found) - tied.get(form, 0)


def test_heads_as_diffusers_counts_them():
    """Where a config does not say: 8 at every level, whatever the channels."""
    config = {key: value for key, value in CONFIGS["unet"].items() if key != "attention_head_dim"}
    assert model_folder.build("unet", config).attention_head_dim == unet().config.attention_head_dim == 8


def test_what_older_versions_wrote(tmp_path):
    """The VAE's attention before diffusers 0.17, GPT-2's causal masks, a CLAP without its buffers, T5's doubles."""
    twins = {}
    for form in ("vae", "gpt2 with head", "clap", "t5 encoder"):
        name, twin = twin_of(form)
        twin.save_pretrained(tmp_path / "old" / name)
        twins[name] = twin
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    added = {
        "language_model": {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 96, 96, dtype=torch.bool),
            "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
            "lm_head.weight": twins["language_model"].transformer.wte.weight.detach().clone(),
        },
        "text_encoder_2": {"encoder.embed_tokens.weight": twins["text_encoder_2"].shared.weight.detach().clone()},
    }
    for name in twins:
        (file,) = (tmp_path / "old" / name).glob("*.safetensors")
        tensors = {}
        for key, value in (load_file(file) | added.get(name, {})).items():
            for new, old in renamed.items():
                key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
            if name != "text_encoder" or not key.endswith(("position_ids", "token_type_ids", "position_index")):
                tensors[key] = value
        assert tensors.keys() != load_file(file).keys()
        save_file(tensors, file)
        state = rewritten(tmp_path / "old", name, tmp_path / "new").state_dict()
        assert all(torch.equal(state[key], value) for key, value in twins[name].state_dict().items())


def test_weights_of_another_class(tmp_path):
    name, twin = twin_of("t5 encoder")
    twin.save_pretrained(tmp_path / name)
    (tmp_path / "language_model").symlink_to(tmp_path / name)
    with pytest.raises(FolderError, match=r"language_model/config\.json is of a t5; supported .*: gpt2"):
        model_folder.read_component(tmp_path, "language_model")


def test_half_precision_is_read_as_its_numbers(tmp_path):
    """bfloat16, in which NumPy itself has no numbers."""
    name, twin = twin_of("projection_model")
    twin.to(torch.bfloat16).save_pretrained(tmp_path / name)
    read = model_folder.read_component(tmp_path, name).variables["params"]["projection"]["kernel"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read.T, twin.projection.weight.detach().float().numpy())
