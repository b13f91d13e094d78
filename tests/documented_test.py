"""The examples in the docstrings of public names run, and say what they say."""

import dataclasses
import doctest
import inspect
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmemloc
from tests.conftest import shared_folder
from tfmemloc import report, result, statistics, sweeps
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# Public, but not at the top.
MORE = (
    report.text_table,
    result.Result.load,
    statistics.bootstrap_interval,
    tfmemloc.data.kind_of,
    sweeps.parse_grid,
)


def _examples_of(thing):
    """The doctest of a name, its methods included."""
    finder = doctest.DocTestFinder(recurse=True)
    name = getattr(thing, "__name__", str(thing))
    # A method of a Keras base class is none of ours.
    return [
        test
        for test in finder.find(thing, name, globs={})
        if test.examples
        and (test.name == name or test.name.split(".")[1] in vars(thing))
    ]


TESTS = {
    test.name: test
    for thing in (*(getattr(tfmemloc, n) for n in tfmemloc.__all__), *MORE)
    for test in _examples_of(thing)
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the runs of a small main job, as the examples have it."""
    return shared_folder(tmp_path_factory, "documented", _prepare)


def _prepare(folder):
    data = DataConfig(train_examples=80, test_examples=40, noise_rate=0.2)
    examples = tfmemloc.load(data)
    runs = tfmemloc.train_networks(
        folder / "runs" / "demo",
        examples,
        data=data,
        model=ModelConfig("lenet"),
        training=TrainConfig(epochs=8, batch_size=40, learning_rate=0.1),
        progress=False,
    )
    rewinding = tfmemloc.rewind_layers(
        runs["standard"], examples, progress=False
    )
    rewinding.save(folder / "runs" / "demo" / "layer_rewinding")
    for seed in (0, 1):
        tfmemloc.train(
            folder / "runs" / "subsets" / f"seed{seed}",
            data=dataclasses.replace(data, subset_ratio=0.5, subset_seed=seed),
            model=ModelConfig("lenet"),
            training=TrainConfig(epochs=1, batch_size=40),
            progress=False,
        )


@pytest.fixture
def names(prepared, tmp_path, monkeypatch):
    """What the examples take for granted: imports, a run, its data."""
    shutil.copytree(prepared / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    run = tfmemloc.Run.open("runs/demo/example_tied")
    examples = run.examples()
    inputs = tfmemloc.as_arrays(examples.train)
    return {
        **{name: getattr(tfmemloc, name) for name in tfmemloc.__all__},
        "text_table": report.text_table,
        "parse_grid": sweeps.parse_grid,
        "bootstrap_interval": statistics.bootstrap_interval,
        "Result": result.Result,
        "dataclasses": dataclasses,
        "keras": keras,
        "np": np,
        "tf": tf,
        "os": os,
        "pathlib": pathlib,
        "run": run,
        "examples": examples,
        "inputs": inputs,
        "labels": examples.train.label,
        "x": inputs["image"],
        "y": examples.train.label,
        "ids": inputs["example_id"],
    }


def _compiled(model):
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model


# Of 80 examples in eight epochs, the dropped network learns hardly anything.
@pytest.mark.filterwarnings("ignore:Model 'lenet' predicts:UserWarning")
@pytest.mark.parametrize("name", TESTS)
def test_the_example_runs(name, names):
    test = TESTS[name]
    test.globs.update(names)
    if any("model" in example.source for example in test.examples):
        test.globs["model"] = _compiled(names["run"].model())
    said = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


def test_nearly_all_public_names_have_an_example():
    without = []
    for name in tfmemloc.__all__:
        thing = getattr(tfmemloc, name)
        is_data = inspect.isclass(thing) and issubclass(thing, result.Result)
        if is_data or name.endswith("Config") or name == "Table":
            continue  # Made by a method, or read by one.
        if not callable(thing):
            continue  # A constant; the layer that takes it shows its use.
        if not any(key.split(".")[0] == name for key in TESTS):
            without.append(name)
    assert without == []
