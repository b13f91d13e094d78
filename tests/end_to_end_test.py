"""The programs, run as a person would."""

import json
import time

import pytest

from tests import programs


def _run(*arguments, check=True):
    return programs.launcher().run(*arguments, check=check)


@pytest.fixture(scope="module")
def localized(tmp_path_factory):
    """A quick main job."""
    directory = tmp_path_factory.mktemp("localize") / "run"
    done = _run(
        "binaries.localize",
        "--quick",
        "--width=0.125",
        "--recalibrate",
        f"--run_dir={directory}",
    )
    return directory, done


def test_localize_writes_summary_figures_and_report(localized):
    directory, done = localized
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["dataset"] == "digits"
    assert summary["config"]["training"]["epochs"] == 3
    found = [(row["model"], row["inference"]) for row in summary["rows"]]
    assert found == [
        ("standard", "plain"),
        ("standard_dropout", "plain"),
        ("sparse", "plain"),
        ("example_tied", "tied"),
        ("example_tied", "expected"),
        ("example_tied", "drop"),
        ("example_tied", "drop_recalibrated"),
    ]
    for row in summary["rows"]:
        for name in ("clean", "noisy", "noisy_true_label", "test"):
            assert 0 <= row[name] <= 1
    assert (directory / "figures" / "accuracy.png").exists()
    assert f"report: {directory / 'report.html'}" in done.stdout
    assert str(directory / "suspects.html") in done.stdout
    assert (directory / "suspects.csv").exists()
    page = (directory / "report.html").read_text()
    assert "binaries.localize --quick" in page
    assert not list(directory.rglob("*.tmp"))


def test_localize_again_reuses_and_says_the_same(localized):
    directory, done = localized
    before = (directory / "summary.json").read_bytes()
    stamps = {p: p.stat().st_mtime_ns for p in directory.rglob("epoch_*.npz")}
    again = _run(
        "binaries.localize",
        "--quick",
        "--width=0.125",
        "--recalibrate",
        f"--run_dir={directory}",
    )
    assert again.stdout == done.stdout
    assert (directory / "summary.json").read_bytes() == before
    assert stamps == {
        p: p.stat().st_mtime_ns for p in directory.rglob("epoch_*.npz")
    }


