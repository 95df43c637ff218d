# SPDX-License-Identifier: Apache-2.0
"""The back-end room: quantized graph -> hls4ml, the same bits as a dataflow design.

hls4ml itself is imported when a project is built, not before.
"""

from hwgen.backends.hls4ml.project import BACKENDS, HlsProject, emit, hls4ml_version
from hwgen.backends.hls4ml.reuse import HlsEstimate, LayerEstimate, legal_reuse_factors
from hwgen.backends.hls4ml.types import DoesNotFit, HlsError, HlsMismatch, HlsRefusal

__all__ = [
    "BACKENDS",
    "DoesNotFit",
    "HlsError",
    "HlsEstimate",
    "HlsMismatch",
    "HlsProject",
    "HlsRefusal",
    "LayerEstimate",
    "emit",
    "hls4ml_version",
    "legal_reuse_factors",
]
