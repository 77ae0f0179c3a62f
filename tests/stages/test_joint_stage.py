"""The joint stage: which LOA the UNet sees, and that its gradient reaches GPT-2 through the generated one.

Bounds on statistics are five standard errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smallest import TOKENS, batch, build, get_config

from audioldm2_jax.rngs import Rngs
from audioldm2_jax.stages import joint
from audioldm2_jax.training import step

CLIPS = 6000
TRUE, MADE = 1.0, 2.0


def keys(size):
    return Rngs(jax.random.key(0), jax.random.split(jax.random.key(1), size))


@pytest.mark.parametrize("unconditional", ["language_model", "zeros"])
def test_mixture_of_true_and_generated_loa(monkeypatch, unconditional):
    config = get_config()
    config.train.joint.unconditional = unconditional
    stage, seen, texts = build("joint", config), [], []
    monkeypatch.setattr(stage, "network", lambda *_: None)
    monkeypatch.setattr(stage, "made", lambda *_: (jnp.full((CLIPS, 2, 3), TRUE),))
    monkeypatch.setattr(joint, "draw_latents", lambda *_: None)
    monkeypatch.setattr(joint, "denoising_loss", lambda u, s, latents, given, *_: seen.append(given) or 0.0)
    monkeypatch.setattr(joint.texts, "encode", lambda *given, **_: (texts.append(given[3]) or None, None, None))
    monkeypatch.setattr(joint, "generate_loa", lambda *_, **__: jnp.full((CLIPS, 2, 3), MADE))
    monkeypatch.setattr(joint, "teacher_forced_loa", lambda *_, **__: jnp.full((CLIPS, 2, 3), TRUE))
    given = {key: jnp.asarray(value) for key, value in batch(CLIPS).items() if key != "waveform"}
    given |= {"waveform": None, "t5_ids": jnp.full((CLIPS, TOKENS), 9), "t5_mask": jnp.ones((CLIPS, TOKENS), int)}
    stage._loss({"unet": {}}, (), {}, {}, stage.weigh(given), keys(CLIPS))

    loa = np.asarray(seen[0].loa)
    assert (loa == loa[:, :1, :1]).all()
    loa, captioned = loa[:, 0, 0], np.asarray(given["captioned"])
    dropped = ~np.asarray(texts[0]["t5_mask"])[:, 1:].any(1)
    assert abs(dropped.mean() - 0.1) < 5 * (0.09 / CLIPS) ** 0.5
    assert (loa[dropped] == (MADE if unconditional == "language_model" else 0)).all()
    assert (loa[~captioned & ~dropped] == TRUE).all()
    chosen = loa[captioned & ~dropped]
    assert abs((chosen == TRUE).mean() - 0.25) < 5 * (0.1875 / chosen.size) ** 0.5
    assert ((chosen == TRUE) | (chosen == MADE)).all()


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_examples_reads_its_own_tokens(monkeypatch, share):
    config = get_config()
    config.train.joint.scheduled_sampling = share
    stage, read = build("joint", config), []
    monkeypatch.setattr(stage, "network", lambda *_: None)
    monkeypatch.setattr(stage, "made", lambda *_: (jnp.full((CLIPS, 2, 3), TRUE),))
    monkeypatch.setattr(joint, "draw_latents", lambda *_: None)
    monkeypatch.setattr(joint, "denoising_loss", lambda *_: 0.0)
    monkeypatch.setattr(joint.texts, "encode", lambda *_, **__: (None, None, None))
    monkeypatch.setattr(joint, "generate_loa", lambda *_, **__: jnp.full((CLIPS, 2, 3), MADE))
    monkeypatch.setattr(joint, "teacher_forced_loa", lambda gpt2, prefix, loa, **_: read.append(loa) or loa)
    given = {key: jnp.asarray(value) for key, value in batch(CLIPS).items() if key != "waveform"}
    stage._loss({"unet": {}}, (), {}, {}, stage.weigh({**given, "waveform": None}), keys(CLIPS))
    (loa,) = np.asarray(read)
    assert (loa == loa[:, :1, :1]).all()
    own = loa[:, 0, 0] == MADE
    assert abs(own.mean() - share) <= 5 * (share * (1 - share) / CLIPS) ** 0.5
    assert (loa[~own] == TRUE).all()


def test_gradient_of_the_unet_reaches_the_language_model(monkeypatch):
    """With GPT-2's own loss switched off; clips without captions show the true LOA, which teaches GPT-2 nothing.

    Where no captioned clip shows a generated LOA, as in speech, nothing goes back through that of dropped ones either.
    """
    # Any function of what the UNet attends to shows the path, and the UNet need not be compiled.
    monkeypatch.setattr(joint, "denoising_loss", lambda u, s, latents, given, *_: jnp.mean(given.loa**2))
    config = get_config()
    config.train.joint.update(language_weight=0.0, true_loa_share=0.0, guidance_dropout=0.0)
    captioned, without = _norms(config)
    assert all(float(captioned[group]) > 1e-6 for group in captioned if group != "unet")
    assert all(float(norm) == 0.0 for norm in without.values())
    by_one_reading, _ = _norms(config, scheduled_sampling=1.0)
    for group in captioned:
        if group != "unet":
            assert float(by_one_reading[group]) > 1e-6
    config.train.joint.scheduled_sampling = 0.0
    dropped, _ = _norms(config, true_loa_share=1.0, guidance_dropout=1.0)
    assert all(float(norm) == 0.0 for norm in dropped.values())


def _norms(config, **changes):
    """Norms of the gradients by group, of captioned clips and of others."""
    config.train.joint.update(changes)
    stage = build("joint", config)
    (objective,) = stage.objectives(None)
    assert objective.groups == ("unet", "language_model", "projection_model", "text_encoder_2")
    params = {group: variables["params"] for group, variables in jax.device_get(stage.initial()).items()}

    @jax.jit
    def norms(params, frozen, given):
        grads, _ = step.gradient(stage, objective, params, {}, frozen, stage.weigh(given), keys(2), None, None)
        return {group: jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads[group]))) for group in grads}

    given = {key: value for key, value in batch(2).items() if key in stage.batch_fields}
    return [norms(params, stage.frozen, {**given, **captioned}) for captioned in ({}, {"captioned": np.zeros(2, bool)})]


def test_unknown_unconditional():
    config = get_config()
    config.train.joint.unconditional = "zero"
    with pytest.raises(ValueError, match=r"unconditional='zero': choose language_model or zeros"):
        build("joint", config)
