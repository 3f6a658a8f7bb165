# SPDX-License-Identifier: Apache-2.0
"""Compare the expected error with the true one.

Risk-coverage curve: keep the share of voxels with the smallest expected error, and plot the true
error of those (El-Yaniv and Wiener, Journal of Machine Learning Research 11:1605-1641, 2010). A
useless deviation gives a flat curve, a perfect one the curve of the errors themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_moediff.imaging.metrics import intensity_range
from bids_moediff.imaging.protocols import Protocol, parse_protocol
from bids_moediff.inference import expected_error
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.inference.uncertainty import Uncertainty
from bids_moediff.options import Options

from .benchmark import protocol_task, restored
from .truth import Loaded

Row = dict[str, Any]
COVERAGES = np.linspace(0.05, 1.0, 20)
BINS = 10
COLUMNS = (
    "head", "group", "protocol", "model", "samples", "rmse", "deviation", "factor", "within_two",
    "correlation", "risk_half", "ideal_half", "gain", "fitted",
    "coarseness",
)  # fmt: skip


@dataclass(frozen=True)
class Curves:
    """Error of the most certain voxels by coverage, over the range of the head.

    ``risk``: sorted by the deviation; ``ideal``: by the error itself; both relative to the error
    of all voxels. ``bins``: mean deviation and root mean square error in tenths of the voxels.
    """

    risk: np.ndarray
    ideal: np.ndarray
    bins: np.ndarray


def curves(deviation: np.ndarray, error: np.ndarray) -> Curves:
    """Return risk-coverage and reliability of a deviation (n,) for an error (n,), equal units."""
    squares = np.square(error, dtype=np.float64)
    total = max(float(squares.mean()), 1e-30)
    counts = np.maximum(1, np.round(COVERAGES * len(squares)).astype(int))

    def risk(order: np.ndarray) -> np.ndarray:
        return np.sqrt(np.cumsum(squares[order])[counts - 1] / counts / total)

    by_deviation = np.argsort(deviation, kind="stable")
    tenths = np.array_split(by_deviation, BINS)
    bins = np.array(
        [[float(deviation[part].mean()), float(np.sqrt(squares[part].mean()))] for part in tenths]
    )
    return Curves(risk(by_deviation), risk(np.argsort(squares, kind="stable")), bins)


def figures(deviation: np.ndarray, error: np.ndarray, found: Curves) -> Row:
    """Return figures of the quality of a deviation.

    Parameters
    ----------
    deviation, error
        Expected and true error of n voxels (n,).
    found
        Their curves.

    Returns
    -------
    dict
        ``factor``: root mean square error over that of the deviation. ``within_two``: share of
        voxels whose error lies within two deviations times that factor (0.95 for Gaussian errors).
        ``correlation``: Spearman's, of deviation and absolute error. ``risk_half``: error of the
        most certain half over that of all. ``gain``: area between the flat and the risk curve over
        that between the flat and the ideal one (0 useless, 1 perfect). ``fitted``: the factor with
        the largest likelihood, if errors are Gaussian.
    """
    from scipy import stats

    rmse = float(np.sqrt(np.mean(np.square(error, dtype=np.float64))))
    size = float(np.sqrt(np.mean(np.square(deviation, dtype=np.float64))))
    factor = rmse / max(size, 1e-12)
    step = max(1, len(error) // 100_000)
    rank = stats.spearmanr(deviation[::step], np.abs(error[::step])).statistic
    half = int(np.argmin(np.abs(COVERAGES - 0.5)))
    return {
        "rmse": rmse,
        "deviation": size,
        "factor": factor,
        "within_two": float(np.mean(np.abs(error) <= 2 * factor * deviation)),
        "correlation": float(rank),
        "risk_half": float(found.risk[half]),
        "ideal_half": float(found.ideal[half]),
        "gain": float(np.mean(1 - found.risk) / np.mean(1 - found.ideal)),
        "fitted": float(np.sqrt(np.mean(np.square(error / np.maximum(deviation, 1e-9))))),
    }


def examine(
    loaded: Loaded, protocol: Protocol, resolver: SuperResolver, **options: Any
) -> tuple[Row, Curves]:
    """Examine one head under one protocol; ``options`` are fields of :class:`Options`.

    Errors and deviations are over the range of the head.
    """
    ratios = protocol.ratios(loaded.axes)
    task = protocol_task(loaded, protocol)
    asked = Options(output_resolution=task.zooms, outputs=("uncertainty",), **options)
    result = restored(resolver, task, asked)
    if result.standard_deviation is None:
        raise ValueError("the model gives no expected error: calibrate it with --write")
    scale = intensity_range(task.truth, task.mask)
    image = np.asarray(result.image.dataobj, dtype=np.float32)
    deviation = np.asarray(result.standard_deviation.dataobj, dtype=np.float32)[task.mask] / scale
    error = (image - task.truth)[task.mask] / scale
    found = curves(deviation, error)
    row = {
        "head": loaded.head.name,
        "group": loaded.head.group,
        "protocol": protocol.key,
        "model": resolver.model.name,
        "samples": options.get("num_samples"),
        "coarseness": expected_error.coarseness(ratios),
    }
    return row | figures(deviation, error, found), found


def uncalibrated(resolver: SuperResolver) -> None:
    """Return the resolver with a calibration factor of one."""
    by_hand = replace(resolver.model, scale=None)
    resolver.uncertainty = Uncertainty(by_hand, resolver.precision)
    resolver.uncertainty.calibration = expected_error.Calibration(1.0)


def calibrate(rows: Sequence[Row], resolver: SuperResolver) -> Row:
    """Return the content of calibration.json from rows of an :func:`uncalibrated` model.

    Rows with two coarse axes or more (x3 isotropic) give a factor of their own.
    """
    fitted = [row["fitted"] for row in rows if row["coarseness"] <= expected_error.MILD]
    coarse = [row["fitted"] for row in rows if row["coarseness"] >= expected_error.COARSE]
    known = _factor(fitted or [row["fitted"] for row in rows])
    if fitted and coarse:
        known["coarse"] = _factor(coarse)
    return {
        **known,
        "heads": sorted({row["head"] for row in rows}),
        "protocols": list(dict.fromkeys(row["protocol"] for row in rows)),
        "method": "expected error over its size before the factor, see docs/trust.md",
        "sha256": resolver.model.sha256,
    }


def _factor(fitted: Sequence[float]) -> Row:
    return {
        "factor": round(float(np.sqrt(np.mean(np.square(fitted)))), 3),
        "spread": [round(min(fitted), 3), round(max(fitted), 3)],
    }


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table."""
    lines = [
        "| head | protocol | error | deviation | factor | within two | correlation | error of the "
        "surest half | ideal | gain |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        names = ("factor", "within_two", "correlation", "risk_half", "ideal_half", "gain")
        cells = [f"{row['rmse']:.4f}", f"{row['deviation']:.4f}"]
        cells += [f"{row[name]:.2f}" for name in names]
        words = parse_protocol(row["protocol"]).name
        lines.append(f"| {row['head']} | {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], found: Sequence[Curves], path: Path) -> None:
    """Draw risk-coverage and reliability, one line per head and protocol."""
    from matplotlib.figure import Figure

    from .summary import save_figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    keys = list(dict.fromkeys(row["protocol"] for row in rows))
    for row, curve in zip(rows, found, strict=True):
        colour = f"C{keys.index(row['protocol'])}"
        left.plot(COVERAGES, curve.risk, colour, linewidth=1)
        left.plot(COVERAGES, curve.ideal, "0.7", linewidth=0.7, linestyle=":")
        right.plot(*curve.bins.T, colour, marker="o", markersize=2, linewidth=1)
    left.axhline(1, color="0.5", linewidth=0.7)
    left.set(
        xlabel="share of voxels kept, surest first", ylabel="their error over that of all",
        ylim=(0, None), title="Risk and coverage (dotted: ideal)",
    )  # fmt: skip
    limit = max(float(curve.bins.max()) for curve in found)
    right.plot([0, limit], [0, limit], "0.5", linewidth=0.7)
    right.set(
        xlabel="expected error (range of the head)", ylabel="root mean square error",
        title="Reliability (grey: equal)",
    )  # fmt: skip
    for index, key in enumerate(keys):
        right.plot([], [], f"C{index}", label=parse_protocol(key).name)
    right.legend(fontsize=8)
    save_figure(figure, path)
