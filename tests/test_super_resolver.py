# SPDX-License-Identifier: Apache-2.0
"""The engine, volume in to volume out, with a small network of random weights.

Random weights make the networks do something; the promises below must hold whatever they do.
"""

import copy
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_moediff.errors import DeviceError, ImageError, UsageError
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.model import MoEDiffModel
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.families.moediff.volume_experts import VolumeExperts, VolumeExpertsConfig
from bids_moediff.families.posterior import local_scale
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.null_space import NullSpace
from bids_moediff.inference.expected_error import expected_error
from bids_moediff.inference.pose import HEAD, Inputs, pose
from bids_moediff.inference.self_ensemble import mirrored
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.inference.uncertainty import OTHER_WEIGHTS, Restoration, Uncertainty, sampler
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.networks.model_folder import LoadedModel
from bids_moediff.networks.scale import ScaleConfig, ScaleNetwork
from bids_moediff.networks.scale_file import ScaleHead
from bids_moediff.options import Options


@pytest.fixture(scope="module")
def resolver() -> SuperResolver:
    torch.manual_seed(0)
    network = MoEDiffModel(
        MeanNetwork(MeanConfig(8, 1)), MoEDiffSR(MoEDiffConfig(width=8, embed_dim=32))
    ).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return SuperResolver(
        LoadedModel(network, {"family": "moediff", "version": "test"}, "0" * 64, "random"),
        torch.device("cpu"),
        "fp32",
    )


def scan(shape=(26, 24, 21), zooms=(1.0, 1.0, 1.0), oblique=True) -> nib.Nifti1Image:
    noise = np.random.default_rng(0).standard_normal(shape)
    data = 900 + 400 * ndimage.gaussian_filter(noise, 1.0)
    affine = np.diag([*zooms, 1.0])
    if oblique:
        rotation = Rotation.from_euler("xyz", (8, -15, 20), degrees=True).as_matrix()
        affine[:3, :3] = rotation @ affine[:3, :3]
    affine[:3, 3] = (-80, 33, 7)
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    return image


def corner(affine):
    return affine[:3, :3] @ np.full(3, -0.5) + affine[:3, 3]


@pytest.mark.parametrize("target", [(0.7, 0.7, 0.7), (0.8, 0.8, 1.0), (1.0, 1.0, 0.37)])
def test_grid_consistency_and_units(resolver, target):
    image = scan()
    result = resolver.enhance(image, Options(output_resolution=target))
    np.testing.assert_allclose(corner(result.image.affine), corner(image.affine), atol=1e-4)
    np.testing.assert_allclose(result.image.header.get_zooms(), target, rtol=1e-6)
    # Anybody can check it: degrade the output, compare with the file.
    data = torch.from_numpy(np.asarray(result.image.dataobj))
    operator = Operator.between(
        result.image.shape, target, image.shape, (1.0, 1.0, 1.0), Acquisition.uniform("kspace")
    )
    again = operator.forward(data).numpy()
    error = np.linalg.norm(again - image.get_fdata()) / np.linalg.norm(image.get_fdata())
    assert error < 1e-3
    assert result.residual == pytest.approx(error, abs=1e-5)
    assert abs(np.asarray(result.image.dataobj).mean() / image.get_fdata().mean() - 1) < 0.01


def test_a_noisy_scan_is_met_within_its_noise(resolver):
    image = scan()
    sigma = 60.0
    noisy = nib.Nifti1Image(
        image.get_fdata(dtype=np.float32)
        + sigma * np.random.default_rng(1).standard_normal(image.shape).astype(np.float32),
        image.affine,
    )
    options = Options(output_resolution=(0.7,) * 3)
    result = resolver.enhance(noisy, options, Inputs(noise=sigma))
    root_mean_square = float(np.sqrt(np.mean(noisy.get_fdata() ** 2)))
    assert 0.1 * sigma < result.residual * root_mean_square < 1.5 * sigma
    assert result.record["EstimatedNoise"] == pytest.approx(sigma)
    assert resolver.enhance(noisy, options).residual < 1e-3


