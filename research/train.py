# SPDX-License-Identifier: Apache-2.0
"""``python -m research.train``: ``bids_moediff-train`` with the stages and recipes of the lab."""

import sys

from bids_moediff.cli.train import main

from .catalogue import catalogue

if __name__ == "__main__":
    sys.exit(main(catalogue=catalogue()))
