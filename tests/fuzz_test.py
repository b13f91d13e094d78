"""Whatever is in a file or a flag: a clear error, or it works."""

import dataclasses
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import programs, toys
from tests.faults import SMALL
from tfmemloc import (
    AccountingConfig,
    OwnUnitsConfig,
    RetrainConfig,
    RewindConfig,
    ScoreConfig,
    SearchConfig,
    configs,
    data,
    storage,
    sweeps,
)
from tfmemloc.runs import Run
from tfmemloc.sweeps import SweepResults
from tfmemloc.training.recorder import ExampleRecorder
from tfmemloc.training.recording import Recording

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_INPUTS", "60")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
CONFIGS = (
    configs.DataConfig,
    configs.ModelConfig,
    configs.TrainConfig,
    AccountingConfig,
    OwnUnitsConfig,
    RetrainConfig,
    RewindConfig,
    ScoreConfig,
    SearchConfig,
)


@FUZZ
@given(st.data())
def test_configs(drawn):
    kind = drawn.draw(st.sampled_from(CONFIGS))
    names = [field.name for field in dataclasses.fields(kind)]
    fields = drawn.draw(
        st.dictionaries(st.sampled_from([*names, "other"]), JSON, max_size=3)
        | JSON
    )
    try:
        config = configs.from_json(kind, fields)
    except ValueError as error:
        assert "xpected" in str(error) or "must be" in str(error)
    else:
        assert configs.from_json(kind, configs.to_json(config)) == config


@FUZZ
@given(st.text(max_size=20) | st.from_regex(r"[a-z_]+=[\w.,/-]*"))
def test_grids(axis):
    try:
        cells = sweeps.parse_grid([axis])
    except ValueError as error:
        assert (
            "Expected" in str(error)
            or "expected" in str(error)
            or ("cannot be an axis" in str(error))
        )
    else:
        assert all("/" not in cell.name for cell in cells)


def _mutations(value):
    """Values like `value` in which something is otherwise."""
    if isinstance(value, dict) and value:
        return st.sampled_from(sorted(value)).flatmap(
            lambda key: (JSON | _mutations(value[key])).map(
                lambda new: {**value, key: new}
            )
        )
    return JSON


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return toys.memory_run(tmp_path_factory.mktemp("fuzz") / "run")


@FUZZ
@given(st.data())
def test_config_files(planted, drawn):
    run, _ = planted
    path = run.directory / "config.json"
    good = path.read_text()
    try:
        path.write_text(
            json.dumps(drawn.draw(_mutations(json.loads(good))))
            if drawn.draw(st.booleans())
            else drawn.draw(st.text(max_size=30))
        )
        try:
            opened = Run.open(run.directory)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert opened.directory == run.directory
    finally:
        path.write_text(good)


def _damaged(drawn, content: bytes) -> bytes:
    """Cut short, or with some bytes otherwise."""
    cut = drawn.draw(st.integers(0, len(content)))
    if drawn.draw(st.booleans()):
        return content[:cut]
    new = drawn.draw(st.binary(min_size=1, max_size=4))
    return content[:cut] + new + content[cut + len(new) :]


@FUZZ
@given(st.data())
def test_weight_files(planted, drawn):
    run, _ = planted
    path = run.weights_path(1)
    good = path.read_bytes()
    before = [array.copy() for array in run.weights(1)]
    try:
        path.write_bytes(_damaged(drawn, good))
        try:
            model = run.model(1)
        except ValueError as error:
            assert str(path) in str(error) or "another model" in str(error)
        else:  # Bytes that nobody reads, or the same ones.
            for a, b in zip(model.get_weights(), before, strict=True):
                np.testing.assert_array_equal(a, b)
    finally:
        path.write_bytes(good)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("result")
    result = SweepResults(
        flags=("seed",),
        settings=np.array([["0"], ["1"]]),
        names=("drop_test",),
        values=np.array([[0.5], [0.25]]),
    )
    result.save(directory / "result")
    return directory / "result", result


@FUZZ
@given(st.data())
def test_result_files(saved, drawn):
    path, result = saved
    ending = drawn.draw(st.sampled_from([".json", ".npz"]))
    file = path.with_name(path.name + ending)
    good = file.read_bytes()
    try:
        file.write_bytes(_damaged(drawn, good))
        try:
            loaded = SweepResults.load(path)
        except ValueError as error:
            assert path.name in str(error)
        else:
            assert loaded.values.shape == result.values.shape
    finally:
        file.write_bytes(good)


@FUZZ
@given(st.data())
def test_recordings(tmp_path, drawn):
    recorder = ExampleRecorder(tmp_path, [3, 5])
    recorder.update([3, 5], [0, 1], np.eye(2, dtype=np.float32))
    recorder.end_epoch(1)
    path = tmp_path / "epoch_0001.npz"
    path.write_bytes(_damaged(drawn, path.read_bytes()))
    try:
        found = Recording.open(tmp_path)
    except ValueError as error:
        assert str(tmp_path) in str(error)
    else:
        assert found.margin.shape == (1, 2)


ARRAYS = st.builds(
    lambda shape, kind: np.zeros(shape, kind),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(["uint8", "float32", "int64", "U3", "complex64", "bool"]),
)


@pytest.mark.filterwarnings("ignore:data.npz")
@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(["x_train", "y_train", "x_test", "y_test", "z"]),
        ARRAYS,
    )
)
def test_npz_data_sets(tmp_path, arrays):
    path = tmp_path / "data.npz"
    storage.write_arrays(path, arrays)
    try:
        examples = data.load(configs.DataConfig(dataset=str(path)))
    except ValueError as error:
        assert "xpected" in str(error)
    else:
        assert len(examples.train) and len(examples.test)


class _Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_never_run(tmp_path):
    path, folder = tmp_path / "data.npz", tmp_path / "sprung"
    np.savez(path, x_train=np.array([_Trap(folder)], dtype=object))
    with pytest.raises(ValueError, match=r"data\.npz holds an array of Python"):
        data.load(configs.DataConfig(dataset=str(path)))
    with pytest.raises(storage.DamagedFileError, match="data.npz is damaged"):
        storage.read_arrays(path)
    assert not folder.exists()


@pytest.mark.parametrize(
    "flag",
    [
        "--dataset=../..",
        "--dataset=",
        "--data_dir=/dev/null",
        "--train_examples=-3",
        "--test_examples=0",
        "--noise_rate=nan",
        "--noise_seed=-1",
        "--noise_file=/dev/null",
        "--score_file=setup.cfg",
        "--subset_ratio=1e-9",
        "--subset_seed=-1",
        "--width=1e30",
        "--p_gen=1",
        "--p_mem=-0",
        "--epochs=0",
        "--epochs=99999999999999999999",
        "--batch_size=-1",
        "--learning_rate=inf",
        "--learning_rate=-1",
        "--momentum=2",
        "--weight_decay=nan",
        "--save_every=0",
        "--evaluate_every=0",
        "--stop_at=7",
        "--patience=0",
        "--seed=-5",
        "--seed=9223372036854775808",
        "--run_dir=/dev/null/x",
        "--run_dir=",
        "--dtype=float8",
        "--verbosity=x",
    ],
)
def test_flags(tmp_path, flag):
    done = programs.launcher().run(
        "binaries.train",
        *SMALL,
        "--epochs=1",
        f"--run_dir={tmp_path / 'run'}",
        flag,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    if flag == "--run_dir=":
        assert "a folder for the results" in done.stderr
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line][-1]
        assert last.startswith(("error: ", "FATAL ", "Pass --help"))
