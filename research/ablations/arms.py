# SPDX-License-Identifier: Apache-2.0
"""What each part of MoEDiff-SR is worth: one setting changed at a time, all else equal.

Settings of the sampler are tried on the model that is judged; other networks (a single expert,
another gate, another latent …) have to be trained and given, and the table says which were not.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_moediff.errors import UsageError
from bids_moediff.evaluation.benchmark import BASELINES, Method, Row, model_method
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.families.moediff.restorer import MoEDiffRestorer
from bids_moediff.families.protocol import Problem, Progress, Restored
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.options import Options

NOISY_STEPS = 4


@dataclass(frozen=True)
class Variant:
    """A network that has to be trained for its row; `fits` tells whether a model is one."""

    question: str
    setting: str
    fits: Callable[[MoEDiffConfig], bool]


MIXTURE, GATE, LATENT, START = "mixture", "gate", "latent", "start"
CONTEXT, STEPS, NOISE = "slices", "steps (noise 1)", f"noise ({NOISY_STEPS} steps)"
CONSISTENCY, SAMPLES, OTHER = "data consistency", "samples", "other models"
# By the name of the recipe that trains it.
VARIANTS = {
    "experts": Variant(MIXTURE, "three experts, trained as the others here", lambda c: True),
    "experts-single": Variant(
        MIXTURE, "one expert with as many weights", lambda c: len(c.experts) == 1
    ),
    "experts-slice-gate": Variant(GATE, "one gate a slice (eqs 2-4)", lambda c: c.gate == "slice"),
    "experts-kl": Variant(LATENT, "kl", lambda c: c.latent == "kl"),
    "experts-vq": Variant(LATENT, "vq", lambda c: c.latent == "vq"),
    "experts-interpolation": Variant(
        START, "interpolated input, trained so", lambda c: c.start == "low_resolution"
    ),
    "experts-noise": Variant(START, "noise (the paper)", lambda c: c.start == "noise"),
    "experts-2d": Variant(CONTEXT, "2-D: no neighbours", lambda c: c.context_slices == 1),
}
QUESTIONS = (
    MIXTURE, GATE, LATENT, START, STEPS, NOISE, CONSISTENCY, CONTEXT, SAMPLES, OTHER,
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A row of the table; without a method, the model was not given."""

    question: str
    setting: str
    method: Method | None


