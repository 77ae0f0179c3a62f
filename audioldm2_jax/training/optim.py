"""Optimisers and the moving average of parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def learning_rate(knobs: ConfigDict) -> optax.Schedule:
    """Returns the learning rate as a function of the step: linear warm-up, then `knobs.decay`.

    Raises:
        ValueError: `knobs.decay` is not constant, cosine or exponential.
    """
    peak, warmup = knobs.learning_rate, knobs.warmup
    if knobs.decay == "constant":
        after = optax.constant_schedule(peak)
    elif knobs.decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, knobs.steps - warmup))
    elif knobs.decay == "exponential":
        after = optax.exponential_decay(peak, knobs.decay_every, knobs.decay_rate, staircase=True)
    else:
        raise ValueError(f"decay={knobs.decay!r}: choose constant, cosine or exponential")
    if not warmup:
        return after
    return optax.join_schedules([lambda count: peak * (count + 1) / warmup, after], [warmup])


def optimizer(knobs: ConfigDict) -> optax.GradientTransformation:
    """Returns AdamW with clipping by the global norm, decaying matrices and kernels alone (MAE's rule)."""
    adamw = optax.adamw(learning_rate(knobs), knobs.b1, knobs.b2, weight_decay=knobs.weight_decay, mask=_decayed)
    return optax.chain(optax.clip_by_global_norm(knobs.clip_norm), adamw) if knobs.clip_norm else adamw


def update_ema(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """Returns the moving average after step `step` (0-based), warmed up: min(decay, (1 + n) / (10 + n)) [TF ema.py]."""
    n = step.astype(jnp.float32) + 1
    rate = 1 - jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda average, value: average + rate * (value - average), ema, params)


def _decayed(params: Any) -> Any:
    """Marks the leaves that weight decay applies to: kernels; not biases, norms, tables and single vectors."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and getattr(path[-1], "key", "") not in ("embedding", "scale"),
        params,
    )
