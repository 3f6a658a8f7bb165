# SPDX-License-Identifier: Apache-2.0
"""The ablation table as a page: rows, what they say, gate mass per tissue."""

from collections.abc import Mapping, Sequence
from typing import Any

from bids_moediff.evaluation.benchmark import Row
from bids_moediff.evaluation.gates import FLICKER_LIMIT

from .arms import CONSISTENCY, GATE, MIXTURE, SAMPLES, START, STEPS
from .tissue import OWNERS, TISSUES, HeadMass, Verdict

LEAST_GAIN = 0.1  # dB by which the mixture has to beat one network of as many weights
SAMPLE_LIMIT, MEAN_LIMIT = 1.5, 0.3  # dB below the default output: one sample, mean of several


def page(
    entries: Sequence[Row],
    notes: Sequence[str],
    gates: Sequence[str],
) -> str:
    """Markdown of the table (entries of :func:`.ablation.summarise`), findings and gate lines."""
    lines = [
        "# Ablations",
        "",
        *notes,
        "",
        "PSNR in dB (head mask, 3-D), means over heads and protocols; differences to the default",
        "output are paired. Flicker and residual are the worst. Band power and correlation are of",
        "the band between the acquired and the new Nyquist frequency (1: the truth's). Seconds",
        "are those of the experts: the mean is computed once for all rows.",
        "",
        "| question | setting | over cubic | over cubic + BP | against default | worst "
        "| by protocol | flicker | band power | band correlation | residual | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(entry) for entry in entries),
        "",
        "## What this says",
        "",
        *(f"* {sentence}" for sentence in findings(entries)),
        "",
        *gates,
    ]
    return "\n".join(lines) + "\n"


def _line(entry: Row) -> str:
    head = f"| {entry['question']} | {entry['setting']} "
    if "method" not in entry:
        return head + "| not given |" + " |" * 9
    if "rows" not in entry:
        return head + "| not computed |" + " |" * 9
    return head + (
        f"| {entry['over_cubic']:+.2f} | {entry['over_back_projection']:+.2f} "
        f"| {entry['over_reference']:+.3f} | {entry['worst_over_reference']:+.3f} "
        f"| {entry['by_protocol'].replace(' ', '<br>')} | {entry['worst_flicker']:.3f} "
        f"| {entry['band_power']:.3f} | {entry['band_correlation']:.3f} "
        f"| {entry['worst_residual']:.0e} | {entry['seconds']:.1f} |"
    )


def findings(entries: Sequence[Row]) -> list[str]:
    """What the requirements say about the figures, passed or not."""
    known = [entry for entry in entries if "rows" in entry]
    if not known:
        return ["Nothing could be computed."]
    found = [*_mixture(entries), *_samples(known)]
    default = known[0]
    bounded = default["worst_flicker"] <= FLICKER_LIMIT
    found.append(
        f"Flicker of the default output: {default['worst_flicker']:.3f} of the truth's at worst, "
        f"{'within' if bounded else 'above'} the limit of {FLICKER_LIMIT}."
    )
    for question in (GATE, START, STEPS, CONSISTENCY):
        rows = [entry for entry in known if entry["question"] == question]
        best = max(rows, key=lambda entry: float(entry["psnr"]), default=None)
        if best is not None:
            found.append(f"Most faithful {question}: {best['setting']}.")
    return found


def _mixture(entries: Sequence[Row]) -> list[str]:
    rows = {entry["setting"]: entry for entry in entries if entry["question"] == MIXTURE}
    default, alone = (
        next((rows[name] for name in rows if name.startswith(word)), {})
        for word in ("default", "the mean")
    )
    found = []
    if "rows" in default and "rows" in alone:
        gain = default["psnr"] - alone["psnr"]
        found.append(f"The experts add {gain:+.3f} dB to the mean.")
    single = next((rows[name] for name in rows if name.startswith("one expert")), {})
    if "rows" not in single:
        return [*found, "Whether the mixture beats one network of as many weights is not known: "
                "no such model was given."]  # fmt: skip
    equal = next((rows[name] for name in rows if "trained as" in name), {})
    mixture = equal if "rows" in equal else default
    gain = mixture["psnr"] - single["psnr"]
    verb = "beats" if gain >= LEAST_GAIN else "does not beat"
    found.append(
        f"The mixture {verb} one network of as many weights: {gain:+.3f} dB "
        f"(at least {LEAST_GAIN} dB were asked for)."
    )
    return found


def _samples(known: Sequence[Row]) -> list[str]:
    default = known[0]
    found = []
    for entry in (entry for entry in known if entry["question"] == SAMPLES):
        single = entry["setting"] == "one"
        limit, name = (
            (SAMPLE_LIMIT, "One sample") if single else (MEAN_LIMIT, f"The {entry['setting']}")
        )
        loss = -entry["over_reference"]
        power, before = entry["band_power"], default["band_power"]
        more = f"; its band holds {power:.2f} of the truth's power, the default's {before:.2f}"
        found.append(
            f"{name}{' samples' * (not single)} is {loss:.2f} dB below the default output "
            f"({'within' if loss <= limit else 'beyond'} {limit} dB){more * single}."
        )
    return found


def gate_lines(
    heads: Mapping[str, HeadMass], experts: Sequence[str], found: Verdict | None, left_out: Any
) -> list[str]:
    """Gate mass of the model per tissue, and whether it is above chance."""
    lines = ["## Gate mass per tissue", ""]
    lines += [f"* {name}: left out, {reason}" for name, reason in left_out.items()]
    lines += [""] if left_out else []
    if found is None:
        return [*lines, "No head has a segmentation, so nothing can be said."]
    lines += ["Mean gate of each expert in each tissue (columns sum to one):", ""]
    lines += [f"| head | expert | {' | '.join(TISSUES)} |", "|---|---|" + "---|" * len(TISSUES)]
    for name, head in heads.items():
        for index, expert in enumerate(experts):
            cells = [
                f"**{value:.3f}**" if OWNERS.get(expert) == tissue else f"{value:.3f}"
                for tissue, value in enumerate(head.mass[index])
            ]
            lines.append(f"| {name} | {expert} | {' | '.join(cells)} |")
    answer = "above chance" if found.above_chance else "at chance"
    return [
        *lines,
        "",
        "In the tissue that it was meant for (bold) an expert's gate is larger by "
        f"{found.statistic:+.4f} on average,",
        f"after shifts of the gates against the tissue by {found.chance:+.4f}; p = "
        f"{found.p_value:.4f} (permutation test,",
        f"heads: {found.heads}). **The gate is {answer}.**",
    ]
