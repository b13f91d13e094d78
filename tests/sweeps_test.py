"""Sweeps: real commands in processes of their own, killed and gone on with."""

import signal
import threading
import time

import numpy as np
import pytest

from tests import programs
from tests.conftest import ROOT
from tfmemloc import report, storage, sweeps
from tfmemloc.runs import Run
from tfmemloc.sweeps import forking
from tfmemloc.sweeps.results import SweepResults

BASE = [
    "--model=lenet",
    "--train_examples=64",
    "--test_examples=32",
    "--epochs=2",
    "--width=1",
]


def test_the_grid():
    cells = sweeps.parse_grid(["p_gen=0.1,0.2", "seed=8..10"])
    assert len(cells) == 6
    assert cells[1].name == "p_gen=0.1,seed=9"
    assert cells[-1].flags == ["--p_gen=0.2", "--seed=10"]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ([], "at least one axis"),
        (["seed"], "a flag and its values"),
        (["seed="], "a flag and its values"),
        (["seed=1,1"], "each once"),
        (["--seed=1"], "a flag and its values"),
        (["p_gen=0.1/../x"], "a flag and its values"),
        (["seed=3..1"], "a flag and its values"),
        (["seed=1", "seed=2"], "cannot be an axis"),
        (["run_dir=a,b"], "cannot be an axis"),
    ],
)
def test_bad_grids(axes, words):
    with pytest.raises(ValueError, match=words):
        sweeps.parse_grid(axes)


@pytest.mark.skipif(not forking.can_fork(), reason="forks on Linux alone")
def test_cells_are_forked_from_one_process(tmp_path):
    """Flags, log, working directory and exit status are each cell's own."""
    forks = forking.Forks("binaries", str(ROOT))
    common = {"cwd": str(ROOT), "env": {"MINE": "1"}, "stop": None}
    good = forks.run(
        ["binaries.train", *BASE, f"--run_dir={tmp_path / 'run'}"],
        log=tmp_path / "good.txt",
        **common,
    )
    assert good == 0 and Run.open(tmp_path / "run").epochs == (0, 1, 2)
    assert f"run: {tmp_path / 'run'}" in (tmp_path / "good.txt").read_text()
    bad = forks.run(
        ["binaries.train", "--epochs=0"], log=tmp_path / "bad.txt", **common
    )
    assert bad == 1
    assert "`epochs` must be at least 1" in (tmp_path / "bad.txt").read_text()
    stop = threading.Event()
    stop.set()
    killed = forks.run(
        ["binaries.train", *BASE[:4], "--epochs=5000"]
        + [f"--run_dir={tmp_path / 'long'}"],
        log=tmp_path / "long.txt",
        **{**common, "stop": stop},
    )
    assert killed == -signal.SIGTERM
    forks.close()
    with pytest.raises((OSError, ValueError)):
        forks.run(["binaries.train"], log=tmp_path / "x.txt", **common)


def _stamps(directory):
    return {p: p.stat().st_mtime_ns for p in directory.rglob("done.json")}


