"""Claims on GPUs: one node a GPU, unless both say that they share; they last as long as anybody has inherited them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.supervisor import claims as module
from engine.supervisor.claims import PLACES, Claims
from ipc.errors import DragomanError

NOBODY = 65534
HOLD = "import sys; print(flush=True); sys.stdin.read()"


@pytest.fixture
def gpu() -> str:
    """A GPU that no other test claims, here or at the same time."""
    return f"GPU-{uuid.uuid4()}"


def claims(node: str = "/run/a", shared: bool = False) -> Claims:
    return Claims(Path(node), shared=shared)


@contextmanager
def bound(name: str) -> Iterator[None]:
    """Somebody who is no node has bound a name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.bind(b"\0" + name.encode("utf-8", "surrogateescape"))
        yield


def test_a_gpu_is_one_node_s_and_the_other_is_told_whose(gpu: str) -> None:
    first, second = claims(), claims("/run/b")
    assert first.take(gpu) == "" and first.take(gpu) == ""
    assert second.take(gpu) == f"node /run/a (pid {os.getpid()})"
    assert second.take(f"{gpu}1") == ""
    first.close()
    assert second.take(gpu) == ""
    second.close()


def test_nodes_that_say_so_share_and_nobody_else_with_them(gpu: str) -> None:
    first, second, third = (claims(f"/run/{n}", shared=n != "c") for n in "abc")
    assert first.take(gpu) == second.take(gpu) == ""
    assert third.take(gpu) in [f"node /run/{name} (pid {os.getpid()})" for name in "ab"]
    first.close()
    assert "/run/b" in third.take(gpu)
    second.close()
    assert third.take(gpu) == ""
    assert "/run/c" in first.take(gpu)
    third.close()


def test_so_many_share_and_no_more(gpu: str) -> None:
    nodes = [claims(f"/run/{number}", shared=True) for number in range(PLACES + 1)]
    assert [node.take(gpu) for node in nodes[:-1]] == [""] * PLACES
    assert nodes[-1].take(gpu).startswith("node /run/")
    nodes[3].close()
    assert nodes[-1].take(gpu) == ""
    for node in nodes:
        node.close()


def test_whoever_comes_at_once_a_gpu_is_one_node_s_or_the_sharing_nodes(gpu: str) -> None:
    for _ in range(20):
        nodes = [claims(f"/run/{number}", shared=number % 2 == 0) for number in range(8)]
        with ThreadPoolExecutor(len(nodes)) as pool:
            told = list(pool.map(lambda node: node.take(gpu), nodes))
        have = [number for number, words in enumerate(told) if not words]
        assert len(have) == 1 or (have and all(number % 2 == 0 for number in have)), told
        for node in nodes:
            node.close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_claim_lasts_until_the_last_who_inherited_it_is_gone(shared: bool, gpu: str) -> None:
    first, second = claims(shared=shared), claims("/run/b")
    first.take(gpu)
    worker = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=first.fds(gpu)
    )
    assert worker.stdout is not None and worker.stdout.readline()
    first.close()
    assert "/run/a" in second.take(gpu)
    worker.kill()
    worker.wait()
    assert second.take(gpu) == ""
    second.close()


def test_what_a_dead_node_s_workers_hold_is_said_to_be_that(gpu: str) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with bound(f"dragoman/{gpu}"), bound(f"dragoman/{gpu} {gone.pid} /run/a"):
        assert claims("/run/b").take(gpu) == f"what is left of node /run/a (its pid {gone.pid} is gone)"


def test_whatever_the_folder_for_temporary_files_and_the_user(gpu: str, tmp_path: Path) -> None:
    first = claims()
    first.take(gpu)
    other = (
        "import os, sys; from pathlib import Path\n"
        "from engine.supervisor.claims import Claims\n"
        f"os.getuid() or os.setuid({NOBODY})\n"
        "print(Claims(Path('/run/b')).take(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", other, gpu], env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout == f"node /run/a (pid {os.getpid()})\n", done.stderr
    first.close()


def test_what_strangers_say_is_only_shown_and_the_claim_is_not_theirs_to_take(
    gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    for text in ("\udcff\x1b[2J", "", "12 /run/\x1b[2J", "x" * 40):
        with bound(f"dragoman/{gpu}"), bound(f"dragoman/{gpu} {text}"):
            assert claims().take(gpu) == "a process that does not say who it is"
    mine = claims()
    with bound(f"dragoman/{gpu} 12 /run/liar"):
        assert mine.take(gpu) == ""
    mine.close()


def test_of_a_long_path_the_end_is_told_and_what_is_no_plain_text_is_not(gpu: str) -> None:
    for path in ("/a/long/path" * 20 + "/dragoman/1a2b3c4d", "/tmp/\udcff\N{LATIN SMALL LETTER E WITH ACUTE}/1a2b3c4d"):
        first = claims(path)
        first.take(gpu)
        told = claims("/run/b").take(gpu)
        assert told.startswith("node ") and told.endswith(f"/1a2b3c4d (pid {os.getpid()})") and told.isascii()
        first.close()


def test_where_nothing_can_be_claimed_one_line_says_so(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PREFIX", "x" * 200)  # a name that the kernel does not take
    with pytest.raises(DragomanError, match=r"cannot claim a GPU by an abstract Unix socket \(") as refused:
        claims().take(gpu)
    assert "\n" not in str(refused.value)
