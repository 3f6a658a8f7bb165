# SPDX-License-Identifier: Apache-2.0
from bids_moediff.inference.simple import super_resolve as super_resolve
from bids_moediff.inference.super_resolver import SuperResolver as SuperResolver

__version__: str
