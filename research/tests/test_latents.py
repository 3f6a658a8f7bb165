# SPDX-License-Identifier: Apache-2.0
"""Learned latents: trained, taken over by the experts, and exact where nothing changes."""

from pathlib import Path

import pytest
import torch

from bids_moediff.cli.train import main as train_command
from bids_moediff.errors import UsageError
from bids_moediff.families.load import load_model
from bids_moediff.families.moediff.latents import HaarAutoencoder
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.training.pack import load_pack
from bids_moediff.training.state import read_state
from bids_moediff.training.validation import make_cases
from research.latents.stage import AutoencoderRecipe, AutoencoderStage, coded_truth
from research.tests.lab_data import LAB, lab_tiny
from training_data import pack, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("pack"))


def stage(name: str) -> AutoencoderStage:
    torch.manual_seed(0)
    recipe = lab_tiny(name)
    assert isinstance(recipe, AutoencoderRecipe)
    return AutoencoderStage(recipe, CPU, None)


@pytest.mark.parametrize("name", ["autoencoder", "autoencoder-vq"])
def test_a_batch_is_learned(name: str) -> None:
    """The loss of one batch falls, and so does the error of a change in the latent."""
    trained = stage(name)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 1, 16, 16, generator=generator)
    start = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")
    target = start[:, 0] + 0.1 * torch.rand(4, 64, 64, generator=generator)
    batch = {"start": start, "target": target}
    optimiser = torch.optim.Adam(trained.network.parameters(), 3e-3)
    logs = []
    for step in range(60):
        loss, values = trained.loss(batch, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        logs.append(values)
    assert logs[-1]["fidelity"] < 0.6 * logs[0]["fidelity"]
    assert logs[-1]["residual"] < logs[0]["residual"]
    assert set(logs[0]) == {"loss", "fidelity", "residual", "prior", "deviation"}


def test_the_validation_is_what_perfect_experts_would_reach(data: Path) -> None:
    """A lossless latent gives the truth back; an untrained one never worsens an equal start."""
    heads = [head for head in load_pack(data) if head.validation]
    case = make_cases(heads, 34, CPU)[0]
    lossless = coded_truth(HaarAutoencoder(), case)
    torch.testing.assert_close(lossless, case.truth, atol=1e-5, rtol=0)
    untrained = stage("autoencoder")
    same = type(case)(**(vars(case) | {"truth": case.start}))
    torch.testing.assert_close(coded_truth(untrained.network, same), case.start)
    gains = untrained.validate(untrained.network, [case])
    assert gains[case.protocol]["over_consistent"] < 1.0


def test_latents_go_from_their_run_into_the_experts(data: Path, tmp_path: Path) -> None:
    """Autoencoder, experts on it, model: one set of weights, beside the mean that was given."""
    mean, latent = tmp_path / "mean", tmp_path / "latent"
    train(lab_tiny("mean", steps=2, evaluate_every=2), data, mean, stages=LAB)
    words = ["--recipe", "autoencoder", "--smoke", "--steps", 2, "--pack", data]
    words += ["--output", latent, "--device", "cpu"]
    assert train_command([str(word) for word in words], LAB) == 0
    weights, record = read_state(latent / "state.safetensors")
    assert record["network"] == {
        "latent": "kl", "latent_channels": 4, "autoencoder_width": 8, "codebook_size": 1024,
    }  # fmt: skip
    alone = load_model(latent / "model").network
    assert alone.moediff is None and alone.autoencoder is not None
    words = ["--recipe", "experts-kl", "--smoke", "--steps", 2, "--pack", data, "--device", "cpu"]
    words += ["--init", mean, latent, "--output", tmp_path / "experts"]
    assert train_command([str(word) for word in words], LAB) == 0
    network = load_model(tmp_path / "experts" / "model").network
    assert isinstance(network.moediff, MoEDiffSR) and network.mean is not None
    assert network.autoencoder is None  # it lives in the experts
    for name, value in network.moediff.autoencoder.state_dict().items():
        torch.testing.assert_close(
            value, weights[f"average.{name}"].to(value.dtype), atol=1e-3, rtol=1e-3
        )


def test_a_latent_that_nobody_trained_is_refused(data: Path, tmp_path: Path) -> None:
    train(lab_tiny("mean", steps=1, evaluate_every=1), data, tmp_path / "mean", stages=LAB)
    with pytest.raises(UsageError, match="latent kl needs a trained autoencoder"):
        LAB.make(lab_tiny("experts-kl"), CPU, tmp_path / "mean")
    with pytest.raises(UsageError, match="haar latent has nothing to train"):
        LAB.make(
            lab_tiny("autoencoder", **{"network.latent": "haar", "network.latent_channels": 16}),
            CPU,
            None,
        )
