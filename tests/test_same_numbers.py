# SPDX-License-Identifier: Apache-2.0
"""What networks with given weights compute, and what seeds draw, stays what it was.

A change of code that is meant to change results writes tests/data/networks.json anew
(tests/golden.py); any other leaves it. The weights are made up, so that every part has its say.
"""

import math
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bids_moediff.families.load import build_network
from bids_moediff.families.moediff.volume_experts import VolumeExperts, VolumeExpertsConfig
from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.networks.brain_mask import BrainMaskNet
from bids_moediff.networks.model_folder import LoadedModel
from bids_moediff.networks.scale import ScaleConfig, ScaleNetwork
from bids_moediff.networks.scale_file import ScaleHead
from bids_moediff.options import Options
from golden import check_numbers

FILE = "networks.json"
SMALL = {"width": 4, "embed_dim": 12, "heads": 2, "context_slices": 3}
STUDENT = {"channels": 8, "blocks": 2, "ranks": [4, 4, 4, 4]}
MOEDIFF = {"family": "moediff", "mean": {"channels": 8, "blocks": 2}, "moediff": SMALL}
CONFIGS: dict[str, dict[str, Any]] = {
    "moediff": MOEDIFF,
    "moediff told": MOEDIFF
    | {"mean": {"channels": 8, "blocks": 1, "conditioned_tail": True, "extra_numbers": 4}},
    "moediff from noise": MOEDIFF | {"moediff": {**SMALL, "start": "noise"}},
    "moediff, slice gate": MOEDIFF | {"moediff": {**SMALL, "gate": "slice", "gamma": 0.4}},
    "moediff KL": MOEDIFF | {"moediff": {**SMALL, "latent": "kl", "latent_channels": 3}},
    "student": {"family": "student", "student": STUDENT},
    "student told": {
        "family": "student",
        "student": {**STUDENT, "conditioned_tail": True, "extra_numbers": 4},
    },
    "nsmoe": {"family": "nsmoe", "nsmoe": {**STUDENT, "hidden": 8, "kernels": 4}},
}


def filled(network: nn.Module, seed: int = 0, size: float = 0.15) -> nn.Module:
    """Give every weight a value of its own that no version of torch changes."""
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for name, weight in sorted(network.named_parameters()):
            scale = size if weight.ndim > 1 else 0.5 * size
            values = scale * random.standard_normal(weight.shape)
            weight.copy_(torch.from_numpy(np.asarray(values, dtype=np.float32)))
            if name.endswith("temperature"):
                weight.fill_(0.6)  # so that no gate is all or nothing
        for name, held in network.named_buffers():
            if name.endswith("usage"):
                held.copy_(torch.linspace(1, 0, held.numel()))
    return network.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


