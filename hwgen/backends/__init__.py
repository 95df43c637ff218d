# SPDX-License-Identifier: Apache-2.0
"""The back-end room: from a quantized graph to what a tool or a machine takes."""
