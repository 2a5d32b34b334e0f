"""Memory of the one GPU that a simulated stage's process sees, taken in the stand-in driver.

The stand-in (``bench/standin_driver.py``) is loaded under NVML's own name, because that is how a process finds
whichever driver there is. A real driver has no such calls: it is told apart by that, and nothing is taken on it.
"""

from __future__ import annotations

import ctypes
import os

from stages.base import StageError

LIBRARY = "libnvidia-ml.so.1"
OUT_OF_MEMORY = -1
REASONS = {
    -2: "there is no such GPU",
    -3: "the GPU is lost",
    -4: "the GPU's compute mode admits no further process",
    -5: "the stand-in driver's book is full",
    -7: "STANDIN_NVML_STATE names no state file of the stand-in driver",
}


class Vram:
    """What this process holds. ``open`` before the first ``take``."""

    def __init__(self) -> None:
        self._library: ctypes.CDLL | None = None
        self._gpu = b""

    def open(self) -> None:
        """Load the driver. Raises StageError("bad_model") where it is not the stand-in."""
        try:
            library = ctypes.CDLL(LIBRARY)
            library.standin_allocate.restype = ctypes.c_int64
            library.standin_allocate.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
            library.standin_free.argtypes = [ctypes.c_int64]
        except (OSError, AttributeError) as error:
            raise StageError("bad_model", "vram_bytes needs the stand-in driver: see docs/operations.md") from error
        self._library = library
        self._gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].encode()

    def take(self, nbytes: int) -> int:
        """Allocate; returns a handle for ``give_back``. Raises StageError: "oom" (retry) or "failed"."""
        assert self._library is not None, "take before open"
        handle = self._library.standin_allocate(self._gpu, nbytes)
        if handle > 0:
            return handle
        if handle == OUT_OF_MEMORY:
            raise StageError("oom", f"out of memory: no {nbytes} bytes on {self._gpu.decode()}", retry=True)
        raise StageError("failed", f"no memory on {self._gpu.decode()!r}: {REASONS.get(handle, handle)}", retry=True)

    def give_back(self, handle: int) -> None:
        """Free what ``take`` returned."""
        assert self._library is not None, "give_back before open"
        self._library.standin_free(handle)
