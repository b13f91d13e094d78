"""Passes over data that several processes share."""

import contextlib
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from tests import programs
from tests.conftest import ROOT
from tfmemloc import (
    CurvatureConfig,
    ModelConfig,
    Run,
    ScoreConfig,
    TrainConfig,
    audits,
    configs,
    curvature_factors,
    recalibrate_batch_norm,
    remove_memory,
    score_examples,
    shares,
    sharing,
    storage,
    train,
)


class _Waits(Exception):
    """A process would wait here for another one."""


@pytest.fixture
def in_turns(monkeypatch):
    """What `work(number)` gives in each of several processes.

    Keras takes no threads. So each goes on until it has to wait, is stopped
    there, and begins anew when the others have had their turn: as if it was
    killed whenever it waits.
    """

    def awaited(path):
        if not path.exists():
            raise _Waits(path)
        return storage.read_arrays(path)

    monkeypatch.setattr(shares, "_awaited", awaited)

    def run(count, folder, work):
        found = {}
        while len(found) < count:
            before = sorted(folder.rglob("*"))
            for number in set(range(count)) - set(found):
                with (
                    contextlib.suppress(_Waits),
                    sharing(number, count, folder),
                ):
                    found[number] = work(number)
            stands_still = before == sorted(folder.rglob("*"))
            assert not stands_still or len(found) == count, "all of them wait"
        return [found[number] for number in range(count)]

    return run


def _squares(items):
    return {str(item): np.array(item**2) for item in items}


def test_each_does_its_share_and_all_get_the_whole(in_turns, tmp_path):
    done = [[], [], []]

    def work(number):
        def pass_(items):
            done[number] += items
            return _squares(items)

        return shares.together("squares", lambda: ["a"], 7, pass_)

    found = in_turns(3, tmp_path, work)
    assert done == [[0, 3, 6], [1, 4], [2, 5]]
    for one in found:
        assert {k: int(v) for k, v in one.items()} == {
            str(item): item**2 for item in range(7)
        }


def test_alone_it_is_the_pass_itself(tmp_path):
    found = shares.together("squares", lambda: 1 / 0, 3, _squares)
    assert sorted(found) == ["0", "1", "2"]
    with sharing(0, 1, tmp_path / "none"):
        assert sorted(shares.together("a", lambda: [], 2, _squares)) == [
            "0",
            "1",
        ]
    assert not (tmp_path / "none").exists()


def test_sums_are_those_of_all_and_nobody_needs_to_have_an_item(
    in_turns, tmp_path
):
    def work(number):
        return shares.together(
            "sum",
            lambda: [],
            2,
            lambda items: {"x": np.array(sum(items))} if items else {},
            shares.added,
        )

    assert [int(one["x"]) for one in in_turns(3, tmp_path, work)] == [1] * 3


def test_what_was_done_is_not_done_again(in_turns, tmp_path):
    count = []

    def work(number):
        def pass_(items):
            count.append(number)
            return _squares(items)

        return shares.together("squares", lambda: ["a"], 4, pass_)

    in_turns(2, tmp_path, work)
    in_turns(2, tmp_path, work)
    assert sorted(count) == [0, 1]
    assert len(list(tmp_path.iterdir())) == 1  # Parts are put together.


def test_a_pass_within_a_pass_is_not_shared(in_turns, tmp_path):
    def work(number):
        def outer(items):
            inner = shares.together("inner", lambda: ["b"], 3, _squares)
            assert sorted(inner) == ["0", "1", "2"]
            return _squares(items)

        return shares.together("outer", lambda: ["a"], 2, outer)

    assert len(in_turns(2, tmp_path, work)[0]) == 2


def test_the_first_does_what_is_done_once(in_turns, tmp_path):
    who = []

    def work(number):
        def pass_():
            who.append(number)
            return {"x": np.array([number])}

        return shares.once("one", lambda: ["a"], pass_)["x"]

    assert [list(x) for x in in_turns(3, tmp_path, work)] == [[0]] * 3
    assert who == [0]


