# SPDX-License-Identifier: Apache-2.0
"""The training of N-SMoE: features that stay, kernels that learn, the critic, disturbed scans."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_moediff.errors import UsageError, WeightsError
from bids_moediff.families.load import build_network, load_model
from bids_moediff.families.nsmoe.network import NSMoEConfig, NSMoENetwork, numbers_of
from bids_moediff.families.nsmoe.training import Adversary, Critic, NSMoERecipe, NSMoEStage
from bids_moediff.families.student.network import StudentConfig, StudentNetwork
from bids_moediff.imaging.simulated_filters import add_coil_noise, add_ghost
from bids_moediff.networks.model_folder import read_config, save_model
from bids_moediff.training.pack import BRIGHT, TrainingHead
from bids_moediff.training.uncertain import draw_disturbed, draw_uncertain
from bids_moediff.training.volumes import make_volume

CPU = torch.device("cpu")
SHAPE = {"channels": 8, "blocks": 1, "ranks": [4, 4, 4, 4], "hidden": 8}
RECIPE = NSMoERecipe(
    network=SHAPE, patch=16, batch=2, block=32, border=2, precision="fp32", learning_rate=1e-2
)


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    torch.manual_seed(3)
    shape = StudentConfig(channels=8, blocks=2, ranks=(4, 4, 4, 4))
    folder = tmp_path_factory.mktemp("student")
    config = {"family": "student", "version": "0", "student": shape.to_dict()}
    save_model(StudentNetwork(shape), config, folder, "")
    return folder


@pytest.fixture(scope="module")
def volumes(student: Path) -> list:
    random = np.random.default_rng(0)
    x, y, z = np.indices((40, 40, 40)) // 7
    blocks = (0.3 + 0.5 * ((x + y + z) % 2) + 0.05 * random.random((40, 40, 40))) * BRIGHT
    head = TrainingHead("blocks", blocks.astype(np.uint8), (1.0, 1.0, 1.0), "image")
    stage = NSMoEStage(RECIPE, CPU, [student])
    return [
        make_volume(head, RECIPE, np.random.default_rng(k), CPU, stage.finish) for k in range(3)
    ]


def test_the_head_learns_and_the_features_stay(student: Path, volumes: list) -> None:
    torch.manual_seed(0)
    stage = NSMoEStage(RECIPE, CPU, [student])
    before = {name: value.clone() for name, value in stage.network.state_dict().items()}
    batch = stage.batch(volumes, np.random.default_rng(1))
    trained = [p for p in stage.network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, 1e-2)
    losses = []
    for step in range(40):
        loss, logs = stage.loss(batch, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(logs["loss"])
    assert losses[-1] < 0.9 * losses[0]
    for name, value in stage.network.state_dict().items():
        frozen = name.startswith("own")
        assert torch.equal(value, before[name]) == frozen, name


def test_features_of_a_volume_are_those_of_the_network(student: Path, volumes: list) -> None:
    stage, volume = NSMoEStage(RECIPE, CPU, [student]), volumes[0]
    told = numbers_of(volume["condition"], volume["noise"])[None]
    with torch.no_grad():
        wanted = stage.network.trunk(volume["start"].float()[None, None], told)[0]
    assert torch.allclose(volume["features"].float(), wanted, atol=2e-2)


def test_the_first_layers_are_the_students(student: Path) -> None:
    given = load_model(student).network.state_dict()
    stage = NSMoEStage(RECIPE, CPU, [student])
    taken = stage.network.state_dict()
    assert torch.equal(taken["own.body.0.first.core.weight"], given["body.0.first.core.weight"])
    assert torch.equal(taken["own.film.2.weight"], given["film.2.weight"][:16])


def test_what_it_begins_with_must_fit(student: Path) -> None:
    with pytest.raises(UsageError, match="--init STUDENT"):
        NSMoEStage(RECIPE, CPU, [])
    with pytest.raises(UsageError, match="another size"):
        NSMoEStage(replace(RECIPE, network=SHAPE | {"channels": 12}), CPU, [student])
    with pytest.raises(UsageError, match="fewer blocks"):
        NSMoEStage(replace(RECIPE, network=SHAPE | {"blocks": 3}), CPU, [student])
    with pytest.raises(UsageError, match="multiple of 4"):
        NSMoEStage(replace(RECIPE, patch=18), CPU, [student])


def test_a_run_begins_with_an_earlier_one(tmp_path: Path) -> None:
    network = NSMoENetwork(NSMoEConfig.from_dict(SHAPE))
    torch.nn.init.normal_(network.read.weight)
    config = {"family": "nsmoe", "version": "0", "nsmoe": network.config.to_dict()}
    save_model(network, config, tmp_path / "model", "")
    again = NSMoEStage(RECIPE, CPU, [tmp_path / "model"]).network
    assert torch.allclose(again.read.weight, network.read.weight, atol=1e-2)


def test_the_critic_is_bounded_and_tells_truth_from_blur(student: Path, volumes: list) -> None:
    torch.manual_seed(0)
    recipe = replace(RECIPE, critic_weight=0.1, critic_width=4)
    stage = NSMoEStage(recipe, CPU, [student])
    batch = stage.batch(volumes, np.random.default_rng(1))
    assert stage.adversary is not None
    for step in range(30):
        loss, logs = stage.loss(batch, step)
    share = 1 + 0.1 * logs["critic"]  # the critic's term is relative to the fidelity
    assert logs["loss"] == pytest.approx(logs["fidelity"] * share, rel=1e-4)
    loss.backward()
    critic = stage.adversary.critic
    with torch.no_grad():
        apart = critic(batch["target"][:, None]).mean() - critic(batch["start"][:, None]).mean()
    assert float(apart) > 0.02 and np.isfinite(logs["critic"])
    assert stage.network.read.weight.grad.abs().max() > 0
    for layer in (critic.down1, critic.down2, critic.up1, critic.up2):
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert float(norm) == pytest.approx(1.0, rel=0.1)
    assert Critic(4)(torch.rand(1, 1, 16, 12, 8)).shape == (1, 1, 16, 12, 8)


def test_the_critic_s_term_asks_for_what_it_takes_for_truth() -> None:
    torch.manual_seed(0)
    adversary = Adversary(replace(RECIPE, critic_width=4, learning_rate=1e-12), CPU)
    output, truth = torch.rand(2, 1, 1, 16, 12, 8)
    adversary.critic.eval()  # the spectral norms stay
    with torch.no_grad():
        wanted = -adversary.critic(output).mean()
    torch.testing.assert_close(adversary.loss(output, truth).detach(), wanted)


def test_the_critic_learns_by_the_hinge_loss() -> None:
    torch.manual_seed(0)
    adversary = Adversary(replace(RECIPE, critic_width=4, learning_rate=1e-12), CPU)
    critic = adversary.critic.eval()  # the spectral norms stay
    torch.nn.init.normal_(critic.leave.weight, std=2)  # some voxels lie beyond the hinge
    output, truth = torch.rand(2, 1, 1, 16, 12, 8)
    real, made = critic(truth), critic(output)
    assert (real > 1).any() and (real < 1).any() and (made > -1).any() and (made < -1).any()
    below, above = (1 - real)[real < 1].sum(), (1 + made)[made > -1].sum()
    wanted = torch.autograd.grad((below + above) / real.numel(), list(critic.parameters()))
    adversary.loss(output, truth)
    for parameter, gradient in zip(critic.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_noise_of_several_coils_has_its_moments() -> None:
    """Second moment of noncentral chi: signal squared + 2 n sigma squared."""
    signal, sigma = np.full((40, 40, 40), 0.5, np.float32), 0.05
    for coils in (1, 4):
        noisy = add_coil_noise(signal, sigma, coils, 3)
        wanted = 0.25 + 2 * coils * sigma**2
        assert float((noisy**2).mean()) == pytest.approx(wanted, rel=2e-3)
        assert float(noisy.std()) == pytest.approx(sigma, rel=0.05)


def test_a_ghost_lies_half_a_field_of_view_away() -> None:
    image = np.zeros((8, 10, 6), np.float32)
    image[1, 2, 3] = 1
    ghosted = add_ghost(image, 0.1, 1)
    assert ghosted[1, 7, 3] == pytest.approx(0.1) and ghosted[1, 2, 3] == pytest.approx(0.9)
    assert ghosted.sum() == pytest.approx(1)


def test_disturbed_draws_are_the_uncertain_ones_and_more() -> None:
    drawn = [draw_disturbed(np.random.default_rng(k)) for k in range(200)]
    plain = [draw_uncertain(np.random.default_rng(k)) for k in range(200)]
    assert [replace(plan, ghost=0.0, ghost_axis=0, coils=1) for plan in drawn] == plain
    assert 10 < sum(plan.ghost > 0 for plan in drawn) < 60
    assert 30 < sum(plan.coils > 1 for plan in drawn) < 100


def test_shared_features_are_no_weights_of_its_own(student: Path, tmp_path: Path) -> None:
    shape = SHAPE | {"features": f"{student}/"}
    stage = NSMoEStage(replace(RECIPE, network=shape), CPU, [])
    assert {name.split(".")[0] for name in stage.network.state_dict()} == {
        "hidden",
        "tell",
        "read",
    }
    settings = stage.network_settings()
    assert settings["features_sha256"] == load_model(student).sha256
    config = {"family": "nsmoe", "version": "0", "nsmoe": settings}
    save_model(stage.network, config, tmp_path / "model", "")
    torch.nn.init.ones_(stage.network.read.bias)
    loaded = load_model(tmp_path / "model").network
    given = load_model(student).network.state_dict()
    assert torch.equal(loaded.trunk.head.weight, given["head.weight"])
    assert loaded.double().trunk.head.weight.dtype == torch.float64
    config = read_config(tmp_path / "model")
    config["nsmoe"]["features_sha256"] = "0" * 64
    with pytest.raises(WeightsError, match="other weights"):
        build_network(config).trunk  # noqa: B018
