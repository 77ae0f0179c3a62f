"""How the authors' files call and store what diffusers and transformers, and so we, call otherwise.

Per network: rules from our PyTorch names to the authors', tried in order, and a storage, for the tensors that the
authors keep in another form. One table serves both directions, since reading renames by the map of all names that
the network has. Sources: haoheliu/AudioLDM2 (openaimodel.py, diffusionmodules/model.py, hifigan/models.py,
open_clip/model.py and htsat.py, sequence_input.py, phoneme_encoder/), facebookresearch/AudioMAE (models_mae.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from audioldm2_jax.models.unet import contexts_per_level

Config = Mapping[str, Any]
Tensors = dict[str, np.ndarray]
Rule = tuple[str, str | Callable[[re.Match, Config], str]]


class Original(NamedTuple):
    """How the authors store one network.

    Attributes:
      rules: (pattern, replacement) on our names; the first that fits from the start of a name is followed.
      inner: replacements within what a rule leaves of the name.
      from_upstream: the authors' tensors in our form, still by the authors' names.
      to_upstream: the inverse.
      carried: (pattern, replacement) on the authors' names of unused tensors.
    """

    rules: tuple[Rule, ...] = ()
    inner: tuple[tuple[str, str], ...] = ()
    from_upstream: Callable[[Tensors], Tensors] = dict
    to_upstream: Callable[[Tensors], Tensors] = dict
    carried: tuple[tuple[str, str], ...] = ()

    def name(self, key: str, config: Config) -> str:
        """The authors' name of our tensor `key`, without the network's place in the file."""
        for pattern, replacement in self.rules:
            match = re.match(pattern, key)
            if match:
                start = match.expand(replacement) if isinstance(replacement, str) else replacement(match, config)
                key = start + key[match.end() :]
                break
        for pattern, replacement in self.inner:
            key = re.sub(pattern, replacement, key)
        return key

    def unused_name(self, key: str) -> str | None:
        """Our name of the authors' tensor `key` if it is to be carried along."""
        for pattern, replacement in self.carried:
            if re.match(pattern, key):
                return re.sub(pattern, replacement, key, count=1)
        return None


def contexts_at(config: Config, level: int) -> int:
    """How many transformers follow each ResNet block of a level of the UNet."""
    if config["down_block_types"][level] != "CrossAttnDownBlock2D":
        return 0
    return len(contexts_per_level(config["cross_attention_dim"], len(config["block_out_channels"]))[level])


def _input_block(match: re.Match, config: Config) -> str:
    level, part, index = int(match[1]), match[2], int(match[3])
    first = 1 + level * (config["layers_per_block"] + 1)
    if part == "downsamplers":
        return f"input_blocks.{first + config['layers_per_block']}.0.op."
    if part == "resnets":
        return f"input_blocks.{first + index}.0."
    layer, transformer = divmod(index, contexts_at(config, level))
    return f"input_blocks.{first + layer}.{1 + transformer}."


def _middle_block(match: re.Match, config: Config) -> str:
    last = contexts_at(config, len(config["block_out_channels"]) - 1) + 1
    return f"middle_block.{int(match[2]) * last if match[1] == 'resnets' else 1 + int(match[2])}."


def _output_block(match: re.Match, config: Config) -> str:
    block, part, index = int(match[1]), match[2], int(match[3])
    contexts = contexts_at(config, len(config["block_out_channels"]) - 1 - block)
    first = block * (config["layers_per_block"] + 1)
    if part == "upsamplers":
        return f"output_blocks.{first + config['layers_per_block']}.{1 + contexts}.conv."
    if part == "resnets":
        return f"output_blocks.{first + index}.0."
    layer, transformer = divmod(index, contexts)
    return f"output_blocks.{first + layer}.{1 + transformer}."


def _decoder_block(match: re.Match, config: Config) -> str:
    level = len(config["block_out_channels"]) - 1 - int(match[1])
    return f"decoder.up.{level}." + (f"block.{match[3]}." if match[2] == "resnets" else "upsample.")


def _vae_from_upstream(tensors: Tensors) -> Tensors:
    """The authors' attention is of convolutions 1 × 1, diffusers' of linear layers."""
    return {
        key: value[:, :, 0, 0] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", key) and value.ndim == 4 else value
        for key, value in tensors.items()
    }


def _vae_to_upstream(tensors: Tensors) -> Tensors:
    return {
        key: value[:, :, None, None] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", key) else value
        for key, value in tensors.items()
    }


