"""What all of a simulated node shares: its stages, its times, and what it is called when a history ends badly."""

from __future__ import annotations

from engine.config import DeadlinesSection

PIPELINES = (("asr", "nmt", "tts"), ("asr", "nmt", "tts"), ("pass1", "pass2"))  # the last: samples from end to end
HANDED_ON = ("asr", "tts", "pass1")  # a worker reads in another worker's ring: of every tenth seed
SEVERAL, OTHER = 0.1, "b"  # share of the histories where a stage has a further model, and its name
DEADLINES = DeadlinesSection(
    heartbeat_s=1.0, silent_s=3.0, backoff_first_s=0.05, gap_s=10.0, budget_base_s=300.0, retry_delay_s=0.5,
    detach_s=20.0, keep_s=20.0,
)  # fmt: skip
KINDS = {"asr": ("audio", "text"), "nmt": ("text", "text"), "tts": ("text", "audio"),
         "pass1": ("audio", "same"), "pass2": ("audio", "same")}  # fmt: skip
CORES = ("scheduler", "gateway")
ARBITER = "arbiter"
MODEL_BYTES = 2**30  # of every model
MARGIN = 0.1
OUTPUT_BYTES = 60_000  # the longest result
PING_S = 0.5
LATEST_S = 300.0  # virtual; a history that takes longer has got stuck


class Stuck(AssertionError):
    """A history that does not end well: what is wrong, and the seed that shows it."""
