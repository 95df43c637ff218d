# SPDX-License-Identifier: Apache-2.0
"""The contract room: how many cycles the machine takes, as constants that the RTL must meet.

`rtl` asserts that its own latencies add up to these; `passes/schedule.py` relies on them for
correctness (read after write), `estimate` for speed.
"""

from __future__ import annotations

READ_AFTER_WRITE_CYCLES = 32
"""A step may read a scratchpad word this many cycles after the last step of the pixel it holds."""

MIN_STEP_GAP_CYCLES = 1
"""From one COMPUTE's last step to the next one's first, parameter rows not counted."""
