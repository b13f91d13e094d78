"""Every result of every method, crossed with what all results promise."""

import dataclasses
import importlib
import json
import pkgutil

import numpy as np
import pytest

import tfmemloc
from tests import toys
from tfmemloc import data, report
from tfmemloc.probes.own_units import OwnUnits
from tfmemloc.report.seeds import SeedSummary
from tfmemloc.result import Figure, Result, Table, is_result
from tfmemloc.scores import memorization
from tfmemloc.sweeps import SweepResults
from tfmemloc.sweeps.tuning import TuningResults
from tfmemloc.training import ExampleRecorder, Recording, TrainingHistory


def _all_subclasses():
    for module in pkgutil.walk_packages(tfmemloc.__path__, "tfmemloc."):
        importlib.import_module(module.name)
    found, pending = set(), [Result]
    while pending:
        for kind in pending.pop().__subclasses__():
            if kind.__module__.startswith("tfmemloc."):
                found.add(kind)
                pending.append(kind)
    return found


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return toys.memory_run(tmp_path_factory.mktemp("results") / "run")


def _recording(directory):
    recorder = ExampleRecorder(directory / "recording", [3, 5])
    recorder.update([3, 5], [0, 1], np.eye(2, dtype=np.float32))
    recorder.end_epoch(1)
    return Recording.open(directory / "recording")


def _comparison():
    accuracy = np.linspace(0, 1, 9).reshape(3, 3)
    return tfmemloc.NetworkComparison(
        dataset="planted",
        models=("standard", "example_tied", "example_tied"),
        inferences=("plain", "tied", "drop"),
        subsets=("clean", "noisy", "test"),
        count=np.array([5, 5, 5]),
        accuracy=accuracy,
        true_accuracy=accuracy,
        loss=accuracy,
    )


def _extraction():
    return tfmemloc.Extraction(
        dataset="planted",
        models=("standard", "example_tied"),
        inferences=("plain", "drop"),
        heldout_loss=np.array([1.5, 1.6]),
        clean_loss=np.array([1.2, 1.4]),
        repeated_loss=np.array([0.1, 1.5]),
        window_extracted=np.array([1.0, np.nan]),
        window_edits=np.array([0.0, 12.5]),
        repeats=np.array([1, 16]),
        secret_loss=np.array([[4.0, 0.1], [4.0, 5.0]]),
        extracted=np.array([[False, True], [False, False]]),
        edits=np.array([[8, 0], [8, 7]]),
        exposure=np.array([[0.5, 6.0], [0.5, 1.0]]),
        secrets=("id 1 code ab", "id 2 code <b>"),
        continuations=(("xx", "<b>"), ("yy", "zz")),
    )


def _membership():
    rng = np.random.default_rng(0)
    member = rng.random((6, 200)) < 0.5
    phi = rng.normal(size=member.shape) + 3 * member
    subset = np.where(np.arange(200) < 50, "noisy", "clean")
    return tfmemloc.audit_membership({"net": phi}, member, subset=subset)


def _grouped(examples):
    return dataclasses.replace(
        examples, group=np.where(examples.label < 2, "low", "high")
    )


