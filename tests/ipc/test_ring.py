"""A reader gets exactly what was written for it, or is told that it cannot have it."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc import memory
from ipc.errors import StaleData
from ipc.ring import BLOCK, COUNTER_BITS, Ring, blocks_for, digest, generation, owner_of, payload_start, segment_bytes

BLOCKS = 600  # more than one page of marks
RATE = 16_000


@pytest.fixture
def ends():
    """The producer's and a consumer's mapping of one ring."""
    fd = memory.create("ring", segment_bytes(BLOCKS))
    reading = memory.reopen_read_only(fd)
    yield Ring("tts@cpu/0", fd, BLOCKS, writable=True), Ring("tts@cpu/0", reading, BLOCKS, writable=False)
    os.close(fd)
    os.close(reading)


def samples(count, dtype=np.int16):
    return np.arange(count).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("count", [1, 7, BLOCK // 4, BLOCK // 2 + 1, 3 * BLOCK])
def test_what_was_written_is_what_is_read(ends, dtype, count):
    producer, consumer = ends
    array = samples(count, dtype)
    ref = producer.write(2 * BLOCK, array.nbytes, generation(1, 1), array, RATE)
    assert np.array_equal(consumer.view(ref), array)
    assert consumer.copy(ref) == array.tobytes()
    assert (ref.ring, ref.dtype, ref.shape, ref.sample_rate) == ("tts@cpu/0", array.dtype.name, (count,), RATE)


def test_an_empty_array_is_a_slot_too(ends):
    producer, consumer = ends
    assert consumer.view(producer.write(0, BLOCK, generation(1, 1), samples(0), RATE)).shape == (0,)


def test_the_last_block_is_as_good_as_the_first(ends):
    producer, consumer = ends
    array = samples(BLOCK // 2)
    ref = producer.write((BLOCKS - 1) * BLOCK, BLOCK, generation(1, 1), array, RATE)
    assert np.array_equal(consumer.view(ref), array)


def test_neighbours_do_not_touch_each_other(ends):
    producer, consumer = ends
    refs = [
        producer.write(n * BLOCK, BLOCK, generation(1, n + 1), np.full(BLOCK // 2, n, np.int16), RATE) for n in range(8)
    ]
    for number, ref in enumerate(refs):
        assert set(consumer.view(ref)) == {number}


def test_a_slot_given_to_somebody_else_is_stale(ends):
    producer, consumer = ends
    old = producer.write(0, BLOCK, generation(1, 1), samples(100), RATE)
    producer.write(0, BLOCK, generation(1, 2), samples(100), RATE)
    for read in (consumer.view, consumer.copy, consumer.check):
        with pytest.raises(StaleData):
            read(old)
    assert not consumer.intact(old)


def test_a_long_slot_of_which_one_block_was_taken_over_is_stale(ends):
    producer, consumer = ends
    long = producer.write(0, 5 * BLOCK, generation(1, 1), samples(5 * BLOCK // 2), RATE)
    producer.write(4 * BLOCK, BLOCK, generation(1, 2), samples(1), RATE)
    with pytest.raises(StaleData):
        consumer.copy(long)


def test_a_writer_that_died_in_the_middle_leaves_nothing_readable(ends):
    producer, consumer = ends
    ref = producer.write(0, 3 * BLOCK, generation(1, 1), samples(3 * BLOCK // 2), RATE)
    producer._marks[1] = generation(1, 1) << 1  # as it stands before the payload is complete
    with pytest.raises(StaleData):
        consumer.view(ref)


def test_a_write_during_the_copy_is_noticed_after_it(ends):
    producer, consumer = ends
    ref = producer.write(0, BLOCK, generation(1, 1), samples(100), RATE)
    view = consumer.view(ref)
    producer.write(0, BLOCK, generation(1, 2), samples(100)[::-1].copy(), RATE)
    assert view[0] == 99 and not consumer.intact(ref)


def test_an_array_longer_than_its_slot_is_refused_and_nothing_is_written(ends):
    producer, consumer = ends
    neighbour = producer.write(BLOCK, BLOCK, generation(1, 1), samples(10), RATE)
    with pytest.raises(ValueError, match="do not fit"):
        producer.write(0, BLOCK, generation(1, 2), samples(BLOCK), RATE)
    assert consumer.intact(neighbour)


def test_a_reference_beyond_the_ring_is_stale_not_a_crash(ends):
    producer, consumer = ends
    ref = producer.write(0, BLOCK, generation(1, 1), samples(10), RATE)
    beyond = type(ref)(ref.ring, BLOCKS * BLOCK, 10, "int16", (5,), RATE, ref.generation)
    with pytest.raises(StaleData):
        consumer.view(beyond)


def test_consumers_and_stages_cannot_write(ends):
    producer, consumer = ends
    ref = producer.write(0, BLOCK, generation(1, 1), samples(10), RATE)
    for ring in ends:
        with pytest.raises(ValueError, match="read-only"):
            ring.view(ref)[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        consumer.write(0, BLOCK, generation(1, 2), samples(10), RATE)


def test_marks_and_payload_do_not_share_a_page():
    assert payload_start(BLOCKS) >= 8 * BLOCKS and payload_start(BLOCKS) % 4096 == 0
    assert segment_bytes(BLOCKS) - payload_start(BLOCKS) == BLOCKS * BLOCK


@pytest.mark.parametrize(("nbytes", "blocks"), [(0, 1), (1, 1), (BLOCK, 1), (BLOCK + 1, 2), (10 * BLOCK, 10)])
def test_blocks_of_a_slot(nbytes, blocks):
    assert blocks_for(nbytes) == blocks


@given(st.integers(1, 2**16 - 1), st.integers(0, 2**47 - 1))
def test_a_generation_names_its_owner_and_fits_a_mark(owner, counter):
    number = generation(owner, counter)
    assert owner_of(number) == owner
    assert number != 0 and number << 1 | 1 < 2**64


@given(st.integers(1, 99), st.integers(1, 99), st.integers(0, 99), st.integers(0, 99))
def test_generations_never_repeat(owner_a, owner_b, counter_a, counter_b):
    same = (owner_a, counter_a) == (owner_b, counter_b)
    assert (generation(owner_a, counter_a) == generation(owner_b, counter_b)) == same
    assert generation(1, 2**COUNTER_BITS - 1) < generation(2, 0)


@given(st.binary(max_size=200))
def test_a_digest_depends_on_bytes_alone(data):
    assert digest(data) == digest(np.frombuffer(data, np.uint8)) == digest(bytearray(data))
    assert digest(data)[0] == len(data)


@given(st.binary(min_size=1, max_size=200), st.data())
def test_one_changed_byte_changes_the_digest(data, draw):
    where = draw.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[where] ^= draw.draw(st.integers(1, 255))
    assert digest(bytes(changed)) != digest(data)


@given(st.binary(max_size=100))
def test_silence_at_the_end_is_not_nothing(data):
    assert digest(data + b"\0") != digest(data)


def test_swapped_halves_differ_where_a_plain_sum_would_not():
    words = np.arange(4, dtype="<u8")
    assert digest(words[::-1].copy()) != digest(words)


@given(st.binary(min_size=0, max_size=64))
def test_the_digest_is_the_documented_formula(data):
    padded = data.ljust(-(-len(data) // 16) * 16, b"\0")
    words = [int.from_bytes(padded[i : i + 8], "little") for i in range(0, len(padded), 8)]
    assert digest(data) == (len(data), sum(words[::2]) % 2**64, sum(words[1::2]) % 2**64)
