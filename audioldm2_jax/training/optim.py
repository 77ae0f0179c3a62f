"""Optimisers and the moving average of parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers

# Coefficients an iteration, written out: so they make a loop. A single row would be unrolled for every kernel.
# Three do: with the normalisation below, the small UNet's loss falls as with five without it.
_NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 3


def learning_rate(hparams: ConfigDict) -> optax.Schedule:
    """Returns the learning rate as a function of the step: linear warm-up, then `hparams.decay`.

    Raises:
        ValueError: `hparams.decay` is not constant, cosine or exponential.
    """
    peak, warmup = hparams.learning_rate, hparams.warmup
    if hparams.decay == "constant":
        after = optax.constant_schedule(peak)
    elif hparams.decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, hparams.steps - warmup))
    elif hparams.decay == "exponential":
        after = optax.exponential_decay(peak, hparams.decay_every, hparams.decay_rate, staircase=True)
    else:
        raise ValueError(f"decay={hparams.decay!r}: choose constant, cosine or exponential")
    if not warmup:
        return after
    return optax.join_schedules([lambda count: peak * (count + 1) / warmup, after], [warmup])


def optimizer(hparams: ConfigDict) -> optax.GradientTransformation:
    """Returns AdamW or Muon, with clipping by the global norm, decaying matrices and kernels alone (MAE's rule).

    Muon [Jordan et al. 2024, kellerjordan.github.io/posts/muon] replaces the momentum of a matrix by the nearest
    orthogonal one; what is no matrix is left to Adam. Its steps have the root mean square of AdamW's, so that rates
    and decays mean the same for both [arXiv 2502.16982, section 2.2].

    Raises:
        ValueError: `hparams.optimizer` is neither adamw nor muon.
    """
    rate, decay = learning_rate(hparams), hparams.weight_decay
    if hparams.optimizer == "adamw":
        rule = optax.adamw(rate, hparams.b1, hparams.b2, weight_decay=decay, mask=_matrices)
    elif hparams.optimizer == "muon":
        rule = optax.contrib.muon(
            rate,
            weight_decay=decay,
            adam_b1=hparams.b1,
            adam_b2=hparams.b2,
            muon_weight_dimension_numbers=_as_matrices,
            consistent_rms=0.2,
            ns_coeffs=_NEWTON_SCHULZ,
            preconditioning="schatten",  # divides by the Schatten-4 norm, nearer to the largest singular value
        )
    else:
        raise ValueError(f"optimizer={hparams.optimizer!r}: choose adamw or muon")
    return optax.chain(optax.clip_by_global_norm(hparams.clip_norm), rule) if hparams.clip_norm else rule


def update_ema(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """Returns the moving average after step `step` (0-based), warmed up: min(decay, (1 + n) / (10 + n)) [TF ema.py]."""
    n = step.astype(jnp.float32) + 1
    rate = 1 - jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda average, value: average + rate * (value - average), ema, params)


def _matrices(params: Any) -> Any:
    """Marks what has two axes or more, but embeddings and scales: no biases, norms and tables of words."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and getattr(path[-1], "key", "") not in ("embedding", "scale"),
        params,
    )


def _as_matrices(params: Any) -> Any:
    """Returns how Muon reads a kernel as a matrix: all it sums over, by what comes out (last, in Flax)."""
    return jax.tree.map(
        lambda marked, leaf: MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1) if marked else None,
        _matrices(params),
        params,
    )
