# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: ``python -m benchmarks`` runs every benchmark, one after the other."""

from __future__ import annotations

import sys

from benchmarks import accelerator

if __name__ == "__main__":
    sys.exit(accelerator.main(sys.argv[1:]))
