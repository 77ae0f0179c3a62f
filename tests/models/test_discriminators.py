"""The discriminators against PyTorch's own layers and norms, wired from the papers, with the same weights.

Tolerances: 1e-4 of the largest value, the project's bound for equal networks in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from audioldm2_jax.models.discriminators import MultiPeriodDiscriminator, MultiScaleDiscriminator, PatchGAN

RNG = np.random.default_rng(0)


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def tensor(array, *axes):
    return torch.tensor(np.transpose(np.asarray(array), axes) if axes else np.asarray(array))


def init(model, *args):
    """Variables with every parameter drawn anew, so that zeros and ones hide nothing."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    return jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(0.1, 0.3, leaf.shape), leaf.dtype), shapes)


def torch_conv(params, stride, groups=1, spectral=None):
    kernel = params["weight_orig" if spectral else "weight_v"]
    taps, inputs, outputs = kernel.shape
    conv = torch.nn.Conv1d(inputs * groups, outputs, taps, stride, padding=(taps - 1) // 2, groups=groups)
    conv.bias.data = tensor(params["bias"])
    if spectral:
        conv = torch.nn.utils.spectral_norm(conv)
        conv.weight_orig.data = tensor(kernel, 2, 1, 0)
        conv.weight_u, conv.weight_v = tensor(spectral["u"]), by_channel(spectral["v"], taps)
    else:
        conv = torch.nn.utils.parametrizations.weight_norm(conv)
        conv.parametrizations.weight.original0.data = tensor(params["weight_g"])[:, None, None]
        conv.parametrizations.weight.original1.data = tensor(kernel, 2, 1, 0)
    return conv


def by_channel(vector, taps):
    """Our right singular vectors run over [taps, in], PyTorch's over [in, taps]."""
    return tensor(np.asarray(vector).reshape(taps, -1).T.reshape(-1))


def torch_discriminator(params, strides, groups, spectral=None):
    spectral = spectral or {}
    convs = [
        torch_conv(params[f"convs_{i}"], stride, group, spectral.get(f"convs_{i}"))
        for i, (stride, group) in enumerate(zip(strides, groups))
    ]
    return torch.nn.ModuleList([*convs, torch_conv(params["conv_post"], 1, 1, spectral.get("conv_post"))])


def judge(convs, x):
    features = []
    for conv in convs[:-1]:
        x = F.leaky_relu(conv(x), 0.1)
        features.append(x)
    return convs[-1](x)[:, 0], features


def test_multi_period():
    model = MultiPeriodDiscriminator(periods=(2, 3), channels=(4, 6, 5))
    waveform = jnp.asarray(RNG.normal(size=(2, 61)), jnp.float32)  # no multiple of either period
    variables = init(model, waveform)
    logits, features = jax.jit(model.apply)(variables, waveform)
    for i, period in enumerate((2, 3)):
        convs = torch_discriminator(variables["params"][f"discriminators_{i}"], (3, 3, 1), (1, 1, 1))
        x = F.pad(tensor(waveform)[:, None], (0, -61 % period), "reflect").reshape(2, 1, -1, period)
        for layer, conv in enumerate(convs):  # as the paper has it: 2-D, one sample wide across the period
            x = F.conv2d(x, conv.weight[..., None], conv.bias, (conv.stride[0], 1), (conv.padding[0], 0))
            x = x if layer == 3 else F.leaky_relu(x, 0.1)
            ours = features[i][layer].reshape(2, period, x.shape[2], x.shape[1])
            close(ours, x.permute(0, 3, 2, 1))
        assert logits[i].shape == (2, period * x.shape[2])
        close(np.sort(logits[i], axis=1), x.flatten(1).sort(dim=1).values)


def test_multi_scale_and_its_spectral_state():
    groups, strides = (1, 2, 1), (1, 2, 1)
    model = MultiScaleDiscriminator(scales=3, channels=(4, 6, 5), groups=groups)
    waveform = jnp.asarray(RNG.normal(size=(2, 37)), jnp.float32)
    variables = init(model, waveform)
    variables["spectral"] = jax.tree.map(lambda x: x / jnp.linalg.norm(x), variables["spectral"])
    (logits, features), state = jax.jit(lambda v: model.apply(v, waveform, update_stats=True, mutable=["spectral"]))(
        variables
    )
    kept, _ = jax.jit(model.apply)(variables | state, waveform)  # without training nothing moves

    x = tensor(waveform)[:, None]
    for i in range(3):
        name = f"discriminators_{i}"
        x = F.avg_pool1d(x, 4, 2, padding=2) if i else x
        spectral = variables["spectral"].get(name)
        convs = torch_discriminator(variables["params"][name], strides, groups, spectral)
        convs.train()
        expected, seen = judge(convs, x)
        close(logits[i], expected)
        for ours, theirs in zip(features[i], seen):
            close(ours, theirs.transpose(1, 2))
        if spectral:
            for j, conv in enumerate(convs):
                moved = state["spectral"][name][f"convs_{j}" if j < 3 else "conv_post"]
                close(moved["u"], conv.weight_u)
                close(by_channel(moved["v"], conv.kernel_size[0]), conv.weight_v)
        convs.eval()
        close(kept[i], judge(convs, x)[0])


def test_norms_pass_the_gradients_of_pytorch():
    model = MultiScaleDiscriminator(scales=2, channels=(4, 3), groups=(1, 1))
    waveform = jnp.asarray(RNG.normal(size=(2, 16)), jnp.float32)
    variables = init(model, waveform)

    def loss(params):
        (logits, _), _ = model.apply(variables | {"params": params}, waveform, update_stats=True, mutable=["spectral"])
        return sum(jnp.sum(x**2) for x in logits)

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    x = tensor(waveform)[:, None]
    for i in range(2):
        x = F.avg_pool1d(x, 4, 2, padding=2) if i else x
        name = f"discriminators_{i}"
        convs = torch_discriminator(variables["params"][name], (1, 1), (1, 1), variables["spectral"].get(name))
        judge(convs, x)[0].pow(2).sum().backward()
        ours = gradients[name]["convs_0"]
        if i == 0:
            close(np.transpose(ours["weight_orig"], (2, 1, 0)), convs[0].weight_orig.grad)
        else:
            weight = convs[0].parametrizations.weight
            close(np.transpose(ours["weight_v"], (2, 1, 0)), weight.original1.grad)
            close(ours["weight_g"], weight.original0.grad[:, 0, 0])


def test_patchgan_and_its_running_statistics():
    model = PatchGAN(widths=(3, 4, 5, 6))
    mel = jnp.asarray(RNG.normal(size=(2, 40, 24, 1)), jnp.float32)
    variables = init(model, mel)
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    (logits, features), state = jax.jit(
        lambda v: model.apply(v, mel, use_running_average=False, mutable=["batch_stats"])
    )(variables)
    still, _ = jax.jit(model.apply)(variables, mel)

    params = variables["params"]
    for train, ours in ((False, still), (True, logits)):
        x, seen = tensor(mel, 0, 3, 1, 2), []
        for index, stride in ((0, 2), (2, 2), (5, 2), (8, 1), (11, 1)):
            conv = params[f"main_{index}"]
            bias = tensor(conv["bias"]) if "bias" in conv else None
            assert (bias is None) == (index in (2, 5, 8))
            x = F.conv2d(x, tensor(conv["kernel"], 3, 2, 0, 1), bias, stride, padding=1)
            if bias is None:
                norm = params[f"main_{index + 1}"]
                before, after = variables["batch_stats"], state["batch_stats"]
                mean, var = (tensor(before[f"main_{index + 1}"][key]).clone() for key in ("mean", "var"))
                old, biased = var.clone(), x.var((0, 2, 3), correction=0)
                x = F.batch_norm(x, mean, var, tensor(norm["scale"]), tensor(norm["bias"]), train, 0.1, 1e-5)
                if train:
                    close(after[f"main_{index + 1}"]["mean"], mean)
                    close(after[f"main_{index + 1}"]["var"], 0.9 * old + 0.1 * biased)
            if index < 11:
                x = F.leaky_relu(x, 0.2)
                seen.append(x)
        close(ours[0], x.permute(0, 2, 3, 1))
    assert logits[0].shape == (2, 40 // 8 - 2, 24 // 8 - 2, 1)
    for a, b in zip(features[0], seen):
        close(a, b.permute(0, 2, 3, 1))


def test_first_draw():
    """Weight norm begins as the drawn kernel itself; the PatchGAN's kernels are N(0, 0.02), its scales N(1, 0.02)."""
    key = jax.random.key(0, impl="rbg")
    drawn = jax.jit(MultiPeriodDiscriminator(periods=(2,), channels=(8, 64)).init)(key, jnp.zeros((1, 32)))
    conv = drawn["params"]["discriminators_0"]["convs_1"]
    np.testing.assert_allclose(conv["weight_g"], np.linalg.norm(np.asarray(conv["weight_v"]), axis=(0, 1)), rtol=1e-5)
    assert float(jnp.abs(conv["weight_v"]).max()) <= (5 * 8) ** -0.5
    drawn = jax.jit(PatchGAN(widths=(32, 64)).init)(key, jnp.zeros((1, 8, 8, 1)))["params"]
    # 32,768 and 64 samples: their own standard deviations scatter by less than 1 and by 9 percent.
    assert abs(float(drawn["main_2"]["kernel"].std()) / 0.02 - 1) < 0.03
    assert 0.6 < float(drawn["main_3"]["scale"].std()) / 0.02 < 1.4
    assert abs(float(drawn["main_3"]["scale"].mean()) - 1) < 0.02


def test_too_small_a_mel_is_refused():
    with pytest.raises(ValueError, match="needs at least 24 frames and bands, and the mel is 40 × 16"):
        jax.eval_shape(PatchGAN(widths=(3, 4, 5, 6)).init, jax.random.key(0), jnp.zeros((1, 40, 16, 1)))
