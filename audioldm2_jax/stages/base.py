"""What a training stage is: parameter groups, and pure losses over them.

The loop (training/loop.py) knows a stage by the members of `Stage` alone. Everything a stage computes is a pure
function of the parameters, the model state (BatchNorm statistics, spectral-norm vectors), the frozen networks, the
batch and the random streams; sharding, precision, accumulation, averaging, saving and resuming are the loop's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from audioldm2_jax.audio.front_ends import FrontEnds
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.conditioning.conditions import KINDS
from audioldm2_jax.models.network import Network
from audioldm2_jax.recipe_components import build_from_recipe, recipe_config, recipe_spec
from audioldm2_jax.rngs import Rngs, named
from audioldm2_jax.stages import features

Tree = Any  # a pytree of arrays
Batch = Mapping[str, jax.Array]


class Objective(NamedTuple):
    """A loss and the parameter groups that it updates.

    `loss(params, outputs, state, frozen, batch, rngs)` returns `(loss, (metrics, state))`: `params` and `state` hold
    every group, `outputs` is what `Stage.forward` returned, `metrics` are scalars to log, `state` the new model state.
    """

    name: str
    groups: tuple[str, ...]
    loss: Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], Tree]]]


class Stage:
    """Base of all stages. A subclass declares the class members and implements the methods below them."""

    name: str
    """As in the recipe's `train` section."""
    reads: tuple[str, ...] = ()
    """Sections of the recipe that decide what the stage computes, beside its own of `train`, those of `models` that
    describe what it makes, and what every stage reads (training/stage_settings.py)."""
    reads_to_evaluate: tuple[str, ...] = ()
    """Sections that only evaluation reads: they may change while the stage trains."""
    forward_groups: tuple[str, ...] = ()
    """Groups whose gradient flows through `forward`."""

    def __init__(self, config: ConfigDict, components: Mapping[str, Component], empty_text: Batch | None = None):
        """Args:
        config: the part of the recipe that the stage reads (`training.stage_settings.part`).
        components: those of `needs` and `continues` that exist.
        empty_text: the fields of the empty caption, [1, ...] each: token ids and masks, and the features of it that are
            cached; only for stages that read text.
        """
        self.config = config
        self.hparams = config.train[self.name]
        self.components = components
        self.empty_text = empty_text
        self.ends = FrontEnds(self.config.audio)
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

    @classmethod
    def reads_fields(cls, config: ConfigDict) -> tuple[str, ...]:
        """Returns the fields of the batch that the stage reads (data/encoders.py), where no features are cached."""
        return ("waveform",)

    @classmethod
    def learns_from(cls, config: ConfigDict) -> tuple[str, ...]:
        """Returns the fields of the batch of which one has to be true for an example to teach the stage anything.

        Of the data it is given those records alone; () for a stage that learns from all.
        """
        return ()

    @classmethod
    def text_kinds(cls, config: ConfigDict) -> tuple[str, ...]:
        """Returns whose tokens the stage reads, of "clap", "t5" and "phoneme"; () for a stage without text."""
        fields = cls.reads_fields(config)
        return tuple(kind for kind in ("clap", *KINDS.values()) if f"{kind}_ids" in fields)

    @classmethod
    def reads_features(cls, config: ConfigDict) -> tuple[str, ...]:
        """Returns what the stage reads of frozen networks that may be cached, by name (stages/features.py)."""
        return ()

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """The fields of the batch that the stage reads, where no features are cached."""
        return self.reads_fields(self.config)

    def cached_fields(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns the fields of a training batch where features are cached: of the example, and of the cache."""
        read = [features.get(name) for name in self.reads_features(self.config)]
        replaced = {field for feature in read for field in feature.replaces}
        return (
            tuple(field for field in self.batch_fields if field not in replaced),
            tuple(field for feature in read for field in feature.fields),
        )

    @functools.cached_property
    def key(self) -> jax.Array:
        """The random key of the stage: of the run's seed and the stage's name."""
        return named(jax.random.key(self.config.seed), self.name)

    @property
    def frozen(self) -> dict[str, Tree]:
        """The weights of the frozen components, by name: what the loop hands to every jitted function."""
        return {name: self.components[name].variables for name in self.needs(self.config)}

    @functools.cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The networks that the stage makes, by component; each is the parameter group of that name."""
        return {name: build_from_recipe(self.config, name) for name in self.makes(self.config)}

    def network(self, name: str, frozen: Mapping[str, Tree], params: Mapping[str, Tree] | None = None) -> Network:
        """Returns the component `name` as something to call: with its group of `params`, or else frozen."""
        if params and name in params:
            return Network(self.modules[name], {"params": params[name]})
        return Network(self.components[name].module, frozen[name])

    def made(self, name: str, frozen: Mapping[str, Tree], batch: Batch) -> tuple[jax.Array, ...]:
        """Returns the arrays of the feature `name`: those of the batch where they were cached, else computed here."""
        feature = features.get(name)
        if all(field in batch for field in feature.fields):
            return tuple(batch[field] for field in feature.fields)
        return feature.of(self.ends, lambda component: self.network(component, frozen), batch)

    def component(self, name: str, params: Tree, state: Tree, **fields: Any) -> Component:
        """Returns a trained network as a component of the model folder, with the unused tensors of where it started.

        Args:
            fields: what its config.json says beyond the recipe.
        """
        start, variables = self.components.get(name), {"params": params[name], **state.get(name, {})}
        config = recipe_config(self.config, name) | fields
        return Component(self.modules[name], variables, config, start.unused if start else {})

    def dropout(self, name: str, params: Mapping[str, Tree], rngs: Rngs, use: str = "") -> jax.Array | None:
        """Returns the key of dropout in the component `name`, None for none where it is not trained here.

        The authors call `eval()` on their frozen networks. `use` tells several calls of a network apart.
        """
        return rngs.step(f"dropout {name} {use}") if name in params else None

    @property
    def heldout_variant(self) -> Any:
        """The variant whose loss is taken of held-out data, one for the whole stage, so that losses are comparable."""
        return None

    def setup(self) -> None:
        """Builds what the stage has beside the networks."""

    def init(self, key: jax.Array) -> tuple[dict[str, Tree], dict[str, Tree]]:
        """Returns (params, state): a tree a group, and {collection: tree} for each group that has model state. Pure.

        By default the groups are the components that the stage makes.
        """
        params, state = {}, {}
        for name, module in self.modules.items():
            variables = dict(module.init(named(key, name), *recipe_spec(self.config, name).dummy_inputs(module)))
            params[name] = variables.pop("params")
            if variables:
                state[name] = variables
        return params, state

    def initial(self) -> dict[str, Tree]:
        """Returns the variables, params and model state, of groups that start from `continues` or `init_from`."""
        makes = self.makes(self.config)
        return {name: part.variables for name, part in self.components.items() if name in makes}

    def constrain(self, params: Tree) -> Tree:
        """Returns parameters within their bounds; called with the first ones and after every update. Pure."""
        return params

    def weigh(self, batch: Batch) -> Batch:
        """Returns the batch with the weights of its examples in losses that are no plain mean. Pure.

        Called with the whole batch, before accumulation splits it: so that the loss is the mean of those of its parts.
        """
        return batch

    def indivisible(self) -> str:
        """Returns why the loss of a batch is not the mean of the losses of its parts, "" where it is."""
        return ""

    def variant(self, step: int) -> Any:
        """Returns what is static in step `step`, hashable and alike on all hosts; each value is an executable."""
        return None

    def forward(self, params: Tree, state: Tree, frozen: Tree, batch: Batch, rngs: Rngs, variant: Any) -> Tree:
        """Returns what the objectives share, computed once; its gradient reaches `forward_groups`."""
        return ()

    def objectives(self, variant: Any) -> tuple[Objective, ...]:
        """Returns the objectives of a step, in the order in which their groups are updated."""
        raise NotImplementedError

    def heldout_loss(
        self, params: Tree, state: Tree, frozen: Tree, batch: Batch, rngs: Rngs
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of held-out examples, by which runs are compared, and further metrics.

        By default that of the last objective of `heldout_variant`, without dropout in networks and without
        augmentation. Guidance dropout stays, with the same draws each time.
        """
        variant, batch = self.heldout_variant, self.weigh(batch)
        outputs = self.forward(params, state, frozen, batch, rngs, variant)
        loss, (metrics, _) = self.objectives(variant)[-1].loss(params, outputs, state, frozen, batch, rngs)
        return loss, metrics

    def sample(self, params: Tree, state: Tree, frozen: Tree, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Returns what there is to look at or to listen to, from held-out examples.

        Names ending in `_waveform` become sound [clips, samples], in `_mel` pictures [clips, frames, bands].
        """
        return {}

    def results(self, params: Tree, state: Tree, frozen: Tree, batch: Batch) -> dict[str, Component]:
        """Returns the components of `makes` from trained (averaged) parameters; `batch` is a training batch."""
        raise NotImplementedError


def module_fields(config: ConfigDict, model: str) -> dict[str, Any]:
    """Returns the fields of a discriminator: its section of `config.models` and the recipe's computation dtype."""
    return config.models[model].to_dict() | {"dtype": jnp.dtype(config.dtype)}
