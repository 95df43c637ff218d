# SPDX-License-Identifier: Apache-2.0
"""The passes room: one file a pass, one ordered list in `hwgen.passes.pipeline`."""
