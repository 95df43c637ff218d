# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the machine in Amaranth. Imports `hwgen.arch` and nothing else of hwgen."""
