"""A script works alone unless a launcher has given it a place among processes."""

import os

import pytest
from start import leave_processes


@pytest.fixture
def left(monkeypatch, caplog):
    """Sets variables; returns those that `leave_processes` leaves, and its warnings."""

    def leave(**variables):
        for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        leave_processes()
        return {name for name in variables if name in os.environ}, [record.getMessage() for record in caplog.records]

    return leave


def test_processes_that_a_cluster_speaks_of_are_told_how_to_start(left):
    words = "a process works alone unless GPUS=, NODES=, MACHINE_RANK= start several"
    assert left(RANK="3", WORLD_SIZE="8") == (set(), [f"ignoring RANK, WORLD_SIZE of the environment: {words}"])


def test_variables_of_mpi_and_of_one_process_are_removed_silently(left):
    one = {"PMI_RANK": "1", "PMI_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2", "RANK": "0", "WORLD_SIZE": "1"}
    assert left(**one) == (set(), [])


def test_a_launched_process_keeps_its_place(left):
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert left(**place) == (set(place), [])
