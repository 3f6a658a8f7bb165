# SPDX-License-Identifier: Apache-2.0
"""The expected error: analytic cases, the engine's promises, and that it is right on a head."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_moediff.evaluation.calibration import calibrate, examine
from bids_moediff.evaluation.truth import Block
from bids_moediff.families.load import load_model
from bids_moediff.families.moediff.model import MoEDiffModel
from bids_moediff.imaging.protocols import parse_protocol
from bids_moediff.inference.expected_error import (
    NEIGHBOURHOOD,
    SHARE_OF_MEAN,
    Calibration,
    expected_error,
)
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.networks.model_folder import LoadedModel
from bids_moediff.options import Options
from generated import head

EVERYWHERE = np.ones((40, 30, 30), bool)


def test_the_same_detail_everywhere_is_multiplied_with_the_factor() -> None:
    added = np.where(np.indices(EVERYWHERE.shape).sum(0) % 2, 3.0, -3.0)
    assert expected_error(added, EVERYWHERE, 1.5) == pytest.approx(4.5, rel=1e-3)


def test_doubt_is_where_detail_was_added_and_nowhere_nil() -> None:
    added = np.zeros(EVERYWHERE.shape)
    added[30:] = 2.0
    found = expected_error(added, EVERYWHERE, 1.0)
    mean = 4.0 * 10 / 40
    assert found[0] == pytest.approx(np.sqrt(SHARE_OF_MEAN * mean), rel=1e-3)
    assert found[-1] == pytest.approx(
        np.sqrt((1 - SHARE_OF_MEAN) * 4 + SHARE_OF_MEAN * mean), rel=1e-3
    )
    edge = found[30 - int(2 * NEIGHBOURHOOD) : 30 + int(2 * NEIGHBOURHOOD), 15, 15]
    assert (np.diff(edge) > 0).all()


def test_air_takes_no_part_in_the_mean_and_the_variance_of_samples_is_added() -> None:
    added = np.zeros(EVERYWHERE.shape)
    added[20:] = 2.0
    inside = EVERYWHERE.copy()
    inside[:20] = False
    far = expected_error(added, inside, 1.0)[0]
    assert far == pytest.approx(np.sqrt(SHARE_OF_MEAN * 4), rel=1e-3)
    spread = np.full(added.shape, 9.0)
    both = expected_error(added, inside, 1.0, spread)[0]
    assert both == pytest.approx(np.sqrt(far**2 + 9), rel=1e-3)


def resolver(calibration: dict[str, object]) -> SuperResolver:
    torch.manual_seed(0)
    mean = MeanNetwork(MeanConfig(8, 1)).eval()
    torch.nn.init.normal_(mean.tail.weight, std=0.05)
    model = LoadedModel(
        MoEDiffModel(mean, None), {"family": "moediff"}, "a" * 64, "random", calibration
    )
    return SuperResolver(model, torch.device("cpu"), "fp32")


def test_the_engine_gives_it_for_one_sample_in_the_units_of_the_scan() -> None:
    image = head((40, 44, 36), (2.0, 2.0, 2.0))
    larger = nib.Nifti1Image(7 * np.asarray(image.dataobj, dtype=np.float32), image.affine)
    known = {"factor": 1.4, "spread": [1.1, 1.7], "heads": ["h"], "sha256": "a" * 64}
    ours = resolver(known)
    assert ours.enhance(image, Options(output_resolution=(1.2,) * 3)).standard_deviation is None
    found = ours.enhance(image, Options(output_resolution=(1.2,) * 3, outputs=("uncertainty",)))
    again = ours.enhance(larger, Options(output_resolution=(1.2,) * 3, outputs=("uncertainty",)))
    deviation = np.asarray(found.standard_deviation.dataobj)
    assert deviation.shape == found.image.shape
    assert deviation.min() > 0
    np.testing.assert_allclose(
        np.asarray(again.standard_deviation.dataobj), 7 * deviation, rtol=1e-2
    )
    assert found.record["ExpectedErrorFactor"] == 1.4
    assert found.record["ExpectedErrorMeasuredOn"] == ["h"]
    assert not any("expected error" in words for words in found.record["Warnings"])
    twice = resolver({**known, "factor": 2.8}).enhance(
        image, Options(output_resolution=(1.2,) * 3, outputs=("uncertainty",))
    )
    np.testing.assert_allclose(np.asarray(twice.standard_deviation.dataobj), 2 * deviation)


def test_weights_that_were_never_compared_with_truth_are_told() -> None:
    image = head((40, 44, 36), (2.0, 2.0, 2.0))
    other = resolver({"factor": 1.4, "sha256": "b" * 64})
    found = other.enhance(image, Options(output_resolution=(1.5,) * 3, outputs=("uncertainty",)))
    assert any("calibrated with other weights" in words for words in found.record["Warnings"])
    never = resolver({}).enhance(
        image, Options(output_resolution=(1.5,) * 3, outputs=("uncertainty",))
    )
    assert never.standard_deviation is None
    assert any("no map of the expected error" in words for words in never.record["Warnings"])
    assert "ExpectedErrorFactor" not in never.record


def test_calibration_file() -> None:
    found = Calibration.from_dict({"factor": 1.4, "heads": ["a", "b"], "spread": [1, 2], "x": 0})
    assert found == Calibration(1.4, ("a", "b"), (1.0, 2.0), "")


def test_coarse_scans_have_a_factor_of_their_own() -> None:
    known = {"factor": 1.4, "coarse": {"factor": 1.8, "spread": [1.7, 2.0]}, "sha256": "a" * 64}
    found = Calibration.from_dict(known)
    mild, coarse = ((1, 1, 5), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (4, 1, 4))
    assert [found.at(ratios) for ratios in mild + coarse] == pytest.approx([1.4] * 2 + [1.8] * 3)
    assert found.at((1, 2.5, 2.5)) == pytest.approx(1.6)
    assert Calibration.from_dict({"factor": 1.4}).at((4, 4, 4)) == 1.4
    image = head((40, 44, 36), (3.0, 3.0, 3.0))
    result = resolver(known).enhance(
        image, Options(output_resolution=(1.0,) * 3, outputs=("uncertainty",))
    )
    assert result.record["ExpectedErrorFactor"] == 1.8
    old = resolver({"factor": 1.4}).enhance(
        image, Options(output_resolution=(1.0,) * 3, outputs=("uncertainty",))
    )
    np.testing.assert_allclose(
        np.asarray(result.standard_deviation.dataobj) / 1.8,
        np.asarray(old.standard_deviation.dataobj) / 1.4,
        rtol=1e-5,
    )


def test_rows_of_coarse_scans_do_not_move_the_factor_of_the_others() -> None:
    rows = [
        {"head": "h", "protocol": protocol, "fitted": fitted, "coarseness": ratio}
        for protocol, fitted, ratio in (
            ("x2iso-box", 1.4, 2.0), ("x3iso-box", 1.8, 3.0), ("x2.5iso-box", 1.6, 2.5)
        )
    ]  # fmt: skip
    both = calibrate(rows, resolver({}))
    assert (both["factor"], both["spread"]) == (1.4, [1.4, 1.4])
    assert both["coarse"] == {"factor": 1.8, "spread": [1.8, 1.8]}
    assert "coarse" not in calibrate(rows[:1], resolver({}))


@pytest.mark.shared
def test_it_has_the_size_of_the_error_on_a_development_head(shared_data: Path) -> None:
    loaded = Block(shared_data / "t1w/ds011_sub-08_T1w.nii.gz", side=48).load()
    ours = SuperResolver.from_pretrained("moediff", "cpu")
    row, _ = examine(loaded, parse_protocol("x2slices-gaussian"), ours)
    assert 0.7 < row["factor"] < 1.3
    assert row["within_two"] > 0.9
    assert row["gain"] > 0.4
    assert row["risk_half"] < 0.75


def test_the_shipped_factor_was_measured_with_the_shipped_weights() -> None:
    model = load_model("moediff")
    assert Calibration.from_dict(model.calibration).sha256 == model.sha256
