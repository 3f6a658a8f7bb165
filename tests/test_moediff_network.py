# SPDX-License-Identifier: Apache-2.0
"""The assembled network: counts, sampler, skipping, learning."""

import dataclasses
import json

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from bids_moediff.families.moediff.config import PRESETS, MoEDiffConfig
from bids_moediff.families.moediff.network import (
    MoEDiffSR,
    equal_parameter_single,
    parameter_count,
)
from bids_moediff.families.moediff.training.losses import LossState, joint_loss

TINY = MoEDiffConfig(width=8, embed_dim=16, heads=2)


def random_start(
    batch: int = 2, size: tuple[int, int] = (64, 64), slices: int = 5
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(batch, slices, size[0] // 4, size[1] // 4, generator=generator)
    return functional.interpolate(coarse, size=size, mode="bicubic")


def shaken(config: MoEDiffConfig = TINY, seed: int = 0) -> MoEDiffSR:
    """A network whose zero-initialised layers are not zero, so that every path matters."""
    torch.manual_seed(seed)
    network = MoEDiffSR(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.abs().sum() == 0 and "autoencoder" not in name:
                parameter.normal_(std=0.05)
    return network


def test_config_survives_json_and_refuses_unknown_keys() -> None:
    config = MoEDiffConfig.preset("c48", gate="slice", experts=("cortex",), diffusion_steps=(7,))
    assert MoEDiffConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="colour"):
        MoEDiffConfig.from_dict({"colour": 1})
    with pytest.raises(ValueError, match="diffusion_steps"):
        MoEDiffConfig(experts=("cortex",))
    with pytest.raises(ValueError, match="odd"):
        MoEDiffConfig(context_slices=4)


@pytest.mark.parametrize(
    ("preset", "parameters", "experts", "gmac"),
    [
        ("small", 4.92, (1.53, 1.01, 1.32), 2.32),
        ("c48", 9.30, (3.38, 1.97, 2.89), 4.45),
        ("c64", 15.35, (5.95, 3.25, 5.09), 7.31),
    ],
)
def test_preset_counts(
    preset: str, parameters: float, experts: tuple[float, ...], gmac: float
) -> None:
    network = MoEDiffSR(PRESETS[preset]).eval()
    assert parameter_count(network) / 1e6 == pytest.approx(parameters, rel=0.005)
    counts = [parameter_count(expert) / 1e6 for expert in network.experts]
    assert counts == pytest.approx(list(experts), rel=0.01)
    with FlopCounterMode(display=False) as counter:
        network.sample(torch.zeros(1, 5, 256, 256), torch.zeros(1, 6), num_steps=1)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.01)


def test_single_expert_of_equal_parameters() -> None:
    config = PRESETS["small"]
    single = equal_parameter_single(config)
    counts = [parameter_count(MoEDiffSR(c)) for c in (config, single)]
    assert single.experts == ("smooth",)
    assert counts[1] == pytest.approx(counts[0], rel=0.04)


@pytest.mark.parametrize("latent", ["haar", "kl", "vq"])
@pytest.mark.parametrize("strength", [0.0, 0.0001])
def test_untrained_returns_the_start(latent: str, strength: float) -> None:
    torch.manual_seed(0)
    network = MoEDiffSR(dataclasses.replace(TINY, latent=latent)).eval()
    start = random_start(size=(64, 128))
    out = network.sample(start, torch.randn(2, 6), num_steps=3, noise_strength=strength)
    assert torch.equal(out.image, start[:, 2])
    assert out.gates.shape == (2, 3, 16, 32)


def test_sizes_must_be_multiples_of_64() -> None:
    network = MoEDiffSR(TINY)
    with pytest.raises(ValueError, match="multiples of 64"):
        network.sample(torch.zeros(1, 5, 96, 64), torch.zeros(1, 6))
    with pytest.raises(ValueError, match="5 neighbouring slices, not 3"):
        network.sample(torch.zeros(1, 3, 64, 64), torch.zeros(1, 6))


def test_same_seed_same_bytes_and_other_seed_other_bytes() -> None:
    network, start = shaken(), random_start()
    condition = torch.zeros(2, 6)

    def run(seed: int) -> torch.Tensor:
        noise = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(seed))
        arguments = {"num_steps": 3, "noise_strength": 1.0, "noise": noise}
        return network.sample(start, condition, **arguments).image

    assert torch.equal(run(1), run(1))
    assert (run(1) - run(2)).abs().max() > 1e-4


@pytest.mark.parametrize("gate", ["token", "slice"])
def test_a_slice_does_not_depend_on_its_batch(gate: str) -> None:
    network = shaken(dataclasses.replace(TINY, gate=gate))
    start, noise = random_start(4), torch.randn(4, 64, 64)
    condition = torch.randn(4, 6)
    arguments = {"num_steps": 2, "noise_strength": 0.5, "skip_threshold": 0.2}
    together = network.sample(start, condition, noise=noise, **arguments)
    for row in range(4):
        one = slice(row, row + 1)
        alone = network.sample(start[one], condition[one], noise=noise[one], **arguments)
        assert torch.allclose(alone.image, together.image[one], atol=1e-6)
        assert torch.allclose(alone.gates, together.gates[one], atol=1e-6)


