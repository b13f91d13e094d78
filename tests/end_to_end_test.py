"""The programs, run as a person would."""

import dataclasses
import json
import re
import shutil
import time

import keras
import numpy as np
import pytest

from tests import programs
from tests.conftest import ROOT, shared_folder
from tfmemloc import (
    RewindConfig,
    audit_membership,
    data,
    evaluation,
    models,
    rewind_layers,
    sweeps,
)
from tfmemloc.configs import DataConfig, ModelConfig
from tfmemloc.removal.drop import NetworkComparison
from tfmemloc.result import Result
from tfmemloc.runs import Run

# The ResNet-9 of the demo takes most of its time to be traced.
SMALL = ("--model=lenet", "--width=1")
QUICK = ("binaries.localize", "--quick", *SMALL)


def _run(*arguments, **options):
    return programs.launcher().run(*arguments, **options)


@pytest.fixture(scope="module")
def localized(tmp_path_factory):
    """A quick main job, which all test processes share."""

    def make(folder):
        done = _run(*QUICK, f"--run_dir={folder}")
        (folder / "said.txt").write_text(done.stdout)

    directory = shared_folder(tmp_path_factory, "localized", make)
    return directory, (directory / "said.txt").read_text()


def test_localize_writes_summary_figures_and_report(localized):
    directory, said = localized
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
        ("standard_edited", "plain"),
    ]
    for row in summary["rows"]:
        for name in ("clean", "noisy", "noisy_true_label", "test"):
            assert 0 <= row[name] <= 1
    assert (directory / "figures" / "accuracy.png").exists()
    assert f"report: {directory / 'report.html'}" in said
    assert str(directory / "suspects.html") in said
    assert (directory / "suspects.csv").exists()
    page = (directory / "report.html").read_text()
    assert "binaries.localize --quick" in page
    assert not list(directory.rglob("*.tmp"))


def test_localize_again_reuses_and_says_the_same(localized):
    directory, said = localized
    before = (directory / "summary.json").read_bytes()
    stamps = {p: p.stat().st_mtime_ns for p in directory.rglob("epoch_*.npz")}
    again = _run(*QUICK, f"--run_dir={directory}")
    assert again.stdout == said
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
    directory, said = localized
    assert words in said
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
        (
            "account_gradients",
            ["--memory_budget_mib=0"],
            "`memory_budget_mib` must be at least 1",
        ),
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
            "--groups=conv1,conv2,dense1",
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
        "--model=lenet",
        "--width=2",
        f"--run_dir={directory}",
        check=False,
    )
    assert done.returncode == 1
    assert "model.width: 1.0 there, 2.0 here" in done.stderr
    assert (directory / "summary.json").read_bytes() == before


def test_flagfile_and_fresh(localized, tmp_path):
    directory, _ = localized
    flagfile = tmp_path / "flags"
    flagfile.write_text(
        "--quick\n--model=lenet\n--width=1\n--epochs=1\n--seed=3\n"
    )
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


def test_an_npz_file_keeps_its_labels(tmp_path, small_digits):
    part = small_digits.train
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=part.inputs["image"], y_train=part.true_label)
    run = f"--run_dir={tmp_path / 'run'}"
    # Fewer examples than --quick would take, and none to test on.
    _run(
        "binaries.train",
        "--quick",
        "--epochs=1",
        *SMALL,
        f"--dataset={path}",
        run,
    )
    found = Run.open(tmp_path / "run")
    assert (found.data.noise_rate, found.data.train_examples) == (0.0, 80)
    done = _run("binaries.score_examples", run)
    assert "80 training labels are suspected" in done.stdout
    assert "known" not in done.stdout
    table = (tmp_path / "run" / "suspects.csv").read_text()
    head = table.splitlines()[0].split(",")
    assert not {"true_label", "subset"} & set(head)
    assert "unknown" not in done.stderr
    done = _run("binaries.score_examples", "--prior=even", run, check=False)
    assert "--prior=even" in done.stderr

    # Two networks judge together.
    shutil.copytree(tmp_path / "run", tmp_path / "run1")
    pattern = f"--run_dir={tmp_path / 'run*'}"
    done = _run("binaries.score_examples", pattern)
    assert f"page: {tmp_path / 'suspects.html'}" in done.stdout
    nothing = f"--run_dir={tmp_path / 'nothing*'}"
    done = _run("binaries.score_examples", nothing, check=False)
    assert "nothing* holds no run" in done.stderr


