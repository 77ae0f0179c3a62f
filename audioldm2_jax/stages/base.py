"""What a training stage is: parameter groups, and pure losses over them.

The loop (training/loop.py) knows a stage by the members of `Stage` alone. Everything a stage computes is a pure
function of the parameters, the model state (BatchNorm statistics, spectral-norm vectors), the frozen networks, the
batch and the keys; sharding, precision, accumulation, averaging, saving and resuming are the loop's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from audioldm2_jax.audio import mel
from audioldm2_jax.audio.resample import resample
from audioldm2_jax.models.network import Network
from audioldm2_jax.weights.folder import Component

Tree = Any  # a pytree of arrays
Batch = Mapping[str, jax.Array]


class Keys(NamedTuple):
    """The randomness of one step: `step`, one key for all of it, and `examples` [batch], one for each slot.

    Both are functions of (seed, step, slot) and not of the number of hosts or devices.
    """

    step: jax.Array
    examples: jax.Array


class Objective(NamedTuple):
    """A loss and the parameter groups that it updates.

    `loss(params, outputs, state, frozen, batch, keys)` returns `(loss, (metrics, state))`: `params` and `state` hold
    every group, `outputs` is what `Stage.forward` returned, `metrics` are scalars to log, `state` the new model state.
    """

    name: str
    groups: tuple[str, ...]
    loss: Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], Tree]]]


class Stage:
    """Base of all stages. A subclass declares the class members and implements the methods below them."""

    name: str
    """As in the recipe's `train` section."""
    keys: tuple[str, ...] = ("waveform",)
    """Keys of the batch that the stage reads (data/pipeline.py)."""
    forward_groups: tuple[str, ...] = ()
    """Groups whose gradient flows through `forward`."""
    accumulates: bool = True
    """Whether the loss of a batch is the mean of the losses of its parts."""

    def __init__(self, config: ConfigDict, components: Mapping[str, Component], empty_text: Batch | None = None):
        """Args:
        config: the whole recipe.
        components: those of `needs` and `continues` that exist.
        empty_text: the token ids and masks of the empty caption, [1, length] a key; only for stages that read text.
        """
        self.config = config
        self.knobs = config.train[self.name]
        self.components = components
        self.empty_text = empty_text
        self.setup()

    @classmethod
    def needs(cls, config: ConfigDict) -> tuple[str, ...]:
        """Returns the components of earlier stages, or of `init_from`, that stay frozen here."""
        return ()

    @classmethod
    def continues(cls, config: ConfigDict) -> tuple[str, ...]:
        """Returns the components of earlier stages that this stage goes on training."""
        return ()

    @classmethod
    def makes(cls, config: ConfigDict) -> tuple[str, ...]:
        """Returns the components of the model folder that the stage writes when it ends."""
        raise NotImplementedError

    @property
    def frozen(self) -> dict[str, Tree]:
        """The weights of the frozen components, by name: what the loop hands to every jitted function."""
        return {name: self.components[name].variables for name in self.needs(self.config)}

    def network(self, name: str, frozen: Mapping[str, Tree]) -> Network:
        """Returns the frozen component `name` as something to call."""
        return Network(self.components[name].module, frozen[name])

    def given(self, group: str, component: str) -> dict[str, Tree]:
        """Returns the weights that `group` starts from: those of `component`, if there is one."""
        if component not in self.components:
            return {}
        return {group: self.components[component].variables["params"]}

    def setup(self) -> None:
        """Builds the modules."""
        raise NotImplementedError

    def init(self, key: jax.Array) -> tuple[dict[str, Tree], dict[str, Tree]]:
        """Returns (params, state): a tree a group, and the model state of the groups that have one. Pure."""
        raise NotImplementedError

    def initial(self) -> dict[str, Tree]:
        """Returns the groups that start from `continues` or `init_from` instead of from `init`."""
        return {}

    def variant(self, step: int) -> Any:
        """Returns what is static in step `step`, hashable and alike on all hosts; each value is an executable."""
        return None

    def forward(self, params: Tree, state: Tree, frozen: Tree, batch: Batch, keys: Keys, variant: Any) -> Tree:
        """Returns what the objectives share, computed once; its gradient reaches `forward_groups`."""
        return ()

    def objectives(self, variant: Any) -> tuple[Objective, ...]:
        """Returns the objectives of a step, in the order in which their groups are updated."""
        raise NotImplementedError

    def listen(self, params: Tree, state: Tree, frozen: Tree, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Returns what there is to look at or listen to, from held-out examples.

        Keys ending in `_waveform` become sound [clips, samples], in `_mel` pictures [clips, frames, bands].
        """
        return {}

    def results(self, params: Tree, state: Tree, frozen: Tree, batch: Batch) -> dict[str, Component]:
        """Returns the components of `makes` from trained (averaged) parameters; `batch` is a training batch."""
        raise NotImplementedError


class FrontEnds(NamedTuple):
    """The recipe's three spectrograms, of waveforms [batch, samples] at the recipe's sampling rate."""

    sampling_rate: int
    mel: mel.MelSettings
    fbank: mel.FbankSettings
    clap: mel.ClapMelSettings

    def log_mel(self, waveform: jax.Array) -> jax.Array:
        """Returns the VAE's and the vocoder's mel [batch, frames, bands]."""
        return mel.log_mel(waveform, self.mel)

    def kaldi_fbank(self, waveform: jax.Array) -> jax.Array:
        """Returns AudioMAE's input [batch, frames, bands]."""
        return mel.kaldi_fbank(resample(waveform, self.sampling_rate, self.fbank.sampling_rate), self.fbank)

    def clap_mel(self, waveform: jax.Array) -> jax.Array:
        """Returns CLAP's input [batch, frames, bands]."""
        return mel.clap_mel(resample(waveform, self.sampling_rate, self.clap.sampling_rate), self.clap)


def front_ends(config: ConfigDict) -> FrontEnds:
    """Returns the front ends that the recipe's `audio` section describes."""
    audio = config.audio
    clap = audio.clap.to_dict()
    clap["samples"] = round(clap.pop("seconds") * audio.clap.sampling_rate)
    return FrontEnds(
        audio.sampling_rate,
        mel.MelSettings(sampling_rate=audio.sampling_rate, **audio.mel),
        mel.FbankSettings(sampling_rate=16000, **audio.fbank),
        mel.ClapMelSettings(**clap),
    )


def crop(waveform: jax.Array, ends: FrontEnds, frames: int, crops: int, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cuts `crops` random pieces of `frames` mel frames out of each clip.

    The mel is taken of the whole clip, so that a piece looks as it does inside a clip.

    Args:
        waveform: [batch, samples].
        keys: [batch], one random key an example.

    Returns:
        waveforms [batch * crops, frames * hop] and their log-mels [batch * crops, frames, bands].
    """
    hop, spectrum = ends.mel.hop_length, ends.log_mel(waveform)
    if frames >= spectrum.shape[1]:
        return waveform, spectrum

    def one(clip, picture, key):
        start = jax.random.randint(key, (), 0, picture.shape[0] - frames + 1)
        return (
            jax.lax.dynamic_slice_in_dim(clip, start * hop, frames * hop),
            jax.lax.dynamic_slice_in_dim(picture, start, frames),
        )

    keys = jax.vmap(lambda key: jax.random.split(key, crops))(keys).reshape(-1)
    return jax.vmap(one)(jnp.repeat(waveform, crops, 0), jnp.repeat(spectrum, crops, 0), keys)


def module_fields(config: ConfigDict, model: str) -> dict[str, Any]:
    """Returns the fields of a Linen module: a section of `config.models` and the recipe's computation dtype."""
    return config.models[model].to_dict() | {"dtype": jnp.dtype(config.dtype)}
