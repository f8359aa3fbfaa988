"""Beats are counted where the launcher reads them."""

import os

import pytest

from masc.runtime import beats


@pytest.fixture
def file(monkeypatch):
    """The counters of two processes."""
    monkeypatch.setattr(beats, "_counters", None)
    file = os.memfd_create("beats")
    os.truncate(file, 2 * beats.PLACE.size)
    yield file
    os.close(file)


def test_each_process_counts_its_own_rests_and_the_beats_since_the_last(file):
    beats.connect(file, 1)
    beats.beat()
    beats.rest()
    for _ in range(3):
        beats.beat()
    assert list(beats.PLACE.iter_unpack(os.pread(file, 100, 0))) == [(0, 0, 0), (1, 3, 0)]


def test_writes_are_counted_while_they_last(file):
    beats.connect(file, 0)
    with pytest.raises(OSError), beats.writes():
        assert beats.PLACE.unpack_from(os.pread(file, 24, 0)) == (0, 0, 1) and beats.is_writing()
        raise OSError
    assert not beats.is_writing()
    assert beats.PLACE.unpack_from(os.pread(file, 24, 0)) == (0, 0, 0)


def test_without_a_launcher_a_beat_does_nothing(file):
    beats.beat()
    beats.rest()
    with beats.writes():
        pass
    assert not any(os.pread(file, 100, 0))