def test_what_cannot_be_scored_is_said_before_trainings(tmp_path):
    examples = data.load(DataConfig(train_examples=40, test_examples=10))
    model = models.build(ModelConfig("lenet"), (8, 8, 1), 10)
    mine = Run.create(tmp_path / "mine", model, examples=examples)
    mine.record_epoch(model, 0)
    run = f"--run_dir={mine.directory}"
    done = _run("binaries.score_examples", "--second_split", run, check=False)
    assert "has no saved epoch after the init" in done.stderr
    mine.record_epoch(model, 1)
    done = _run("binaries.score_examples", "--second_split", run, check=False)
    assert "--second_split trains the network of the run anew" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (mine.directory / "second_split").exists()


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
    member = np.random.default_rng(0).random((8, 40)) < 0.5
    audit = audit_membership({"mine": 9.0 * member - 4}, member)
    audit.save(tmp_path / "membership")
    done = _run(
        "binaries.export",
        run,
        f"--out_dir={tmp_path / 'served'}",
        f"--audit={tmp_path}",
    )
    assert f"export: {tmp_path / 'served'}" in done.stdout
    assert "| mine | " in (tmp_path / "served" / "MODEL_CARD.md").read_text()
    missing = _run(
        "binaries.export",
        run,
        f"--out_dir={tmp_path / 'other'}",
        f"--audit={tmp_path / 'served'}",
        check=False,
    )
    assert missing.returncode == 1
    assert "--audit: there is no audit in" in missing.stderr
    again = _run(
        "binaries.export", run, f"--out_dir={tmp_path / 'served'}", check=False
    )
    assert again.returncode == 1
    assert "exists. Choose another path" in again.stderr
    scored = _run(
        "binaries.score_examples",
        "--gradient_scores",
        run,
        f"--out_dir={tmp_path / 'scores'}",
    )
    assert "training labels are suspected" in scored.stdout
    assert "tracin" in scored.stdout
    assert "duplicates: " in scored.stdout
    assert (tmp_path / "scores" / "duplicates.json").exists()


def test_a_report_of_one_and_of_many(localized, tmp_path):
    directory, _ = localized
    done = _run(
        "binaries.report", f"--run_dirs={directory}", f"--out_dir={tmp_path}"
    )
    page = (tmp_path / "report.html").read_text()
    text = (tmp_path / "report.md").read_text()
    for words in (
        "What the network memorized",
        "The network before and after the removal",
        "Whose gradients move which layers",
        "Which layers can be put back",
        "Which layers hold the memory",
        "How few units hold one example",
        "Do the memorization units hold the memory?",
        "Which labels are suspected",
        "binaries.localize --quick",
    ):
        assert words in page
        assert words.replace("_", r"\_") in text
        assert words in done.stdout or "binaries" in words
    for name in re.findall(r"\]\((figures/[^)]*)\)", text):
        assert (tmp_path / name).exists()
    link = re.search(r'href="([^"]*suspects.html)"', page)[1]
    assert (tmp_path / link).resolve() == directory / "suspects.html"

    numbers = sweeps.numbers_of(directory)
    found = NetworkComparison.load(directory / "networks")
    dropped = found.row("example_tied", "drop")
    assert numbers["example_tied_drop_noisy"] == dropped["noisy"]

    # A second seed: a copy, whose table says something else.
    second = tmp_path / "second"
    shutil.copytree(directory, second)
    other = dataclasses.replace(found, accuracy=found.accuracy / 2)
    other.save(second / "networks")
    both = ("binaries.report", f"--run_dirs={directory},{second}")
    same = _run(*both, check=False)
    assert same.returncode == 1 and "have the same seed" in same.stderr
    settings = json.loads((second / "settings.json").read_text())
    settings["training"]["seed"] = 1
    (second / "settings.json").write_text(json.dumps(settings))
    out = tmp_path / "both"
    _run(*both, f"--out_dir={out}")
    text = (out / "report.md").read_text()
    clean = found.row("example_tied", "tied")["clean"]
    (line,) = re.findall(r"\| example tied, tied: clean \|.*", text)
    assert f"| 2 | {0.75 * clean:.3g} |" in line
    assert "How sure this is" in (out / "report.html").read_text()
    nothing = _run(
        "binaries.report", f"--run_dirs={tmp_path}/figures", check=False
    )
    assert nothing.returncode == 1
    assert "Nothing to report in" in nothing.stderr


