# SPDX-License-Identifier: Apache-2.0
"""bids_moediff: a BIDS App that super-resolves brain MRI without making things up."""

import os

__version__ = "0.1.0"

# Threads of OpenMP turn in a loop while they wait for one another, some milliseconds by default:
# where anything else runs on the same processors, networks then take twenty times as long. Read
# when torch is loaded; a wait policy of the user's own stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
