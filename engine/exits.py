"""Exit codes of the node's processes and of the command line."""

from __future__ import annotations

OK = 0
FAILED = 1  # the node, or what was asked of it, failed
UNCAUGHT = 1  # also the interpreter's own code after an exception nobody caught
BOOT_FAILED = 3  # a process could not even start (import error, bad model); it is not retried for ever
ORPHANED = 4  # a process found its supervisor gone
PARKED = 5  # a worker was told to leave, for the sake of its memory; another life follows
FAULTED = 6  # a worker's device will not work for that process again (a sticky CUDA error); another life follows
CONFIGURATION = 78  # the configuration cannot be used
INTERRUPTED = 130  # stopped at once by a second signal