def test_memory_is_removed_from_a_run(localized, tmp_path):
    directory, _ = localized
    out = tmp_path / "removed"

    def command(*flags):
        return (
            "binaries.remove",
            f"--run_dir={directory / 'standard'}",
            f"--out_dir={out}",
            "--refit_epochs=0",
            *flags,
        )

    done = _run(*command("--keep=0.95"))
    assert f"network: {out / 'model.keras'}" in done.stdout
    assert "Nothing was chosen" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert [row["stage"] for row in summary["rows"]] == ["before", "after"]
    assert {"clean", "noisy", "noisy_true_label", "test"} <= set(
        summary["rows"][0]
    )
    assert (out / "suspects.html").exists() and (out / "report.html").exists()
    # The new network is a run, and a file, and both do what was measured.
    run = Run.open(out)
    examples = run.examples()
    for model in (run.model(), keras.models.load_model(out / "model.keras")):
        metrics = evaluation.evaluate(model, examples)
        assert metrics.of("test")["accuracy"] == summary["rows"][1]["test"]
    # The same again changes nothing; other settings are refused.
    before = (out / "removal.json").stat().st_mtime_ns
    again = re.sub("expected: .*\n", "", done.stdout)  # It is there already.
    assert _run(*command("--keep=0.95")).stdout == again
    assert (out / "removal.json").stat().st_mtime_ns == before
    other = _run(*command("--keep=0.5"), check=False)
    assert other.returncode == 1
    assert "a removal with other config, which is not overwr" in other.stderr
    # A probe and the export take the new network.
    rewound = _run(
        "binaries.rewind", f"--run_dir={out}", f"--out_dir={tmp_path / 'r'}"
    )
    assert "After a rewind to epoch 0" in rewound.stdout
    _run(
        "binaries.export",
        f"--run_dir={out}",
        "--inference=plain",
        f"--out_dir={tmp_path / 'served'}",
    )


def test_memory_is_removed_from_any_keras_file(
    tmp_path, overfitted, held_out_digits
):
    trained, other = held_out_digits.train, held_out_digits.of_subset("heldout")
    path, data_path = tmp_path / "my.keras", tmp_path / "mine.npz"
    overfitted.save(path)
    parts = (trained, other)
    np.savez(
        data_path,
        x_train=np.concatenate([part.inputs["image"] for part in parts]),
        y_train=np.concatenate([part.label for part in parts]),
        subset=np.repeat(["clean", "heldout"], [len(p) for p in parts]),
    )
    out = tmp_path / "out"
    done = _run(
        "binaries.remove",
        f"--model={path}",
        f"--dataset={data_path}",
        f"--out_dir={out}",
        "--rounds=1",
    )
    assert "Chosen on the given labels of held-out examples" in done.stdout
    assert re.search(r"^expected: about \d+ seconds$", done.stdout, re.M)
    said = r"my.keras predicts [\d.]+% of \d+ training labels as given"
    assert re.search(said, done.stdout)
    assert "training labels" not in done.stderr
    rows = json.loads((out / "summary.json").read_text())["rows"]
    assert set(rows[0]) == {"stage", "clean", "heldout"}
    assert (out / "figures" / "edit_curve.png").exists()


