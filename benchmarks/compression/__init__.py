# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: compression, measured on real data."""
