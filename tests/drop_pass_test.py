"""Rules that let a part of each batch pass without its memory."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import toys
from tfmemloc import data, graph, storage
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.layers.tied_dropout import MEMORY_OFF
from tfmemloc.losses import log_softmax
from tfmemloc.training import by_example, rules, train
from tfmemloc.training.beliefs import Beliefs

DROP_PASSES = ("drop_pass_elr", "drop_pass_gate", "drop_pass_gce")
STATEFUL = (*DROP_PASSES, "late_tying", "routed_suspects", "sop")
COUNT, CLASSES = 40, 3


@pytest.fixture(scope="module")
def examples():
    return Examples(
        inputs={"row": np.eye(COUNT, dtype=np.float32)},
        label=np.arange(COUNT) % CLASSES,
        true_label=np.arange(COUNT) % CLASSES,
        example_id=1000 + 7 * np.arange(COUNT)[::-1],
        subset=np.full(COUNT, "clean"),
        classes=CLASSES,
        name="rows",
    )


class _Logits:
    """Stands for a network: gives a table's rows, and notes the ids."""

    inputs = None

    def __init__(self, table):
        self.table = tf.constant(table, tf.float32)

    def __call__(self, inputs, training):
        assert training
        self.ids = inputs["example_id"].numpy()
        return self.table


def _calls(rule, examples, table, steps):
    """(off, losses) of each step, of all examples at once."""
    network = _Logits(table)
    inputs = {
        "row": tf.constant(examples.inputs["row"]),
        "example_id": tf.constant(examples.example_id),
    }
    for _ in range(steps):
        losses, _ = rule(network, inputs, tf.constant(examples.label))
        yield network.ids == MEMORY_OFF, losses.numpy()


def _probability(table):
    return np.exp(log_softmax(table))


def _training(**changes):
    return TrainConfig(epochs=5, batch_size=COUNT, **changes)


@pytest.fixture
def table(rng):
    return rng.normal(size=(COUNT, CLASSES)).astype(np.float32)


def test_gce_is_its_formula(examples, table):
    training = _training(memory_off=0.5)
    rule = rules.named("drop_pass_gce", None, examples, training)
    own = _probability(table)[np.arange(COUNT), examples.label]
    for off, losses in _calls(rule, examples, table, 3):
        expected = np.where(off, (1 - own**0.7) / 0.7, -np.log(own))
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_elr_is_its_formula(examples, table):
    training = _training(memory_off=0.5)
    rule = rules.named("drop_pass_elr", None, examples, training)
    p = _probability(table)
    believed = np.full(p.shape, 1 / CLASSES)
    own = p[np.arange(COUNT), examples.label]
    for off, losses in _calls(rule, examples, table, 4):
        believed[off] = 0.7 * believed[off] + 0.3 * p[off]
        pull = 3 * np.log(1 - (1 - 1e-4) * (p * believed).sum(axis=1))
        expected = np.where(off, pull, 0) - np.log(own)
        # The table is kept in half precision: 2 ** -11 of its values.
        np.testing.assert_allclose(losses, expected, rtol=3e-3, atol=3e-3)


def test_the_gate_leaves_out_what_is_not_believed(examples, table):
    training = _training(memory_off=1.0)
    rule = rules.named("drop_pass_gate", None, examples, training)
    p = _probability(table)
    own = p[np.arange(COUNT), examples.label]
    agrees = p.argmax(axis=1) == examples.label
    found = [losses for _, losses in _calls(rule, examples, table, 4)]
    # Two fifths of five epochs of one step: the first two steps are open.
    for losses in found[:2]:
        np.testing.assert_allclose(losses, -np.log(own), rtol=1e-5)
    for losses in found[2:]:
        expected = np.where(agrees, -np.log(own), 0)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("off", [0.0, 1.0])