def scan(shape: tuple[int, ...], zooms: tuple[float, ...], seed: int = 0) -> nib.Nifti1Image:
    """A head of soft texture in air, oblique."""
    random = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    head = (places**2).sum(0) < 0.8
    data = head * (400 + 90 * np.sin(7 * places[0] + 3 * places[1]) * np.cos(6 * places[2]))
    data += 20 * np.abs(random.standard_normal(shape))
    turn = 0.2
    affine = np.eye(4)
    affine[:2, :2] = [[-math.cos(turn), -math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
    affine[:3, :3] *= zooms
    return nib.Nifti1Image(data.astype(np.float32), affine)


def volume_experts() -> tuple[VolumeExperts, dict[str, Any]]:
    config = VolumeExpertsConfig(channels=8, blocks=1, context_blocks=1)
    return filled(VolumeExperts(config), 5), {"auto": "experts"}  # type: ignore[return-value]


def resolver(name: str) -> SuperResolver:
    network = filled(build_network(CONFIGS[name]), 1, 0.03 if "from noise" in name else 0.1)
    if name == "moediff":
        network.beside = volume_experts()  # type: ignore[assignment]
    head = ScaleHead(
        filled(ScaleNetwork(ScaleConfig(8, 2)), 2, 0.05),  # type: ignore[arg-type]
        {
            "sha256": "1" * 64, "model_sha256": "0" * 64, "expected_error": True,
            "factors": {"isotropic": 1.2, "slices": 0.8}, "level_share": 0.6,
        },
    )  # fmt: skip
    calibration = {
        "factor": 1.5, "spread": [1.2, 1.9], "coarse": {"factor": 2.0, "spread": [1.8, 2.2]},
        "heads": ["one"], "protocols": ["x2iso-kspace"], "sha256": "0" * 64,
    }  # fmt: skip
    model = LoadedModel(
        network, CONFIGS[name] | {"version": "test"}, "0" * 64, name, calibration, head
    )
    return SuperResolver(model, torch.device("cpu"), "fp32")


SLICES = (
    scan((13, 16, 7), (1.0, 1.1, 3.2)),
    Inputs(
        acquisition=Acquisition((Axis("kspace"), Axis("kspace", 1.0), Axis("box", 0.7))),
        noise=12.0,
    ),
    (1.0, 1.0, 1.2),
)
CUBES = (
    scan((10, 9, 11), (2.0, 1.8, 1.9), 1),
    Inputs(acquisition=Acquisition.uniform("kspace")),
    (1.0, 1.0, 1.0),
)
EVERYTHING = ("gates", "uncertainty")
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "moediff, experts on volumes": (
        "moediff",
        CUBES,
        {"outputs": EVERYTHING, "num_samples": 2, "sample": "posterior", "num_steps": 2},
    ),
    "moediff, one expert on slices": (
        "moediff",
        SLICES,
        {"num_samples": 2, "sample": "posterior", "sampler": "expert-2", "random_seed": 7},
    ),
    "moediff, Gaussian": (
        "moediff",
        SLICES,
        {"num_samples": 2, "sample": "posterior", "sampler": "gaussian"},
    ),
    "moediff, texture": ("moediff", CUBES, {"sample": "texture", "num_samples": 1}),
    "moediff, three planes, agreement at each step": (
        "moediff",
        CUBES,
        {"planes": 3, "num_steps": 3, "consistency": "each-step", "outputs": ("gates",)},
    ),
    "moediff told": ("moediff told", SLICES, {"outputs": EVERYTHING, "in_plane_refit": True}),
    "moediff from noise": (
        "moediff from noise",
        CUBES,
        {"num_steps": 3, "random_seed": 3, "outputs": ("gates",)},
    ),
    "moediff, slice gate": ("moediff, slice gate", CUBES, {"outputs": ("gates",)}),
    "moediff KL": ("moediff KL", SLICES, {"num_steps": 2, "outputs": EVERYTHING}),
    "student": ("student", CUBES, {"outputs": EVERYTHING, "self_ensemble": True}),
    "student told": (
        "student told",
        SLICES,
        {"non_negative": True, "outputs": EVERYTHING, "num_samples": 2, "sample": "posterior"},
    ),
    "student without agreement": ("student", SLICES, {"consistency": "off"}),
    "nsmoe": ("nsmoe", SLICES, {"outputs": ("kernels", "gates", "uncertainty")}),
    "nsmoe, cubes": ("nsmoe", CUBES, {"outputs": ("kernels",)}),
}
WORDS = ("Warnings", "Device")  # of the record: wording, and the machine


@pytest.mark.parametrize("case", CASES)
def test_what_the_engine_makes_of_a_scan(case: str) -> None:
    """Image, every map, every sample, the record, and the stages that were reported."""
    name, (image, inputs, zooms), asked = CASES[case]
    stages: list[str] = []
    result = resolver(name).enhance(
        image,
        Options(output_resolution=zooms, **asked),
        inputs,
        lambda stage, share: stages.append(f"{stage} {share:.2f}"),
    )
    maps = {key: np.asarray(one.dataobj) for key, one in result.maps.items()}
    record = {key: value for key, value in result.record.items() if key not in WORDS}
    told = {"warnings": len(result.record["Warnings"]), "stages": stages, "record": record}
    found = {"image": np.asarray(result.image.dataobj), "affine": result.image.affine, **maps}
    check_numbers(FILE, f"engine: {case}", found | {"told": told}, rel=2e-3, abs=2e-3)


def _moediff(**more: Any) -> Callable[[], Any]:
    def run() -> Any:
        network = build_network(MOEDIFF | {"moediff": {**SMALL, **more}})
        experts = filled(network.moediff, 3, 0.1)  # type: ignore[union-attr, arg-type]
        return {
            "names": sorted(f"{k} {tuple(v.shape)}" for k, v in experts.state_dict().items()),
        }

    return run


def _mask() -> Any:
    network = filled(BrainMaskNet(), 4)
    return network(noise(1, 1, 16, 24, 32))


def _scale() -> Any:
    network = filled(ScaleNetwork(ScaleConfig(8, 2)), 2)
    return network(noise(2, 4, 6, 8, 10), noise(2, 7, seed=1).abs())


def _volume_experts() -> Any:
    network, _ = volume_experts()
    scene = network.scene(noise(2, 34, 6, 8, 10), noise(2, 7, seed=1).abs())
    z = noise(2, 1, 12, 16, 20, seed=2)
    out = network(z, scene, torch.tensor([0.3, 1.1]))
    return {"out": out, "gate": network.gate(noise(2, 34, 6, 8, 10))}


NETWORKS: dict[str, Callable[[], Any]] = {
    "weights of the experts": _moediff(guidance_channels=2),
    "weights with a codebook": _moediff(latent="vq", latent_channels=4),
    "brain mask": _mask,
    "scale head": _scale,
    "experts on volumes": _volume_experts,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_computes(name: str) -> None:
    check_numbers(FILE, f"network: {name}", NETWORKS[name](), rel=2e-3, abs=2e-4)
