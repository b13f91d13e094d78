"""Layer rewinding and layer retraining."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import toys
from tfmemloc import data, evaluation, graph, models, report, training
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.graph.inputs import arranged
from tfmemloc.probes import layer_rewinding
from tfmemloc.probes.group_learner import GroupFeed, GroupLearner
from tfmemloc.probes.layer_retraining import (
    LayerRetraining,
    RetrainConfig,
    retrain_layers,
)
from tfmemloc.probes.layer_rewinding import (
    LayerRewinding,
    RewindConfig,
    rewind_layers,
)
from tfmemloc.runs import Run
from tfmemloc.snapshots import Snapshots

SHORT = RetrainConfig(epochs=2, batch_size=32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return training.train(
        tmp_path_factory.mktemp("runs") / "run",
        data=DataConfig(train_examples=80, test_examples=40, noise_rate=0.2),
        model=ModelConfig(width=0.125, dropout="none"),
        training=TrainConfig(epochs=3, batch_size=32, learning_rate=0.1),
        progress=False,
    )


@pytest.fixture(scope="module")
def examples(run):
    return run.examples()


@pytest.mark.parametrize("dropout", ["none", "example_tied"])
@pytest.mark.parametrize("name", ["lenet", "resnet9", "resnet18", "vit"])
def test_a_cut_network_computes_the_same(name, dropout):
    width = 1.0 if name == "lenet" else 0.25
    model = models.build(
        ModelConfig(name, width=width, dropout=dropout), (8, 8, 1), 10
    )
    groups = graph.layer_groups(model)
    found = graph.cuts_before(model, groups)
    # In a residual block two tensors cross; there the cut is before it.
    assert len({cut.place for cut in found.values()}) >= 4
    rng = np.random.default_rng(0)
    feed = {
        "image": tf.constant(rng.uniform(-1, 1, (3, 8, 8, 1)), tf.float32),
        "example_id": tf.range(3, dtype=tf.int64),
    }
    expected = model(feed, training=False)
    reached, x = {}, feed["image"]
    for place, stage in graph.stages(model, list(found.values())):
        inputs = arranged(stage, {"x": x, "example_id": feed["example_id"]})
        reached[place] = x = stage(inputs, training=False)
    for group, cut in found.items():
        if cut.place:
            inputs = arranged(
                cut.suffix,
                {"x": reached[cut.place], "example_id": feed["example_id"]},
            )
            logits = cut.suffix(inputs, training=False)
            np.testing.assert_array_equal(logits, expected)
        own = {id(layer) for layer in cut.suffix.layers}
        assert all(id(layer) in own for layer in groups[group])


def test_what_cannot_be_cut_is_one_suffix():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    model(tf.zeros([1, 3]))
    cut = graph.cuts_before(model, {"dense": [model.dense]})["dense"]
    assert cut.place == 0
    assert cut.suffix is model
    assert graph.stages(model, [cut]) == []


@pytest.fixture(scope="module")
def plain(run):
    """A network to overwrite, and its predictor: one trace for all twins."""
    model = run.model()
    return model, evaluation.Predictor(model)


def _rewound_plainly(plain, run, examples, epoch, group_names, statistics):
    """The slow twin: load, overwrite, evaluate everything."""
    model, predictor = plain
    model.set_weights(run.weights(run.epochs[-1]))
    early = dict(
        zip([w.path for w in model.weights], run.weights(epoch), strict=True)
    )
    for weight in model.weights:
        is_statistic = "moving_" in weight.path
        group = weight.path.split(".")[0]
        if group in group_names and (statistics or not is_statistic):
            weight.assign(early[weight.path])
    return evaluation.evaluate(predictor, examples)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("mode", ["single", "up_to", "from"])
def test_rewinding_equals_its_slow_twin(plain, run, examples, mode, statistics):
    result = rewind_layers(
        run,
        examples,
        RewindConfig(epochs=(0, 2), mode=mode, statistics=statistics),
        progress=False,
    )
    assert len(result.groups) == 9
    for e, epoch in enumerate(result.epochs):
        for g in range(9):
            chosen = {
                "single": result.groups[g : g + 1],
                "up_to": result.groups[: g + 1],
                "from": result.groups[g:],
            }[mode]
            twin = _rewound_plainly(
                plain, run, examples, epoch, chosen, statistics
            )
            np.testing.assert_array_equal(result.accuracy[e, g], twin.accuracy)
            np.testing.assert_allclose(result.loss[e, g], twin.loss, rtol=1e-5)
    baseline = evaluation.evaluate(run.model(), examples)
    np.testing.assert_array_equal(result.baseline, baseline.accuracy)


def test_statistics_are_rewound_too(run, examples):
    # The authors' code leaves the trained statistics in the rewound group.
    ours, authors = (
        rewind_layers(
            run,
            examples,
            RewindConfig(epochs=(0,), statistics=s),
            progress=False,
        )
        for s in (True, False)
    )
    assert (ours.loss != authors.loss).any()


def test_fresh_is_another_initialization(run, examples):
    result = rewind_layers(
        run, examples, RewindConfig(epochs=(0,)), progress=False
    )
    fresh = layer_rewinding._fresh_weights(run, examples)
    assert any(
        (a != b).any() for a, b in zip(fresh, run.weights(0), strict=True)
    )
    model = run.model()
    variables = graph.group_variables(graph.layer_groups(model))["conv3"]
    place = {id(v): n for n, v in enumerate(model.weights)}
    values = [fresh[place[id(v)]] for v in variables]
    with graph.swapped_weights(variables, values):
        twin = evaluation.evaluate(model, examples)
    g = result.groups.index("conv3")
    np.testing.assert_array_equal(result.fresh_accuracy[g], twin.accuracy)


def test_each_suffix_is_traced_once_and_weights_stay(run, examples):
    model = run.model()
    before = model.get_weights()
    groups = graph.layer_groups(model)
    sources = [run.weights(epoch) for epoch in (0, 1, 2)]
    rewinder = layer_rewinding.Rewinder(model, groups, "single", True, sources)
    rewinder.run(examples, 50, False)
    for predict in [
        *rewinder.suffixes.values(),
        *dict(rewinder.stages).values(),
    ]:
        assert predict.trace_count() == 1
    for a, b in zip(before, model.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A run of a network whose layer `memory` alone holds wrong labels."""
    return toys.memory_run(tmp_path_factory.mktemp("runs") / "planted")