def test_a_killed_sweep_repeats_nothing(tmp_path):
    """Killed after its first cell, with the second one under way."""
    command = [
        "binaries.sweep",
        "--grid=seed=0..1",
        f"--base={' '.join(BASE)}",
        f"--run_dir={tmp_path}",
    ]
    process = programs.launcher().start(*command)
    deadline = time.monotonic() + 180
    while not (tmp_path / "seed=1" / "config.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    assert process.wait().returncode == -signal.SIGKILL
    first = _stamps(tmp_path)
    assert [path.parent.name for path in first] == ["seed=0"]
    done = programs.launcher().run(*command)
    assert first.items() <= _stamps(tmp_path).items()
    assert "2 runs; mean and standard deviation over 2 seeds" in done.stdout
    assert (tmp_path / "report.html").exists()
    result = SweepResults.load(tmp_path / "sweep_results")
    assert result.settings.tolist() == [["0"], ["1"]]
    for row in result.rows():
        history = storage.read_json(
            tmp_path / f"seed={row['seed']}" / "history.json"
        )
        accuracy = history["epochs"][-1]["accuracy"]
        assert row["drop_test"] == accuracy["drop"]["test"]
        assert row["tied_noisy"] == accuracy["tied"]["noisy"]
    cells = sweeps.parse_grid(["seed=0..1"])
    with pytest.raises(ValueError, match="a sweep with other settings"):
        sweeps.run_sweep(tmp_path, "train", cells, progress=False)
    path = tmp_path / "seed=1" / "done.json"
    path.write_text("[]")
    with pytest.raises(storage.DamagedFileError, match="Delete it"):
        sweeps.gather_sweep(tmp_path, cells)


def test_a_failed_cell_does_not_stop_the_others(tmp_path):
    cells = sweeps.parse_grid(["p_gen=0.001,0.5"])
    with pytest.raises(sweeps.SweepError, match="no generalization units") as e:
        sweeps.run_sweep(
            tmp_path, "train", cells, base=BASE, retries=0, progress=False
        )
    assert "1 of 2 cells failed" in str(e.value)
    assert (tmp_path / "p_gen=0.5" / "done.json").exists()


# Ray leaves files open when its processes are killed.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
@pytest.mark.slow
def test_ray_goes_on_when_a_node_dies(tmp_path):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # The head gives out nothing; two nodes work.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cells = sweeps.parse_grid(["p_gen=0.2,0.5", "seed=0..1"])
    killed = []

    def kill_when_working():
        deadline = time.monotonic() + 180
        while len(list(tmp_path.glob("*/config.json"))) < 2:
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        killed.append(len(list(tmp_path.glob("*/done.json"))))
        cluster.remove_node(nodes[1], allow_graceful=False)

    try:
        ray.init(address=cluster.address, log_to_driver=False)
        killer = threading.Thread(target=kill_when_working, daemon=True)
        killer.start()
        result = sweeps.run_sweep(
            tmp_path,
            "train",
            cells,
            base=BASE,
            backend="ray",
            retries=3,
            progress=False,
        )
        killer.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed[0] < len(cells)
    assert len(result.values) == 4
    for row, cell in zip(result.rows(), cells, strict=True):
        run = Run.open(tmp_path / cell.name)
        assert run.model_config.p_gen == float(row["p_gen"])
        accuracy = run.history[-1]["accuracy"]
        assert row["drop_test"] == accuracy["drop"]["test"]


@pytest.fixture
def results():
    settings = [
        [g, m, str(seed)]
        for g in ("0.1", "0.2")
        for m in ("0.05", "0.3")
        for seed in range(3)
    ]
    values = np.arange(24.0).reshape(12, 2) / 24
    return SweepResults(
        flags=("p_gen", "p_mem", "seed"),
        settings=np.array(settings),
        names=("drop_noisy", "drop_test"),
        values=values,
    )


def test_means_and_deviations_are_over_seeds(results, tmp_path):
    groups = results.groups()
    assert list(groups) == [
        ("0.1", "0.05"),
        ("0.1", "0.3"),
        ("0.2", "0.05"),
        ("0.2", "0.3"),
    ]
    mean, spread, count = groups["0.1", "0.3"]
    np.testing.assert_allclose(mean, results.values[3:6].mean(axis=0))
    np.testing.assert_allclose(spread, np.std(results.values[3:6, 0], ddof=1))
    assert count == 3
    results.save(tmp_path / "sweep_results")
    loaded = SweepResults.load(tmp_path / "sweep_results")
    assert loaded.rows() == results.rows()


def test_the_section_of_a_sweep(results):
    section = report.section_of(results)
    assert section.title == "What the flags change"
    assert section.table.rows[1] == {
        "p_gen": "0.1",
        "p_mem": "0.3",
        "runs": 3,
        "drop_noisy": "33.3 ± 8.3%",
        "drop_test": "37.5 ± 8.3%",
    }
    assert "is at p_gen 0.2, p_mem 0.3" in section.text
    assert section.figures["sweep"][1].startswith(b"\x89PNG")
    models = SweepResults(
        flags=("model",),
        settings=np.array([["lenet"], ["vit"]]),
        names=("drop_test",),
        values=np.array([[0.5], [0.25]]),
    )
    section = report.section_of(models)
    assert not section.figures and section.table.rows[0]["drop_test"] == "50.0%"
