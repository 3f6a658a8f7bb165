# SPDX-License-Identifier: Apache-2.0
"""Distillation: the ladder of targets, the losses, and what the teacher puts out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from bids_moediff.errors import UsageError
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.model import MoEDiffModel
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.families.student.network import StudentConfig, StudentNetwork
from bids_moediff.families.student.training.student import (
    StudentRecipe,
    StudentStage,
    apply_student,
    distillation_target,
    feature_distance,
    guided_depths,
    ladder_sigma,
    measured_part,
    sobel3d,
)
from bids_moediff.families.whole_volume import apply_to_volume
from bids_moediff.imaging.simulation import degrade, draw
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.training.volumes import make_volume
from training_data import heads, tiny

CPU = torch.device("cpu")
RECIPE = StudentRecipe(truth_share=0.4, truth_weight=0.25)


def _noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random(shape, dtype=np.float32))


def test_the_ladder_has_ten_rungs_and_ends_sharp() -> None:
    sigmas = [ladder_sigma(step / 1000, RECIPE) for step in range(1000)]
    expected = [2 * (1 - k / 9) for k in range(10)]
    assert sorted(set(sigmas), reverse=True) == pytest.approx(expected)
    assert sigmas[0] == 2.0 and sigmas[545] == pytest.approx(0) and sigmas[999] == 0


def test_the_target_is_the_blurred_teacher_then_teacher_and_truth() -> None:
    teacher, truth = _noise(1, 24, 24, 24), torch.ones(1, 24, 24, 24)
    first = distillation_target(teacher, truth, 0.0, RECIPE)
    blurred = ndimage.gaussian_filter(teacher[0].numpy(), 2.0, mode="nearest", radius=8)
    assert np.allclose(first[0], blurred, atol=1e-5)
    last = distillation_target(teacher, truth, 0.7, RECIPE)
    assert torch.allclose(last, 0.75 * teacher + 0.25 * truth)


def test_the_measured_part_is_blurred_by_the_slice_profile() -> None:
    image = _noise(2, 20, 22, 24)
    condition = torch.tensor([[0, 0, 2.0, 0, 0, 1.0], [0, 0, 0, 0, 0, 0]])
    seen = measured_part(image, condition)
    sigma = 4 / (2 * np.sqrt(2 * np.log(2)))
    expected = ndimage.gaussian_filter1d(image[0].numpy(), sigma, axis=2, mode="nearest", radius=7)
    assert np.allclose(seen[0], expected, atol=1e-4)
    assert torch.equal(seen[1], image[1])


def test_sobel_agrees_with_scipy() -> None:
    image = _noise(1, 12, 13, 14)
    found = sobel3d(image)[0].numpy()
    for axis in range(3):
        expected = ndimage.sobel(image[0].numpy(), axis, mode="nearest") / 32
        assert np.allclose(found[axis], expected, atol=1e-6)


def test_features_that_agree_cost_nothing() -> None:
    theirs = [_noise(1, 3, 8, 8, 8), _noise(1, 3, 8, 8, 8)]
    assert float(feature_distance(theirs, theirs)) == 0
    assert float(feature_distance([theirs[0], 2 * theirs[1]], theirs)) == pytest.approx(0.5)
    assert guided_depths(10) == [2, 6, 9] and guided_depths(1) == [0]


def _mean() -> MeanNetwork:
    torch.manual_seed(0)
    mean = MeanNetwork(MeanConfig(8, 1))
    nn.init.normal_(mean.tail.weight, std=0.3)
    return mean.eval()


def test_the_teacher_is_consistent_with_the_measurement() -> None:
    stage = StudentStage(tiny("student"), CPU, MoEDiffModel(_mean(), None))  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    fine = torch.from_numpy(heads()[0].volume.astype(np.float32)) / 200
    degraded = degrade(fine, draw(rng, 0.0))
    volume = {"start": degraded.start, "condition": torch.tensor(degraded.condition)}
    teacher = stage.finish(volume, degraded)["teacher"]
    residual = degraded.operator.forward(teacher) - degraded.measured
    assert float(residual.norm() / degraded.measured.norm()) < 1e-3
    assert stage.teacher is not None
    plain = apply_to_volume(stage.teacher.mean, degraded.start, torch.tensor(degraded.condition))  # type: ignore[arg-type]
    expected = degraded.operator.project(plain, degraded.measured)
    assert torch.allclose(teacher, expected, atol=1e-5)
    noisy = replace(degraded, noise=0.02)
    expected = degraded.operator.project(plain, degraded.measured, 0.02)
    assert torch.allclose(stage.finish(volume, noisy)["teacher"], expected, atol=1e-5)
    assert float((expected - teacher).abs().max()) > 1e-3
    assert float((teacher - degraded.start).abs().max()) > 1e-3


def test_the_teachers_samples_are_averaged() -> None:
    torch.manual_seed(0)
    experts = MoEDiffSR(MoEDiffConfig(width=4, embed_dim=12, heads=2, context_slices=1))
    for parameter in experts.experts.parameters():
        if parameter.dim() > 1 and not parameter.any():  # the last layers start at zero
            nn.init.normal_(parameter, std=0.1)
    teacher = MoEDiffModel(_mean(), experts.eval())
    outputs = []
    for samples in (1, 2):
        recipe = tiny("student", teacher_samples=samples, teacher_noise=1.0, block=16, patch=12)
        stage = StudentStage(recipe, CPU, teacher)  # type: ignore[arg-type]
        volume = make_volume(heads()[0], recipe, np.random.default_rng(1), CPU, stage.finish)
        outputs.append(volume["teacher"].float())
    assert torch.isfinite(outputs[1]).all()
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-4


def test_a_student_needs_its_teacher() -> None:
    with pytest.raises(UsageError, match="needs its teacher"):
        StudentStage(tiny("student"), CPU, None)  # type: ignore[arg-type]


def test_the_student_sees_the_coarsest_axis_last() -> None:
    torch.manual_seed(0)
    network = StudentNetwork(StudentConfig(6, 1, (4, 4, 4, 4)))
    nn.init.normal_(network.tail.weight, std=0.3)
    start = _noise(13, 18, 15)
    condition = torch.tensor([2.0, 0.0, 0.5, 1.2, 0.0, 1.1])
    with torch.no_grad():
        output = apply_student(network, start, condition)
        turned = apply_student(network, start.permute(1, 2, 0), condition[[1, 2, 0, 4, 5, 3]])
    assert output.shape == start.shape
    assert torch.allclose(output.permute(1, 2, 0), turned, atol=1e-6)
    assert float((output - start).abs().max()) > 1e-3


def test_the_student_begins_as_its_teacher_squeezed() -> None:
    """With full ranks it is the teacher; with fewer it explains most of what the teacher adds."""
    recipe = tiny("student", fitted_patches=4, patch=24, batch=2, precision="fp32")
    rng = np.random.default_rng(3)
    teacher = MoEDiffModel(_mean(), None)
    assert isinstance(teacher.mean, MeanNetwork)
    start, condition = _noise(1, 1, 24, 24, 24), torch.rand(1, 6)
    wanted = teacher.mean(start, condition).detach()
    errors = []
    for rank in (8, 6, 2):
        network = {"channels": 4, "blocks": 3, "ranks": [rank] * 4}  # the teacher's shape wins
        stage = StudentStage(replace(recipe, network=network), CPU, teacher)
        volumes = [make_volume(heads()[0], recipe, rng, CPU, stage.finish) for _ in range(2)]
        stage.begin(stage.batch(volumes, rng) for _ in range(2))
        output = stage.network(start, condition).detach()
        errors.append(float((output - wanted).square().mean() / (wanted - start).square().mean()))
    assert errors[0] < 1e-3 < errors[1] < errors[2] < 1