def test_skipping_saves_runs_and_hardly_changes_the_result() -> None:
    network, start = shaken(), random_start()
    with torch.no_grad():
        mean = network.gating.refine(network.encode_tokens(start[:, 2]).values).mean((0, 1))
        network.gating.queries[:2] = mean
        network.gating.queries[2] = -mean
    full = network.sample(
        start, torch.zeros(2, 6), num_steps=2, noise_strength=0.3, noise=torch.zeros(2, 64, 64)
    )
    few = network.sample(
        start,
        torch.zeros(2, 6),
        num_steps=2,
        noise_strength=0.3,
        noise=torch.zeros(2, 64, 64),
        skip_threshold=1e-3,
    )
    assert (full.evaluated, full.skipped) == (12, 0)
    assert (few.evaluated, few.skipped) == (8, 4)
    assert (full.image - start[:, 2]).abs().max() > 1e-3
    assert (few.image - full.image).abs().max() < 1e-3
    assert torch.allclose(few.gates.sum(1), torch.ones(2, 16, 16))


def test_half_precision_changes_the_correction_by_at_most_two_percent() -> None:
    network, start = shaken(), random_start()
    condition, noise = torch.zeros(2, 6), torch.randn(2, 64, 64)
    arguments = {"num_steps": 3, "noise_strength": 0.3, "noise": noise}
    exact = network.sample(start, condition, **arguments)
    with torch.autocast("cpu", torch.bfloat16):
        half = network.sample(start, condition, **arguments)
        latents = network.encode(start)
    assert torch.equal(latents, network.encode(start))
    error, change = (half.image - exact.image).std(), (exact.image - start[:, 2]).std()
    assert 0 < error < 0.02 * change
    assert (half.gates - exact.gates).abs().max() < 0.02


def test_leading_expert_always_runs() -> None:
    gates = torch.tensor([0.3, 0.4, 0.3]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    kept, active = MoEDiffSR.active_experts(gates, 0.99)
    assert active.tolist() == [[False, True, False]]
    assert torch.equal(kept[0, 1], torch.ones(4, 4))


def test_sampling_mixes_what_predict_returns() -> None:
    """One noiseless step is eq. 9 applied to the experts' own estimates."""
    network, start = shaken(), random_start()
    condition = torch.randn(2, 6)
    with torch.no_grad():
        latents = network.encode(start)
        tokens = network.encode_tokens(start[:, 2])
        s, strength = torch.ones(2), torch.zeros(2)
        clean = network.predict(
            network.centre_latent(latents), s, latents, tokens, condition, strength
        )
        mixture = torch.einsum("bkzhw,bkhw->bzhw", clean, network.gate(start[:, 2]))
        wanted = network.autoencoder.decode(mixture)[:, 0]
    out = network.sample(start, condition)
    assert torch.allclose(out.image, wanted, atol=1e-5)
    assert (out.image - start[:, 2]).abs().max() > 1e-3


def test_tokens_reach_the_experts_and_condition_matters() -> None:
    network, start = shaken(), random_start()
    latents = network.encode(start)
    origin, ones = network.centre_latent(latents), torch.ones(2)
    tokens = network.encode_tokens(start[:, 2]).values
    arguments = [origin, ones, latents, tokens, torch.zeros(2, 6), ones]
    base = network.predict(*arguments)
    for place, other in ((1, 0.3 * ones), (3, -tokens), (4, torch.ones(2, 6)), (5, 0 * ones)):
        changed = list(arguments)
        changed[place] = other
        difference = (network.predict(*changed) - base).abs().amax((0, 2, 3, 4))
        assert difference.min() > 1e-7, place


@pytest.mark.parametrize("start_kind", ["mean", "noise"])
def test_thirty_steps_lower_the_loss(start_kind: str) -> None:
    torch.manual_seed(0)
    network = MoEDiffSR(
        dataclasses.replace(TINY, width=16, start=start_kind, latent_scale=1.0)
    ).train()
    truth = random_start(2)
    start = functional.avg_pool2d(truth, 3, 1, 1)
    tissue = torch.rand(2, 3, 64, 64).softmax(1)
    batch = {
        "start": start,
        "target": truth[:, 2],
        "condition": torch.zeros(2, 6),
        "tissue": tissue,
        "tissue_valid": torch.tensor([True, False]),
    }
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    state, experts = LossState(), []
    for step in range(30):
        state.progress = step / 30
        loss, logs = joint_loss(network, batch, state, uniform_gate=step < 6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        experts.append(logs["experts"])
        assert all(torch.isfinite(torch.tensor(v)) for v in logs.values())
    assert sum(experts[-5:]) < 0.95 * sum(experts[:5])
    missing = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    if start_kind == "mean":
        network.eval()
        out = network.sample(start, batch["condition"]).image
        assert (out - truth[:, 2]).abs().mean() < (start[:, 2] - truth[:, 2]).abs().mean()
