# SPDX-License-Identifier: Apache-2.0
"""Summarise rows: gains with intervals, as a table, as markdown and as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bids_moediff.evaluation.gates import FLICKER_LIMIT, GATES, OTHER_SITE_SHARE
from bids_moediff.imaging.metrics import bootstrap_interval
from bids_moediff.imaging.protocols import parse_protocol

from .truth import OTHER_SITE, TRAINING_SITE, UNKNOWN_SITE

Row = dict[str, Any]
BASELINES = ("linear", "cubic", "back-projection", "consistent")
MEANS = ("ssim", "hfen", "band_correlation", "band_power", "seconds")
COLUMNS = (
    "protocol", "group", "method", "version", "heads", "psnr", "psnr_cubic",
    "psnr_back_projection", "over_cubic", "over_cubic_low", "over_cubic_high",
    "over_back_projection", "over_back_projection_low", "over_back_projection_high",
    "worst_over_back_projection", "worst_head", "gate", "worst_flicker", "worst_residual", *MEANS,
)  # fmt: skip


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Return one entry per protocol, group of heads, and method that is not a baseline.

    Gains are means of per-head differences in dB with percentile bootstrap intervals (95 %) over
    heads. "all heads" is added if there is more than one group. ``gate`` is "passed", "missed" or
    None for a protocol without one; heads of another site have to reach 80 % of it.
    """
    table, summary = pd.DataFrame(list(rows)), []
    for protocol, mine in table.groupby("protocol", sort=False):
        groups = [g for g in (TRAINING_SITE, OTHER_SITE, UNKNOWN_SITE) if g in set(mine["group"])]
        parts = [(group, mine[mine["group"] == group]) for group in groups]
        for group, part in [*parts, *([("all heads", mine)] if len(groups) > 1 else [])]:
            psnr = part.groupby(["head", "method"], sort=False)["psnr"].last().unstack("method")
            references = psnr.reindex(columns=["cubic", "back-projection"]).dropna()
            others = part[~part["method"].isin(BASELINES[:3])]
            for (method, version), own in others.groupby(["method", "version"], sort=False):
                entry = _entry(own.set_index("head"), references)
                if entry is not None:
                    found = {"protocol": protocol, "group": group, "method": method}
                    summary.append({**found, "version": version, **entry})
    return [entry | {"gate": _gate(entry)} for entry in summary]


def _entry(own: pd.DataFrame, references: pd.DataFrame) -> Row | None:
    """Return figures of one method, by head, with cubic and back-projection of these heads."""
    own = own[own.index.isin(references.index)]
    if own.empty:
        return None
    known = references.loc[own.index]
    gains = {
        "over_cubic": own["psnr"] - known["cubic"],
        "over_back_projection": own["psnr"] - known["back-projection"],
    }
    entry: Row = {"heads": len(own), "psnr": float(own["psnr"].mean())}
    entry["psnr_cubic"] = float(known["cubic"].mean())
    entry["psnr_back_projection"] = float(known["back-projection"].mean())
    for name, values in gains.items():
        low, high = bootstrap_interval(values.tolist())
        entry |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    worst = gains["over_back_projection"]
    entry |= {"worst_over_back_projection": float(worst.min()), "worst_head": worst.idxmin()}
    entry["worst_residual"] = float(own["residual"].max())
    slow = own.reindex(columns=[*MEANS, "flicker"]).apply(pd.to_numeric, errors="coerce")
    entry |= {name: _or_none(slow[name].mean()) for name in MEANS}
    return entry | {"worst_flicker": _or_none(slow["flicker"].max())}


def _or_none(value: float) -> float | None:
    return float(value) if value == value else None


def _is_number(value: Any) -> bool:
    return value is not None and value == value


def _gate(entry: Row) -> str | None:
    """Test if mean gains reach the gate, no head loses to back-projection, none flickers."""
    if entry["protocol"] not in GATES or entry["method"] in BASELINES:
        return None
    share = OTHER_SITE_SHARE if entry["group"] == OTHER_SITE else 1.0
    cubic, back = GATES[entry["protocol"]]
    reached = (
        entry["over_cubic"] >= share * cubic
        and entry["over_back_projection"] >= share * back
        and entry["worst_over_back_projection"] >= 0
        and (entry["worst_flicker"] or 0.0) <= FLICKER_LIMIT
    )
    return "passed" if reached else "missed"


