"""Where a step whose loss or gradient is not finite first went wrong: the step is computed once more, looking.

Looked at in this order: the batch, frozen weights and state as they went in; every output of every layer of the forward
pass and the losses (`jax.experimental.checkify`); the gradient of every parameter. Only a stage that stops for it pays
for that: compilation of its forward pass, of the backward pass where the forward pass is finite, and the memory of a
step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import checkify
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from audioldm2_jax.rngs import of_step
from audioldm2_jax.runtime import hosts
from audioldm2_jax.stages.base import Stage
from audioldm2_jax.training.state import State
from audioldm2_jax.training.step import gradient, microbatches

_NAMED = 3  # records that a line spells out


class NotFinite(RuntimeError):
    """Too many updates in a row were skipped, as loss or gradient were not finite; nothing of them was saved.

    The message is one line; the notes, which a traceback ends with, have the rest.
    """


class Finding(NamedTuple):
    """What is not finite in a step, in words, and the slots of the batch where it is not; () where that is not known.

    Of parameters and gradients `also` are the others that are not finite.
    """

    what: str
    slots: tuple[int, ...] = ()
    also: tuple[str, ...] = ()


def find(stage: Stage, state: State, frozen: Any, batch: Mapping[str, jax.Array], number: int, mesh: Mesh) -> Finding:
    """Returns what first is not finite in step `number`. Called by all hosts.

    Args:
        state: as the step found it: what an update that was skipped leaves.
        frozen, batch, mesh: as the step has them.
    """
    variant, _ = stage.variant(number), stage.key  # which is cached: not in one of the functions that are traced
    replicated = NamedSharding(mesh, PartitionSpec())
    run = partial(jax.jit, out_shardings=replicated)
    state = {part: state[part] for part in ("params", "model_state")}
    return (
        _of_batch(run(_bad_slots)(batch))
        or _of_leaves({"frozen weights": frozen, **state}, run)
        or _of_layers(stage, state, frozen, batch, number, variant, run)
        or _of_gradients(stage, state, frozen, batch, number, variant, run)
        or Finding("nothing is when that step is computed again: a device may be at fault")
    )


def explain(finding: Finding, stage: str, number: int, records: Sequence[str]) -> tuple[str, str]:
    """Returns the finding in a line for people, and all that is known of it.

    Args:
        number: of the step, from 0.
        records: the names of the records of the batch, by slot, of all hosts.
    """
    slots = [slot for slot in finding.slots if slot < len(records)] or range(len(records))
    named = ", ".join(records[slot] for slot in slots[:_NAMED])
    more = f" and {len(slots) - _NAMED} more" if len(slots) > _NAMED else ""
    of = f", of the record{'s' if len(slots) > 1 else ''} {named}{more}" if records else ""
    marked = [f"  slot {slot}: {name}{' *' * (slot in finding.slots)}" for slot, name in enumerate(records)]
    lines = [f"stage {stage}, step {number + 1}: not finite first: {finding.what}"]
    if finding.also:
        lines += ["also not finite:", *(f"  {name}" for name in finding.also)]
    if records:
        lines += [f"the records of the batch{' (*: where it is not finite)' * bool(finding.slots)}:", *marked]
    return f"not finite first: {finding.what}{of}", "\n".join(lines)


def names_of(records: Callable[[int], Sequence[str]], number: int) -> list[str]:
    """Returns the names of the records in all slots of step `number`. Called by all hosts."""
    try:
        own = list(records(number))
    except Exception as error:  # it is another fault that has to be told
        own = [f"(cannot be said: {type(error).__name__})"]
    return [name for names in hosts.gather(own, f"records of step {number}") for name in names]


def _of_batch(bad: Mapping[str, Any]) -> Finding | None:
    for field, slots in bad.items():
        if np.asarray(slots).any():
            return Finding(f"the field {field} of the batch", tuple(np.flatnonzero(slots).tolist()))
    return None


def _of_leaves(trees: Mapping[str, Any], run: Callable) -> Finding | None:
    for what, tree in trees.items():
        bad = _paths(run(partial(jax.tree.map, _is_bad))(tree))
        if bad:
            title = {"params": "the parameters", "model_state": "the model state"}.get(what, f"the {what}")
            return Finding(f"{title} {'/'.join(bad[0])}", (), tuple("/".join(path) for path in bad))
    return None


class _Watcher:
    """Checks what goes into and comes out of every module that is called, in the order of the calls.

    Attributes:
        called: the paths of the modules, those of networks ().
    """

    def __init__(self, size: int):
        self.size, self.called = size, []
        self._networks: list[str] = []

    def __call__(self, call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "setup":
            return call(*args, **kwargs)
        path = context.module.path
        if not path:
            self._networks.append(type(context.module).__name__)
        method = "" if context.method_name == "__call__" else f".{context.method_name}"
        name = "/".join((self._networks[-1], *path)) + method if self._networks else "/".join(path)
        self.check((args, kwargs), f"what goes into {name}")
        result = call(*args, **kwargs)
        self.check(result, f"the output of {name}")
        self.called.append(path)
        if not path:
            self._networks.pop()
        return result

    def check(self, tree: Any, name: str) -> None:
        """Has the run tell `name` if an array of `tree` is not finite and nothing before it was not."""
        bad = [_bad_slots(leaf, self.size) for leaf in jax.tree.leaves(tree) if _is_float(leaf)]
        if bad:
            anywhere = jnp.array([leaf.any() for leaf in bad]).any()
            slots = sum((leaf for leaf in bad if leaf.shape), jnp.zeros(self.size, bool))
            checkify.check(~anywhere, name.replace("{", "(").replace("}", ")"), slots=slots)


def _of_layers(stage, state, frozen, batch, number, variant, run) -> Finding | None:
    parts, size = stage.hparams.accumulate, _size(batch)
    watcher = _Watcher(size // parts)

    def look(state, frozen, batch, part):
        params, model_state = state["params"], state["model_state"]
        micro, rngs = _microbatch(stage, batch, number, part)
        with nn.intercept_methods(watcher):
            outputs = stage.forward(params, model_state, frozen, micro, rngs, variant)
            watcher.check(outputs, "what the objectives share")
            for objective in stage.objectives(variant):
                loss, (metrics, after) = objective.loss(params, outputs, model_state, frozen, micro, rngs)
                for name, value in {**metrics, "loss": loss}.items():
                    watcher.check(value, f"{objective.name}/{name}")
                watcher.check(after, f"the model state after {objective.name}")

    looking = run(checkify.checkify(look, errors=checkify.user_checks))
    for part in range(parts):
        error, _ = looking(state, frozen, batch, part)
        if failed := error.get_exception():
            slots = np.flatnonzero(np.asarray(failed.kwargs["slots"])) * parts + part
            return Finding(failed.fmt_string, tuple(slots.tolist()))
    return None


def _of_gradients(stage, state, frozen, batch, number, variant, run) -> Finding | None:
    calls: dict[tuple[str, ...], int] = {}

    def look(objective, state, frozen, batch):
        watcher = _Watcher(_size(batch))
        watcher.check = lambda tree, name: None  # the order of the calls alone
        rngs = of_step(stage.key, number, _size(batch))
        params, model_state, batch = state["params"], state["model_state"], stage.weigh(batch)
        with nn.intercept_methods(watcher):
            grads, _ = gradient(stage, objective, params, model_state, frozen, batch, rngs, variant, None)
        calls.update((path, place) for place, path in enumerate(watcher.called))
        return jax.tree.map(_is_bad, grads)

    for objective in stage.objectives(variant):
        bad = _paths(run(partial(look, objective))(state, frozen, batch))
        if bad:
            # The backward pass goes from the last call to the first: it began with the one that was called last.
            bad.sort(key=lambda path: calls.get(path[1:-1], -1), reverse=True)
            also = tuple("/".join(path) for path in bad)
            return Finding(f"the gradient of {objective.name}/loss by {also[0]}", (), also)
    return None


def _microbatch(stage: Stage, batch: Any, number: int, part: jax.Array) -> Any:
    """Returns batch and random streams of microbatch `part` of step `number`."""
    parts, rngs = stage.hparams.accumulate, of_step(stage.key, number, _size(batch))
    batch = stage.weigh(batch)
    if parts == 1:
        return batch, rngs
    return jax.tree.map(lambda leaf: leaf[part], microbatches(batch, rngs, parts))


def _size(batch: Any) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_bad(leaf: Any) -> jax.Array:
    return ~jnp.isfinite(leaf).all() if _is_float(leaf) else jnp.bool_(False)


def _bad_slots(tree: Any, size: int | None = None) -> Any:
    """Returns of every array where along its first axis it is not finite; of one that has not that axis, whether."""

    def one(leaf):
        if not _is_float(leaf):
            return jnp.bool_(False)
        of_examples = leaf.ndim and (size is None or leaf.shape[0] == size)
        return ~jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)) if of_examples else None)

    return jax.tree.map(one, tree)


def _paths(flags: Any) -> list[tuple[str, ...]]:
    """Returns the paths of the leaves that are true."""
    found = jax.tree_util.tree_leaves_with_path(flags)
    return [tuple(str(getattr(key, "key", key)) for key in path) for path, flag in found if bool(flag)]
