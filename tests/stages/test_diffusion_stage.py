"""The diffusion stage: λ, guidance dropout, the loss. Bounds on statistics are five standard errors."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from ml_collections import ConfigDict
from smallest import TOKENS, batch, build, get_config

from audioldm2_jax.conditioning.conditions import Conditions
from audioldm2_jax.diffusion.objective import attention_away, draw_timesteps
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.models.unet_blocks import LOA_ATTENTION
from audioldm2_jax.rngs import Rngs
from audioldm2_jax.stages import diffusion

CLIPS = 4000


TWO_DRAWS = ConfigDict({"noise_draws": 2, "timestep_logits": (), "guided_attention": 0.0})
GRID = (2, 2)


def keys(size, seed=0):
    return Rngs(jax.random.key(seed), jax.random.split(jax.random.key(seed + 1), size))


def test_pooling_depends_on_the_step_alone():
    config = get_config()
    config.loa.training_poolings = (1, 2, 4)
    first, second = build("diffusion", config), build("diffusion", config)
    drawn = [first.variant(step) for step in range(600)]
    assert drawn[100:110] == [second.variant(step) for step in range(100, 110)]
    counts = Counter(drawn)
    assert counts.keys() == {1, 2, 4}
    assert all(abs(count - 200) < 5 * (600 * 2 / 9) ** 0.5 for count in counts.values())
    config.seed = 1
    assert [build("diffusion", config).variant(step) for step in range(20)] != drawn[:20]


def test_one_pooling():
    config = get_config()
    config.loa.training_poolings = (4,)
    assert {build("diffusion", config).variant(step) for step in range(5)} == {4}


@pytest.mark.parametrize("text", ["captions", "none"])
def test_guidance_dropout(monkeypatch, text):
    """One draw an example takes the LOA and the text away together."""
    config = get_config()
    config.train.diffusion.text = text
    stage = build("diffusion", config)
    seen = []
    monkeypatch.setattr(stage, "network", lambda name, *_: lambda ids, mask: ids)
    monkeypatch.setattr(diffusion, "draw_latents", lambda *_: None)
    monkeypatch.setattr(diffusion, "denoising_loss", lambda unet, schedule, latents, given, *_: seen.append(given))
    given = {"loa_1": jnp.ones((CLIPS, 2, 3)), "latent_mean": jnp.zeros(CLIPS), "latent_logvar": jnp.zeros(CLIPS)}
    given["t5_ids"] = jnp.full((CLIPS, TOKENS), 9)
    given["t5_mask"] = jnp.ones((CLIPS, TOKENS), jnp.int32)
    stage._loss({"unet": {}}, {}, given, keys(CLIPS), 1)
    (conditions,) = seen
    dropped = np.asarray((conditions.loa == 0).all((1, 2)))
    assert (np.asarray(conditions.loa)[~dropped] == 1).all()
    assert abs(dropped.mean() - 0.1) < 5 * (0.09 / CLIPS) ** 0.5
    if text == "captions":
        empty = stage.empty_text
        np.testing.assert_array_equal(
            conditions.text_states, np.where(dropped[:, None], empty["t5_ids"], np.asarray(given["t5_ids"]))
        )
        np.testing.assert_array_equal(conditions.text_mask[:, 1:].any(1), ~dropped)
    else:
        assert conditions.text_states.shape == (CLIPS, 1, 16) and not conditions.text_states.any()
        assert (conditions.text_mask == 1).all()


def test_text_is_read_only_where_asked_for():
    config = get_config()
    assert diffusion.DiffusionStage.needs(config) == ("audiomae", "vae")
    config.train.diffusion.text = "captions"
    assert diffusion.DiffusionStage.needs(config) == ("audiomae", "vae", "text_encoder_2")
    config.train.diffusion.text = "caption"
    with pytest.raises(ValueError, match=r"text='caption': choose captions or none"):
        diffusion.DiffusionStage.needs(config)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_loss_of_a_network_that_knows(kind):
    """With clean latents of zero the target can be read off the noisy ones; a silent network loses all of it."""
    schedule = NoiseSchedule(1000, 0.0015, 0.0195, "scaled_linear", kind)
    latents = jnp.zeros((64, 4, 4, 2))

    def knowing(noisy, timesteps, loa, states, text_mask):
        signal, sigma = schedule.signal_and_noise(timesteps, 4)
        return noisy / sigma * (1.0 if kind == "epsilon" else signal)

    nothing = Conditions(None, None, None)
    rngs = keys(64)
    assert float(diffusion.denoising_loss(knowing, schedule, latents, nothing, rngs, TWO_DRAWS, GRID)) < 1e-10
    timesteps = []

    def silent(noisy, given, *_, text_mask):
        timesteps.append(np.asarray(given))
        return jnp.zeros_like(noisy)

    loss = float(diffusion.denoising_loss(silent, schedule, latents, nothing, rngs, TWO_DRAWS, GRID))
    signal = schedule.alphas_cumprod[timesteps[0]] if kind == "v_prediction" else np.ones(128)
    assert loss == pytest.approx(signal.mean(), abs=5 * (2 / latents.size / 2) ** 0.5)
    # Two draws a clip, all of them different.
    assert timesteps[0].shape == (128,) and len(set(timesteps[0])) > 100
    assert timesteps[0].min() >= 0 and timesteps[0].max() < 1000


def test_an_examples_noise_is_its_own():
    """The loss of a batch is the mean of its examples' losses alone: 1e-6, for another order of the sum."""
    schedule = NoiseSchedule(1000, 0.0015, 0.0195, "scaled_linear", "epsilon")
    rng = np.random.default_rng(0)
    latents, rngs = jnp.asarray(rng.standard_normal((3, 4, 4, 2), np.float32)), keys(3)
    unet = lambda noisy, *_, text_mask: 0.3 * noisy  # noqa: E731
    nothing = Conditions(None, None, None)

    def loss(some):
        own = rngs._replace(example_keys=rngs.example_keys[some])
        return diffusion.denoising_loss(unet, schedule, latents[some], nothing, own, TWO_DRAWS, GRID)

    whole, alone = loss(slice(None)), [loss(slice(i, i + 1)) for i in range(3)]
    assert float(whole) == pytest.approx(float(np.mean(alone)), rel=1e-6)