def _vocoder_from_upstream(tensors: Tensors) -> Tensors:
    """Joins weight norm's length and direction: w = g · v / |v|, |v| over all axes but the first (1602.07868)."""
    spelt = {}
    for key, value in tensors.items():
        key = re.sub(r"\.parametrizations\.weight\.original([01])$", lambda m: f".weight_{'gv'[int(m[1])]}", key)
        spelt[key] = value
    made = {key: value for key, value in spelt.items() if not re.search(r"\.weight_[gv]$", key)}
    for key, length in spelt.items():
        direction = spelt.get(re.sub("_g$", "_v", key)) if key.endswith(".weight_g") else None
        if direction is not None and length.size == len(direction):
            norm = np.sqrt(np.square(direction, dtype=np.float32).sum(tuple(range(1, direction.ndim)), keepdims=True))
            made[key.removesuffix("_g")] = direction * (length / norm)
    lone = {key for key in spelt if re.search(r"\.weight_[gv]$", key) and key[:-2] not in made}
    return made | {key: spelt[key] for key in lone}


_PARTS = ("query", "key", "value")


def _clap_from_upstream(tensors: Tensors) -> Tensors:
    """HTSAT's queries, keys and values are one matrix there."""
    made = {}
    for key, value in tensors.items():
        if ".attn.qkv." in key:
            for part, rows in zip(_PARTS, np.array_split(value, 3)):
                made[key.replace(".qkv.", f".{part}.")] = rows
        else:
            made[key] = value
    return made


def _clap_to_upstream(tensors: Tensors) -> Tensors:
    made = {}
    for key, value in tensors.items():
        if ".attn.query." in key:
            made[key.replace(".query.", ".qkv.")] = np.concatenate(
                [tensors[key.replace(".query.", f".{part}.")] for part in _PARTS]
            )
        elif not re.search(r"\.attn\.(key|value)\.", key):
            made[key] = value
    return made


_MARKS = r"^(start|end)_of_sequence_tokens\.weight"
_TABLE_ROWS = 32


def _projection_from_upstream(tensors: Tensors) -> Tensors:
    """Of the authors' 32 start and end tokens, one a sequence is in use: the first two."""
    made = {}
    for key, value in tensors.items():
        if re.match(_MARKS, key):
            made |= {f"{key}.{row}": vector for row, vector in enumerate(value[:2])}
        else:
            made[key] = value
    return made


def _projection_to_upstream(tensors: Tensors) -> Tensors:
    made = {key: value for key, value in tensors.items() if not re.match(_MARKS, key)}
    for key in ("start_of_sequence_tokens.weight", "end_of_sequence_tokens.weight"):
        rows = np.stack([tensors[f"{key}.{row}"] for row in range(2)])
        made[key] = np.pad(rows, ((0, _TABLE_ROWS - 2), (0, 0)))
    return made


def _phonemes_from_upstream(tensors: Tensors) -> Tensors:
    """The authors' attention is of convolutions of width 1, transformers' of linear layers."""
    return {
        key: value[:, :, 0] if re.search(r"\.conv_[qkvo]\.weight$", key) and value.ndim == 3 else value
        for key, value in tensors.items()
    }


def _phonemes_to_upstream(tensors: Tensors) -> Tensors:
    return {
        key: value[:, :, None] if re.search(r"\.conv_[qkvo]\.weight$", key) else value for key, value in tensors.items()
    }


