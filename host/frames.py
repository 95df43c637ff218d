# SPDX-License-Identifier: Apache-2.0
"""The host room: frames in DMA memory, where a camera puts them and the accelerator finds them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from host.board import active_device, answering, import_pynq
from host.errors import AllocationError
from hwgen.arch.frames import pitch_of

ADDRESS_LIMIT = 1 << 32
"""Of what the accelerator reaches: its addresses have 32 bits."""


class Frame:
    """A picture in DMA memory: uint8 (height, width, channels), rows a multiple of 8 bytes apart.

    What the processor writes to `pixels` stays in its cache until `flush`; what a DMA engine
    writes needs none, but `invalidate` before the processor looks at it.

    Parameters
    ----------
    height, width, channels
        Size of the picture.
    device
        A pynq Device; None is the board this runs on.

    Attributes
    ----------
    pixels
        The picture, a view of the DMA memory: write to it.
    pitch_bytes
        From one row to the next.
    device
        The pynq Device that it is on.

    Raises
    ------
    ValueError
        For a size below one.
    AllocationError
        When the board has no memory for it, or none that the accelerator reaches.
    DeviceNotFound
        When there is no board.
    """

    def __init__(self, height: int, width: int, channels: int = 3, device: Any = None) -> None:
        if min(height, width, channels) < 1:
            raise ValueError(
                f"a frame must have at least one pixel and channel, not {height!r} x {width!r} x "
                f"{channels!r}"
            )
        self.shape = (height, width, channels)
        self.pitch_bytes = pitch_of(width, channels)
        target = self.device = active_device() if device is None else device
        size = height * self.pitch_bytes
        try:
            self._buffer = import_pynq().allocate((size,), dtype="u1", target=target)
        except Exception as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise AllocationError(
                f"no DMA memory for a frame of {height} x {width} x {channels}: {size} bytes "
                f"refused ({reason}); close other frames and accelerators, or enlarge the board's "
                "CMA"
            ) from error
        if self.address + size > ADDRESS_LIMIT:
            place = self.address
            self._buffer.freebuffer()
            raise AllocationError(f"a frame must lie below 4 GiB, not at {place:#x}")
        rows = np.asarray(self._buffer).reshape(height, self.pitch_bytes)
        self.pixels: NDArray[np.uint8] = rows[:, : width * channels].reshape(self.shape)

    @property
    def address(self) -> int:
        """DDR address of the first pixel.

        Raises
        ------
        ValueError
            When the frame is closed.
        """
        return int(self._opened().device_address)

    def write(self, picture: ArrayLike) -> None:
        """Copy a picture in, and flush it.

        Raises
        ------
        ValueError
            For another shape or dtype than the frame's.
        """
        array = np.asarray(picture)
        if array.dtype != np.uint8 or array.shape != self.shape:
            raise ValueError(
                f"a picture for this frame must be uint8 {self.shape} (H, W, C), not "
                f"{array.dtype} {array.shape}"
            )
        self.pixels[:] = array
        self.flush()

    def flush(self) -> None:
        """Make the accelerator see what the processor wrote.

        Raises
        ------
        ValueError
            When the frame is closed.
        TransportError
            When the device does not answer.
        """
        buffer = self._opened()
        with answering("copying a frame"):
            buffer.flush()

    def invalidate(self) -> None:
        """Make the processor see what a DMA engine wrote; what was not flushed is lost.

        Raises
        ------
        ValueError
            When the frame is closed.
        TransportError
            When the device does not answer.
        """
        buffer = self._opened()
        with answering("reading a frame"):
            buffer.invalidate()

    def _opened(self) -> Any:
        """Return the DMA buffer, unless it was freed."""
        if self._buffer is None:
            raise ValueError("a frame must not be used after close(); make another")
        return self._buffer

    def close(self) -> None:
        """Free the DMA memory; `pixels` must not be used any more. Again does nothing."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self.pixels = np.zeros((0, 0, 0), dtype=np.uint8)
            buffer.freebuffer()

    def __enter__(self) -> Frame:
        """Return the frame; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


class FramePool:
    """Frames that pictures are copied to, kept for pictures of the same shape; one pool a device.

    Several threads may borrow at once.

    Parameters
    ----------
    device
        A pynq Device; None is the board this runs on.
    """

    def __init__(self, device: Any = None) -> None:
        self._device = device
        self._idle: list[Frame] = []
        self._lock = threading.Lock()

    @contextmanager
    def borrowed(self) -> Iterator[Callable[[NDArray[np.uint8]], Frame]]:
        """Give a function that copies a picture to a frame; the block's end takes them all back.

        One is kept, since pictures mostly come one at a time. The function raises as `Frame`.
        """
        mine: list[Frame] = []

        def copy(picture: NDArray[np.uint8]) -> Frame:
            frame = self._take(picture.shape)
            mine.append(frame)
            frame.write(picture)
            return frame

        try:
            yield copy
        finally:
            with self._lock:
                self._idle, rest = (mine + self._idle)[:1], (mine + self._idle)[1:]
            _close(rest)

    def _take(self, shape: tuple[int, ...]) -> Frame:
        """Return an idle frame of this shape, or a new one."""
        with self._lock:
            idle, self._idle = self._idle, []
        if idle and idle[0].shape == shape:
            return idle[0]
        _close(idle)  # pictures have another shape now
        return Frame(shape[0], shape[1], shape[2], self._device)

    def close(self) -> None:
        """Free every frame that is not lent."""
        with self._lock:
            idle, self._idle = self._idle, []
        _close(idle)


def _close(frames: list[Frame]) -> None:
    while frames:
        frames.pop().close()