class SharedMean(MoEDiffRestorer):
    """A restorer that computes the mean of a start once, for all that have the same mean."""

    kept: dict[str, tuple[torch.Tensor, torch.Tensor]]
    digest = ""
    samples = 1

    @classmethod
    def of(
        cls, resolver: SuperResolver, kept: dict[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> "Own":
        """The same model; `kept` is shared by all resolvers that are compared."""
        shared = cls(resolver.model.network, resolver.device, resolver.precision)
        shared.kept = kept
        if shared.mean is not None:
            digest = hashlib.sha256(shared.precision.encode())
            for value in shared.mean.state_dict().values():
                digest.update(value.cpu().numpy().tobytes())
            shared.digest = digest.hexdigest()
        return Own(resolver, shared)

    def restore(
        self, problem: Problem, options: Options, progress: Progress
    ) -> Iterator[Restored]:
        """The mean of the samples."""
        several = replace(options, num_samples=self.samples)
        images = [made.image for made in super().restore(problem, several, progress)]
        yield Restored(torch.stack(images).mean(0))

    def run_mean(self, problem: Problem, progress: Progress, refit: bool = False) -> torch.Tensor:
        """The kept mean, if it is that of this start."""
        if self.mean is None:
            return problem.start()
        start = problem.start()
        before = self.kept.get(self.digest)
        if before is None or not torch.equal(before[0], start):
            before = (start, super().run_mean(problem, progress, refit))
            self.kept[self.digest] = before
        return before[1].clone()


@dataclass(frozen=True)
class Own:
    """A model and the restorer that shares its mean with others."""

    resolver: SuperResolver
    restorer: SharedMean

    def method(self, name: str, **options: Any) -> Method:
        """The model as a method of the benchmark."""
        resolver = copy.copy(self.resolver)
        resolver.restorer = self.restorer
        return model_method(resolver, name, **options)

    def noisy(self, strength: float, samples: int = 1) -> "Own":
        """A copy whose experts begin with noise; the mean of so many samples."""
        other = copy.copy(self.restorer)
        other.noise_strength, other.samples = strength, samples
        return Own(self.resolver, other)

    def without(self, part: str) -> "Own":
        """A copy without its "mean" or its experts ("moediff")."""
        return self.having(part, None)

    def having(self, part: str, network: nn.Module | None) -> "Own":
        """A copy with another "mean" or other experts ("moediff")."""
        other = copy.copy(self.restorer)
        setattr(other, part, network)
        return Own(self.resolver, other)


def experts_of(resolver: SuperResolver) -> nn.Module | None:
    """The experts of a moediff model, or None."""
    return getattr(resolver.model.network, "moediff", None)


def check_variant(name: str, resolver: SuperResolver) -> None:
    """UsageError if a model is not what its name says, or has no experts."""
    experts = experts_of(resolver)
    if not isinstance(experts, MoEDiffSR):
        raise UsageError(f"--models {name}: the model has no experts to compare.")
    if name in VARIANTS and not VARIANTS[name].fits(experts.config):
        variant = VARIANTS[name]
        raise UsageError(
            f"--models {name}: the model is no such variant ({variant.question}: "
            f"{variant.setting})."
        )


def equal_gates(network: MoEDiffSR) -> MoEDiffSR:
    """A copy whose gate gives every expert the same weight everywhere."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.gating.queries.zero_()
        other.gating.usage.fill_(1.0 / len(other.experts))
    return other


def make_arms(
    base: SuperResolver, given: Mapping[str, SuperResolver], samples: int = 8
) -> list[Arm]:
    """Every row in the order of the table; the first one is the reference of all.

    `base` is the model that is judged, `given` are further models by the names of VARIANTS or by
    names of their own.
    """
    check_variant(base.model.name, base)
    kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    own = SharedMean.of(base, kept)
    others = {name: SharedMean.of(resolver, kept) for name, resolver in given.items()}
    name = base.model.name

    def ours(**options: Any) -> Method:
        return own.method(name, **options)

    default = ours()

    def noisy(strength: float, steps: int = NOISY_STEPS, count: int = 1, **options: Any) -> Method:
        words = f"{name}, noise {strength:g}" + (f", mean of {count}" if count > 1 else "")
        return own.noisy(strength, count).method(words, num_steps=steps, **options)

    experts = experts_of(base)
    assert isinstance(experts, MoEDiffSR)
    config = experts.config
    plain = [
        Arm(MIXTURE, "default: three experts on the mean", default),
        Arm(MIXTURE, "the mean alone", own.without("moediff").method(f"{name}, mean alone")),
        Arm(GATE, f"default: one for each {config.gate}", default),
        Arm(
            GATE,
            "equal weights everywhere",
            own.having("moediff", equal_gates(experts)).method(f"{name}, equal gates"),
        ),
        Arm(LATENT, f"default: {config.latent}", default),
        Arm(START, f"default: {config.start.replace('_', ' ')}", default),
        Arm(
            START,
            "interpolated input, trained on means",
            own.without("mean").method(f"{name}, without its mean"),
        ),
        *(Arm(STEPS, str(count), noisy(1.0, count)) for count in (1, 2, 4, 8)),
        Arm(NOISE, "0", default),
        *(Arm(NOISE, f"{level:g}", noisy(level)) for level in (0.25, 0.5, 1.0)),
        Arm(CONSISTENCY, "default, off", ours(consistency="off")),
        Arm(CONSISTENCY, "default, end", default),
        *(
            Arm(CONSISTENCY, f"noise 1, {when}", noisy(1.0, **_unless_end(when)))
            for when in ("off", "end", "each-step")
        ),
        Arm(CONTEXT, f"default: {config.context_slices} at a time, one plane", default),
        Arm(CONTEXT, "mean of up to three planes", ours(planes=3)),
        Arm(SAMPLES, "one", noisy(1.0)),
        Arm(SAMPLES, f"mean of {samples}", noisy(1.0, count=samples)),
    ]
    return sorted([*plain, *_trained(others)], key=lambda arm: QUESTIONS.index(arm.question))


def _unless_end(when: str) -> dict[str, Any]:
    """The default is left unsaid, so that its row is computed once."""
    return {} if when == "end" else {"consistency": when}


def _trained(others: Mapping[str, Own]) -> list[Arm]:
    """Rows of the models that have to be trained, and of those with names of their own."""
    arms = []
    for name, variant in VARIANTS.items():
        method = None
        if name in others:
            check_variant(name, others[name].resolver)
            # Pure noise needs steps even for its most faithful output.
            options = {"num_steps": 8} if variant.setting.startswith("noise") else {}
            method = others[name].method(name, **options)
        arms.append(Arm(variant.question, variant.setting, method))
    own = [name for name in others if name not in VARIANTS]
    return arms + [Arm(OTHER, name, others[name].method(name)) for name in own]


def choose(arms: Sequence[Arm], words: Sequence[str] | None) -> list[Arm]:
    """The reference, and the arms of questions that a word is part of; UsageError for others."""
    if words is None:
        return list(arms)
    if unknown := [word for word in words if not any(word in name for name in QUESTIONS)]:
        raise UsageError(f"--questions: {unknown[0]!r} is part of none of {', '.join(QUESTIONS)}.")
    return [arms[0], *(arm for arm in arms if any(word in arm.question for word in words))]


def methods_of(arms: Sequence[Arm]) -> list[Method]:
    """What has to be computed, each once, with the baselines that gains are stated over."""
    chosen = [method for method in BASELINES if method.name in ("cubic", "back-projection")]
    known = {(m.name, m.version) for m in chosen}
    for arm in arms:
        if arm.method is not None and (arm.method.name, arm.method.version) not in known:
            known.add((arm.method.name, arm.method.version))
            chosen.append(arm.method)
    return chosen


COLUMNS = (
    "question", "setting", "method", "version", "rows", "psnr", "over_reference",
    "worst_over_reference", "by_protocol", "over_cubic", "over_back_projection", "worst_flicker",
    "band_correlation", "band_power", "worst_residual", "seconds",
)  # fmt: skip


def summarise(arms: Sequence[Arm], rows: Sequence[Row]) -> list[Row]:
    """One entry for each arm: means over heads and protocols, paired with the reference's.

    Entries of models that were not given, or whose rows are not there, have no figures.
    """
    table: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
    for row in rows:
        where = table.setdefault((row["method"], row["version"]), {})
        where[(row["head"], row["protocol"])] = row
    versions = {method.name: method.version for method in BASELINES}
    reference = arms[0].method
    assert reference is not None
    entries = []
    for arm in arms:
        entry: Row = {"question": arm.question, "setting": arm.setting}
        if arm.method is not None:
            entry |= {"method": arm.method.name, "version": arm.method.version}
            own = table.get((arm.method.name, arm.method.version), {})
            against = {
                "reference": table.get((reference.name, reference.version), {}),
                "cubic": table.get(("cubic", versions["cubic"]), {}),
                "back_projection": table.get(("back-projection", versions["back-projection"]), {}),
            }
            entry |= _figures(own, against)
        entries.append(entry)
    return entries


def _figures(own: dict[tuple[str, str], Row], against: dict[str, dict[Any, Row]]) -> Row:
    keys = [key for key in own if all(key in table for table in against.values())]
    if not keys:
        return {}
    gains = {
        name: [own[key]["psnr"] - table[key]["psnr"] for key in keys]
        for name, table in against.items()
    }
    entry: Row = {"rows": len(keys)}
    for name in ("psnr", "band_correlation", "band_power", "seconds"):
        entry[name] = float(np.mean([own[key][name] for key in keys]))
    for name, values in gains.items():
        entry[f"over_{name}"] = float(np.mean(values))
    protocols = list(dict.fromkeys(protocol for _, protocol in keys))
    parts = [
        [gain for gain, key in zip(gains["reference"], keys, strict=True) if key[1] == protocol]
        for protocol in protocols
    ]
    entry["by_protocol"] = " ".join(
        f"{protocol}:{np.mean(part):+.3f}" for protocol, part in zip(protocols, parts, strict=True)
    )
    entry["worst_over_reference"] = float(min(gains["reference"]))
    entry["worst_flicker"] = float(max(own[key]["flicker"] for key in keys))
    entry["worst_residual"] = float(max(own[key]["residual"] for key in keys))
    return entry
