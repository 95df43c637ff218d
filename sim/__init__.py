# SPDX-License-Identifier: Apache-2.0
"""The simulation room: benches, runner and the simulated board."""