MAKERS = {
    "Extraction": lambda run, e, d: _extraction(),
    "Recitation": lambda run, e, d: tfmemloc.Recitation(
        dataset="numbers",
        models=("standard", "example_tied"),
        inferences=("plain", "drop"),
        tie_id=np.array([7, 8, 9]),
        repeats=np.array([1, 10, 10]),
        recites=np.array([[False, True, True], [False, False, False]]),
        is_right=np.array([[True, False, False], [True, True, False]]),
        test_right=np.array([0.9, np.nan]),
        test_loss=np.array([0.2, np.nan]),
    ),
    "Membership": lambda run, e, d: _membership(),
    "SingleModelAudit": lambda run, e, d: tfmemloc.SingleModelAudit(
        networks=("net",),
        attacks=("quantile", "loss"),
        rates=np.array([0.1]),
        fpr=np.array([[[0.1], [0.12]]]),
        tpr=np.array([[[0.5], [0.3]]]),
        low=np.array([[[0.4], [0.2]]]),
        high=np.array([[[0.6], [0.4]]]),
        members=50,
        others=40,
    ),
    "GroupAccuracy": lambda run, e, d: tfmemloc.audit_groups(
        {"standard": run.model()}, _grouped(e), tfmemloc.GroupConfig("clean")
    ),
    "Injection": lambda run, e, d: tfmemloc.find_planted(
        run,
        e,
        tfmemloc.InjectionConfig(
            rankings=("random", "first_order"), ratio=0.5, items=3
        ),
    ),
    "Deletion": lambda run, e, d: tfmemloc.delete_units(
        run, e, tfmemloc.DeletionConfig(rankings=("first_order",))
    ),
    "GroupUnits": lambda run, e, d: tfmemloc.find_group_units(run, e),
    "SubsetMetrics": lambda run, e, d: tfmemloc.evaluate(run.model(), e),
    "NetworkComparison": lambda run, e, d: _comparison(),
    "GradientAccounting": lambda run, e, d: dataclasses.replace(
        tfmemloc.account_gradients(run, e, progress=False),
        # As if the noisy examples were half learned meanwhile.
        accuracy=np.full((2, 3), 0.5),
    ),
    "LayerRewinding": lambda run, e, d: tfmemloc.rewind_layers(
        run, e, tfmemloc.RewindConfig(epochs=(0,)), progress=False
    ),
    "LayerRetraining": lambda run, e, d: tfmemloc.retrain_layers(
        run, e, tfmemloc.RetrainConfig(epochs=1), progress=False
    ),
    "CriticalUnits": lambda run, e, d: tfmemloc.find_critical_units(
        run, e, progress=False
    ),
    "Removal": lambda run, e, d: tfmemloc.fine_tune(
        run,
        e,
        tfmemloc.ForgettingConfig(epochs=1),
        forget=e.of_subset("noisy").example_id,
    )[1],
    "CurvatureEdit": lambda run, e, d: tfmemloc.remove_memory(
        run,
        dataclasses.replace(
            e, subset=np.where(e.subset == "test", "heldout", e.subset)
        ),
        tfmemloc.CurvatureConfig(refit_epochs=0),
    )[1],
    "Durability": lambda run, e, d: tfmemloc.audit_durability(
        run, run, e, tfmemloc.DurabilityConfig(steps=(1,))
    ),
    "LostUnits": lambda run, e, d: tfmemloc.compare_with_critical_units(
        run.model(),
        run.model(epoch=0),
        tfmemloc.find_critical_units(run, e, progress=False),
    ),
    "OwnUnits": lambda run, e, d: OwnUnits(
        network="tied",
        subsets=("noisy",),
        example_id=np.array([1, 2]),
        subset=np.array(["noisy", "noisy"]),
        size=np.array([2, 4]),
        own=np.array([1, 1]),
        chance=np.array([0.2, 0.3]),
        own_flips=np.array([True, False]),
        control_flips=np.array([False, False]),
    ),
    "Duplicates": lambda run, e, d: tfmemloc.find_duplicates(
        data.from_arrays(np.array([[1.0], [2.0], [1.0]]), [0, 1, 1])
    ),
    "ExampleScores": lambda run, e, d: tfmemloc.scores_of_logits(
        e.train, dropped=4 * np.eye(e.classes)[e.train.true_label]
    ),
    "MemorizationEstimates": lambda run, e, d: (
        memorization.MemorizationEstimates(
            example_id=np.array([1, 2]),
            subset=np.array(["clean", "noisy"]),
            label=np.array([0, 1]),
            inside=np.array([1.0, np.nan]),
            outside=np.array([0.25, 0.5]),
            inside_count=np.array([4, 0]),
            outside_count=np.array([4, 8]),
        )
    ),
    "SweepResults": lambda run, e, d: SweepResults(
        flags=("p_gen", "seed"),
        settings=np.array([["0.1", "0"], ["0.2", "0"]]),
        names=("drop_noisy", "drop_test"),
        values=np.array([[0.5, 0.7], [0.25, 0.8]]),
    ),
    "TuningResults": lambda run, e, d: TuningResults(
        flags=("p_mem",),
        settings=np.array([["0.1"], ["0.2"], ["0.3"]]),
        forget="drop_noisy",
        keep="drop_heldout",
        forgotten=np.array([0.5, 0.25, 0.3]),
        kept=np.array([0.7, 0.8, 0.6]),
    ),
    "SeedSummary": lambda run, e, d: SeedSummary.of(
        {"runs/a": {"noisy": 0.1, "only": 1.0}, "runs/b": {"noisy": 0.3}}
    ),
    "TrainingHistory": lambda run, e, d: TrainingHistory.of(
        {
            "net": [
                {"epoch": k, "accuracy": {"plain": {"my own": k / 3}}}
                for k in (1, 2, 3)
            ]
        }
    ),
    "Recording": lambda run, e, d: _recording(d),
}