@pytest.mark.parametrize(
    ("program", "name", "words"),
    [
        ("account_gradients", "gradient_accounting", "Whose gradients"),
        ("rewind", "layer_rewinding", "After a rewind to epoch 0"),
        ("retrain", "layer_retraining", "Reset to epoch 0"),
        ("ablate", "critical_units", "The median of the smallest sets"),
    ],
)
def test_probes_of_a_finished_run(localized, tmp_path, program, name, words):
    directory, done = localized
    assert words in done.stdout
    again = _run(
        f"binaries.{program}",
        f"--run_dir={directory / 'standard'}",
        f"--out_dir={tmp_path}",
    )
    assert words in again.stdout
    for ending in ("npz", "json"):
        assert (tmp_path / f"{name}.{ending}").exists()
    assert (tmp_path / "figures").is_dir()
    assert name in str(list((directory).iterdir()))


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("rewind", ["--epochs=0,99"], "epoch 99. Saved epochs: 0, 1, 2, 3"),
        ("retrain", ["--groups=conv9"], "no group 'conv9'. Expected some of"),
        ("account_gradients", ["--memory_budget_mib=0"], "One example takes"),
        ("ablate", ["--ids=5,77777"], "no example with id 77777"),
        ("ablate", ["--limit=0"], "Received: limit=0"),
    ],
)
def test_probes_refuse_bad_flags(localized, program, arguments, words):
    directory, _ = localized
    done = _run(
        f"binaries.{program}",
        f"--run_dir={directory / 'standard'}",
        *arguments,
        check=False,
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_retraining_goes_on_with_the_next_group(localized, tmp_path):
    directory, _ = localized

    def command(out):
        return [
            "binaries.retrain",
            f"--run_dir={directory / 'standard'}",
            f"--out_dir={tmp_path / out}",
            "--groups=conv1,conv2,conv3",
            "--epochs=2",
        ]

    process = programs.launcher().start(*command("killed"))
    first = tmp_path / "killed" / "retraining" / "conv1.npz"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    stamp = first.stat().st_mtime_ns
    for out in ("killed", "whole"):
        _run(*command(out))
    assert first.stat().st_mtime_ns == stamp
    killed, whole = (
        (tmp_path / out / "layer_retraining.json").read_text()
        for out in ("killed", "whole")
    )
    assert killed == whole


def test_localize_refuses_other_settings_and_keeps_the_old(localized):
    directory, _ = localized
    before = (directory / "summary.json").read_bytes()
    done = _run(
        "binaries.localize",
        "--quick",
        "--width=0.25",
        f"--run_dir={directory}",
        check=False,
    )
    assert done.returncode == 1
    assert "model.width: 0.125 there, 0.25 here" in done.stderr
    assert (directory / "summary.json").read_bytes() == before


def test_flagfile_and_fresh(localized, tmp_path):
    directory, _ = localized
    flagfile = tmp_path / "flags"
    flagfile.write_text("--quick\n--width=0.125\n--epochs=1\n--seed=3\n")
    run = tmp_path / "run"
    _run("binaries.train", f"--flagfile={flagfile}", f"--run_dir={run}")
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["seed"] == 3
    assert config["data"]["noise_seed"] == 3
    other = _run(
        "binaries.train",
        f"--flagfile={flagfile}",
        f"--run_dir={run}",
        "--seed=4",
        check=False,
    )
    assert other.returncode == 1
    assert "ModelConfig.seed: 3 there, 4 here" in other.stderr
    _run(
        "binaries.train",
        f"--flagfile={flagfile}",
        f"--run_dir={run}",
        "--seed=4",
        "--fresh",
    )
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["seed"] == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset=no_such_set"], "There is no data set 'no_such_set'"),
        (["--noise_rate=2"], "Received: noise_rate=2.0"),
        (["--dataset=missing.npz"], "missing.npz"),
        (["stray"], "unexpected stray"),
    ],
)
def test_errors_are_one_line_without_a_traceback(tmp_path, arguments, words):
    done = _run(
        "binaries.train",
        "--quick",
        f"--run_dir={tmp_path / 'run'}",
        *arguments,
        check=False,
    )
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_fresh_deletes_nothing_but_runs(tmp_path):
    precious = tmp_path / "thesis.tex"
    precious.write_text("x")
    done = _run(
        "binaries.train", f"--run_dir={tmp_path}", "--fresh", check=False
    )
    assert done.returncode == 1
    assert "Delete it yourself" in done.stderr
    assert precious.exists()


def test_export_and_scores_of_a_finished_run(localized, tmp_path):
    directory, _ = localized
    run = f"--run_dir={directory / 'example_tied'}"
    done = _run("binaries.export", run, f"--out_dir={tmp_path / 'served'}")
    assert f"export: {tmp_path / 'served'}" in done.stdout
    assert (tmp_path / "served" / "MODEL_CARD.md").exists()
    again = _run(
        "binaries.export", run, f"--out_dir={tmp_path / 'served'}", check=False
    )
    assert again.returncode == 1
    assert "exists. Choose another path" in again.stderr
    scored = _run(
        "binaries.score_examples", run, f"--out_dir={tmp_path / 'scores'}"
    )
    assert "training labels are suspected" in scored.stdout
    assert "tracin" in scored.stdout


@pytest.mark.parametrize("program", ["train", "localize"])
def test_help_shows_a_command_and_the_flags(program):
    done = _run(f"binaries.{program}", "--help", check=False)
    text = done.stdout + done.stderr
    assert f"python -m binaries.{program} --dataset=digits" in text
    assert "--noise_rate" in text.replace("[no]", "")
