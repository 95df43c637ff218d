# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: measurements that take longer than a test, and their results."""
