# SPDX-License-Identifier: Apache-2.0
"""The host room: frames in DMA memory, where a camera puts them and the accelerator finds them."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from host.board import active_device, answering, import_pynq
from host.errors import AllocationError
from hwgen.arch.isa import BEAT_BYTES


class Frame:
    """A picture in DMA memory: uint8 (height, width, channels), rows a multiple of 8 bytes apart.

    What the processor writes to `pixels` stays in its cache until `flush`; what a DMA engine
    writes needs none.

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

    Raises
    ------
    ValueError
        For a size below one.
    AllocationError
        When the board has no memory for it.
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
        self.pitch_bytes = -(-width * channels // BEAT_BYTES) * BEAT_BYTES
        target = active_device() if device is None else device
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
        if self._buffer is None:
            raise ValueError("a frame must not be used after close(); make another")
        return int(self._buffer.device_address)

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
        if self._buffer is None:
            raise ValueError("a frame must not be used after close(); make another")
        with answering("copying a frame"):
            self._buffer.flush()

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

    Parameters
    ----------
    device
        A pynq Device; None is the board this runs on.
    """

    def __init__(self, device: Any = None) -> None:
        self._device = device
        self._idle: list[Frame] = []
        self._used: list[Frame] = []

    def copy(self, picture: NDArray[np.uint8]) -> Frame:
        """Return a frame that holds a picture, until `rewind`. Raises as `Frame`."""
        shape = picture.shape
        for frame in self._idle:
            if frame.shape == shape:
                self._idle.remove(frame)
                break
        else:
            _close(self._idle)  # pictures have another shape now
            frame = Frame(shape[0], shape[1], shape[2], self._device)
        self._used.append(frame)
        frame.write(picture)
        return frame

    def rewind(self) -> None:
        """Take all frames back; one is kept, since pictures mostly come one at a time."""
        self._idle, self._used = self._used + self._idle, []
        rest = self._idle[1:]
        self._idle = self._idle[:1]
        _close(rest)

    def close(self) -> None:
        """Free every frame."""
        _close(self._used)
        _close(self._idle)


def _close(frames: list[Frame]) -> None:
    while frames:
        frames.pop().close()
