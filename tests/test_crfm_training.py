# SPDX-License-Identifier: Apache-2.0
"""Training with reference contrasts: what is drawn, and a run of a few steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_moediff.families.crfm import training as crfm_training
from bids_moediff.families.crfm.training import CRFMStage
from bids_moediff.training.lesions import DARKEST, LesionPlan, lesion_field
from bids_moediff.training.pack import load_pack, save_pack
from bids_moediff.training.references import SHARES, _scanned, draw_reference
from bids_moediff.training.stage import Batch, relative_weight
from bids_moediff.training.volumes import Simulated, make_volume
from training_data import heads, tiny, train


def made(seed: int = 0) -> Simulated:
    """A generated head."""
    image = torch.from_numpy(heads()[0].volume.copy()).float() / 200
    return Simulated(image, (image > 0.05).float(), image * 200)


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    both = (one > 0.05) & (other > 0)
    return abs(float(np.corrcoef(one[both], other[both])[0, 1])) if both.sum() > 100 else 0.0


def test_references_are_right_or_wrong_as_often_as_said(monkeypatch) -> None:
    head, known = made(), heads()
    for kind, related in (("right", True), ("absent", False), ("noise", False), ("cut", True)):
        shares = [
            float(name == kind)
            for name in ("right", "cut", "absent", "stranger", "shifted", "noise", "mirrored")
        ]
        monkeypatch.setattr("bids_moediff.training.references.SHARES", shares)
        found = [
            draw_reference(known[0], head, torch.from_numpy(known[0].volume.copy()), known,
                           np.random.default_rng(seed))
            for seed in range(4)
        ]  # fmt: skip
        similar = np.median([correlation(head.image, one) for one in found])
        assert (similar > 0.5) == related, kind
        if kind == "absent":
            assert not any(one.any() for one in found)
        if kind == "cut":
            assert all((one == 0).float().mean() > (head.image == 0).float().mean() * 0.99
                       for one in found)  # fmt: skip
    assert sum(SHARES) == pytest.approx(1)


def test_a_lesion_is_in_the_target_or_in_the_reference() -> None:
    """Blobs of the target must leave its references as they were drawn without them."""
    recipe = replace(tiny("crfm"), noise_share=0.0, gamma_share=0.0, curve_share=0.0)
    head = replace(heads()[0], reference=heads()[0].volume)
    volumes = [
        make_volume(head, recipe, np.random.default_rng(seed), torch.device("cpu"))
        for seed in range(6)
    ]
    assert {"reference0", "reference1"} <= set(volumes[0])
    assert all(v["reference0"].shape == v["target"].shape for v in volumes)
    assert not torch.equal(volumes[0]["reference0"], volumes[0]["reference1"])


def test_lesions_are_as_bright_or_dark_as_was_drawn() -> None:
    truth = torch.full((48, 48, 48), 0.8)
    plan = LesionPlan(diameters=(4.0, 6.0), contrasts=(0.1, 0.1))
    field = lesion_field(truth, torch.ones_like(truth), plan, np.random.default_rng(0))
    assert float(field.max()) == pytest.approx(0.1, abs=1e-3)
    assert float(field.min()) == pytest.approx(-0.1, abs=1e-3)
    dim = 0.35 * truth
    dim += lesion_field(dim, torch.ones_like(dim), LesionPlan(), np.random.default_rng(1))
    assert float(dim.min()) >= DARKEST - 1e-6


def test_recipes_without_references_draw_what_they_drew() -> None:
    recipe = replace(tiny("crfm"), references=0)
    first = make_volume(heads()[0], recipe, np.random.default_rng(5), torch.device("cpu"))
    second = make_volume(
        replace(heads()[0], reference=heads()[0].volume), recipe, np.random.default_rng(5),
        torch.device("cpu"),
    )  # fmt: skip
    assert set(first) == set(second) == {"start", "target", "weight", "condition"}
    assert torch.equal(first["start"], second["start"])


def test_a_run_of_a_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches count by the error of the base, which is what the network corrects."""
    weighed = []

    def weight(batch: Batch, border: int) -> torch.Tensor:
        weighed.append(float((batch["start"] - batch["base"]).abs().max()))
        return relative_weight(batch, border)

    monkeypatch.setattr(crfm_training, "relative_weight", weight)
    given = heads()
    given[2] = replace(given[2], reference=255 - given[2].volume)
    save_pack(given, tmp_path / "pack.npz")
    assert load_pack(tmp_path / "pack.npz")[2].reference is not None
    recipe = tiny("crfm")
    record = train(recipe, tmp_path / "pack.npz", tmp_path / "run")
    assert record["step"] == recipe.steps
    stage = CRFMStage(recipe, torch.device("cpu"), None)
    assert stage.network_settings()["base"] == "student"
    assert len(stage.network_settings()["base_sha256"]) == 64
    assert len(weighed) >= recipe.steps and max(weighed) == 0
    rows = (tmp_path / "run" / "curve.jsonl").read_text()
    assert "mirrored reference" in rows and "over_base" in rows


def test_a_scanned_reference_has_noise_in_its_field_of_view_only() -> None:
    image = torch.zeros(40, 30, 30)
    image[:12] = 0.5
    scanned = [_scanned(image.clone(), np.random.default_rng(seed)) for seed in range(12)]
    assert all(float(one[30:].abs().max()) == 0 for one in scanned)
    rough = [float(one[:8].std()) for one in scanned]
    assert max(rough) > 0.01 and len(set(rough)) > 6
