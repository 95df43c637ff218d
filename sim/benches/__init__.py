# SPDX-License-Identifier: Apache-2.0
"""The simulation room: cocotb benches, one a block."""
