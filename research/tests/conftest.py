# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the product's tests, for those of the lab."""

from conftest import shared_data as shared_data