def test_self_ensemble_is_the_mean_over_left_and_right(resolver):
    """Of the image turned around the result is turned around, which is not so of one pass."""
    image, axis = scan(), 1
    to_left = np.array([[0, 1, 0, 0], [-1, 0, 0, 23], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=float)
    image = nib.Nifti1Image(image.get_fdata(dtype=np.float32), to_left @ image.affine)
    assert nib.aff2axcodes(image.affine)[axis] == "R"
    flipped = nib.Nifti1Image(np.flip(image.get_fdata(dtype=np.float32), axis), image.affine)
    found = {}
    for both in (False, True):
        options = Options(output_resolution=(0.8,) * 3, self_ensemble=both)
        one, other = (resolver.enhance(each, options) for each in (image, flipped))
        found[both] = [one.image.get_fdata(), np.flip(other.image.get_fdata(), axis)]
        assert one.record["SelfEnsemble"] is both
    middle = np.mean(found[False], axis=0)
    apart = np.abs(found[False][0] - found[False][1]).max()
    assert apart > 1
    np.testing.assert_allclose(found[True][0], middle, atol=0.02 * apart)
    np.testing.assert_allclose(found[True][0], found[True][1], atol=0.02 * apart)


def test_a_problem_turned_around_is_the_problem_of_the_image_turned_around():
    posed = pose(scan((16, 14, 12)), (0.7,) * 3, Inputs(), torch.device("cpu"))
    problem = posed.problem()
    volume = torch.randn(problem.start().shape, generator=torch.Generator().manual_seed(1))
    problem = replace(problem, reference=volume)
    for axis in range(3):
        turned = mirrored(problem, axis)
        assert torch.equal(turned.reference, volume.flip(axis))
        torch.testing.assert_close(turned.measured, problem.measured.flip(axis))
        torch.testing.assert_close(turned.start(), problem.start().flip(axis))
        for name in ("agree", "round_trip"):
            found = getattr(turned, name)(volume.flip(axis)).flip(axis)
            torch.testing.assert_close(found, getattr(problem, name)(volume))


@pytest.fixture(scope="module")
def sampling(resolver) -> SuperResolver:
    """The same network with a scale head of random weights."""
    torch.manual_seed(1)
    head = ScaleHead(ScaleNetwork(ScaleConfig(8, 1)).eval(), {"sha256": "1" * 64})
    model = replace(resolver.model, scale=head)
    return SuperResolver(model, torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def with_experts(sampling) -> SuperResolver:
    """The same with experts on volumes, which are not what draws by itself."""
    torch.manual_seed(2)
    experts = VolumeExperts(VolumeExpertsConfig(channels=8, blocks=1)).eval()
    for expert in experts.experts:
        torch.nn.init.normal_(expert.tail.weight, std=0.1)
    network = copy.copy(sampling.model.network)
    network.beside = (experts, {"auto": "gaussian"})
    model = replace(sampling.model, network=network)
    return SuperResolver(model, torch.device("cpu"), "fp32")


def test_experts_draw_samples_that_agree_with_the_scan(with_experts, sampling):
    image = scan()
    plain = Options(output_resolution=(0.7,) * 3, sample="posterior", num_samples=2)
    asked = replace(plain, sampler="experts", num_steps=2)
    result = with_experts.enhance(image, asked)
    assert "3 experts" in result.record["SamplesFrom"]
    assert result.record["SampleSteps"] == 2
    assert result.record["SampleExpertTokens"]["evaluated"] > 0
    assert "srexpert1" not in result.maps and "SampleExperts" not in result.record
    operator = Operator.between(
        result.image.shape, (0.7,) * 3, image.shape, (1.0,) * 3, Acquisition.uniform("kspace")
    )
    sample = torch.from_numpy(np.asarray(result.maps["sample_2"].dataobj))
    again = operator.forward(sample).numpy()
    assert np.linalg.norm(again - image.get_fdata()) < 1e-3 * np.linalg.norm(image.get_fdata())
    ramp = np.linspace(0.8, 1.2, image.shape[0], dtype=np.float32)[:, None, None]
    field = np.broadcast_to(ramp, image.shape).copy()
    shaded = nib.Nifti1Image(image.get_fdata(dtype=np.float32) * field, image.affine)
    inputs = Inputs(bias_field=nib.Nifti1Image(field, image.affine))
    again = with_experts.enhance(shaded, replace(asked, outputs=("gates",)), inputs)
    posed = pose(shaded, (0.7,) * 3, inputs, torch.device("cpu"))
    sample = data_of(again)["sample_2"]
    assert posed.residual(torch.from_numpy(sample / posed.scale)) < 1e-3
    # What each expert added to the first sample, in the same units and out of the scan's sight.
    assert again.record["SampleExperts"] == ["smooth", "cortex", "junction"]
    changes = [data_of(again)[f"srexpert{number}"] for number in (1, 2, 3)]
    operator = posed.operator
    for change in changes:
        assert np.abs(change).max() > 0
        seen = operator.forward(torch.from_numpy(change)).numpy()
        assert np.linalg.norm(seen) < 1e-3 * np.linalg.norm(change)
    one = replace(asked, sampler="expert-2", outputs=("gates",))
    alone = with_experts.enhance(image, one)
    assert "the expert cortex" in alone.record["SamplesFrom"]
    assert not {"srexpert1", "srexpert2", "srexpert3"} & set(alone.maps)
    gaussian = sampling.enhance(image, plain)
    default = with_experts.enhance(image, plain)
    drawn = [data_of(one)["sample_1"] for one in (result, alone, gaussian, default)]
    np.testing.assert_array_equal(drawn[2], drawn[3])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.allclose(drawn[one], drawn[other], rtol=1e-3)
    np.testing.assert_array_equal(result.image.dataobj, gaussian.image.dataobj)
    with pytest.raises(UsageError, match="expert-3"):
        with_experts.enhance(image, replace(asked, sampler="expert-4"))
    with pytest.raises(UsageError, match="no experts"):
        sampling.enhance(image, asked)


def data_of(result):
    return {key: np.asarray(image.dataobj) for key, image in result.maps.items()}


@pytest.mark.parametrize("kind", ["posterior", "texture"])
def test_samples_agree_with_the_scan_and_the_seed_decides(sampling, kind):
    """The image stays what it is without them."""
    image = scan((16, 16, 16))
    plain = Options(output_resolution=(0.7,) * 3)
    ramp = np.linspace(0.8, 1.2, 16, dtype=np.float32)[:, None, None]
    field = nib.Nifti1Image(np.broadcast_to(ramp, image.shape).copy(), image.affine)
    inputs = Inputs(bias_field=field)
    calm = sampling.enhance(image, plain, inputs)
    asked = replace(plain, sample=kind, num_samples=2, random_seed=5)
    first, again = (sampling.enhance(image, asked, inputs) for _ in range(2))
    other = sampling.enhance(image, replace(asked, random_seed=6, num_samples=1), inputs)
    # The deviation of texture is no uncertainty.
    deviation = {"srstd"} if kind == "posterior" else set()
    assert not calm.maps and set(first.maps) == {"sample_1", "sample_2"} | deviation
    mean = np.asarray(calm.image.dataobj)
    np.testing.assert_array_equal(np.asarray(first.image.dataobj), mean)
    one, two = data_of(first)["sample_1"], data_of(first)["sample_2"]
    assert one.tobytes() == data_of(again)["sample_1"].tobytes()
    assert two.tobytes() == data_of(other)["sample_1"].tobytes()
    assert one.tobytes() != two.tobytes() and np.abs(one - mean).max() > 1
    posed = pose(image, (0.7,) * 3, inputs, torch.device("cpu"))
    residual = posed.residual(torch.from_numpy(one / posed.scale))
    assert residual < 1e-3
    assert first.record["NumberOfSamples"] == 2 and first.record["Sample"] == kind
    if kind == "posterior":
        spread = np.std([one, two], axis=0, ddof=1)
        np.testing.assert_allclose(data_of(first)["srstd"], spread, atol=0.02 * spread.max())
        assert first.record["ExpectedErrorFrom"] == "2 samples"
    else:
        assert "ExpectedErrorFrom" not in first.record
    assert first.record["SampleScaleFrom"] == "scale head"


def test_samples_can_be_kept_one_at_a_time_or_only_counted(sampling):
    image, kept = scan((16, 16, 16)), {}
    asked = Options(output_resolution=(0.7,) * 3, num_samples=3, outputs=("samples",))
    found = sampling.enhance(image, asked, store=kept.__setitem__)
    assert set(kept) == {"sample_1", "sample_2", "sample_3"} and set(found.maps) == {"srstd"}
    unseen = sampling.enhance(image, replace(asked, outputs=()))
    assert set(unseen.maps) == {"srstd"}
    np.testing.assert_array_equal(data_of(unseen)["srstd"], data_of(found)["srstd"])


def test_without_a_scale_no_samples_are_drawn_and_it_is_said(resolver):
    asked = Options(output_resolution=(0.7,) * 3, num_samples=3, outputs=("samples",))
    found = resolver.enhance(scan((16, 16, 16)), asked)
    assert not found.maps and found.record["NumberOfSamples"] == 0
    assert any("no samples were drawn" in words for words in found.record["Warnings"])


def test_the_scale_head_gives_the_expected_error_if_it_was_found_better(sampling):
    """Else the model's earlier way stays; the sidecar tells which."""
    image, asked = scan((16, 16, 16)), Options(output_resolution=(0.7,) * 3)
    asked = replace(asked, outputs=("uncertainty",))
    model, head = sampling.model, sampling.model.scale
    better = replace(head, config={**head.config, "expected_error": True})
    better_model = replace(model, scale=better, calibration={"factor": 1.5})
    learned = SuperResolver(better_model, torch.device("cpu"), "fp32").enhance(image, asked)
    assert learned.record["ExpectedErrorFrom"] == "scale head"
    assert "ExpectedErrorFactor" not in learned.record
    by_hand = SuperResolver(
        replace(model, calibration={"factor": 1.5}), torch.device("cpu"), "fp32"
    ).enhance(image, asked)
    assert by_hand.record["ExpectedErrorFrom"].startswith("detail added")
    assert not np.allclose(data_of(learned)["srstd"], data_of(by_hand)["srstd"], rtol=0.1)
    larger = nib.Nifti1Image(7 * np.asarray(image.dataobj), image.affine)
    again = SuperResolver(better_model, torch.device("cpu"), "fp32").enhance(larger, asked)
    np.testing.assert_allclose(data_of(again)["srstd"], 7 * data_of(learned)["srstd"], rtol=1e-3)


def shaded(sampling) -> tuple[LoadedModel, Restoration]:
    """A model whose scale head maps the error, and a restored image with shading and air."""
    image = scan((12, 12, 12))
    np.asarray(image.dataobj)[:, :6] *= 0.05  # air
    ramp = np.linspace(0.5, 2.0, 12, dtype=np.float32)[:, None, None]
    field = np.broadcast_to(ramp, image.shape).copy()
    shaded = nib.Nifti1Image(image.get_fdata(dtype=np.float32) * field, image.affine)
    model = replace(sampling.model, calibration={"factor": 1.5})
    better = replace(model.scale, config={**model.scale.config, "expected_error": True})
    inputs = Inputs(bias_field=nib.Nifti1Image(field, image.affine))
    posed = pose(shaded, (0.7,) * 3, inputs, sampling.device)
    fine, start = posed.field_fine, posed.start()
    noise = 0.05 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    made = Restoration(posed.finish(start + noise), posed, posed.problem())
    assert float(fine.min()) < 0.55 and float(fine.max()) > 1.9
    return replace(model, scale=better), made


def test_shading_is_taken_off_the_scale_head_and_put_onto_its_scale(sampling):
    """By the definitions: the head sees the image without shading."""
    whole, made = shaded(sampling)
    posed, fine, better, model = made.posed, made.posed.field_fine, whole.scale, sampling.model
    model = replace(model, calibration=whole.calibration)
    bare, start, known = made.image / fine, posed.start(), Uncertainty(whole, "fp32")
    factor = better.factor(posed.ratios)
    by_head = local_scale(better.network, made.problem, bare, start, "fp32", factor=factor)
    found = known.learned(made)
    torch.testing.assert_close(found.bare.missing, by_head.missing)
    torch.testing.assert_close(found.scale.missing, by_head.missing * fine)
    deviation, record, _ = known.expected(made)
    torch.testing.assert_close(deviation, found.scale.deviation * posed.scale)
    assert record["ExpectedErrorFrom"] == "scale head"
    added, inside = made.image - start * fine, start * fine > HEAD
    wanted = torch.from_numpy(expected_error(added.numpy(), inside.numpy(), 1.5))
    without = Uncertainty(replace(model, scale=None), "fp32")
    deviation, record, _ = without.expected(made)
    torch.testing.assert_close(deviation, wanted * posed.scale)
    assert record["ExpectedErrorFactor"] == 1.5
    others = Uncertainty(
        replace(model, scale=None, calibration={"factor": 1.5, "sha256": "f"}), ""
    )
    assert without.expected(made)[2] == [] and others.expected(made)[2] == [OTHER_WEIGHTS]
    half = replace(better, config={**better.config, "level_share": 0.5, "model_sha256": "f"})
    large = {"factor": 6.0}  # four times as much as above
    levelled = Uncertainty(replace(model, scale=half, calibration=large), "fp32")
    assert known.expected(made)[2] == [] and levelled.expected(made)[2] == [OTHER_WEIGHTS]
    head, space = start > HEAD, found.bare.space
    levels = space.variance((4 * wanted / fine).square()), space.variance(by_head.missing.square())
    ratio = float(levels[0][head].mean() / levels[1][head].mean())
    assert not 0.8 < ratio < 1.25
    torch.testing.assert_close(
        levelled.learned(made).bare.missing, by_head.missing * ratio**0.25, rtol=1e-3, atol=1e-6
    )
    by_hand = without.scale(made)
    torch.testing.assert_close(by_hand.scale.missing, wanted)
    torch.testing.assert_close(by_hand.bare.missing, wanted / fine)
    assert Uncertainty(model, "fp32").scale(made).source == "scale head"


def test_samplers_of_a_family_see_no_shading_and_get_it_put_onto_their_errors(sampling):
    model, made = shaded(sampling)
    fine, found = made.posed.field_fine, Uncertainty(model, "fp32").learned(made)

    class Own:
        """A family with a sampler of its own."""

        def error_sampler(self, problem, options, mean, scale):
            torch.testing.assert_close(mean, made.image / fine)
            assert scale is found.bare
            error = torch.ones_like(mean)
            return SimpleNamespace(
                name="own", draw=lambda seed: seed * error, record=dict, changes=[error, -error]
            )

    drawn = sampler(Own(), made, found, Options(sample="posterior"))
    expected = found.scale.space.project(fine)
    torch.testing.assert_close(drawn.draw(3), 3 * expected)
    for one, sign in zip(drawn.changes(), (1, -1), strict=True):
        torch.testing.assert_close(one, sign * expected)


def test_weights_of_a_map_name_all_that_decides_it(sampling):
    """Another calibration, head or factor is another map, for which no bound was measured."""
    calibrated = replace(sampling.model, calibration={"factor": 1.5})
    config = {**sampling.model.scale.config, "expected_error": True, "factors": {"a": 2}}
    head = replace(sampling.model.scale, config={**config, "level_share": 0.5})
    models = [
        sampling.model, calibrated, replace(calibrated, scale=head),
        replace(calibrated, scale=replace(head, config={**head.config, "level_share": 0.25})),
        replace(calibrated, scale=replace(head, config={**head.config, "factors": {"a": 3}})),
    ]  # fmt: skip
    found = [Uncertainty(model, "fp32").weights for model in models]
    assert all(one != other for k, one in enumerate(found) for other in found[:k])
    assert found[1] == {"model": "0" * 64, "calibration": 1.5}
    assert found[2]["scale"] == "1" * 64 and found[2]["calibration"] == 1.5


def test_the_level_of_the_scale_is_a_mean_of_two(sampling):
    """Pattern of the scale head; its level between that of the head and of the added detail."""
    image = scan((16, 16, 16))
    asked = Options(output_resolution=(0.7,) * 3, outputs=("uncertainty",))
    model, head = sampling.model, sampling.model.scale
    found = {}
    for share in (0.0, 0.5, 1.0):
        config = {**head.config, "expected_error": True, "level_share": share}
        known = replace(model, scale=replace(head, config=config), calibration={"factor": 4.0})
        result = SuperResolver(known, torch.device("cpu"), "fp32").enhance(image, asked)
        found[share] = data_of(result)["srstd"]
    none, half, whole = found[0.0], found[0.5], found[1.0]
    level = float((whole / none).mean())
    assert not 0.9 < level < 1.1
    np.testing.assert_allclose(whole / none, level, rtol=1e-3)
    np.testing.assert_allclose(half / none, level**0.5, rtol=1e-3)
    # At a share of one the level is that of the added detail, out of the scan's sight.
    known = SuperResolver(replace(model, calibration={"factor": 4.0}), sampling.device, "fp32")
    made, _, _ = known.restore(image, asked, Inputs(), lambda stage, fraction: None)
    by_hand = known.uncertainty.by_added_detail(made).square()
    wanted = NullSpace(made.posed.operator).variance(by_hand)
    inside = made.posed.start() > HEAD
    reached = torch.from_numpy(whole / made.posed.scale).square()
    assert float(reached[inside].mean()) == pytest.approx(float(wanted[inside].mean()), rel=1e-3)


def test_integers_are_taken_where_they_cost_little(sampling, monkeypatch):
    from bids_moediff.families import load
    from bids_moediff.networks.precision import floating

    for part in sampling.model.network.modules():
        if hasattr(part, "int8_ranges"):
            monkeypatch.setattr(part, "int8_ranges", ((0.0, 1.0),))
    monkeypatch.setattr(load, "multiplies_integers", lambda: True)
    cpu, other = torch.device("cpu"), floating("int8")
    cheap, dear = (replace(sampling.model, integer_loss=loss) for loss in (0.02, 0.03))
    assert load.fastest_precision(cheap, cpu) == "int8"
    assert load.fastest_precision(dear, cpu) == other
    assert load.fastest_precision(cheap, torch.device("cuda")) == "bf16"
    monkeypatch.setattr(load, "multiplies_integers", lambda: False)
    assert load.fastest_precision(cheap, cpu) == other


def test_gates_sum_to_one_on_the_output_grid(resolver):
    result = resolver.enhance(
        scan((16, 16, 16)), Options(output_resolution=(0.7,) * 3, outputs=("gates",))
    )
    gates = np.asarray(result.gates.dataobj)
    assert gates.shape == (*result.image.shape, 3)
    np.testing.assert_allclose(gates.sum(-1), 1, atol=1e-4)


def test_bias_field_is_put_back(resolver):
    image = scan()
    ramp = np.linspace(0.7, 1.3, image.shape[0], dtype=np.float32)[:, None, None]
    field = np.broadcast_to(ramp, image.shape).copy()
    shaded = nib.Nifti1Image(np.asarray(image.dataobj) * field, image.affine)
    result = resolver.enhance(
        shaded,
        Options(output_resolution=(0.7,) * 3),
        Inputs(bias_field=nib.Nifti1Image(field, image.affine)),
    )
    assert result.residual < 1e-3
    halves = np.asarray(result.image.dataobj)
    assert halves[-10:].mean() / halves[:10].mean() == pytest.approx(1.3 / 0.7, rel=0.15)


def test_finer_axes_are_averaged_down_and_said(resolver):
    image = scan((40, 24, 12), (0.4, 1.0, 2.0))
    result = resolver.enhance(image, Options(output_resolution=(0.8, 0.8, 0.8)))
    np.testing.assert_allclose(result.image.header.get_zooms(), (0.8,) * 3, rtol=1e-6)
    np.testing.assert_allclose(corner(result.image.affine), corner(image.affine), atol=1e-4)
    assert any("lose detail" in warning for warning in result.record["Warnings"])


def test_beyond_the_trained_range_is_said(resolver):
    result = resolver.enhance(
        scan((16, 16, 4), (1.0, 1.0, 8.0)), Options(output_resolution=(1.0, 1.0, 1.0))
    )
    assert any("beyond" in warning for warning in result.record["Warnings"])


@pytest.mark.parametrize("bad", ["zero", "nan", "four"])
def test_hopeless_images_are_refused(resolver, bad):
    data = np.zeros((8, 8, 8), np.float32)
    if bad == "nan":
        data[:] = np.nan
    if bad == "four":
        data = np.ones((8, 8, 8, 5), np.float32)
    with pytest.raises(ImageError):
        resolver.enhance(nib.Nifti1Image(data, np.eye(4)), Options(output_resolution=(0.7,) * 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs where there is no CUDA device")
def test_a_missing_device_is_named():
    with pytest.raises(DeviceError, match="--gpus all"):
        SuperResolver.from_pretrained("moediff", device="cuda")


def test_a_common_slice_profile_is_inverted_exactly(resolver):
    image = scan((24, 22, 9), (1.0, 1.0, 3.0))
    acquisition = Acquisition((Axis("kspace"), Axis("kspace"), Axis("gaussian", 1.0)))
    result = resolver.enhance(
        image, Options(output_resolution=(1.0, 1.0, 1.0)), Inputs(acquisition=acquisition)
    )
    assert result.residual < 1e-3
    wide = Acquisition((Axis("kspace"), Axis("kspace"), Axis("gaussian", 1.8)))
    assert (
        resolver.enhance(
            image, Options(output_resolution=(1.0,) * 3), Inputs(acquisition=wide)
        ).record["EstimatedNoise"]
        > 0
    )


def test_planes_and_consistency_are_options_of_the_engine(resolver, monkeypatch):
    """Both change the result; it agrees with the scan all the same, and the record says so."""
    monkeypatch.setattr(resolver.restorer, "noise_strength", 1.0)
    image = scan((16, 14, 18))
    ramp = np.linspace(0.8, 1.2, 16, dtype=np.float32)[:, None, None]
    field = nib.Nifti1Image(np.broadcast_to(ramp, image.shape).copy(), image.affine)
    inputs = Inputs(bias_field=field)
    noisy = Options(output_resolution=(0.7,) * 3, random_seed=1, num_steps=2)
    plain = resolver.enhance(image, noisy, inputs)
    three = resolver.enhance(image, replace(noisy, planes=3), inputs)
    steps = resolver.enhance(image, replace(noisy, consistency="each-step"), inputs)
    loose = resolver.enhance(image, replace(noisy, consistency="off"), inputs)
    data = [np.asarray(result.image.dataobj) for result in (plain, three, steps, loose)]
    assert len({array.tobytes() for array in data}) == 4
    assert three.residual < 1e-3 and steps.residual < 1e-3 < loose.residual
    assert three.record["SlicePlanes"] == 3 and plain.record["SlicePlanes"] == 1
    assert steps.record["DataConsistency"] == "each-step"
    slices = resolver.enhance(image, Options(output_resolution=(0.7, 0.7, 1.0), planes=3))
    assert (
        slices.record["SlicePlanes"] == 1
    )  # the other orientations have slices thicker than pixels
    with pytest.raises(ValueError, match="consistency"):
        resolver.enhance(image, Options(output_resolution=(0.7,) * 3, consistency="never"))


def test_intensities_are_scaled_by_the_bright_tissue_of_the_mask() -> None:
    """1 is the 99.5th percentile: a fat-bright rim or hot voxels do not darken what is seen."""
    data = np.arange(1, 1001, dtype=np.float32).reshape(10, 10, 10)
    image = nib.Nifti1Image(data, np.eye(4))
    whole = pose(image, (1.0,) * 3, Inputs(), torch.device("cpu"))
    assert whole.scale == pytest.approx(995.005)
    dim = nib.Nifti1Image((data <= 400).astype(np.uint8), np.eye(4))
    assert pose(image, (1.0,) * 3, Inputs(dim), torch.device("cpu")).scale == pytest.approx(
        398.005
    )


def test_averaging_along_an_axis_takes_noise_away():
    """By the root of the number of voxels that become one; noise is told in the image's unit."""
    posed = pose(scan(), (1.0, 1.0, 4.0), Inputs(noise=30.0), torch.device("cpu"))
    assert posed.noise * posed.scale == pytest.approx(30 / 2, rel=1e-5)
    same = pose(scan(), (1.0, 1.0, 1.0), Inputs(noise=30.0), torch.device("cpu"))
    assert same.noise * same.scale == pytest.approx(30, rel=1e-5)
