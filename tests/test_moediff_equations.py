# SPDX-License-Identifier: Apache-2.0
"""Equations 1-9 and the building blocks against numpy, scipy or the algebra."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from bids_moediff.families.moediff import diffusion
from bids_moediff.families.moediff.config import PRESETS, MoEDiffConfig
from bids_moediff.families.moediff.experts import (
    ChannelAttention,
    ComplexConv,
    CrossAttention,
    DenseBlock,
    EdgeBlock,
    NonLocalBlock,
    sinusoid,
)
from bids_moediff.families.moediff.gating import Gate, attention_scores, usage_softmax
from bids_moediff.families.moediff.latents import (
    HaarAutoencoder,
    KLAutoencoder,
    VQAutoencoder,
    haar_filters,
    residual_decode,
)
from bids_moediff.families.moediff.network import MoEDiffSR, parameter_count
from bids_moediff.families.moediff.tokens import MultiScaleEncoder, SwinBlock, Tokens

TINY = MoEDiffConfig(width=8, embed_dim=16, heads=2)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def softmax(values: np.ndarray, axis: int = -1) -> np.ndarray:
    power = np.exp(values - values.max(axis, keepdims=True))
    return power / power.sum(axis, keepdims=True)


# Tokens (eq. 1)


def test_patches_are_projected_without_overlap() -> None:
    encoder = MultiScaleEncoder(16, 2)
    image = torch.rand(2, 1, 128, 64)
    for size, embedding, cells in zip(
        (64, 32, 16), encoder.embeddings, encoder.embed(image), strict=True
    ):
        weight, bias = numpy_of(embedding.weight), numpy_of(embedding.bias)
        patches = numpy_of(image).reshape(2, 128 // size, size, 64 // size, size)
        wanted = np.einsum("brich,dih->brcd", patches, weight[:, 0]) + bias
        assert np.allclose(numpy_of(cells), wanted, atol=1e-5)


def test_token_count_of_the_paper() -> None:
    tokens = MultiScaleEncoder(16, 2)(torch.rand(1, 1, 256, 256))
    assert tokens.grids == ((4, 4), (8, 8), (16, 16))
    assert tokens.values.shape == (1, 16 + 64 + 256, 16)
    assert torch.equal(tokens.finest()[0, :, 3, 5], tokens.values[0, 80 + 3 * 16 + 5])


def reference_swin(block: SwinBlock, x: np.ndarray) -> np.ndarray:
    """Window attention cell by cell: two cells meet if their shifted windows are the same."""

    def linear(layer: torch.nn.Linear, v: np.ndarray) -> np.ndarray:
        return v @ numpy_of(layer.weight).T + numpy_of(layer.bias)

    def norm(layer: torch.nn.LayerNorm, v: np.ndarray) -> np.ndarray:
        v = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + layer.eps)
        return v * numpy_of(layer.weight) + numpy_of(layer.bias)

    rows, columns, dim = x.shape
    window, heads = block.window, block.attention.heads
    shift = [block.shift if -(-n // window) > 1 else 0 for n in (rows, columns)]
    q, k, v = np.split(linear(block.attention.qkv, norm(block.norm1, x)), 3, axis=-1)
    table, out = numpy_of(block.table), np.zeros_like(x)
    for r, c in np.ndindex(rows, columns):
        home = ((r - shift[0]) // window, (c - shift[1]) // window)
        near = [
            (i, j)
            for i, j in np.ndindex(rows, columns)
            if ((i - shift[0]) // window, (j - shift[1]) // window) == home
        ]
        for head in range(heads):
            part = slice(head * dim // heads, (head + 1) * dim // heads)
            logits = []
            for i, j in near:
                place = (r - i + window - 1) * (2 * window - 1) + (c - j + window - 1)
                score = q[r, c, part] @ k[i, j, part] / np.sqrt(dim / heads)
                logits.append(score + table[place, head])
            weight = softmax(np.array(logits))
            out[r, c, part] = sum(
                w * v[i, j, part] for w, (i, j) in zip(weight, near, strict=True)
            )
    x = x + linear(block.attention.project, out)
    hidden = linear(block.mlp[0], norm(block.norm2, x))
    hidden = numpy_of(functional.gelu(torch.from_numpy(hidden)))
    return x + linear(block.mlp[2], hidden)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid", [(8, 8), (6, 5), (3, 9), (1, 1)])
def test_swin_block(grid: tuple[int, int], shifted: bool) -> None:
    block = SwinBlock(8, 2, 4, shifted)
    with torch.no_grad():
        block.table.normal_()
    x = torch.randn(2, *grid, 8)
    out = block(x)
    for row in range(2):
        assert np.allclose(numpy_of(out[row]), reference_swin(block, numpy_of(x[row])), atol=1e-4)


# Gate (eqs 2-4)


def cosine_table(gate: Gate, values: torch.Tensor) -> np.ndarray:
    refined, queries = numpy_of(gate.refine(values)), numpy_of(gate.queries)
    refined /= np.linalg.norm(refined, axis=-1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=-1, keepdims=True)
    return np.einsum("kd,bnd->bkn", queries, refined)


def make_tokens() -> Tokens:
    return Tokens(torch.randn(2, 4 + 16 + 64, 16), ((2, 2), (4, 4), (8, 8)))


def test_slice_gate_is_equations_2_to_4() -> None:
    gate = Gate(dataclasses.replace(TINY, gate="slice", temperature=1.0)).eval()
    gate.usage.copy_(torch.tensor([0.7, 0.2, 0.1]))
    tokens = make_tokens()
    cosines = cosine_table(gate, tokens.values)
    attention = np.exp(cosines) / np.exp(cosines).sum(-1, keepdims=True)
    score = (attention * cosines).sum(-1)
    found = attention_scores(torch.from_numpy(cosines))
    assert np.allclose(found[0], attention) and np.allclose(found[1], score)
    usage = np.array([0.7, 0.2, 0.1])
    paper = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
    paper = paper * np.exp(-0.1 * usage) / np.exp(-0.1 * usage).sum()
    assert paper.sum() < 0.5 * len(paper)  # as printed, eq. 4 does not sum to one
    wanted = paper / paper.sum(-1, keepdims=True)
    out = gate(tokens)
    assert np.allclose(numpy_of(out.coarse[:, :, 0, 0]), wanted, atol=1e-6)
    assert torch.equal(out.latent, out.coarse.expand(2, 3, 32, 32))


def test_token_gate_adds_the_slice_score_to_the_tokens_cosines() -> None:
    gate = Gate(TINY).eval()
    gate.usage.copy_(torch.tensor([0.1, 0.1, 0.8]))
    tokens = make_tokens()
    cosines = cosine_table(gate, tokens.values)
    score = (softmax(cosines) * cosines).sum(-1)
    logits = cosines[:, :, 20:] / 0.1 + score[:, :, None]
    wanted = softmax(logits - 0.1 * np.array([0.1, 0.1, 0.8])[:, None], axis=1)
    out = gate(tokens)
    assert np.allclose(numpy_of(out.coarse).reshape(2, 3, 64), wanted, atol=1e-5)
    assert out.latent.shape == (2, 3, 32, 32)
    assert torch.allclose(out.latent.sum(1), torch.ones(2, 32, 32), atol=1e-6)
    middle = out.coarse[:, :, 2:4, 5:7]  # bilinear: the latent cells around a corner of four
    weights = torch.tensor([0.625, 0.375])
    wanted_corner = torch.einsum("bkij,i,j->bk", middle, weights, weights)
    assert torch.allclose(out.latent[:, :, 11, 23], wanted_corner, atol=1e-6)


def test_temperature_is_clamped() -> None:
    gate = Gate(TINY).eval()
    tokens = make_tokens()
    logits = []
    for value in (1e-6, 0.01, 1.0, 50.0):
        gate.temperature.data.fill_(value)
        logits.append(gate.logits(tokens))
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[2], logits[3])


def test_usage_follows_the_gate_in_training_only() -> None:
    gate = Gate(TINY)
    tokens = make_tokens()
    gate.eval()(tokens)
    assert torch.allclose(gate.usage, torch.full((3,), 1 / 3))
    wanted = np.full(3, 1 / 3)
    gate.train()
    for _ in range(3):
        mean = numpy_of(gate(tokens).coarse).mean((0, 2, 3))
        wanted = 0.99 * wanted + 0.01 * mean
    assert np.allclose(numpy_of(gate.usage), wanted, atol=1e-6)
    assert "usage" in gate.state_dict()


def test_usage_lowers_the_gate_of_a_busy_expert() -> None:
    even = usage_softmax(torch.zeros(1, 3), torch.tensor([1.0, 0.0, 0.0]), gamma=2.0)
    power = np.exp([-2.0, 0, 0])
    assert np.allclose(numpy_of(even[0]), power / power.sum())


# Diffusion (eqs 5-9)


@pytest.mark.parametrize("steps", [500, 2000, 1000])
def test_schedule(steps: int) -> None:
    table = numpy_of(diffusion.alpha_bar(steps))
    betas = np.linspace(1e-4 * 1000 / steps, 2e-2 * 1000 / steps, steps)
    assert np.allclose(table, np.concatenate([[1.0], np.cumprod(1 - betas)]))
    assert table[0] == 1.0 and (np.diff(table) < 0).all() and table[-1] < 1e-4
    s = torch.tensor([0.1, 0.5, 0.9])
    other = diffusion.alpha_bar_at(s, 1000)
    assert torch.allclose(diffusion.alpha_bar_at(s, steps), other, rtol=0.15, atol=2e-4)


def test_every_expert_has_its_own_time_grid() -> None:
    s = torch.tensor([0.0, 0.0004, 0.3333, 1.0])
    assert diffusion.step_index(s, 500).tolist() == [1, 1, 167, 500]
    assert diffusion.step_index(s, 2000).tolist() == [1, 1, 667, 2000]
    found = sinusoid(torch.tensor([7]), 8)[0]
    rates = 10_000.0 ** (-np.arange(4) / 4)
    assert np.allclose(numpy_of(found), np.r_[np.cos(7 * rates), np.sin(7 * rates)], atol=1e-5)


def test_equations_5_and_8_are_inverse() -> None:
    clean, noise = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    level = torch.tensor([0.9, 0.02])
    state = diffusion.add_noise(clean, noise, level)
    root = np.sqrt(np.array([0.9, 0.02]))[:, None, None, None]
    other = np.sqrt(np.array([0.1, 0.98]))[:, None, None, None]
    assert np.allclose(
        numpy_of(state), root * numpy_of(clean) + other * numpy_of(noise), atol=1e-6
    )
    assert torch.allclose(diffusion.clean_from_noise(state, noise, level), clean, atol=1e-5)
    assert torch.allclose(diffusion.noise_from_clean(state, clean, level), noise, atol=1e-5)


def test_equation_9() -> None:
    clean, gates = torch.randn(2, 3, 4, 5, 5), torch.rand(2, 3, 5, 5)
    wanted = sum(numpy_of(gates[:, i])[:, None] * numpy_of(clean[:, i]) for i in range(3))
    assert np.allclose(numpy_of(diffusion.mix(clean, gates)), wanted, atol=1e-6)


def test_bridge_runs_from_clean_to_start() -> None:
    clean, start, noise = torch.randn(3, 2, 4, 4, 4).unbind(0)
    amplitude = torch.tensor([0.0, 0.3])
    at_zero = diffusion.bridge_state(clean, start, noise, torch.zeros(2), amplitude)
    assert torch.equal(at_zero, clean)
    at_one = diffusion.bridge_state(clean, start, noise, torch.ones(2), amplitude)
    assert torch.allclose(at_one[0], start[0], atol=1e-6)
    assert torch.allclose(at_one[1], start[1] + 0.3 * noise[1], atol=1e-6)
    third = diffusion.bridge_state(clean, start, noise, torch.full((2,), 1 / 3), amplitude)
    wanted = clean[1] + 0.25 * (start - clean)[1] + 0.3 * 0.5 * noise[1]  # sin^2(30 deg) = 1/4
    assert torch.allclose(third[1], wanted, atol=1e-6)


@pytest.mark.parametrize("s_next", [0.7, 0.2, 0.0])
def test_bridge_step_with_the_true_clean_latent_stays_on_the_bridge(s_next: float) -> None:
    clean, start, noise = torch.randn(3, 1, 4, 4, 4).unbind(0)
    s, later, amplitude = torch.tensor([0.8]), torch.tensor([s_next]), torch.tensor([0.2])
    state = diffusion.bridge_state(clean, start, noise, s, amplitude)
    moved = diffusion.bridge_step(state, clean, start, s, later)
    wanted = diffusion.bridge_state(clean, start, noise, later, amplitude)
    assert torch.allclose(moved, wanted, atol=1e-5)


def test_paper_update_with_the_true_clean_latent_keeps_the_noise() -> None:
    network = MoEDiffSR(dataclasses.replace(TINY, start="noise"))
    clean, noise = torch.randn(2, 1, 16, 8, 8).unbind(0)
    s, later = torch.tensor([0.8]), torch.tensor([0.3])
    state = diffusion.add_noise(clean, noise, diffusion.alpha_bar_at(s, 2000))
    moved = network.update(state, clean, clean, s, later)
    wanted = diffusion.add_noise(clean, noise, diffusion.alpha_bar_at(later, 2000))
    assert torch.allclose(moved, wanted, atol=1e-4)
    assert torch.equal(network.update(state, clean, clean, s, torch.zeros(1)), clean)


def test_noise_prediction_becomes_each_experts_clean_latent() -> None:
    """Equation 8 with the expert's own schedule, from its raw output (eq. 7's prediction)."""
    network = MoEDiffSR(dataclasses.replace(TINY, start="noise", context_slices=1)).eval()
    for expert in network.experts:
        torch.nn.init.normal_(expert.leave.weight, std=0.1)
    image = torch.rand(1, 1, 64, 64)
    latents = network.encode(image)
    tokens = network.encode_tokens(image[:, 0])
    state, s = torch.randn(1, 16, 16, 16), torch.tensor([0.4])
    arguments = (latents, tokens.values, torch.zeros(1, 6), torch.ones(1))
    clean = network.predict(state, s, *arguments)
    for index, steps in enumerate((500, 2000, 1000)):
        level = diffusion.alpha_bar(steps)[round(0.4 * steps)].item()
        noise = numpy_of(network.run_expert(index, state, s, *arguments))
        wanted = (numpy_of(state) - np.sqrt(1 - level) * noise) / np.sqrt(level)
        assert np.allclose(numpy_of(clean[:, index]), wanted, atol=1e-4)


# Latents (decision K)


def test_haar_is_orthonormal_and_inverts() -> None:
    matrix = haar_filters().reshape(16, 16)
    assert torch.equal(matrix @ matrix.T, torch.eye(16))
    image = torch.randint(0, 4096, (2, 1, 64, 32)).float()
    haar = HaarAutoencoder()
    latent = haar.encode(image)
    assert latent.shape == (2, 16, 16, 8)
    assert torch.equal(haar.decode(latent), image)
    assert torch.allclose(latent.square().sum(), image.square().sum())


def test_haar_is_two_levels_of_the_textbook_transform() -> None:
    image = torch.rand(1, 1, 16, 16)
    x = numpy_of(image)[0, 0]

    def level(x: np.ndarray) -> tuple[np.ndarray, ...]:
        a, b, c, d = x[::2, ::2], x[::2, 1::2], x[1::2, ::2], x[1::2, 1::2]
        return (a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2

    low, *fine = level(x)
    lowest, *coarse = level(low)
    wanted = [lowest, *coarse]
    wanted += [band[i::2, j::2] for band in fine for i in (0, 1) for j in (0, 1)]
    found = numpy_of(HaarAutoencoder().encode(image))[0]
    assert np.allclose(found, np.stack(wanted), atol=1e-6)


@pytest.mark.parametrize("kind", [KLAutoencoder, VQAutoencoder])
def test_learned_autoencoders(kind: type) -> None:
    extra = (32,) if kind is VQAutoencoder else ()
    model = kind(4, 8, *extra)
    image = torch.rand(2, 1, 64, 64)
    latent = model.encode(image)
    assert latent.shape == (2, 4, 16, 16)
    assert torch.equal(latent, model.encode(image))
    assert torch.equal(residual_decode(model, image, latent, latent), image)
    decoded, regulariser = model.reconstruct(image)
    assert decoded.shape == image.shape and regulariser >= 0
    (decoded.square().mean() + regulariser).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_kl_is_the_gaussian_divergence() -> None:
    model = KLAutoencoder(4, 8)
    image = torch.rand(1, 1, 32, 32)
    mean, log_variance = model.moments(image)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    wanted = torch.distributions.kl_divergence(posterior, prior).mean()
    assert torch.allclose(model.reconstruct(image)[1], wanted, atol=1e-5)


def test_vq_takes_the_nearest_code_and_passes_gradients_through() -> None:
    model = VQAutoencoder(3, 8, 11)
    torch.nn.init.normal_(model.codebook)
    latent = torch.randn(2, 3, 4, 4, requires_grad=True)
    flat, book = numpy_of(latent).transpose(0, 2, 3, 1), numpy_of(model.codebook)
    nearest = ((flat[..., None, :] - book) ** 2).sum(-1).argmin(-1)
    assert np.array_equal(model.codes(latent).numpy(), nearest)
    assert np.allclose(numpy_of(model.quantise(latent)).transpose(0, 2, 3, 1), book[nearest])
    model.decode(latent).square().sum().backward()
    assert latent.grad is not None and latent.grad.abs().sum() > 0


# Blocks of section II-C


def test_complex_convolution_is_complex() -> None:
    layer = ComplexConv(6, 4)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 6, 7, 7)
    kernel = torch.complex(layer.real, layer.imaginary)
    wanted = functional.conv2d(torch.complex(x[:, :3], x[:, 3:]), kernel, padding=1)
    wanted = torch.cat([wanted.real, wanted.imag], 1) + layer.bias[:, None, None]
    assert torch.allclose(layer(x), wanted, atol=1e-5)


def test_complex_convolution_commutes_with_a_phase() -> None:
    layer = ComplexConv(6, 4)

    def turn(x: torch.Tensor, angle: float) -> torch.Tensor:
        real, imaginary = x.chunk(2, 1)
        z = torch.complex(real, imaginary) * np.exp(1j * angle)
        return torch.cat([z.real, z.imag], 1).float()

    x = torch.randn(1, 6, 5, 5)
    assert torch.allclose(layer(turn(x, 0.7)), turn(layer(x), 0.7), atol=1e-5)


def test_edge_block_uses_the_laplacian() -> None:
    block, x = EdgeBlock(3), torch.randn(1, 3, 8, 9)
    wanted = np.stack([ndimage.laplace(channel, mode="nearest") for channel in numpy_of(x)[0]])
    assert np.allclose(numpy_of(block.laplacian(x))[0], wanted, atol=1e-5)
    assert torch.equal(block(x, x), x)  # at the start
    torch.nn.init.normal_(block.mix.weight)
    mixed = np.einsum("oi,ihw->ohw", numpy_of(block.mix.weight)[:, :, 0, 0], wanted)
    assert np.allclose(numpy_of(block(x, x) - x)[0], mixed, atol=1e-4)


def test_dense_block_sees_all_earlier_maps() -> None:
    block = DenseBlock(8, 8, 4)
    assert [layer.in_channels for layer in block.layers] == [8, 24, 40, 56]
    assert {layer.out_channels for layer in block.layers} == {16}


def test_non_local_block() -> None:
    block, x = NonLocalBlock(4), torch.randn(1, 4, 3, 5)
    torch.nn.init.normal_(block.fuse.weight)
    flat = numpy_of(x)[0].reshape(4, 15)
    qkv = numpy_of(block.qkv.weight)[:, :, 0, 0] @ flat + numpy_of(block.qkv.bias)[:, None]
    query, key, value = np.split(qkv, 3)
    attended = value @ softmax(query.T @ key / np.sqrt(2.0)).T
    wanted = flat + numpy_of(block.fuse.weight)[:, :, 0, 0] @ attended
    assert np.allclose(numpy_of(block(x, x))[0].reshape(4, 15), wanted, atol=1e-5)


def test_channel_attention_weighs_whole_channels() -> None:
    block, x = ChannelAttention(8), torch.rand(2, 8, 5, 5) + 0.1
    ratio = block(x, x) / x
    assert torch.allclose(ratio, ratio[:, :, :1, :1].expand_as(ratio), atol=1e-6)
    hidden = functional.silu(block.squeeze(x.mean((2, 3))))
    assert torch.allclose(ratio[:, :, 0, 0], torch.sigmoid(block.excite(hidden)), atol=1e-6)


def test_cross_attention_does_not_care_for_the_order_of_tokens() -> None:
    block = CrossAttention(8, 16, 2)
    torch.nn.init.normal_(block.project.weight)
    x, tokens = torch.randn(2, 8, 3, 3), torch.randn(2, 10, 16)
    out = block(x, tokens)
    assert torch.allclose(out, block(x, tokens[:, torch.randperm(10)]), atol=1e-5)
    one = tokens[:, :1].expand(-1, 10, -1)  # equal tokens: their value, whatever the query
    value = block.key_value(one[:, 0]).chunk(2, -1)[1]
    wanted = x + block.project(value[:, :, None, None])
    assert torch.allclose(block(x, one), wanted, atol=1e-5)


def test_paper_preset_builds_and_counts() -> None:
    """The text leaves c and d open: these are our own counts (docs/science.md)."""
    with torch.device("meta"):
        network = MoEDiffSR(PRESETS["paper"])
        counts = [parameter_count(expert) / 1e6 for expert in network.experts]
        autoencoder = parameter_count(network.autoencoder, trainable_only=False) / 1e6
    assert counts == pytest.approx([64.04, 31.47, 54.98], rel=0.005)
    assert autoencoder == pytest.approx(22.30, rel=0.005)
    assert parameter_count(network) / 1e6 == pytest.approx(155.70, rel=0.005)


def test_the_posterior_s_sample_lies_one_deviation_from_its_mean(monkeypatch):
    """Kingma and Welling 2014, equation 10, for noise that is 1 everywhere."""
    torch.manual_seed(0)
    coder = KLAutoencoder(2, 8)
    mean, log_variance = torch.full((1, 2, 4, 4), 0.3), torch.full((1, 2, 4, 4), -1.2)
    monkeypatch.setattr(coder, "moments", lambda image: (mean, log_variance))
    monkeypatch.setattr(coder, "decode", lambda latent: latent)
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    sample, divergence = coder.reconstruct(torch.zeros(1, 1, 16, 16))
    torch.testing.assert_close(sample, mean + np.exp(-0.6))
    wanted = 0.5 * (0.3**2 + np.exp(-1.2) - 1 + 1.2)
    assert float(divergence) == pytest.approx(wanted, rel=1e-5)