def test_both_probes_name_the_planted_layer(planted):
    run, examples = planted
    rewinding = rewind_layers(
        run, examples, RewindConfig(epochs=(0,)), progress=False
    )
    noisy = rewinding.subsets.index("noisy")
    assert rewinding.baseline.tolist() == [1.0, 1.0, 1.0]
    assert rewinding.accuracy[0, :, noisy].tolist() == [1.0, 0.0, 1.0]
    assert rewinding.most_sensitive(0) == "memory"
    assert rewinding.robust_share(0) == pytest.approx(2 / 3)
    retraining = retrain_layers(run, examples, SHORT, progress=False)
    assert retraining.final[:, noisy].tolist() == [1.0, 0.0, 1.0]
    assert retraining.most_sensitive() == "memory"
    sentence = retraining.sentence()
    assert "most sensitive is memory, number 2 of 3" in sentence
    # The opposite question: shown the noisy examples, it learns them.
    learned = retrain_layers(
        run,
        examples,
        dataclasses.replace(
            SHORT,
            epochs=40,
            learning_rate=0.3,
            train_on="noisy",
            groups=("memory",),
        ),
        progress=False,
    )
    assert learned.final[0, noisy] == 1.0


def test_only_the_group_changes_and_sees_only_clean_examples(
    run, examples, monkeypatch
):
    model = run.model()
    trained = {w.path: w.numpy() for w in model.weights}
    snapshots, seen = {}, []
    learn = GroupLearner._curve
    train_batches = GroupFeed.train_batches

    def spying_learn(self, *arguments):
        curve = learn(self, *arguments)
        own = {v.path for v in self._variables}
        snapshots[min(own)] = (
            own,
            {w.path: w.numpy() for w in self._model.weights},
        )
        return curve

    def spying_batches(self, *arguments):
        dataset = train_batches(self, *arguments)
        seen.extend(i for x, _ in dataset for i in x["example_id"].numpy())
        return dataset

    monkeypatch.setattr(GroupLearner, "_curve", spying_learn)
    monkeypatch.setattr(GroupFeed, "train_batches", spying_batches)
    retrain_layers(run, examples, SHORT, progress=False)
    assert len(snapshots) == 9
    for own, after in snapshots.values():
        for path, value in after.items():
            is_same = value.tobytes() == trained[path].tobytes()
            assert is_same == (path not in own), path
    # The authors' code inverts the mask twice and trains on the noisy ones.
    assert set(seen) == set(examples.of_subset("clean").example_id)


@pytest.mark.parametrize("dropout", ["standard", "example_tied"])
def test_reused_prefixes_change_nothing(tmp_path, dropout):
    run = training.train(
        tmp_path / "run",
        data=DataConfig(train_examples=60, test_examples=20, noise_rate=0.2),
        model=ModelConfig("lenet", dropout=dropout),
        training=TrainConfig(epochs=1, batch_size=32),
        progress=False,
    )
    examples = run.examples()
    inference = "tied" if dropout == "example_tied" else None
    results = [
        retrain_layers(
            run,
            examples,
            dataclasses.replace(
                SHORT,
                groups=("conv2", "dense1"),
                inference=inference,
                memory_budget_mib=budget,
            ),
            progress=False,
        )
        for budget in (1024, 0)
    ]
    # The last bits of a gathered and a fresh activation are the same, but
    # dropout draws anew where it is part of the suffix.
    if dropout == "example_tied":
        np.testing.assert_array_equal(results[0].accuracy, results[1].accuracy)
    assert results[0].accuracy.shape == (2, 3, 3)