def test_labels_of_any_keras_file_are_ranked_decided_and_corrected(
    tmp_path, overfitted, held_out_digits
):
    train = held_out_digits.train
    path, data_path = tmp_path / "my.keras", tmp_path / "mine.npz"
    overfitted.save(path)
    np.savez(data_path, x_train=train.inputs["image"], y_train=train.label)
    out = tmp_path / "labels"
    command = (
        "binaries.score_examples",
        f"--model={path}",
        f"--dataset={data_path}",
        f"--out_dir={out}",
    )
    done = _run(*command)
    assert f"decide on: {out / 'review.html'}" in done.stdout
    first = (out / "suspects.csv").read_text().splitlines()[1].split(",")
    example_id, label = int(first[0]), int(first[1])
    decisions = tmp_path / "decisions.csv"
    decisions.write_text(
        "example_id,label,decision,new_label\n"
        f"{example_id},{label},other,{(label + 1) % 10}\n"
    )
    done = _run(*command, f"--decisions={decisions}")
    assert "1 labels corrected" in done.stdout
    # The command that it names trains on the corrected data.
    line = done.stdout.split("train on them: python -m ")[1].split("\n")[0]
    _run(*line.split(), "--epochs=1", "--model=lenet")
    examples = Run.open(out / "corrected").examples()
    corrected = examples.of_ids([example_id])
    assert corrected.label.tolist() == [(label + 1) % 10]
    assert (examples.train.label != train.label).sum() == 1
    refused = _run(*command, "--critical_set", check=False)
    assert refused.returncode == 1
    assert "Expected no --critical_set" in refused.stderr
    refused = _run(*command, f"--recording={tmp_path}", check=False)
    assert refused.returncode == 1
    assert f"{tmp_path} holds no recorded epoch" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "Expected --run_dir, or --model with --dataset. Received: neith"),
        (
            ["--model=a.keras", "--out_dir=OUT"],
            "--model expected the --dataset that it was trained on",
        ),
        (
            ["--model=a.keras", "--dataset=digits"],
            "--model expected an --out_dir",
        ),
        (
            ["--model=a.keras", "--dataset=digits", "--out_dir=OUT"],
            "there is no file a.keras",
        ),
        (["--run_dir=RUN", "--dataset=mnist"], "Received: --dataset"),
        (
            ["--run_dir=RUN", "--out_dir=OUT", "--method=npo"],
            "is told what to forget. Expected --forget",
        ),
        (
            ["--run_dir=RUN", "--out_dir=OUT", "--method=npo", "--keep=0.9"],
            "--method=npo does not read --keep",
        ),
        (
            ["--run_dir=RUN", "--out_dir=OUT", "--forget=noisy"],
            "Expected no --forget. Received: --forget=noisy",
        ),
        (["--run_dir=RUN", "--out_dir=RUN"], "nothing in it is overwritten"),
        (
            ["--run_dir=RUN", "--out_dir=OUT", "--layers=conv77"],
            "no kernel that can be edited in conv77. Expected some of: conv1",
        ),
    ],
)
def test_bad_removals_are_refused(localized, tmp_path, flags, words):
    run = localized[0] / "standard"
    flags = [
        flag.replace("RUN", str(run)).replace("OUT", str(tmp_path / "new"))
        for flag in flags
    ]
    before = sorted(run.iterdir())
    done = _run("binaries.remove", *flags, check=False)
    assert done.returncode == 1 and words in done.stderr
    assert "Traceback" not in done.stderr
    assert [p for p in sorted(run.iterdir()) if p.name != ".lock"] == [
        p for p in before if p.name != ".lock"
    ]


def test_other_methods_are_told_what_to_forget(localized, tmp_path):
    run = localized[0] / "standard"
    ids = Run.open(run).examples().of_subset("noisy").example_id[:3]
    table = tmp_path / "ids.csv"
    table.write_text("example_id,why\n" + "".join(f"{i},x\n" for i in ids))
    out = tmp_path / "out"
    done = _run(
        "binaries.remove",
        f"--run_dir={run}",
        "--method=npo",
        f"--forget={table}",
        "--forget_epochs=1",
        f"--out_dir={out}",
    )
    assert "Method: NPO" in done.stdout
    settings = json.loads((out / "settings.json").read_text())["config"]
    assert settings["forget"] == ids.tolist() and settings["epochs"] == 1


