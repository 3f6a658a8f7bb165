# SPDX-License-Identifier: Apache-2.0
"""Store the hyperparameters of a network, a frozen dataclass, as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self


class JsonConfig:
    """Mixin for a frozen dataclass of numbers, names and tuples of them."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the output of :meth:`to_dict`; ValueError names unknown keys."""
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown settings of {cls.__name__}: {', '.join(unknown)}")
        plain = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)
