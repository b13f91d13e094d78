"""Search of settings for two goals."""

import numpy as np
import pytest

from tfmemloc import storage
from tfmemloc.sweeps import tuning
from tfmemloc.sweeps.results import gather_sweep
from tfmemloc.sweeps.run import SweepError

BASE = [
    "--model=lenet",
    "--width=1",
    "--train_examples=64",
    "--test_examples=32",
    "--heldout=0.2",
    "--epochs=1",
]


def _results(forgotten, kept):
    count = len(forgotten)
    return tuning.TuningResults(
        flags=("p_mem",),
        settings=np.array([[f"0.{r}"] for r in range(count)]),
        forget="drop_noisy",
        keep="drop_heldout",
        forgotten=np.array(forgotten, float),
        kept=np.array(kept, float),
    )


def test_the_front_is_what_nothing_surpasses():
    result = _results([0.1, 0.2, 0.2, 0.3, 0.1], [0.5, 0.7, 0.6, 0.7, 0.5])
    # The fourth forgets less than the second and knows as much; the first and
    # the last are the same.
    assert result.front.tolist() == [True, True, False, False, True]
    assert [row["p_mem"] for row in result.table().rows] == [
        "0.0",
        "0.4",
        "0.1",
    ]
    assert "from 10.0% drop noisy at 50.0%" in result.sentence()


def test_the_front_against_a_slow_twin(rng):
    forgotten, kept = rng.integers(0, 6, (2, 40)) / 10
    front = _results(forgotten, kept).front
    for r in range(40):
        surpassed = any(
            forgotten[o] <= forgotten[r]
            and kept[o] >= kept[r]
            and (forgotten[o], kept[o]) != (forgotten[r], kept[r])
            for o in range(40)
        )
        assert front[r] == (not surpassed)


def test_axes():
    choice, number, scale = tuning.parse_space(
        ["expand=0.5,1", "memory_off=0.1..0.9", "learning_rate=1e-3..0.1:log"]
    )
    assert choice == tuning.Axis("expand", ("0.5", "1"))
    assert number == tuning.Axis("memory_off", (), 0.1, 0.9)
    assert scale == tuning.Axis("learning_rate", (), 0.001, 0.1, True)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ([], "at least one axis"),
        (["p_mem"], "expected a flag"),
        (["p_mem=0.3..0.1"], "expected a flag"),
        (["p_mem=0..1:log"], "expected a flag"),
        (["p_mem=0.1,"], "expected a flag"),
        (["--p_mem=0.1..0.2"], "expected a flag"),
        (["p_mem=0.1,0.2", "p_mem=0.1..0.2"], "each once"),
    ],
)
def test_bad_axes(axes, words):
    with pytest.raises(ValueError, match=words):
        tuning.parse_space(axes)


def test_a_search_goes_on_with_what_it_had_begun(tmp_path):
    space = tuning.parse_space(["p_mem=0.05..0.5:log", "p_gen=0.4,0.6"])

    def tuned(trials, **changes):
        return tuning.tune_settings(
            tmp_path,
            "train",
            space,
            trials=trials,
            base=BASE,
            processes=2,
            progress=False,
            **changes,
        )

    first = tuned(1)
    # As a search leaves it that is killed while a trial runs.
    study = tuning._study(tmp_path, space)
    study.ask()  # Nothing was drawn for it yet.
    (begun,) = tuning._asked(study, space, 1, 0)
    wanted = tuning._cell(space, begun).name
    second = tuned(2)
    cells = {path.parent.name for path in tmp_path.glob("*/done.json")}
    assert len(cells) == 2 and wanted in cells
    assert second.settings[:1].tolist() == first.settings.tolist()
    # Nothing is run again, also where fewer are asked for.
    assert tuned(2).rows() == tuned(1).rows() == second.rows()
    with pytest.raises(ValueError, match="holds a search of other settings"):
        tuning.tune_settings(tmp_path, "train", space[:1], trials=3, base=BASE)


def test_a_goal_that_no_trial_has_is_named(tmp_path):
    space = tuning.parse_space(["p_gen=0.4,0.6"])
    with pytest.raises(ValueError, match="no number drop_wisdom"):
        tuning.tune_settings(
            tmp_path,
            "train",
            space,
            trials=1,
            base=BASE,
            keep="drop_wisdom",
            progress=False,
        )


def _kept(directory, cells):
    """Stands for a sweep whose cells are finished: their numbers."""
    for cell in cells:
        numbers = {
            "drop_noisy": float(dict(cell.values)["p_mem"]),
            "drop_heldout": 0.5,
        }
        path = directory / cell.name / "done.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(path, numbers)


def _searched(directory, monkeypatch, trials, fails=lambda cell: False):
    """A search whose cells take no time; some of them fail."""

    def run(directory, program, cells, **_):
        good = [cell for cell in cells if not fails(cell)]
        _kept(directory, good)
        if len(good) < len(cells):
            raise SweepError("a cell failed")
        return gather_sweep(directory, cells, "seed")

    monkeypatch.setattr(tuning, "run_sweep", run)
    space = tuning.parse_space(["p_mem=0.05..0.5:log"])
    return tuning.tune_settings(
        directory, "train", space, trials=trials, base=["--heldout=0.2"]
    )


def test_a_killed_search_tries_what_an_uninterrupted_one_does(
    tmp_path, monkeypatch
):
    whole = _searched(tmp_path / "whole", monkeypatch, 14)
    for trials in (3, 12, 14):
        parts = _searched(tmp_path / "parts", monkeypatch, trials)
    assert parts.rows() == whole.rows()


def test_a_setting_that_cannot_be_trained_does_not_end_a_search(
    tmp_path, monkeypatch
):
    seen = []

    def second_fails(cell):
        seen.append(cell)
        return len(dict.fromkeys(seen)) == 2

    found = _searched(tmp_path / "one", monkeypatch, 4, second_fails)
    assert len(found.rows()) == 4 and len(dict.fromkeys(seen)) == 5
    with pytest.raises(SweepError):
        _searched(tmp_path / "all", monkeypatch, 4, lambda cell: True)


def test_held_out_examples_are_asked_for_before_anything_is_trained(tmp_path):
    space = tuning.parse_space(["p_gen=.4..0.6"])
    with pytest.raises(ValueError, match="--heldout=0.1 in the common flags"):
        tuning.tune_settings(tmp_path, "train", space, trials=1)
    assert not list(tmp_path.iterdir())
    names = ("drop_noisy", "drop_heldout")
    for base in (
        ["--heldout=0.1"],
        ["--dataset=stdlib"],
        ["--dataset=mine.npz"],
        ["--flagfile=some.flags"],
    ):
        tuning._check_goals(names, base, space)
