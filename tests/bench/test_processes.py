"""CPU is counted to the process that used it, with its threads and its children."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from bench import processes


def test_cpu_of_this_process_is_what_it_says_itself():
    assert processes.cpu_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.05)


def test_work_of_a_thread_that_has_ended_still_counts():
    before = processes.cpu_s(os.getpid())
    worker = threading.Thread(target=sum, args=(range(3_000_000),))
    worker.start()
    worker.join()
    assert processes.cpu_s(os.getpid()) - before > 0.005


def test_a_childs_children_belong_to_the_tree():
    start = "c = subprocess.Popen(['cat'], stdin=subprocess.PIPE); print(c.pid, flush=True)"
    command = [sys.executable, "-c", f"import subprocess, sys; {start}; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        grandchild = int(child.stdout.readline())
        try:
            assert set(processes.tree(child.pid)) == {child.pid, grandchild}
            assert {os.getpid(), child.pid, grandchild} <= set(processes.tree(os.getpid()))
        finally:
            child.stdin.close()


def test_a_process_that_is_not_there_is_an_error():
    with pytest.raises(OSError, match=r".*"):
        processes.cpu_s(2**22 - 3)
