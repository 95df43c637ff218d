# SPDX-License-Identifier: Apache-2.0
"""Room tests: a regular package, or the `tests` that pynq installs would be found instead."""
