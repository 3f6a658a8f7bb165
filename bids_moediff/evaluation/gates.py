# SPDX-License-Identifier: Apache-2.0
"""Gains that a model must reach before it is released."""

from collections.abc import Sequence

from bids_moediff.imaging.protocols import PROTOCOLS, Protocol, parse_protocol

# Slice-to-slice differences over the truth's, above which flicker shows.
FLICKER_LIMIT = 1.05
# Another scanner or site may reach this share of the gates.
OTHER_SITE_SHARE = 0.8

# Mean gain in dB over cubic and over cubic + back-projection that a release has to reach.
GATES = {
    "x2iso-kspace": (2.2, 1.2),
    "x4slices-gaussian": (2.0, 1.4),
    "x2slices-gaussian": (1.8, 1.0),
    "x1.5iso-kspace": (1.6, 0.6),
}


def select_protocols(keys: Sequence[str] | None) -> list[Protocol]:
    """Return protocols by short names; ``gates`` is those with a gate, None the default."""
    if not keys:
        return list(PROTOCOLS)
    names = [name for key in keys for name in (GATES if key == "gates" else (key,))]
    return [parse_protocol(name) for name in dict.fromkeys(names)]
