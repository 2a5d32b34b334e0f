"""What was measured of a worker's model, as the supervisor takes it in."""

from __future__ import annotations

from pathlib import Path

from engine.corrections import Estimate, Subject
from engine.estimates import Start
from engine.supervisor.measuring import Measuring
from engine.supervisor.needs import Need
from ipc.messages import Measured

GIB = 2**30
GUESS = Start(4 * GIB, GIB, loaded_bytes=3 * GIB)
NEED = Need("k", Subject("asr", "asr", "", "NVIDIA L4", "default", 1), GUESS, Estimate(4 * GIB, "files"))


def test_a_load_that_was_read_when_its_model_had_left_is_shown_as_doubtful(tmp_path: Path) -> None:
    measuring = Measuring({"asr@cuda:0/0": (NEED,)}, tmp_path / "estimates.json")
    for nbytes, doubtful in ((3 * GIB, False), (300 * 2**20, True)):
        measuring.take(Measured("asr@cuda:0/0", "load", nbytes, 4 * GIB, True, "", 0), 1.0)
        assert bool(measuring.rows()[0]["last_measured_note"]) is doubtful