def markdown(summary: Sequence[Row], rows: Sequence[Row], notes: Mapping[str, str]) -> str:
    """Return the summary as a page: gains per protocol and group, per head, axes left out."""
    lines = [
        "# Benchmark",
        "",
        "PSNR in dB in the head mask, in 3-D, range 99.5th percentile of the truth. Gains are",
        "means over heads with 95 % percentile bootstrap intervals. Gate: mean gains over cubic",
        "and over cubic + back-projection (BP) required of a release (80 % of them on heads of",
        "another site), no head below cubic + BP, and flicker of at most 1.05 on every head where",
        "the slow figures were asked for.",
        "",
        "| protocol | heads | method | cubic | + BP | PSNR | over cubic | over cubic + BP "
        "| worst head over cubic + BP | gate |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    models = any(entry["method"] not in BASELINES for entry in summary)
    summary = [entry for entry in summary if not models or entry["method"] not in BASELINES]
    for e in summary:
        lines.append(
            f"| {parse_protocol(e['protocol']).name} | {e['group']} ({e['heads']}) "
            f"| {e['method']} | {e['psnr_cubic']:.2f} | {e['psnr_back_projection']:.2f} "
            f"| {e['psnr']:.2f} "
            f"| {_gain(e, 'over_cubic')} | {_gain(e, 'over_back_projection')} "
            f"| {e['worst_over_back_projection']:+.2f} ({e['worst_head']}) | {_gate_text(e)} |"
        )
    lines += [*_slow_table(summary), *_head_table(rows), *_methods(rows), *_notes(notes, rows)]
    return "\n".join(lines) + "\n"


def _gain(entry: Row, name: str) -> str:
    low, high = entry[f"{name}_low"], entry[f"{name}_high"]
    interval = f" [{low:+.2f}, {high:+.2f}]" if entry["heads"] > 1 else ""
    return f"{entry[name]:+.2f}{interval}"


def _gate_text(entry: Row) -> str:
    if entry["gate"] is None:
        return ""
    share = OTHER_SITE_SHARE if entry["group"] == OTHER_SITE else 1.0
    cubic, back = GATES[entry["protocol"]]
    return f"{entry['gate']} ({share * cubic:+.2f}, {share * back:+.2f})"


def _slow_table(summary: Sequence[Row]) -> list[str]:
    if not any(_is_number(entry["ssim"]) for entry in summary):
        return []
    lines = [
        "",
        "Means over heads; flicker and residual of the worst head. Recovered band: between the",
        "acquired and the new Nyquist frequency.",
        "",
        "| protocol | heads | method | SSIM | HFEN | flicker | band correlation | band power "
        "| residual | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for e in summary:
        cells = [
            f"{e[name]:.3f}" if _is_number(e[name]) else "n/a"
            for name in ("ssim", "hfen", "worst_flicker", "band_correlation", "band_power")
        ]
        seconds = f"{e['seconds']:.0f}" if _is_number(e["seconds"]) else "n/a"
        lines.append(
            f"| {parse_protocol(e['protocol']).name} | {e['group']} ({e['heads']}) "
            f"| {e['method']} | {' | '.join(cells)} | {e['worst_residual']:.1e} | {seconds} |"
        )
    return lines


def _head_table(rows: Sequence[Row]) -> list[str]:
    """Return PSNR of every head, protocol and method."""
    table = pd.DataFrame(list(rows)).pivot_table(
        index=["head", "group", "protocol", "ratios"],
        columns=["method", "version"],
        values="psnr",
        aggfunc="last",
        sort=False,
    )
    lines = ["", "## Every head (PSNR, dB)", ""]
    names = [str(method) for method, _ in table.columns]
    lines.append("| head | site | protocol | ratio | " + " | ".join(names) + " |")
    lines.append("|---|---|---|---|" + "---|" * len(names))
    for (head, group, protocol, ratios), values in table.iterrows():
        cells = ["n/a" if value != value else f"{value:.2f}" for value in values]
        name = parse_protocol(protocol).name
        lines.append(f"| {head} | {group} | {name} | {ratios} | {' | '.join(cells)} |")
    return lines


def _methods(rows: Sequence[Row]) -> list[str]:
    methods = dict.fromkeys((row["method"], row["version"]) for row in rows)
    own = [f"* {name}: {version}" for name, version in methods if name not in BASELINES]
    heading = "Models (first digits of the SHA-256 of the weights, precision, options):"
    return ["", heading, "", *own] if own else []


def _notes(notes: Mapping[str, str], rows: Sequence[Row]) -> list[str]:
    """Return which axes hold no truth; "isotropic" means the others, "slices" the last of them."""
    told = [f"* {head}: {note}." for head, note in notes.items() if note]
    if not told:
        return []
    return [
        "",
        "Axes without truth (the column ratio tells what was degraded; unless all axes were asked",
        'for, "isotropic" is every axis with truth and "slices" the last of them):',
        "",
        *told,
    ]


def draw_gains(rows: Sequence[Row], protocol: str, path: Path) -> None:
    """Draw the gain over cubic, one column per head, for back-projection and every model."""
    from matplotlib.figure import Figure

    mine = [row for row in rows if row["protocol"] == protocol]
    cubic = {row["head"]: row["psnr"] for row in mine if row["method"] == "cubic"}
    groups = {row["head"]: row["group"] for row in mine}
    heads = [head for head in groups if head in cubic]
    shown = [
        key
        for key in dict.fromkeys((row["method"], row["version"]) for row in mine)
        if key[0] not in ("linear", "cubic", "consistent")
    ]
    figure = Figure(figsize=(max(5.0, 1.1 * len(heads) + 2), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(shown), 1)
    for index, (method, version) in enumerate(shown):
        values = {
            row["head"]: row["psnr"] - cubic[row["head"]]
            for row in mine
            if (row["method"], row["version"]) == (method, version) and row["head"] in cubic
        }
        places = [heads.index(h) + (index - (len(shown) - 1) / 2) * width for h in values]
        label = "cubic + back-projection" if method == "back-projection" else method
        colour = "0.6" if method == "back-projection" else None
        axes.bar(places, list(values.values()), width * 0.9, label=label, color=colour)
    if protocol in GATES:
        axes.axhline(GATES[protocol][0], color="0.2", linestyle="--", linewidth=1, label="gate")
    axes.axhline(0, color="0.2", linewidth=0.8)
    labels = [f"{head}\n({groups[head]})" for head in heads]
    axes.set_xticks(range(len(heads)), labels, rotation=30, ha="right", fontsize=7)
    axes.set_ylabel("gain over cubic (dB)")
    axes.set_title(parse_protocol(protocol).name)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as PNG, the same bytes for the same content."""
    from bids_moediff.runtime.sink import atomic

    with atomic(path) as stream:
        figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
