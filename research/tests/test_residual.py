# SPDX-License-Identifier: Apache-2.0
"""A result, measured again, gives the scan back: on generated heads and on real ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bids_moediff.evaluation.truth import Loaded, TruthHead
from bids_moediff.imaging.masks import head_mask_array
from generated import head
from research.measurements import residual

BOX_AND_KSPACE = [key for key in residual.PROTOCOLS if not key.endswith("gaussian")]


def check(loaded: Loaded) -> None:
    rows = {row["protocol"]: row for row in residual.evaluate(loaded)}
    assert set(rows) == {*residual.PROTOCOLS, "noisy"}
    for key in BOX_AND_KSPACE:
        assert rows[key]["residual"] < 1e-3, key
    assert 0.5 < rows["noisy"]["over_noise"] < 1.02


def test_generated_head() -> None:
    zooms = (2.4, 2.4, 2.6)
    image = head((64, 76, 66), zooms)
    data = np.asarray(image.dataobj, np.float32)
    mask = head_mask_array(data, zooms)
    check(Loaded(TruthHead(Path("h.nii.gz")), data, mask, zooms, image.affine, (0, 1, 2), ""))


def test_without_projection_the_residual_is_large() -> None:
    """The image that the projection is given would fail by far."""
    zooms = (2.4, 2.4, 2.6)
    image = head((64, 76, 66), zooms)
    data = np.asarray(image.dataobj, np.float32)
    mask = head_mask_array(data, zooms)
    task = residual.make_task(data, mask, zooms, image.affine, (2.0, 2.0, 2.0), "box")
    wrong = residual.wrong_image(task, 600.0)
    again = task.operator.forward(wrong) - task.measured
    assert float(again.norm() / task.measured.norm()) > 0.02
    assert torch.isfinite(wrong).all()


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    ["t1w/ds011_sub-09_T1w.nii.gz", "clinical_thick/ms_patient04_FLAIR.nii.gz"],
)
def test_real_heads(shared_data: Path, name: str) -> None:
    check(TruthHead(shared_data / name).load())