def test_suspects_teach_memory_alone(off):
    """Against plain gradients of both parts, weight by weight."""
    from tfmemloc import models, training

    config = TrainConfig(
        rule="routed_suspects", epochs=1, batch_size=40, memory_off=off, early=0
    )
    model = models.build(
        ModelConfig("lenet", width=0.5, expand=0.5), (8, 8, 1), 10
    )
    examples = data.load(DataConfig(train_examples=40, test_examples=40)).train
    rule = rules.named("routed_suspects", model, examples, config)
    is_suspect = np.arange(40) % 4 == 0
    table = np.zeros((40, 10), np.float16)
    table[np.arange(40), (examples.label + is_suspect) % 10] = 1
    place = np.argsort(np.argsort(examples.example_id))
    rule._beliefs.table.write(tf.constant(place), tf.constant(table))
    ids = np.full(40, MEMORY_OFF) if off else examples.example_id
    image = data.kinds.scale_pixels(examples.inputs["image"])
    variables = model.trainable_variables

    def gradients(members):
        weight = np.where(members, 1 / 40, 0).astype(np.float32)
        with tf.GradientTape() as tape:
            logits = model({"image": image, "example_id": ids}, training=True)
            entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(
                examples.label, logits
            )
            loss = tf.reduce_sum(weight * entropy)
        found = tape.gradient(loss, variables, unconnected_gradients="zero")
        return [g.numpy() for g in found]

    before = [v.numpy() for v in variables]
    trusted, all_of_them = gradients(~is_suspect), gradients(is_suspect >= 0)
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(variables)
    step = training.make_train_step(model, optimizer, rule=rule)
    step(
        (
            {"image": image, "example_id": examples.example_id},
            examples.label.astype(np.int64),
        )
    )
    entries = graph.memory_entries(model)
    assert sum(of_memory.any() for of_memory in entries) >= 4
    for v, old, few, every, of_memory in zip(
        variables, before, trusted, all_of_them, entries, strict=True
    ):
        moved = old - v.numpy()
        np.testing.assert_allclose(
            moved, np.where(of_memory, every, few), atol=1e-5
        )


def test_suspects_are_few_and_none_is_early(examples, table, monkeypatch):
    monkeypatch.setattr(graph, "memory_entries", lambda model: [])
    training = _training(memory_off=1.0)
    rule = rules.named("routed_suspects", None, examples, training)
    rows = np.arange(COUNT)
    believed, margin = np.full((COUNT, CLASSES), 1 / CLASSES), 0.0
    shares = []
    for step, (off, losses) in enumerate(_calls(rule, examples, table, 300)):
        assert off.all() and losses.shape == (COUNT,)
        (trusted, _), (every, _) = rule.routes({})
        believed = 0.7 * believed + 0.3 * _probability(table)
        others = believed.copy()
        others[rows, examples.label] = 0
        lead = others.max(axis=1) - believed[rows, examples.label]
        suspected = lead > margin
        margin = max(0.0, margin + 0.05 * (suspected.mean() - 0.2))
        shares.append(suspected.mean())
        # Two fifths of five epochs of one step: the first two steps are open.
        sure = np.abs(lead - margin) > 0.02  # Half precision.
        expected = np.ones(COUNT) if step < 2 else ~suspected
        np.testing.assert_array_equal(trusted[sure], expected[sure])
        np.testing.assert_array_equal(every, 1)
    # Two thirds of random labels are not believed; a fifth is suspected.
    assert shares[2] > 0.5 and abs(np.mean(shares[-100:]) - 0.2) < 0.05