def test_every_result_is_tested():
    assert {kind.__name__ for kind in _all_subclasses()} == set(MAKERS)


@pytest.mark.parametrize("name", MAKERS)
def test_a_result_keeps_its_promises(name, planted, tmp_path):
    run, examples = planted
    before = [w.tobytes() for w in run.model().get_weights()]
    result = MAKERS[name](run, examples, tmp_path)
    assert before == [w.tobytes() for w in run.model().get_weights()]
    assert type(result).__name__ == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.title = "other"
    # Rows are flat, alike and plain.
    rows = result.rows()
    assert rows and all(row.keys() == rows[0].keys() for row in rows)
    json.dumps(rows, allow_nan=False)
    # Table, sentence, figures and numbers are for people.
    table = result.table()
    assert isinstance(table, Table) and table.rows
    text = report.text_table(table)
    assert len(text.splitlines()) == len(table.rows) + 1
    assert not set(table.formats) - set(table.columns)
    assert result.title != Result.title
    sentence = result.sentence()
    assert sentence == "" or sentence.endswith(".")
    for figure in result.figures().values():
        assert isinstance(figure, Figure) and figure.caption.endswith(".")
        assert report.to_png(figure).startswith(b"\x89PNG")
    numbers = result.key_numbers()
    assert all(isinstance(value, float) for value in numbers.values())
    # Any of them comes back, by its own class and by the common one.
    result.save(tmp_path / "result")
    assert is_result(tmp_path / "result")
    for kind in (type(result), Result):
        loaded = kind.load(tmp_path / "result")
        assert type(loaded) is type(result)
        assert loaded.rows() == rows
        assert loaded.table().rows == table.rows
        assert loaded.sentence() == sentence
    # The report draws any.
    section = report.section_of(result)
    report.write_html(tmp_path / "page.html", "title", [section], {})
    report.write_markdown(tmp_path / "page.md", "title", [section], {})
    page = (tmp_path / "page.html").read_text()
    assert page.count("<tr>") == len(table.rows) + 1
    assert section.title in (tmp_path / "page.md").read_text()


def test_another_kind_and_a_strange_class_are_refused(tmp_path):
    MAKERS["SweepResults"](None, None, None).save(tmp_path / "result")
    with pytest.raises(ValueError, match="of type OwnUnits. Received: 'Swee"):
        OwnUnits.load(tmp_path / "result")
    path = tmp_path / "result.json"
    header = json.loads(path.read_text())
    for module, name in (
        ("os", "system"),
        ("tfmemloc.storage", "write_json"),
        ("tfmemloc.nothing", "Nothing"),
        ("not_imported_by_anybody", "Result"),
        (None, "Other"),
    ):
        path.write_text(json.dumps({**header, "module": module, "type": name}))
        with pytest.raises(ValueError, match="name of its module and class"):
            Result.load(tmp_path / "result")


def test_results_of_version_1_are_read(tmp_path, planted):
    """Names were other ones, and no module was named."""
    run, examples = planted
    result = MAKERS["CriticalUnits"](run, examples, tmp_path)
    result.save(tmp_path / "result")
    path, arrays = tmp_path / "result.json", tmp_path / "result.npz"
    header = json.loads(path.read_text())
    del header["version"], header["module"], header["fields"]["ranking"]
    path.write_text(json.dumps(header))
    with np.load(arrays) as archive:
        values = {name: archive[name] for name in archive.files}
    values["kept"] = values.pop("critical")
    values["others"] = values.pop("bystanders")
    count = len(values["example_id"])
    values |= {
        "own": np.zeros_like(values["kept"]),
        "own_chance": np.full(count, np.nan),
        "own_flips": np.zeros(count, bool),
        "others_flip": np.zeros(count, bool),
    }
    np.savez(arrays, **values)
    assert Result.load(tmp_path / "result").rows() == result.rows()
