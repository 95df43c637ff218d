# SPDX-License-Identifier: Apache-2.0
"""The host room: waiting for the accelerator's interrupt, through pynq's own `Interrupt`.

pynq's `Interrupt` is a coroutine, and the UIO device under it belongs to the event loop that ran
when it was opened. So one loop, in a thread of its own, opens and awaits them all: it outlives
every `asyncio.run` of the caller, and `Accelerator.run` needs no loop at all.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from host.errors import InterruptUnavailable

T = TypeVar("T")

LOG = logging.getLogger("shears.host")

_START_TIMEOUT_S = 5.0
_RETRY_S = 1e-3
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_loop_process = 0


class InterruptLine:
    """One interrupt pin of the active device's overlay.

    Parameters
    ----------
    pin
        Full name of the pin in the block design, for `pynq.Interrupt`.

    Attributes
    ----------
    interrupts
        How often `wait` saw the interrupt.

    Raises
    ------
    InterruptUnavailable
        When pynq finds no such pin in its active device, or no UIO device behind it.
    """

    def __init__(self, pin: str) -> None:
        self.pin = pin
        self.interrupts = 0
        self.renew()

    def renew(self) -> None:
        """Ask pynq for the interrupt anew, as after loading a bitstream; raises as making one."""
        try:
            self._interrupt = in_loop(self._make(), _START_TIMEOUT_S)
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError) as error:
            # As various as what pynq raises where a kernel has no UIO device for the interrupt.
            raise InterruptUnavailable(
                f"pynq gives no interrupt {self.pin!r}: {type(error).__name__}: {error}; load the "
                "overlay on pynq's active device, as root, or use wait='poll'"
            ) from error

    async def _make(self) -> Any:
        from pynq import Interrupt

        return Interrupt(self.pin)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the interrupt, at most `timeout_s`; returns whether it came.

        An interrupt that was raised before the call counts, one that was left over from before the
        run too: look at STATUS afterwards.
        """

        async def waiting() -> bool:
            try:
                await asyncio.wait_for(self._interrupt.wait(), timeout_s)
            except asyncio.TimeoutError:
                return False
            return True

        try:
            came = in_loop(waiting(), timeout_s + _START_TIMEOUT_S)
        except (RuntimeError, OSError) as error:  # the overlay was loaded anew, the UIO device went
            LOG.warning("waiting for interrupt %r: %s", self.pin, error)
            time.sleep(min(timeout_s, _RETRY_S))
            return False
        self.interrupts += came
        return came


def in_loop(coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Run a coroutine in the loop of interrupts and return what it returns.

    Raises
    ------
    RuntimeError
        When the loop does not come to it in time, as when a callback of somebody else blocks it.
    """
    future = asyncio.run_coroutine_threadsafe(coroutine, _running_loop())
    try:
        return future.result(timeout_s)
    except concurrent.futures.TimeoutError:
        raise RuntimeError(f"the loop of interrupts did not answer in {timeout_s:g} s") from None
    finally:
        future.cancel()  # after KeyboardInterrupt too; done already, it stays as it is


def _running_loop() -> asyncio.AbstractEventLoop:
    """Return the loop, started on first use and again in a forked process."""
    global _loop, _loop_process
    with _lock:
        if _loop is None or _loop_process != os.getpid():
            _loop, _loop_process = asyncio.new_event_loop(), os.getpid()
            thread = threading.Thread(
                target=_serve, args=(_loop,), name="shears-interrupts", daemon=True
            )
            thread.start()
        return _loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)  # pynq asks for it when it closes a UIO device
    loop.run_forever()
