# SPDX-License-Identifier: Apache-2.0
"""Find model families by name. A further family is a folder here and a line in ``OWN``.

A family may also come with another package: an entry point of the group ``bids_moediff.families``
names its :class:`~bids_moediff.families.protocol.Family`.
"""

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from bids_moediff.errors import WeightsError

if TYPE_CHECKING:
    from .protocol import Family

OWN = ("moediff", "student", "crfm", "nsmoe")
GROUP = "bids_moediff.families"


@cache
def family(name: Any) -> "Family":
    """Return the family of this name.

    Raises
    ------
    WeightsError
        For a family that this version does not know.
    """
    if name in OWN:
        found: Family = import_module(f"bids_moediff.families.{name}").FAMILY
        return found
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            further: Family = entry.load()
            return further
    known = ", ".join(OWN)
    raise WeightsError(f"unknown model family {name!r}; this version knows: {known}")