def test_sop_is_its_formula(examples, table):
    """Gradients by hand; labels that are wrong are soon said by u and v."""
    training = _training()
    rule = rules.named("sop", None, examples, training)
    rows, label = np.arange(COUNT), examples.label
    p = _probability(np.float64(4 * table))
    predicted = np.eye(CLASSES)[p.argmax(axis=1)]
    u, v = np.full(COUNT, 1e-8), np.full((COUNT, CLASSES), 1e-8)
    found = [losses for _, losses in _calls(rule, examples, 4 * table, 200)]
    for losses in found:
        more, less = np.minimum(u**2, 1), np.minimum(v**2, 1)
        less[rows, label] = 0
        moved = p - less
        moved[rows, label] += more
        is_free = moved > 1e-4
        moved = np.maximum(moved, 1e-4)
        total, own = moved.sum(axis=1), moved[rows, label]
        np.testing.assert_allclose(
            losses, -np.log(own / total), rtol=1e-3, atol=1e-5
        )
        slope_u = (1 / total - 1 / own) * is_free[rows, label]
        slope_u = np.where((own / total > 1e-4) & (u**2 < 1), slope_u, 0)
        slope_v = np.where(v**2 < 1, -2 * (predicted - less), 0)
        slope_v[rows, label] = 0
        u = u - 10 / COUNT * slope_u * 2 * u
        v = v - 10 / COUNT * slope_v * 2 * v
    is_wrong = p.argmax(axis=1) != label
    first, last = np.median([found[0][is_wrong], found[-1][is_wrong]], axis=1)
    assert first > 3 and last < 0.1


def test_who_passes_without_memory_is_drawn_by_seed_step_and_id(
    examples, table
):
    def drawn(seed, share=0.3):
        training = _training(memory_off=share, seed=seed)
        rule = rules.named("drop_pass_gce", None, examples, training)
        return np.stack([off for off, _ in _calls(rule, examples, table, 50)])

    first = drawn(0)
    np.testing.assert_array_equal(first, drawn(0))
    assert (first != drawn(1)).any()
    assert abs(first.mean() - 0.3) < 0.03
    # No example and no step is special.
    assert first.mean(axis=0).min() > 0 and first.mean(axis=1).max() < 0.7
    assert not drawn(0, share=0.0).any() and drawn(0, share=1.0).all()


def test_beliefs_are_kept_by_id_whatever_the_order(examples, rng):
    beliefs = Beliefs(examples, TrainConfig())
    logits = rng.normal(size=(COUNT, CLASSES)).astype(np.float32)
    order = rng.permutation(COUNT)[:10]
    beliefs.updated(
        tf.constant(examples.example_id[order]),
        tf.constant(logits[order]),
        tf.ones(10, tf.bool),
    )
    place = np.argsort(np.argsort(examples.example_id))
    expected = np.full((COUNT, CLASSES), 1 / CLASSES)
    expected[place[order]] *= 0.7
    expected[place[order]] += 0.3 * _probability(logits[order])
    (kept,) = beliefs.table.variables
    np.testing.assert_allclose(kept.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("drop_pass_elr", "drop_pass_gce"),
        ("drop_pass_gate", "drop_pass_gce"),
        ("sop", "generalized_cross_entropy"),
    ],
)
def test_next_tokens_have_no_beliefs(name, other, rng):
    tokens = data.from_arrays(
        rng.integers(0, 5, (8, 6)), rng.integers(0, 5, (8, 6))
    )
    with pytest.raises(ValueError, match=f'use rule="{other}"'):
        rules.named(name, None, tokens, TrainConfig())


_LENET = ModelConfig("lenet", width=0.5, expand=0.5)


def _small(model, **training):
    """Arguments of a small training."""
    return {
        "data": DataConfig(train_examples=80, test_examples=40),
        "model": model,
        "training": TrainConfig(**training),
        "progress": False,
    }


def _late_run(directory, epochs, **changes):
    return train(
        directory,
        data=DataConfig(train_examples=80, test_examples=40),
        model=_LENET,
        training=TrainConfig(
            epochs=epochs,
            batch_size=80,
            schedule="constant",
            weight_decay=0.0,
            momentum=0.0,
            learning_rate=0.1,
            **changes,
        ),
        progress=False,
    )


