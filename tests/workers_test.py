import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from binaries import workers
from tests.conftest import ROOT
from tfmemloc import Recording, Run, TrainConfig, train
from tfmemloc.configs import DataConfig, ModelConfig

_FLAGS = {
    "train_examples": 75,  # So that the last batch of an epoch is short.
    "test_examples": 40,
    "model": "lenet",
    "width": 0.5,
    "expand": 0.5,
    "rule": "drop_pass_gate",  # It keeps a table by example, too.
    "epochs": 20,
    "batch_size": 32,
    "learning_rate": 0.05,
    "save_every": 20,
    "evaluate_every": 20,
}


def _started(directory, **changed):
    flags = [f"--{k}={v}" for k, v in {**_FLAGS, **changed}.items()]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "binaries.train", "--workers=2"),
            f"--run_dir={directory}",
            *flags,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _children(process):
    path = f"/proc/{process.pid}/task/{process.pid}/children"
    with open(path, encoding="ascii") as file:
        return [int(pid) for pid in file.read().split()]


@pytest.mark.skipif(
    sys.platform != "linux", reason="it looks for the workers in /proc"
)
def test_two_workers_train_as_one_and_a_killed_one_comes_back(tmp_path):
    process = _started(tmp_path / "two")
    while not (tmp_path / "two" / "state.npz").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.kill(_children(process)[1], signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "Worker 1 was killed (SIGKILL); all begin again after" in output
    two = Run.open(tmp_path / "two")

    one = train(
        tmp_path / "one",
        data=DataConfig(train_examples=75, test_examples=40),
        model=ModelConfig("lenet", width=0.5, expand=0.5),
        training=TrainConfig(
            **{
                name: _FLAGS[name]
                for name in TrainConfig.__dataclass_fields__
                if name in _FLAGS
            }
        ),
        progress=False,
    )
    assert [line["epoch"] for line in two.history] == list(range(1, 21))
    for a, b in zip(one.weights(), two.weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    courses = [
        Recording.open(run.directory / "recording") for run in (one, two)
    ]
    np.testing.assert_array_equal(courses[0].epochs, courses[1].epochs)
    np.testing.assert_allclose(
        courses[0].loss, courses[1].loss, rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow  # Three imports of TensorFlow for one line.
def test_an_error_in_the_workers_is_one_line(tmp_path):
    process = _started(tmp_path / "run", learning_rate=1e30)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "The loss is" in output and "Traceback" not in output
    assert "of 2 ended with an error" in output


def _config(**task):
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    return json.dumps({"cluster": cluster, "task": task})


@pytest.mark.parametrize(
    ("config", "is_first"),
    [
        (_config(type="chief", index=0), True),
        (_config(type="worker", index=0), False),
        (_config(type="worker", index=1), False),
    ],
)
def test_who_writes_the_run(monkeypatch, config, is_first):
    monkeypatch.setenv("TF_CONFIG", config)
    assert workers.is_one()
    assert workers.is_first() == is_first


@pytest.mark.parametrize(
    "config", ["", "no json", "[]", '{"cluster": {"a": 1}}']
)
def test_a_tf_config_that_says_nothing(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match="TF_CONFIG expected JSON"):
        workers.is_one()


def test_without_tf_config_there_are_no_workers(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert workers.is_first() and not workers.is_one()
