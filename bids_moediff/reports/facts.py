# SPDX-License-Identifier: Apache-2.0
"""Turn the record of an image into words and numbers, for the tables of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from .methods import averaged


def number(value: Any, unit: str = "") -> str:
    """Return a value for a table: four significant digits, or a dash for None."""
    if value is None:
        return "-"
    words = f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
    return f"{words} {unit}".strip()


def _sizes(zooms: Sequence[Any] | None) -> str:
    return " x ".join(f"{zoom:.3g}" for zoom in zooms) + " mm" if zooms else "-"


def summary(record: Mapping[str, Any]) -> str:
    """Return in a sentence or two what was done."""
    if "InputVoxelSize" not in record or "OutputVoxelSize" not in record:
        return ""
    words = f"{_sizes(record['InputVoxelSize'])} became {_sizes(record['OutputVoxelSize'])}."
    scan = "input"
    if averaged(record):
        acquired = _sizes(record["AcquiredVoxelSize"])
        words += f" The input was taken as measured with {acquired} and interpolated."
        scan = "input averaged over these voxels"
    residual = record.get("ConsistencyResidual")
    if residual is not None:
        share = f"{100 * residual:.2g} %" if residual > 1e-5 else "less than 0.001 %"
        words += (
            f" Measured again with the scanner's voxels, the result differs from the {scan} by "
            f"{share} (root mean square)."
        )
        if noise := record.get("ConsistencyNoise"):
            words += f" It agrees within {noise:.3g} input units, the certain part of the noise."
    return words


def noise_of(item: Mapping[str, Any], record: Mapping[str, Any]) -> float | None:
    """Return the noise of the input, in input units: the estimate that the result used.

    The figure of flat tissue also contains fine anatomy; it serves where there is no estimate.
    """
    return record.get("EstimatedNoise") or (item.get("quality") or {}).get("noise_sigma")


def _profiles(axes: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the sampling of the three voxel axes in words."""
    words = []
    for axis in axes or ():
        further = axis.get("filter", "") if axis["profile"] == "kspace" else f"{axis['fwhm']:.2g}"
        words.append(f"{axis['profile']} {further}".strip())
    return ", ".join(words) if len(set(words)) > 1 else "".join(words[:1])


def run_card(item: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the run card: model, input, settings and result."""
    name = f"{record.get('Model', '')} {record.get('ModelVersion', '')}".strip()
    memory, seconds = item.get("peak_memory_gb"), item.get("seconds")
    residual, noise = record.get("ConsistencyResidual"), noise_of(item, record)
    acquired = record.get("AcquiredVoxelSize")
    rows = [
        ("Model", name),
        ("Why this model", str(record.get("ModelChoice") or "")),
        ("Steps", number(record.get("NumberOfSteps"))),
        ("Samples", number(record.get("NumberOfSamples"))),
        ("Samples from", str(record.get("SamplesFrom") or "")),
        ("Seed", number(record.get("RandomSeed"))),
        ("Device", f"{record.get('Device', '-')}, {record.get('Precision', '-')}"),
        ("Voxel size in", _sizes(record.get("InputVoxelSize"))),
        ("Voxel size out", _sizes(record.get("OutputVoxelSize"))),
        ("Acquired voxels (worked from)", _sizes(acquired)),
        ("Sampling", _profiles(record.get("SamplingProfiles"))),
        ("Consistency residual", "-" if residual is None else f"{residual:.2e}"),
        ("Noise of the input", number(noise, "input units")),
        ("Bound of the error", str(record.get("ExpectedErrorBound") or "")),
        ("Time", "-" if seconds is None else f"{seconds:.0f} s"),
        ("Peak memory", "-" if memory is None else f"{memory:.2g} GB"),
        ("Sampler", str(record.get("Sampler") or "")),
        ("Weights (SHA-256)", str(record.get("ModelSHA256") or "")),
    ]
    return [(words, value) for words, value in rows if value not in ("", "-", "-, -")]


def resolution(quality: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Return per voxel axis: name, stored voxel, usable detail, acquired voxel, verdict."""
    rows = []
    for axis, name in zip("xyz", ("first", "second", "third"), strict=True):
        if f"usable_{axis}" in quality:
            sizes = [
                number(quality.get(f"{kind}_{axis}"), "mm")
                for kind in ("spacing", "usable", "acquired")
            ]
            kind = str(quality.get(f"interpolation_{axis}", "unknown"))
            rows.append((name, sizes[0], sizes[1], sizes[2], kind))
    return rows


def added(change: float, noise: float | None) -> str:
    """Return the difference between result and interpolation, in units of the noise if known.

    Parameters
    ----------
    change
        Root mean square of result minus cubic interpolation in the brain, in input units.
    noise
        Standard deviation of the noise of the input, in input units.
    """
    words = "Detail added to cubic interpolation:"
    where = "(root mean square in the brain)"
    if not noise:
        return f"{words} {change:.3g} input units {where}."
    return f"{words} {change / noise:.1f} times the noise of the input {where}."
