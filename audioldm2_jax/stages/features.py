"""What is made of an example and stages learn from, mostly by frozen networks: in the step, or once, into a cache.

    span      waveform ─► from when to when something is heard
    latents   waveform ─► mel ─► VAE's encoder ─► mean and log-variance
    loa_λ     waveform ─► fbank ─► AudioMAE, pooled by λ
    clap      caption ─► CLAP's text embedding
    t5        caption ─► T5's states

A stage names those that it reads (`Stage.reads_features`) and takes them with `Stage.made`, wherever they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from audioldm2_jax.audio.front_ends import FrontEnds
from audioldm2_jax.conditioning.conditions import text_encoders
from audioldm2_jax.conditioning.loa import audiomae_loa
from audioldm2_jax.models.network import Network

Batch = Mapping[str, jax.Array]


class Feature(NamedTuple):
    """One feature.

    Attributes:
        name: see the head of this file.
        component: the network that makes it, "" for none.
        fields: its fields of the batch, in the order in which `make` returns them.
        inputs: the fields that it is made from.
        replaces: those of `inputs` that a stage which reads the feature has no other use for.
        reads: sections of the recipe that decide it, beside the network.
        make: (front ends, network, batch) → arrays [batch, ...], one a field; without a network it gets None.
    """

    name: str
    component: str
    fields: tuple[str, ...]
    inputs: tuple[str, ...]
    replaces: tuple[str, ...]
    reads: tuple[str, ...]
    make: Callable[[FrontEnds, Network | None, Batch], tuple[jax.Array, ...]]

    def of(self, ends: FrontEnds, network: Callable[[str], Network], batch: Batch) -> tuple[jax.Array, ...]:
        """Makes it; `network` returns the component of a name."""
        return self.make(ends, network(self.component) if self.component else None, batch)

    @property
    def of_text(self) -> bool:
        """Whether it is made from the caption alone."""
        return "waveform" not in self.inputs


def get(name: str) -> Feature:
    """Returns the feature `name`.

    Raises:
        KeyError: there is none of that name.
    """
    kind, _, pooling = name.partition("_")
    return _loa(int(pooling)) if kind == "loa" else _FEATURES[name]


def of_texts(config: ConfigDict, trained: Collection[str]) -> tuple[str, ...]:
    """Returns the features that frozen networks make of texts, where some text encoders are trained.

    Phonemes are not among them: their encoder is small.
    """
    frozen = (kind for name, kind in text_encoders(config).items() if name not in trained)
    return ("clap", *(kind for kind in frozen if kind in _FEATURES))


def _span(ends: FrontEnds, network: None, batch: Batch) -> tuple[jax.Array, ...]:
    return (ends.sounding_span(batch["waveform"]),)


def _latents(ends: FrontEnds, vae: Network, batch: Batch) -> tuple[jax.Array, ...]:
    return vae(ends.compressed_mel(batch["waveform"])[..., None], method="encode")


def _loa(pooling: int) -> Feature:
    def make(ends: FrontEnds, audiomae: Network, batch: Batch) -> tuple[jax.Array, ...]:
        return (audiomae_loa(audiomae, ends.kaldi_fbank(batch["waveform"]), pooling),)

    name = f"loa_{pooling}"
    return Feature(name, "audiomae", (name,), ("waveform",), ("waveform",), ("audio.fbank",), make)


def _clap(ends: FrontEnds, clap: Network, batch: Batch) -> tuple[jax.Array, ...]:
    return (clap(batch["clap_ids"], batch["clap_mask"], method="text_features"),)


def _t5(ends: FrontEnds, t5: Network, batch: Batch) -> tuple[jax.Array, ...]:
    return (t5(batch["t5_ids"], batch["t5_mask"]),)


_CLAP_IDS, _T5_IDS = ("clap_ids", "clap_mask"), ("t5_ids", "t5_mask")
_FEATURES = {
    feature.name: feature
    for feature in (
        Feature(
            "latents", "vae", ("latent_mean", "latent_logvar"), ("waveform",), ("waveform",), ("audio.mel",), _latents
        ),
        Feature("span", "", ("span",), ("waveform",), ("waveform",), (), _span),
        Feature("clap", "text_encoder", ("clap_embedding",), _CLAP_IDS, _CLAP_IDS, (), _clap),
        Feature("t5", "text_encoder_2", ("t5_states",), _T5_IDS, ("t5_ids",), (), _t5),
    )
}
