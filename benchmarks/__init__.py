# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: what Shears is measured by, each by one command."""
