"""Two nodes and one GPU: the second waits and is told for whom, unless both are told to share it."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.standin_driver import GIB, Driver, Gpu
from engine.node import Node
from engine.supervisor.claims import Claims
from ipc.errors import ConfigError, DragomanError
from tests.node.rehearsal import config, process_of, wait_until
from tests.node.test_standin_gpus import CONTEXT, gpus, translate, two  # noqa: F401 - a fixture
from tests.node.unkillable import stuck_in_its_exit

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")

Gpus = Callable[..., Driver]


def on(device: str, wait_s: float = 0.05, **rest: Any) -> dict[str, Any]:
    """A node whose translation is on a GPU."""
    return config(
        stages={"nmt": {"devices": [device], "estimate_bytes": 4 * GIB + CONTEXT}},
        options={"nmt": {"vram_bytes": 4 * GIB}},
        deadlines={"gpu_wait_s": wait_s},
        **rest,
    )


def claimed(driver: Driver) -> list[str]:
    """What is claimed of this driver's GPUs, by the kernel's list."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return [line for line in lines if any(f"@dragoman/{uuid}" in line for uuid in driver.uuids)]


def test_a_second_node_waits_is_told_for_whom_and_another_gpu_is_free(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(*two())
    with Node(on("cuda:0")) as first:
        with pytest.raises(DragomanError) as refused, Node(on("cuda:0")):
            pass
        assert f"cuda:0 ({driver.uuids[0]}) is in use by node " in refused.value.text
        assert f"/{first.name} (pid {first.pid})" in refused.value.text and "devices.share" in refused.value.mend
        assert "\n" not in str(refused.value)
        with Node(on("cuda:1")) as other:
            assert {o.outcome for o in translate(other, 1)} == {"ok"}
        assert {o.outcome for o in translate(first, 1)} == {"ok"}
    assert not claimed(driver)


@pytest.mark.parametrize(("taken", "held"), [(0, []), (7, range(7))], ids=["the first", "the last"])
def test_gpus_are_claimed_in_one_order_whatever_they_are_called(
    taken: int,
    held: Sequence[int],
    gpus: Gpus,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else two nodes that each want some of the same GPUs could each have what the other one waits for."""
    driver = gpus(*[Gpu()] * 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,6,5,4,3,2,1,0")
    somebody, seen = Claims(tmp_path), []

    def news(text: str) -> None:
        lines = claimed(driver)
        seen.append((text, {n for n, uuid in enumerate(driver.uuids) if any(uuid in line for line in lines)}))

    assert somebody.take(driver.uuids[taken]) == ""
    wanted = config(stages={"nmt": {"devices": [f"cuda:{n}" for n in range(8)]}}, deadlines={"gpu_wait_s": 0.3})
    with pytest.raises(DragomanError, match=f"cuda:{7 - taken} .* is in use by"), Node(wanted, news=news):
        pass
    assert [claims - {taken} for text, claims in seen if "waiting for" in text] == [set(held)]
    somebody.close()


def test_nodes_with_different_temporary_folders_see_each_other_s_claims(
    gpus: Gpus,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = gpus(*two())
    with Node(on("cuda:0")) as first:
        assert claimed(driver)
        with monkeypatch.context() as other:
            other.setenv("TMPDIR", str(tmp_path))
            other.setenv("XDG_RUNTIME_DIR", "")
            with pytest.raises(DragomanError, match=rf"/{first.name} \(pid {first.pid}\)"), Node(on("cuda:0")):
                pass
            with Node(on("cuda:1")) as second:
                assert second.ctl_endpoint.startswith(f"ipc://{tmp_path}")
                assert {o.outcome for o in translate(second, 1)} == {"ok"}
    assert not claimed(driver)


def test_it_starts_when_the_first_one_ends(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(*two())
    second = Node(on("cuda:0", wait_s=60.0))
    with Node(on("cuda:0")):
        starting = threading.Thread(target=second.start)
        starting.start()
        wait_until(lambda: second._process is not None)
    starting.join(60)
    try:
        assert not starting.is_alive() and {o.outcome for o in translate(second, 1)} == {"ok"}
    finally:
        second.close()
    assert not claimed(driver)


def test_a_killed_node_s_gpu_is_free_when_the_last_of_its_workers_is_gone(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(*two())
    first = Node(on("cuda:0")).start()
    worker = process_of(first, "nmt@cuda:0/0")["pid"]
    with stuck_in_its_exit(worker):
        os.kill(first.pid, signal.SIGKILL)
        first.wait(10)
        with pytest.raises(DragomanError) as refused, Node(on("cuda:0")):
            pass
        assert "is in use by what is left of node " in refused.value.text and driver.truth(0) > 0
    first.close()
    with Node(on("cuda:0", wait_s=10.0)) as second:
        assert {o.outcome for o in translate(second, 1)} == {"ok"}


def device(node: Node) -> dict:
    return node.stats()["arbiter"]["devices"]["cuda:0"]


def test_two_nodes_that_say_so_share_a_gpu_each_within_its_part(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(Gpu(12 * GIB, context_bytes=CONTEXT))
    part = {"share": True, "max_bytes": {"cuda:0": 6 * GIB}}
    with Node(on("cuda:0", devices=part)) as first, Node(on("cuda:0", devices=part)) as second:
        for node in (first, second):
            assert {o.outcome for o in translate(node, 2)} == {"ok"}
            wait_until(lambda node=node: device(node)["foreign_bytes"] > 4 * GIB)
            # What is left of its part, of which the other takes nothing.
            wait_until(lambda node=node: 0 < device(node)["grantable_bytes"] < 2 * GIB)
        assert driver.truth(0) == 2 * (4 * GIB + CONTEXT)
        with pytest.raises(DragomanError, match="is in use by node"), Node(on("cuda:0")):
            pass
    assert not claimed(driver)


def test_who_shares_says_how_much_it_takes(gpus: Gpus) -> None:  # noqa: F811
    gpus(*two())
    with pytest.raises(ConfigError, match=r"devices\.share lets other nodes use cuda:0 too") as refused:
        Node(on("cuda:0", devices={"share": True})).start()
    assert "devices.max_bytes" in refused.value.mend
