"""Shared memory that cannot leak, cannot change its size and cannot be written by those who may only read."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from ipc import memory
from ipc.errors import MemoryTooSmall

SIZE = 1 << 20


@pytest.fixture
def segment():
    fd = memory.create("test", SIZE)
    yield fd
    os.close(fd)


def test_what_one_maps_and_writes_another_reads(segment):
    reader = memory.attach(memory.reopen_read_only(segment), SIZE, writable=False)
    memory.attach(segment, SIZE, writable=True)[100:105] = b"hello"
    assert reader[100:105] == b"hello"


def test_a_new_segment_is_empty(segment):
    assert not any(memory.attach(segment, SIZE, writable=False)[:])


def test_a_readers_descriptor_refuses_a_writable_mapping(segment):
    with pytest.raises(PermissionError):
        memory.attach(memory.reopen_read_only(segment), SIZE, writable=True)


def test_a_readers_mapping_refuses_writes(segment):
    reader = memory.attach(memory.reopen_read_only(segment), SIZE, writable=False)
    with pytest.raises(TypeError):
        reader[0] = 1


@pytest.mark.parametrize("size", [SIZE - 4096, SIZE + 4096, 0])
def test_nobody_can_change_its_size(segment, size):
    with pytest.raises(PermissionError):
        os.ftruncate(segment, size)


def test_it_is_allocated_in_full_from_the_start(segment):
    assert os.fstat(segment).st_blocks * 512 >= SIZE


def test_it_has_no_name_that_could_be_left_behind(segment):
    before = set(os.listdir("/dev/shm"))
    other = memory.create("test", SIZE)
    assert set(os.listdir("/dev/shm")) == before
    assert os.fstat(other).st_ino != os.fstat(segment).st_ino, "the same name twice is two segments"
    assert os.fstat(other).st_nlink == 0
    os.close(other)


def test_children_get_it_only_when_it_is_passed_on(segment):
    code = "import os, sys; print(os.path.exists(f'/proc/self/fd/{sys.argv[1]}'))"
    command = [sys.executable, "-c", code, str(segment)]
    assert subprocess.check_output(command, text=True).strip() == "False"
    assert subprocess.check_output(command, text=True, pass_fds=[segment]).strip() == "True"


def test_too_little_memory_is_an_error_that_names_the_knob_and_leaks_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, limits[1]))  # the kernel refuses to allocate a longer file
    try:
        with pytest.raises(MemoryTooSmall, match=r"4 MiB .* gateway .*ring_budget_bytes"):
            memory.create("gateway", 4 * SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(os.listdir("/proc/self/fd")) == before