@pytest.mark.parametrize(("number", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_wrong_number_is_refused(number, count, tmp_path):
    with (
        pytest.raises(ValueError, match="Expected a number from 0 to"),
        sharing(number, count, tmp_path),
    ):
        pass


def test_factors_and_statistics_are_those_of_one(
    in_turns, small_network, small_digits, tmp_path
):
    one = curvature_factors(
        small_network, small_digits.train, memory_budget=2**22
    )
    weights = recalibrate_batch_norm(
        small_network, small_digits.train, batch_size=16
    ).get_weights()

    def work(number):
        factors = curvature_factors(
            small_network, small_digits.train, memory_budget=2**22
        )
        recalibrated = recalibrate_batch_norm(
            small_network, small_digits.train, batch_size=16
        )
        return factors, recalibrated.get_weights()

    found = in_turns(2, tmp_path, work)
    for factors, recalibrated in found:
        for a, b in zip(one, factors, strict=True):
            np.testing.assert_allclose(a.inputs, b.inputs, rtol=1e-5, atol=1e-3)
            np.testing.assert_allclose(
                a.outputs, b.outputs, rtol=1e-5, atol=1e-3
            )
        for a, b in zip(weights, recalibrated, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_array_equal(a.inputs, b.inputs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A standard and a tied run, and four on halves, of small networks."""
    folder = tmp_path_factory.mktemp("runs")
    training = TrainConfig(epochs=4, batch_size=32, learning_rate=0.05)
    data = configs.DataConfig(train_examples=200, test_examples=60, heldout=0.2)

    def run(name, dropout, **changed):
        return train(
            folder / name,
            data=configs.DataConfig(**{**configs.to_json(data), **changed}),
            model=ModelConfig("lenet", dropout=dropout),
            training=training,
            progress=False,
        )

    run("standard", "none")
    run("tied", "example_tied")
    for seed, complement in itertools.product((0, 1), (False, True)):
        run(
            f"halves/standard/half{seed}{complement}",
            "none",
            subset_ratio=0.5,
            subset_seed=seed,
            subset_complement=complement,
        )
    return folder


def test_a_removal_of_two_is_that_of_one(in_turns, runs, tmp_path):
    run = Run.open(runs / "standard")
    config = CurvatureConfig(refit_epochs=1, believe="all")
    one, result = remove_memory(run, run.examples(), config)
    found = in_turns(
        2,
        tmp_path / "shared",
        lambda number: remove_memory(
            Run.open(runs / "standard"),
            run.examples(),
            config,
            directory=tmp_path / "work",
        ),
    )
    for model, other in found:
        assert other.rows()[1]["clean"] == pytest.approx(
            result.rows()[1]["clean"], abs=0.03
        )
        for a, b in zip(
            found[0][0].get_weights(), model.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_scores_of_two_are_those_of_one(in_turns, runs, tmp_path):
    run = Run.open(runs / "tied")
    config = ScoreConfig(gradient_scores=True)
    one = score_examples(run, run.examples(), config, progress=False)
    for other in in_turns(
        2,
        tmp_path,
        lambda number: score_examples(
            Run.open(runs / "tied"), run.examples(), config, progress=False
        ),
    ):
        assert one.names == other.names
        np.testing.assert_allclose(one.values, other.values, atol=1e-4)


def test_confidences_of_two_are_those_of_one(in_turns, runs, tmp_path):
    def asked(number=0):
        halves = sorted((runs / "halves" / "standard").iterdir())
        return audits.confidences_of_runs(
            {"standard": [Run.open(half) for half in halves]}
        )

    phi, member, _ = asked()
    for other_phi, other_member, _ in in_turns(2, tmp_path, asked):
        assert phi.keys() == other_phi.keys()
        np.testing.assert_allclose(
            phi["standard"], other_phi["standard"], atol=1e-4
        )
        np.testing.assert_array_equal(
            member["standard"], other_member["standard"]
        )


def _program(*flags):
    done = subprocess.run(
        [sys.executable, "-m", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _run_of_two(program, run, out):
    _program(
        *(f"binaries.{program}", f"--run_dir={run}", "--workers=2"),
        f"--out_dir={out}",
    )


def test_two_workers_remove_memory(runs, tmp_path):
    """What one does, and each file written once."""
    out = tmp_path / "removed"
    _run_of_two("remove", runs / "standard", out)
    rows = storage.read_json(out / "summary.json")["rows"]
    assert [row["stage"] for row in rows] == ["before", "after"]
    assert (out / "model.keras").exists()
    assert "curvature" in (out / "work" / "worker_1.log").read_text()


@pytest.mark.slow
def test_two_workers_score_labels(runs, tmp_path):
    _run_of_two("score_examples", runs / "tied", tmp_path)
    assert (tmp_path / "suspects.csv").exists()
    assert "judging" in (tmp_path / "worker_1.log").read_text()


@pytest.mark.slow
def test_two_workers_audit(runs, tmp_path):
    _run_of_two("audit", runs / "halves", tmp_path)
    assert storage.read_json(tmp_path / "audit.json")["rows"]
    assert "confidences" in (tmp_path / "worker_1.log").read_text()


@pytest.mark.parametrize("asked", ["--workers=2", "TF_CONFIG"])
@pytest.mark.parametrize(
    ("program", "flags", "words"),
    (
        (
            "remove",
            ("--method=npo", "--forget=noisy"),
            "Workers share the passes of --method=curvature",
        ),
        (
            "audit",
            ("--confidences=a.npz", "--out_dir=x"),
            "Workers share the networks of --run_dir",
        ),
        (
            "score_examples",
            ("--dataset=digits", "--out_dir=x"),
            "Workers share passes of a network",
        ),
    ),
)
def test_what_workers_cannot_share_is_refused(
    asked, program, flags, words, runs
):
    given = (f"--run_dir={runs}", *flags) if program == "remove" else flags
    environment = {}
    if asked == "TF_CONFIG":
        environment["TF_CONFIG"] = json.dumps(
            {
                "cluster": {"worker": ["localhost:1", "localhost:2"]},
                "task": {"type": "worker", "index": 1},
            }
        )
    else:
        given = (asked, *given)
    done = programs.launcher().run(
        f"binaries.{program}", *given, check=False, environment=environment
    )
    assert done.returncode and words in done.stderr