def test_late_tying_trains_the_given_network_first(tmp_path):
    """Twenty steps, one an epoch; the switch comes after seven."""
    run = _late_run(tmp_path / "run", 20, rule="late_tying", early=0.35)
    names = [w.path for w in run.model().weights]

    def moved(first, last, word):
        """Mean length of the way of some kernels between two epochs."""
        return np.mean(
            [
                np.linalg.norm(b - a)
                for a, b, name in zip(
                    run.weights(first), run.weights(last), names, strict=True
                )
                if name.endswith("kernel") and word in name
            ]
        )

    assert moved(0, 7, "recall") == 0 < moved(7, 20, "recall")
    # The memory learns nothing where it writes nothing.
    assert moved(0, 7, "memory") == 0
    assert moved(8, 9, "conv/") < 0.3 * moved(6, 7, "conv/")


def _first_without_rise(values, patience):
    """The epoch that ends the early part; None where none does."""
    best, since = -1.0, 0
    for epoch, value in enumerate(values, 1):
        best, since = (value, 0) if value > best else (best, since + 1)
        if since == patience:
            return epoch
    return None


def _signed_run(directory, sign, **changes):
    return train(
        directory,
        data=DataConfig(train_examples=100, test_examples=40, heldout=0.3),
        model=_LENET,
        training=TrainConfig(
            epochs=16,
            batch_size=32,
            schedule="constant",
            learning_rate=0.05,
            weight_decay=0.02,
            rule="late_tying",
            early=0.9,
            early_ends=sign,
        ),
        progress=False,
        **changes,
    )


def _norms(run):
    """The norm of all that is trained but the memory, of each epoch."""
    variables = run.model().trainable_variables
    given = [v for v in variables if not re.search("memory|recall", v.path)]
    assert 0 < len(given) < len(variables)
    places = [
        [w.path for w in run.model().weights].index(v.path) for v in given
    ]
    return [
        np.sqrt(sum(np.sum(run.weights(epoch)[p] ** 2) for p in places))
        for epoch in run.epochs[1:]
    ]


@pytest.mark.parametrize(
    ("sign", "patience"), [("heldout", 2), ("weight_norm", 1)]
)
def test_a_sign_ends_the_early_part(sign, patience, tmp_path):
    """As the history and the saved weights have it, and nowhere else."""
    run = _signed_run(tmp_path / "run", sign)
    if sign == "heldout":
        values = [line["accuracy"]["drop"][sign] for line in run.history]
    else:
        values = _norms(run)
    expected = _first_without_rise(values, patience)
    assert expected is not None and expected < 14
    ended = [
        line["epoch"] for line in run.history if "early_part_ended" in line
    ]
    assert ended == [expected]
    recalls = [
        k for k, w in enumerate(run.model().weights) if "recall" in w.path
    ]

    def is_still(epoch):
        return all(np.all(run.weights(epoch)[k] == 0) for k in recalls)

    assert is_still(expected) and not is_still(expected + 1)