@pytest.mark.parametrize("logits", [(), (-0.8, 0.8), (0.5, 1.2)])
def test_timesteps_have_their_distribution_shared_out_over_the_draws(logits):
    """Kolmogorov-Smirnov at 1e-4; and of four draws of a clip, one lies in each quarter of the distribution."""
    drawn = np.asarray(draw_timesteps(keys(3000).example_keys, 4, 1000, logits)).reshape(3000, 4)
    mean, deviation = logits or (0.0, 1.0)
    share = lambda t: scipy.stats.norm.cdf((np.log(t / (1 - t)) - mean) / deviation) if logits else t  # noqa: E731
    ranks = share((drawn + 0.5) / 1000)
    assert scipy.stats.kstest(ranks[:, 0], "uniform").pvalue > 1e-4
    np.testing.assert_allclose(np.sort(ranks)[:, 1:] - np.sort(ranks)[:, :-1], 0.25, atol=0.01)
    assert drawn.min() >= 0 and drawn.max() < 1000


@pytest.mark.parametrize("logits", [(0.0,), (0.0, 0.0), (0.0, -1.0)])
def test_timesteps_of_no_distribution(logits):
    with pytest.raises(ValueError, match=r"timestep_logits=\(0.0.*mean and standard deviation"):
        draw_timesteps(keys(1).example_keys, 1, 1000, logits)


def test_latents_are_sampled_and_scaled():
    mean, logvar = np.full((100, 4, 4, 2), 3.0, np.float32), np.full((100, 4, 4, 2), np.log(4.0), np.float32)
    latents = diffusion.draw_latents(mean, logvar, 0.5, keys(100))
    assert float(latents.mean()) == pytest.approx(1.5, abs=5 / latents.size**0.5)
    assert float(latents.std()) == pytest.approx(1.0, abs=5 / (2 * latents.size) ** 0.5)


