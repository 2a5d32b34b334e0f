"""The arbiter dies while a model loads and its neighbour runs: the load keeps its turn and its bytes.

The true device is the stand-in driver's. A load is looked at in two moments: everything is granted and nothing taken
yet, so that only the book knows of it; and the model is there, but nobody has been told.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.standin_driver import GIB, Driver, Gpu
from engine.node import Node
from tests.node.living import state
from tests.node.rehearsal import Marks, assert_in_order, config, kill, process_of, wait_until
from tests.node.test_standin_gpus import CONTEXT, MIB, gpus  # noqa: F401 - a fixture

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc"),
    pytest.mark.timeout(240),
]

TOTAL = 8 * GIB
WEIGHTS, RUN = {"asr": GIB, "nmt": 3 * GIB}, 128 * MIB
LOADER = "nmt@cuda:0/0"
PATIENCE_S = 60.0  # of this test, on a machine with other things to do
GREEDY, MODEST = 3.5, 0.25  # GiB: what has no room beside the load, whatever of it the driver shows, and what has
PROGRAM = """
import ctypes, os, sys
library = ctypes.CDLL("libnvidia-ml.so.1")
library.standin_allocate.restype = ctypes.c_int64
library.standin_allocate.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
nbytes = int(os.environ["DRAGOMAN_LEASE_BYTES"]) - CONTEXT
print(library.standin_allocate(os.environb[b"CUDA_VISIBLE_DEVICES"], nbytes) > 0, flush=True)
sys.stdin.read()
""".replace("CONTEXT", str(CONTEXT))


def on_two_gpus() -> dict[str, Any]:
    """Loader and neighbour on the first, where they stay whoever wants their memory; the second is empty."""
    return config(
        sleep_ms=10.0,
        options={name: {"vram_bytes": nbytes, "vram_run_bytes": RUN} for name, nbytes in WEIGHTS.items()},
        stages={
            name: {"devices": ["cuda:0"], "max_batch": 2, "estimate_bytes": nbytes + 2 * RUN + CONTEXT, "pinned": True}
            for name, nbytes in WEIGHTS.items()
        },
        deadlines={"silent_s": 60.0},  # who is stopped for a while is not taken for hung
    )


@contextmanager
def neighbour_at_work(node: Node) -> Iterator[list[Any]]:
    """The neighbour runs batches until the end of the block; their outcomes."""
    outcomes: list[Any] = []
    over = threading.Event()

    def work() -> None:
        marks = Marks()
        with (
            node.client() as client,
            client.session(source="en", target="de", tag="n", pipeline="transcribe") as session,
        ):
            while not over.is_set():
                for _ in range(8):
                    session.submit(marks.make("n", len(marks.sent)))
                outcomes.extend(session.outcomes(timeout_s=30.0))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield outcomes
    finally:
        over.set()
        thread.join(60.0)
        assert not thread.is_alive()


def program(node: Node, ends: ExitStack, gib: float, device: str) -> subprocess.Popen[str]:
    """A program that waits for a lease and then takes all of it."""
    command = [
        sys.executable, "run_node.py", "lease", "--connect", node.ctl_endpoint, "--gib", str(gib + CONTEXT / GIB),
        "--device", device, "--", sys.executable, "-c", PROGRAM,
    ]  # fmt: skip
    child = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    ends.callback(child.communicate)
    ends.callback(child.kill)
    return child


def waits(child: subprocess.Popen[str], why: str) -> None:
    """Why is said, perhaps after other lines."""
    assert child.stderr is not None
    assert any(why in line for line in child.stderr), "it has ended"


def wait_for_the_load(node: Node, *children: subprocess.Popen[str]) -> bool:
    """Whether the arbiter of now knows of these programs, and has them wait for the loader."""
    rows = {row["worker"].partition("/")[0]: row["reason"] for row in node.stats()["arbiter"]["waiting"]}
    return all(f"waiting for {LOADER} to load" in rows.get(f"lease@{child.pid}", "") for child in children)


def has_taken_its_lease(child: subprocess.Popen[str]) -> bool:
    """Once it has been granted."""
    assert child.stdout is not None and child.stderr is not None
    said = child.stdout.readline()
    assert said, child.stderr.read()
    return said == "True\n"


def second_life(node: Node) -> int:
    """The loader's second process; 0 before it is there."""
    rows = node.stats()["processes"]
    return next((row["pid"] for row in rows if row["role"] == LOADER and row["incarnation"] == 2), 0)


def has_followed(node: Node, first: int) -> bool:
    """Whether another arbiter than that process has reported."""
    stats = node.stats()
    here = [row["pid"] for row in stats["processes"] if row["role"] == "arbiter"]
    return here not in ([], [first]) and "devices" in stats["arbiter"]


def granted(node: Node) -> int:
    """Bytes of all leases on the first GPU, by the arbiter's newest report."""
    leases = [row for row in node.stats()["leases"] if row["device"] == "cuda:0"]
    total = sum(max(row["nbytes"], row["held_bytes"]) for row in leases)
    assert total <= TOTAL, leases
    return total


@pytest.mark.parametrize(("moment", "taken"), [("granted", 0), ("loaded", WEIGHTS["nmt"] + CONTEXT)])
def test_an_arbiter_that_dies_in_a_load_grants_nobody_its_bytes_or_its_turn(
    moment: str,
    taken: int,
    gpus: Callable[..., Driver],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = gpus(*[Gpu(total_bytes=TOTAL, context_bytes=CONTEXT)] * 2, lag_s=0.1)
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", f"worker.{moment}=stop@1:nmt#2")
    with Node(on_two_gpus()) as node, ExitStack() as ends, neighbour_at_work(node) as outcomes:
        kill(process_of(node, LOADER)["pid"])
        loader = wait_until(lambda: second_life(node), PATIENCE_S)
        wait_until(lambda: state(loader) == "T", PATIENCE_S)  # there it stays until we let it go on
        assert driver.holders(0).get(loader, 0) == taken
        greedy = program(node, ends, GREEDY, "cuda:0")
        waits(greedy, f"waiting for {LOADER} to load")
        modest = program(node, ends, MODEST, "cuda:0")
        waits(modest, f"waiting for {LOADER} to load")

        before, first = len(outcomes), process_of(node, "arbiter")["pid"]
        kill(first)
        wait_until(lambda: has_followed(node, first), PATIENCE_S)
        assert has_taken_its_lease(program(node, ends, GREEDY, "cuda:1")), "it grants what has room, in mid-load"
        wait_until(lambda: wait_for_the_load(node, greedy, modest), PATIENCE_S)  # both have asked again
        wait_until(lambda: len(outcomes) > before, PATIENCE_S)  # the neighbour runs on
        assert driver.holders(0).get(loader, 0) == taken and state(loader) == "T"
        assert granted(node)

        kill(loader, signal.SIGCONT)
        assert has_taken_its_lease(modest), "the next grant, as soon as the load is through"
        assert driver.holders(0)[loader] >= WEIGHTS["nmt"] + CONTEXT
        waits(greedy, "needs 3.8 GiB on cuda:0")  # it never had room
        wait_until(lambda: process_of(node, LOADER)["phase"] == "loaded", PATIENCE_S)
        assert granted(node)
        assert [(one["role"], one["incarnation"]) for one in node.stats()["deaths"]] == [(LOADER, 1), ("arbiter", 1)]
    assert {one.outcome for one in outcomes} == {"ok"}
    assert_in_order(outcomes)
    for number in range(2):
        assert driver.get(number, "out_of_memory") == 0 and driver.get(number, "peak_bytes") <= TOTAL