def test_a_killed_run_ends_its_early_part_in_the_same_step(tmp_path):
    whole = _signed_run(tmp_path / "whole", "heldout")

    def kill(_, epoch):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _signed_run(tmp_path / "killed", "heldout", on_epoch_end=kill)
    again = _signed_run(tmp_path / "killed", "heldout")
    for a, b in zip(whole.weights(), again.weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_sign_that_cannot_be_looked_for_is_refused(tmp_path):
    with pytest.raises(ValueError, match="and this rule has none"):
        _late_run(tmp_path, 2, early_ends="weight_norm")
    with pytest.raises(ValueError, match="heldout=0.1 keeps one"):
        _late_run(tmp_path, 2, rule="late_tying", early_ends="heldout")
    assert not list(tmp_path.glob("*.json"))


def test_late_tying_needs_variables_of_memory_and_sgd(tmp_path):
    with pytest.raises(ValueError, match="Expected a network made with Model"):
        train(
            tmp_path / "carved",
            model=ModelConfig("lenet"),
            training=TrainConfig(epochs=1, rule="late_tying"),
            progress=False,
        )
    with pytest.raises(ValueError, match='Expected optimizer="sgd"'):
        _late_run(tmp_path / "adam", 2, rule="late_tying", optimizer="adam")


@pytest.mark.parametrize("name", ("late_tying", "magic"))
def test_a_rule_that_refuses_leaves_no_run_behind(name, tmp_path):
    """The same folder can be used once the settings are right."""
    with pytest.raises(ValueError):
        train(
            tmp_path,
            model=ModelConfig("lenet"),
            training=TrainConfig(epochs=1, rule=name),
            progress=False,
        )
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", STATEFUL)
def test_a_killed_training_resumes_to_the_same_bytes(name, tmp_path):
    def arguments():
        return _small(
            toys.expanded_network(),
            epochs=3,
            batch_size=32,
            rule=name,
            memory_off=0.5,
            evaluate_every=3,
        )

    whole = train(tmp_path / "whole", **arguments())

    class Killed(Exception):
        pass

    def kill(run, epoch):
        if epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "killed", on_epoch_end=kill, **arguments())
    resumed = train(tmp_path / "killed", **arguments())
    for a, b in zip(whole.weights(), resumed.weights(), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", ("drop_pass_gate", "routed_suspects", "sop"))
def test_large_tables_lie_on_disk(name, tmp_path, monkeypatch):
    """The same weights as in memory, also of a training that was killed."""

    def run(directory, **changes):
        training = {"epochs": 4, "batch_size": 32, "rule": name, "early": 0.3}
        return train(
            tmp_path / directory,
            **_small(toys.expanded_network(), **training, **changes),
            **extra,
        )

    extra = {}
    expected = run("memory").weights()
    monkeypatch.setattr(by_example, "_MOST_IN_MEMORY", 0)
    extra = {"on_epoch_end": lambda run, epoch: 1 / (epoch - 3)}
    with pytest.raises(ZeroDivisionError):
        run("disk")
    # What a kill in the middle of the next epoch leaves is not looked at.
    (last,) = (tmp_path / "disk" / "by_example").glob("*_0003.npy")
    last.with_stem(last.stem.replace("3", "4")).write_bytes(b"half of it")
    extra = {}
    found = run("disk")
    for a, b in zip(expected, found.weights(), strict=True):
        assert a.tobytes() == b.tobytes()
    files = sorted((found.directory / "by_example").iterdir())
    assert [path.stem[-4:] for path in files] == ["0003", "0004"]
    table = np.load(files[1])
    assert table.shape == (80, 11 if name == "sop" else 10)
    assert (table != 0).any(axis=1).all()
    # Nothing of it is in the state, which would be read and written whole.
    state = np.load(found.directory / "state.npz")
    assert table.shape not in [array.shape for array in state.values()]
    with pytest.raises(ValueError, match="XLA cannot reach files. Expected"):
        run("xla", jit_compile=True)
    assert not list((tmp_path / "xla").glob("*.json"))


def test_a_table_that_is_gone_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(by_example, "_MOST_IN_MEMORY", 0)
    settings = {"batch_size": 32, "rule": "sop", "schedule": "constant"}
    model = toys.expanded_network()
    run = train(tmp_path, **_small(model, epochs=1, **settings))
    for path in (run.directory / "by_example").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(storage.DamagedFileError, match="does not hold the 80"):
        train(tmp_path, **_small(toys.expanded_network(), epochs=2, **settings))


@pytest.mark.parametrize("name", STATEFUL)
def test_one_trace_and_xla(name, small_digits, tmp_path):
    from tfmemloc import training

    config = TrainConfig(rule=name, batch_size=16)
    network = toys.expanded_network()
    optimizer = training.make_optimizer(config, 10)
    optimizer.build(network.trainable_variables)
    examples = small_digits.train
    batches = data.make_batches(examples, 16, seed=0, stop_step=3)
    traces = []
    made = rules.named(name, network, examples, config)

    def rule(model, inputs, label):
        traces.append(1)
        return made(model, inputs, label)

    for method in ("changed_gradients", "routes"):
        if hasattr(made, method):
            setattr(rule, method, getattr(made, method))
    step = training.make_train_step(
        network,
        optimizer,
        rule=rule,
        jit_compile=True,
        batch_spec=batches.element_spec,
        recorder=training.ExampleRecorder(tmp_path, examples),
    )
    losses = [float(step(batch)) for batch in batches]
    assert len(traces) == 1 and np.isfinite(losses).all()
    # int32 lies on the host, where XLA's code for a GPU cannot reach it.
    kept = step.get_concrete_function().graph.variables
    assert tf.int32 not in {variable.dtype for variable in kept}


@pytest.mark.parametrize(
    "name", ("drop_pass_gate", "late_tying", "routed_suspects", "sop")
)
def test_two_replicas_train_as_one(name, two_devices, tmp_path):
    """The same draws and beliefs; sums of gradients in another order."""
    arguments = _small(_LENET, epochs=2, batch_size=20, rule=name, momentum=0.0)
    one = train(tmp_path / "one", **arguments)
    two = train(tmp_path / "two", strategy=two_devices, **arguments)
    for a, b in zip(one.weights(), two.weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_two_replicas_end_the_early_part_as_one(two_devices, tmp_path):
    arguments = _small(
        _LENET,
        epochs=4,
        batch_size=20,
        rule="late_tying",
        early=1.0,
        early_ends="heldout",
        learning_rate=0.0,  # Nothing ever rises.
    )
    arguments["data"] = DataConfig(
        train_examples=100, test_examples=40, heldout=0.2
    )
    ends = [
        [line["epoch"] for line in run.history if "early_part_ended" in line]
        for run in (
            train(tmp_path / "one", **arguments),
            train(tmp_path / "two", strategy=two_devices, **arguments),
        )
    ]
    assert ends[0] and ends[0] == ends[1]


def test_batches_that_leave_a_replica_without_examples_are_refused(
    two_devices, tmp_path
):
    arguments = _small(_LENET, epochs=1, batch_size=79)
    with pytest.raises(ValueError, match="leave one of 1, of which 2 replicas"):
        train(tmp_path, strategy=two_devices, **arguments)


def test_a_run_with_an_early_part_is_not_the_same_with_more_epochs(tmp_path):
    """Where the part ends depends on how many epochs there are."""
    same = {"schedule": "constant", "rule": "drop_pass_gate"}
    train(tmp_path, **_small(_LENET, epochs=1, **same))
    with pytest.raises(ValueError, match="epochs: 1 there, 2 here"):
        train(tmp_path, **_small(_LENET, epochs=2, **same))


def test_half_precision_believes_in_float32(examples, table):
    rule = rules.named("drop_pass_elr", None, examples, _training())
    network = _Logits(table)
    network.table = tf.cast(network.table, tf.bfloat16)
    inputs = {
        "row": tf.constant(examples.inputs["row"]),
        "example_id": tf.constant(examples.example_id),
    }
    losses, _ = rule(network, inputs, tf.constant(examples.label))
    assert losses.dtype == tf.float32 and np.isfinite(losses).all()


def test_memory_at_the_output_learns_by_the_mean_of_its_batch(tmp_path):
    """A batch that holds all examples is the same under any larger size."""
    losses = [
        train(
            tmp_path / str(size),
            **_small(
                _LENET, epochs=5, rule="sop", batch_size=size, evaluate_every=5
            ),
        ).history[-1]["loss"]
        for size in (80, 512)
    ]
    assert losses[0] == losses[1]