def test_published_unet_knows_the_length_of_a_clip():
    stage = build("diffusion", get_config())
    part = stage.results({"unet": {}}, {}, {}, batch(1))["unet"]
    assert part.config["sample_size"] == 32  # 64 frames, halved once


def test_latents_of_the_mode():
    mean, logvar = jnp.full((2, 3, 4, 5), 2.0), jnp.zeros((2, 3, 4, 5))
    assert (diffusion.draw_latents(mean, logvar, 0.5, keys(2), "mode") == 1.0).all()
    with pytest.raises(ValueError, match="posterior='mean': choose sample or mode"):
        diffusion.draw_latents(mean, logvar, 0.5, keys(2), "mean")


def test_attention_elsewhere():
    """None where every place attends to its own token, nearly all where it attends to the one farthest away."""
    own = jnp.eye(8).reshape(1, 4, 2, 8)  # as many places as tokens
    assert float(attention_away([own], (4, 2))) == 0.0
    assert float(attention_away([own[:, ::-1, ::-1]], (4, 2))) > 0.8
    # Four places to a token: from each, half a place in time and in frequency to its middle.
    fine = jnp.repeat(jnp.repeat(own, 2, 1), 2, 2)
    assert float(attention_away([fine, fine], (4, 2))) == pytest.approx(1 - np.exp(-2 * 0.25**2 / (2 * 0.7**2)))
    with pytest.raises(ValueError, match="attends to no LOA; set it to 0"):
        attention_away([], (4, 2))


def test_the_unet_says_what_it_attends_to():
    """Of its contexts (itself, LOA, text) the LOA alone; its prediction is the same: 1e-6, for another order."""
    config = get_config()
    stage = build("diffusion", config)
    unet = stage.network("unet", {}, stage.init(jax.random.key(0))[0])
    (_, width, text_width), channels = config.models.unet.cross_attention_dim, config.models.unet.in_channels
    rng = np.random.default_rng(0)
    shapes = ((2, 8, 4, channels), (2, 6, width), (2, 1, text_width))
    latents, loa, text = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    given = (latents, jnp.array([3, 700]), loa, text)
    output, kept = unet(*given, mutable=[LOA_ATTENTION])
    np.testing.assert_allclose(output, unet(*given), atol=1e-6)
    ((path, weights),) = jax.tree_util.tree_leaves_with_path(kept[LOA_ATTENTION])
    assert [key.key for key in path[:2]] == ["mid_block", "attentions_1"]
    assert weights.shape == (2, 4, 2, 6)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)


def test_guided_attention():
    """Its gradient moves the attention of a UNet to where the LOA stands for it."""
    config = get_config()
    config.train.diffusion.guided_attention = 10.0
    stage = build("diffusion", config)
    params, _ = stage.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    latents = jnp.asarray(rng.standard_normal((2, 8, 4, config.models.unet.in_channels)), jnp.float32)
    loa = jnp.asarray(rng.standard_normal((2, 8, config.models.audiomae.embed_dim)), jnp.float32)
    text = jnp.zeros((2, 1, config.models.unet.cross_attention_dim[-1]))
    conditions, grid = Conditions(loa, text, jnp.ones((2, 1), jnp.int32)), (4, 2)

    @jax.jit
    def step(params):
        def loss(params):
            unet = stage.network("unet", {}, params)
            return diffusion.denoising_loss(unet, stage.schedule, latents, conditions, keys(2), stage.hparams, grid)

        loss, grads = jax.value_and_grad(loss)(params)
        return loss, jax.tree.map(lambda p, g: p - 0.1 * jnp.sign(g) * (jnp.abs(g) > 1e-8) * 0.1, params, grads)

    first, params = step(params)
    for _ in range(20):
        last, params = step(params)
    assert float(first) - float(last) > 1.0  # of the 10 times 0.7 to 0.9 that attention away from there costs