_RESNET = (
    (r"(put_blocks\.\d+\.0|middle_block\.\d+)\.norm1\.", r"\1.in_layers.0."),
    (r"(put_blocks\.\d+\.0|middle_block\.\d+)\.conv1\.", r"\1.in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"(put_blocks\.\d+\.0|middle_block\.\d+)\.norm2\.", r"\1.out_layers.0."),
    (r"(put_blocks\.\d+\.0|middle_block\.\d+)\.conv2\.", r"\1.out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)

_LAYER = r"text_encoder\.encoder\.layers\.(\d+)\."

ORIGINALS: dict[str, Original] = {
    "unet": Original(
        rules=(
            (r"conv_in\.", "input_blocks.0.0."),
            (r"time_embedding\.linear_1\.", "time_embed.0."),
            (r"time_embedding\.linear_2\.", "time_embed.2."),
            (r"class_embedding\.", "film_emb."),
            (r"conv_norm_out\.", "out.0."),
            (r"conv_out\.", "out.2."),
            (r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(?:conv\.)?", _input_block),
            (r"mid_block\.(resnets|attentions)\.(\d+)\.", _middle_block),
            (r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(?:conv\.)?", _output_block),
        ),
        inner=_RESNET,
    ),
    "vae": Original(
        rules=(
            (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.down.\1.block.\2."),
            (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
            (r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.", _decoder_block),
            (r"(encoder|decoder)\.mid_block\.resnets\.0\.", r"\1.mid.block_1."),
            (r"(encoder|decoder)\.mid_block\.resnets\.1\.", r"\1.mid.block_2."),
            (r"(encoder|decoder)\.mid_block\.attentions\.0\.", r"\1.mid.attn_1."),
        ),
        inner=(
            (r"\.conv_norm_out\.", ".norm_out."),
            (r"\.conv_shortcut\.", ".nin_shortcut."),
            (r"\.group_norm\.", ".norm."),
            (r"\.to_([qkv])\.", r".\1."),
            (r"\.to_out\.0\.", ".proj_out."),
        ),
        from_upstream=_vae_from_upstream,
        to_upstream=_vae_to_upstream,
    ),
    "vocoder": Original(rules=((r"upsampler\.", "ups."),), from_upstream=_vocoder_from_upstream),
    "text_encoder": Original(
        rules=(
            (r"text_model\.", "text_branch."),
            (r"audio_model\.audio_encoder\.", "audio_branch."),
            (r"(text|audio)_projection\.linear1\.", r"\1_projection.0."),
            (r"(text|audio)_projection\.linear2\.", r"\1_projection.2."),
        ),
        inner=(
            (r"^audio_branch\.batch_norm\.", "audio_branch.bn0."),
            (r"(blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
            (r"(blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
            (r"(blocks\.\d+)\.attention\.self\.", r"\1.attn."),
            (r"(blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
            (r"(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
            (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        ),
        from_upstream=_clap_from_upstream,
        to_upstream=_clap_to_upstream,
        carried=(
            (r"^audio_branch\.bn0\.num_batches_tracked$", "audio_model.audio_encoder.batch_norm.num_batches_tracked"),
        ),
    ),
    "t5": Original(
        to_upstream=lambda tensors: tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"]},
        carried=((r"^encoder\.embed_tokens\.weight$", "encoder.embed_tokens.weight"),),
    ),
    "language_model": Original(
        rules=((r"transformer\.", ""),), carried=((r"^wte\.weight$", "transformer.wte.weight"),)
    ),
    "projection_model": Original(
        rules=(
            (r"sos_embed$", "start_of_sequence_tokens.weight.0"),
            (r"sos_embed_1$", "start_of_sequence_tokens.weight.1"),
            (r"eos_embed$", "end_of_sequence_tokens.weight.0"),
            (r"eos_embed_1$", "end_of_sequence_tokens.weight.1"),
            (r"projection\.", "input_sequence_embed_linear.0."),
            (r"projection_1\.", "input_sequence_embed_linear.1."),
        ),
        from_upstream=_projection_from_upstream,
        to_upstream=_projection_to_upstream,
    ),
    "phonemes": Original(
        rules=(
            (r"text_encoder\.embed_tokens\.", "text_encoder.emb."),
            (r"text_encoder\.project\.", "text_encoder.proj."),
            (_LAYER + r"attention\.", r"text_encoder.encoder.attn_layers.\1."),
            (_LAYER + r"feed_forward\.", r"text_encoder.encoder.ffn_layers.\1."),
            (_LAYER + r"layer_norm\.weight", r"text_encoder.encoder.norm_layers_1.\1.gamma"),
            (_LAYER + r"layer_norm\.bias", r"text_encoder.encoder.norm_layers_1.\1.beta"),
            (_LAYER + r"final_layer_norm\.weight", r"text_encoder.encoder.norm_layers_2.\1.gamma"),
            (_LAYER + r"final_layer_norm\.bias", r"text_encoder.encoder.norm_layers_2.\1.beta"),
        ),
        inner=((r"\.([qkv])_proj\.", r".conv_\1."), (r"\.out_proj\.", ".conv_o.")),
        from_upstream=_phonemes_from_upstream,
        to_upstream=_phonemes_to_upstream,
        carried=((r"^text_encoder\.proj\.", "text_encoder.project."),),
    ),
    # The decoder of plain blocks, with which the authors' files carry the encoder, has other parameters than the
    # published one, so it is carried under a name of its own.
    "audiomae": Original(
        rules=((r"plain_decoder_blocks\.", "decoder_blocks."),),
        carried=(
            (r"^(decoder_)?pos_embed$", r"\g<0>"),
            (
                r"^decoder_blocks\.(?=\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)$)",
                "plain_decoder_blocks.",
            ),
        ),
    ),
}