def test_a_file_with_code_in_it_is_not_run(tmp_path):
    x = keras.Input((4,))
    y = keras.layers.Lambda(lambda t: t * 2)(keras.layers.Dense(2)(x))
    path = tmp_path / "lambda.keras"
    keras.Model(x, y).save(path)
    done = _run(
        "binaries.remove",
        f"--model={path}",
        "--dataset=digits",
        f"--out_dir={tmp_path / 'out'}",
        check=False,
    )
    assert done.returncode == 1
    assert "--import_modules=my_layers" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "error: --run_dir is missing. Expected: Folder of one trained"),
        (["--run_dir=x", "--epocs=3"], "Unknown command line flag 'epocs'"),
    ],
)
def test_a_missing_or_mistyped_flag_is_named(flags, words):
    done = _run("binaries.rewind", *flags, check=False)
    assert done.returncode == 1
    assert words in done.stderr and "FATAL" not in done.stderr


def test_the_protocol_of_the_paper_is_one_flag(localized, tmp_path):
    _run(
        "binaries.ablate",
        f"--run_dir={localized[0] / 'standard'}",
        f"--out_dir={tmp_path}",
        "--protocol=paper",
        "--population_term=frozen",  # What is given wins.
        "--count=1",
    )
    found = Result.load(tmp_path / "critical_units")
    assert (found.place, found.population_term) == ("weights", "frozen")
    for program, flags in (
        ("rewind", ["--epochs=0"]),
        ("retrain", ["--groups=head", "--epochs=1"]),
    ):
        _run(
            f"binaries.{program}",
            f"--run_dir={localized[0] / 'standard'}",
            f"--out_dir={tmp_path}",
            "--protocol=paper",
            *flags,
        )
    assert Result.load(tmp_path / "layer_retraining").trained_on == "noisy"
    run = Run.open(localized[0] / "standard")
    twin = rewind_layers(
        run, run.examples(), RewindConfig(epochs=(0,), statistics=False)
    )
    found = Result.load(tmp_path / "layer_rewinding")
    np.testing.assert_allclose(found.accuracy, twin.accuracy, atol=1e-6)
    _run(
        "binaries.train",
        *("--protocol=paper", "--model=lenet", "--width=1", "--p_gen=0.5"),
        *("--quick", "--epochs=1"),
        f"--run_dir={tmp_path / 'run'}",
    )
    assert Run.open(tmp_path / "run").model_config.rescale == "mass"


def test_flagfiles_are_the_papers_experiments():
    files = sorted((ROOT / "binaries" / "flagfiles").glob("*.flags"))
    assert len(files) >= 12
    for path in files:
        text = path.read_text()
        assert f"--flagfile=binaries/flagfiles/{path.name}" in text
        assert "# Expected" in text and "# Cost: " in text
        done = _run("tests.flagfile", f"--flagfile={path}")
        found = json.loads(done.stdout)
        assert found["data"]["noise_rate"] == 0.1
        if path.name != "digits.flags":
            assert found["training"]["momentum"] == 0.9
            assert found["training"]["weight_decay"] == 5e-4
        quick = json.loads(
            _run("tests.flagfile", f"--flagfile={path}", "--quick").stdout
        )
        assert quick["training"]["epochs"] == 3
        assert quick["data"]["train_examples"] == 512


def test_order_and_masks_do_not_depend_on_threads_or_mode():
    said = {
        _run("tests.order", *flags, threads=threads).stdout
        for threads in (1, 2)
        for flags in ((), ("--eager",))
    }
    assert len(said) == 1 and len(said.pop()) > 60


@pytest.mark.parametrize("program", ["train", "localize", "sweep", "report"])
def test_help_shows_a_command_and_the_flags(program):
    done = _run(f"binaries.{program}", "--help")  # Ends with 0.
    text = done.stdout + done.stderr
    assert f"python -m binaries.{program} --" in text
    assert "--run_dir" in text.replace("[no]", "")
