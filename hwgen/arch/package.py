# SPDX-License-Identifier: Apache-2.0
"""The contract room: the accelerator as a packaged IP: its name, and what its parameters tell.

The hardware room packages it for Vivado under this name; the host room finds it by the name in an
overlay. The parameters are not of the hardware: they ride along in the overlay's .hwh file, so that
software knows the configuration before it touches a register.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import ISA_VERSION

IP_VENDOR = "shears"
IP_LIBRARY = "shears"
IP_NAME = "accelerator"
IP_VERSION = "1.0"
IP_VLNV = f"{IP_VENDOR}:{IP_LIBRARY}:{IP_NAME}:{IP_VERSION}"

DIGEST_PARAMETER = "CONFIG_DIGEST"
ISA_PARAMETER = "ISA_VERSION"


def ip_parameters(config: AcceleratorConfig) -> dict[str, str]:
    """Return the IP's parameters: digest, instruction set version, each field in upper case."""
    return {
        DIGEST_PARAMETER: f"0x{config.digest():016x}",
        ISA_PARAMETER: str(ISA_VERSION),
        **{name.upper(): str(value) for name, value in config.to_dict().items()},
    }


def config_of(parameters: Mapping[str, str]) -> AcceleratorConfig:
    """Rebuild the configuration from an IP's parameters; others among them are ignored.

    Raises
    ------
    ValueError
        When one is missing or is no number, the instruction set is another one, or the digest is
        not that of the fields.
    """
    names = [field.name for field in fields(AcceleratorConfig)]
    missing = sorted({DIGEST_PARAMETER, ISA_PARAMETER, *map(str.upper, names)} - set(parameters))
    if missing:
        raise ValueError(f"the IP must have the parameters {missing}; build its bitstream again")
    version = int(parameters[ISA_PARAMETER], 0)
    if version != ISA_VERSION:
        raise ValueError(f"the IP's instruction set version must be {ISA_VERSION}, not {version}")
    config = AcceleratorConfig(**{name: int(parameters[name.upper()], 0) for name in names})
    digest = int(parameters[DIGEST_PARAMETER], 0)
    if digest != config.digest():
        raise ValueError(
            f"the IP's digest must be that of its parameters, {config.digest():016x}, not "
            f"{digest:016x}; build its bitstream again"
        )
    return config
