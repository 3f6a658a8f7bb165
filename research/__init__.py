# SPDX-License-Identifier: Apache-2.0
"""The lab: measurements and training that no command of the app needs. Not in the wheel."""