def test_retraining_goes_on_where_it_was_stopped(
    run, examples, tmp_path, monkeypatch
):
    some = dataclasses.replace(SHORT, groups=("conv1", "conv2", "conv3"))
    whole = retrain_layers(run, examples, some, progress=False)
    learn = GroupLearner.learn
    calls = []

    def counting(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return learn(self, *arguments)

    monkeypatch.setattr(GroupLearner, "learn", counting)
    options = {
        "config": some,
        "directory": tmp_path / "retraining",
        "progress": False,
    }
    with pytest.raises(KeyboardInterrupt):
        retrain_layers(run, examples, **options)
    resumed = retrain_layers(run, examples, **options)
    assert len(calls) == 3 + 1  # Two groups were finished before.
    np.testing.assert_array_equal(resumed.accuracy, whole.accuracy)
    other = dataclasses.replace(some, learning_rate=0.5)
    with pytest.raises(ValueError, match="holds a retraining with other"):
        retrain_layers(run, examples, **{**options, "config": other})


def test_the_stopping_rule(planted):
    run, examples = planted
    result = retrain_layers(
        run,
        examples,
        dataclasses.replace(SHORT, epochs=9, groups=("first",)),
        progress=False,
    )
    # Clean accuracy is 100 % from the start, so three epochs are enough.
    assert result.epochs.tolist() == [3]
    assert np.isnan(result.accuracy[0, 4:]).all()


def test_results_save_load_and_list(planted, tmp_path):
    run, examples = planted
    rewinding = rewind_layers(
        run, examples, RewindConfig(epochs=(0,)), progress=False
    )
    rewinding.save(tmp_path / "rewinding")
    loaded = LayerRewinding.load(tmp_path / "rewinding")
    assert loaded.rows() == rewinding.rows()
    assert len(loaded.rows()) == 3 * 3
    assert loaded.fresh_accuracy.shape == (0, 3)  # Not a network of ours.
    retraining = retrain_layers(run, examples, SHORT, progress=False)
    retraining.save(tmp_path / "retraining")
    again = LayerRetraining.load(tmp_path / "retraining")
    assert again.rows() == retraining.rows()
    for section in (
        report.section_of(loaded),
        report.section_of(again),
    ):
        assert len(section.table.rows) == 3
        assert len(section.figures) == 1


def test_bad_input_is_refused(run, examples, planted):
    with pytest.raises(ValueError, match="epoch 9. Saved epochs: 0, 1, 2, 3"):
        rewind_layers(run, examples, RewindConfig(epochs=(9,)))
    with pytest.raises(ValueError, match="epoch 9. Saved epochs: 0, 1, 2, 3"):
        retrain_layers(run, examples, RetrainConfig(reset_to=9))
    with pytest.raises(ValueError, match="'single', 'up_to', 'from'"):
        RewindConfig(mode="double")
    with pytest.raises(ValueError, match="no group 'conv9'. Expected some"):
        retrain_layers(run, examples, RetrainConfig(groups=("conv9",)))
    with pytest.raises(ValueError, match="no subset 'typical'"):
        retrain_layers(run, examples, RetrainConfig(train_on="typical"))
    clean = data.add_label_noise(examples, 0.0, seed=0)
    snapshots = Snapshots(run.model(), {0: run.weights(0)})
    result = rewind_layers(snapshots, clean, progress=False)
    # Without wrong labels the table is of the first subset.
    assert result.focus == "clean" and "clean examples" in result.sentence()
    with pytest.raises(TypeError, match="Expected a Run, a Keras model"):
        rewind_layers("runs/mine", clean)
    other_run, _ = planted
    model = run.model()
    with pytest.raises(ValueError, match="is of another model"):
        other_run.load_weights(model, 0)
    with pytest.raises(ValueError, match="is not the data this run"):
        rewind_layers(run, clean)
    assert Run.open(run.directory).epochs == (0, 1, 2, 3)


def test_a_softmax_in_the_middle_is_no_end(tmp_path, small_digits):
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Flatten()(image)
    x = keras.layers.Dense(16, activation="softmax", name="attention")(x)
    model = keras.Model(image, keras.layers.Dense(10, name="last")(x))
    snapshots = Snapshots(model, {0: model.get_weights()})
    result = rewind_layers(snapshots, small_digits, progress=False)
    # Put back to the weights that it has, nothing changes.
    np.testing.assert_allclose(
        result.loss[0], np.tile(result.baseline_loss, (2, 1)), rtol=1e-5
    )


def test_retraining_keeps_apart_what_differs(planted, tmp_path):
    run, examples = planted
    directory = tmp_path / "retraining"
    model = run.model(0)
    first = Snapshots(run.model(), {0: model.get_weights()})
    retrain_layers(first, examples, SHORT, directory=directory, progress=False)
    other = Snapshots(model, {0: model.get_weights()})
    with pytest.raises(ValueError, match="with other weights"):
        retrain_layers(
            other, examples, SHORT, directory=directory, progress=False
        )
    named = dataclasses.replace(
        examples, subset=np.where(examples.subset == "test", "test", "noisy")
    )
    with pytest.raises(ValueError, match="no subset of rightly labelled"):
        retrain_layers(other, named, SHORT, progress=False)
