"""The faults of `tests.faults`, a few tries of each."""

import numpy as np
import pytest

from tests import programs
from tests.faults import Faults, commands


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(programs.launcher(), tmp_path_factory.mktemp("faults"))


# Sweeps, whose cells are fresh processes, are killed in sweeps_test.
PROGRAMS = [name for name in commands(None) if name != "sweep"]


@pytest.mark.parametrize(
    "program",
    [
        # Each has a kill at a chosen moment in its own tests.
        name if name == "train" else pytest.param(name, marks=pytest.mark.slow)
        for name in PROGRAMS
    ],
)
def test_killed_at_a_random_moment(faults, program):
    rng = np.random.default_rng(list(program.encode()))
    assert faults.kill(program, rng, "test") == "same results"


@pytest.mark.parametrize("flip", [False, True])
def test_a_damaged_weight_file(faults, flip):
    rng = np.random.default_rng(3)
    for _ in range(2):
        outcome = faults.damage(flip, rng)
        assert outcome in ("clear error", "same results")


def _tried(outcome):
    if outcome.startswith("not tried"):
        pytest.skip(outcome)
    return outcome


def test_a_full_disk(faults):
    assert _tried(faults.full_disk(200)) == "clear error, then same results"


def test_a_read_only_file_system(faults):
    assert _tried(faults.read_only()) == "clear error"


def test_a_clock_that_jumps(faults):
    assert faults.clock(-30) == "same results"


def test_two_writers(faults):
    assert faults.two_writers() == "second refused, same results"


@pytest.mark.parametrize("cut", ["incomplete", "truncated"])
def test_an_interrupted_download(faults, cut):
    assert _tried(faults.interrupted_download(cut)) == "clear error"
