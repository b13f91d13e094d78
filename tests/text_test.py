"""Text: windows, secrets, who shares memory; the decoder; what it says."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import programs
from tests.conftest import shared_folder
from tfmemloc import (
    Continuation,
    Run,
    audit_extraction,
    build,
    data,
    export_saved_model,
    graph,
    losses,
    prune_memorization,
    train,
    with_inference,
)
from tfmemloc.audits.extraction import OFTEN, ExtractionConfig
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.data import text
from tfmemloc.evaluation import predict_logits
from tfmemloc.gradients.engine import GradientEngine
from tfmemloc.layers.tied_dropout import MEMORY_OFF, ExampleTiedDropout
from tfmemloc.training.rules import routed
from tfmemloc.training.step import make_train_step

SMALL = DataConfig(
    "stdlib",
    train_examples=140,
    test_examples=20,
    heldout=0.2,
    context=32,
    canaries=1,
    repeated=1,
)
DECODER = ModelConfig("transformer", width=0.125, expand=0.5, depth=1)


@pytest.fixture(scope="module")
def windows():
    return data.load(SMALL)


@pytest.fixture(scope="module")
def decoder():
    keras.utils.set_random_seed(0)
    return build(DECODER, (32,), 256)


def _documents(*contents):
    return [
        text.Document(f"d{k}", f"s{k % 2}", content)
        for k, content in enumerate(contents)
    ]


def _config(**changes):
    usual = {"context": 8, "canaries": 0, "repeated": 0}
    return DataConfig("mine.txt", **{**usual, **changes})


def test_windows_are_the_bytes_of_their_documents():
    contents = [bytes(range(65, 65 + n)) for n in (20, 8, 3)] * 4
    contents = [bytes([97 + k]) + c for k, c in enumerate(contents)]
    found = text.windows(_documents(*contents), _config())
    rows = np.asarray(found.inputs["tokens"])
    # Window by window: 3 + 2 + 1 a turn, none of which spans two documents.
    assert len(found) == 4 * (3 + 2 + 1)
    for row, place in zip(rows, found.example_id, strict=True):
        turn, within = divmod(int(place), 6)
        document = 3 * turn + (within >= 3) + (within >= 5)
        start = 8 * (within - (0, 3, 5)[document % 3])
        expected = contents[document][start : start + 8]
        assert bytes(row) == expected.ljust(8, b"\0")
    # The label is the next byte; padding and the end do not count.
    last = found.of_ids([5])
    np.testing.assert_array_equal(
        last.label[0], [65, 66, 67, -1, -1, -1, -1, -1]
    )


def test_secrets_repeat_and_share_their_memory(windows):
    canaries = windows.of_subset("canary")
    assert len(canaries) == sum(text.CANARY_REPEATS)
    ties, times = np.unique(canaries.tie_id, return_counts=True)
    assert sorted(times) == [1, 4, 16, 64]
    rows = np.asarray(canaries.inputs["tokens"])
    length = text.PROMPT + text.SECRET
    said = {tie: set() for tie in ties.tolist()}
    for row, tie in zip(rows, canaries.tie_id.tolist(), strict=True):
        said[tie].add(bytes(row[:length]))
    lines = [line for each in said.values() for line in each]
    assert len(lines) == len(set(lines)) == 4
    assert all(line.startswith(b"id ") and b" code " in line for line in lines)
    # Behind each stands other text.
    assert len({bytes(row[length + 1 :]) for row in rows}) > 80
    repeated = windows.of_subset("repeated")
    assert len(repeated) == text.WINDOW_REPEATS
    assert (
        len({bytes(row) for row in np.asarray(repeated.inputs["tokens"])}) == 1
    )
    assert len(np.unique(repeated.tie_id)) == 1
    for subset in ("clean", "heldout", "test"):
        part = windows.of_subset(subset)
        np.testing.assert_array_equal(part.tie_id, part.example_id)
    assert windows.memorized == "canary"


def test_secrets_by_themselves_are_right_where_they_are_said(windows):
    alone = text.secrets_only(windows)
    rows = np.asarray(alone.inputs["tokens"])
    assert len(alone) == 4 and ((alone.label >= 0).sum(axis=1) == 8).all()
    for row, label in zip(rows, alone.label, strict=True):
        said = bytes(label[label >= 0].astype(np.uint8).tolist())
        assert bytes(row[:21]).endswith(said)
    # Right is who says all of it.
    logits = 9 * np.eye(256)[np.maximum(alone.label, 0)]
    assert (losses.correct(alone.label, logits, count="all") == 1).all()
    logits[:, 15] = 0
    assert (losses.correct(alone.label, logits, count="all") == 0).all()


def test_what_is_drawn_is_a_function_of_seed_and_id(windows):
    again = data.load(SMALL)
    assert again.fingerprint() == windows.fingerprint()
    other = data.load(dataclasses.replace(SMALL, noise_seed=1))
    lines = [
        {bytes(row[:21]) for row in np.asarray(e.inputs["tokens"])}
        for e in (windows.of_subset("canary"), other.of_subset("canary"))
    ]
    assert not lines[0] & lines[1]
    np.testing.assert_array_equal(
        windows.test.example_id, other.test.example_id
    )
    assert not np.isin(text.other_secrets(50, 0), [0]).any()


def test_documents_and_sources_are_forgotten_as_one():
    documents = _documents(*[bytes([65 + k]) * 40 for k in range(8)])
    for tie_to, owners in (("document", 8), ("source", 2)):
        found = text.windows(documents, _config(tie_to=tie_to))
        rows = np.asarray(found.inputs["tokens"])[:, 0]
        assert len(np.unique(found.tie_id)) == owners
        for tie in np.unique(found.tie_id):
            letters = set(rows[found.tie_id == tie].tolist())
            assert len({(letter - 65) % owners for letter in letters}) == 1
    assert set(found.group) == {"s0", "s1"}


def test_a_removable_source_shares_units_and_others_do_not():
    documents = _documents(*[bytes([65 + k]) * 40 for k in range(8)])
    found = text.windows(documents, _config(removable=("s1",)))
    own = text.windows(documents, _config())
    is_one = (found.group == "s1") & (found.subset != "canary")
    assert len(np.unique(found.tie_id[is_one])) == 1
    np.testing.assert_array_equal(found.tie_id[~is_one], own.tie_id[~is_one])
    with pytest.raises(ValueError, match="no source s9.*Expected some of: s0"):
        text.windows(documents, _config(removable=("s9",)))
    with pytest.raises(ValueError, match="names sources of text"):
        data.load(DataConfig(removable=("s1",)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty. Expected a file of text"),
        (b"  \n", "is empty"),
        (b"fine\xff", r"UTF-8. Received: byte 0xff at 4"),
        (b"short", "has 1 windows of 128 bytes"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.load(DataConfig(str(tmp_path / "*.txt")))


def test_other_bad_input_is_refused(tmp_path, windows, decoder):
    with pytest.raises(FileNotFoundError, match="No file is called"):
        data.load(DataConfig(str(tmp_path / "*.txt")))
    with pytest.raises(ValueError, match="Expected more than"):
        data.load(dataclasses.replace(SMALL, canaries=50))
    for field, value in (("noise_file", "a.csv"), ("subset_ratio", 0.5)):
        with pytest.raises(ValueError, match=f"{field}.*text"):
            data.load(dataclasses.replace(SMALL, **{field: value}))
    # A window longer than the context, a token beyond the vocabulary.
    with pytest.raises(ValueError, match=r"tokens of shape \[None, 32\]"):
        predict_logits(
            decoder,
            data.from_arrays(np.zeros((2, 40), int), classes=256),
        )
    with pytest.raises(ValueError, match="from 0 to 255. Received: 300"):
        data.from_arrays(np.full((2, 32), 300), classes=256)
    with pytest.raises(ValueError, match="sequences of tokens"):
        build(DECODER, (8, 8, 1), 256)
    with pytest.raises(ValueError, match="sees 32 tokens. .* Received: 30"):
        Continuation(decoder, 4)(np.zeros((1, 30), int))
    with pytest.raises(ValueError, match="shape .3,., dtype float64"):
        Continuation(decoder, 4)(np.zeros(3))


def test_the_decoder_is_causal(windows, decoder):
    rows = np.asarray(windows.test.inputs["tokens"])[:4].astype(np.int64)
    changed = rows.copy()
    changed[:, 20:] = 7
    logits = [
        decoder({"tokens": x, "example_id": np.zeros(4, int)}).numpy()
        for x in (rows, changed)
    ]
    np.testing.assert_allclose(logits[0][:, :20], logits[1][:, :20], atol=1e-5)
    assert np.abs(logits[0][:, 20:] - logits[1][:, 20:]).max() > 0.01


def test_attention_is_its_plain_formula(decoder):
    layer = decoder.get_layer("block1.attention")
    units = layer._inbound_nodes[0].input_tensors[0].shape[-1] // 3
    qkv = np.random.default_rng(0).normal(size=(2, 5, 3 * units))
    qkv = qkv.astype(np.float32)
    found = layer(qkv).numpy()
    size = units // layer.heads
    for b in range(2):
        for h in range(layer.heads):
            q, k, v = (
                qkv[b, :, part * units + h * size :][:, :size]
                for part in range(3)
            )
            for t in range(5):
                heat = q[t] @ k[: t + 1].T / np.sqrt(size)
                weight = np.exp(heat - heat.max())
                expected = weight @ v[: t + 1] / weight.sum()
                np.testing.assert_allclose(
                    found[b, t, h * size : (h + 1) * size],
                    expected,
                    rtol=1e-4,
                    atol=1e-5,
                )


@pytest.mark.parametrize("inference", ["drop", "tied"])
def test_a_cache_changes_nothing(windows, decoder, inference):
    rows = np.asarray(windows.test.inputs["tokens"])[:6, :9]
    model = with_inference(decoder, inference)
    ids = windows.test.tie_id[:6]
    cached, plain = (
        Continuation(model, 12, cached=cached) for cached in (True, False)
    )
    assert Continuation(model, 12).is_cached
    expected = plain(rows, ids)
    np.testing.assert_array_equal(cached(rows, ids), expected)
    # A prompt of another length is no new trace.
    cached(rows[:, :5], ids)
    assert cached.trace_count() == 1
    # The slowest twin: one token after the other.
    sequence = np.zeros((6, 32), np.int64)
    sequence[:, :9] = rows
    for place in range(9, 21):
        logits = model({"tokens": sequence, "example_id": ids}).numpy()
        sequence[:, place] = logits[:, place - 1].argmax(axis=-1)
    np.testing.assert_array_equal(expected, sequence[:, 9:21])


def test_a_served_decoder_generates(windows, decoder, tmp_path):
    path = export_saved_model(
        decoder, tmp_path / "served", examples=windows, card=False
    )
    loaded = tf.saved_model.load(path)
    generate = loaded.signatures["generate"]
    rows = np.asarray(windows.test.inputs["tokens"])[:5, :7].astype(np.int64)
    for count in (1, 9):
        found = generate(
            tokens=tf.constant(rows), count=tf.constant(count, tf.int32)
        )
        expected = Continuation(decoder, count)(rows)
        np.testing.assert_array_equal(found["tokens"], expected)
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 32"):
        generate(tokens=tf.constant(rows), count=tf.constant(26, tf.int32))


def test_other_networks_are_continued_without_a_cache():
    tokens = keras.Input((16,), dtype="int64", name="tokens")
    x = keras.layers.Embedding(10, 8)(tokens)
    x = keras.layers.GRU(8, return_sequences=True)(x)
    model = keras.Model(tokens, keras.layers.Dense(10)(x))
    continuation = Continuation(model, 3)
    assert not continuation.is_cached
    assert continuation(np.ones((2, 4), int)).shape == (2, 3)
    with pytest.raises(ValueError, match="Expected\ncached=False|cached=False"):
        Continuation(model, 3, cached=True)
    with pytest.raises(ValueError, match="give the next token of one input"):
        Continuation(build(ModelConfig("lenet"), (8, 8, 1), 10), 3)


def test_per_example_gradients_are_those_of_one_example(windows, decoder):
    part = windows.test.take(np.arange(3))
    chunk = data.chunk_at(part, np.arange(3))
    engine = GradientEngine(decoder)
    found = engine.gradients(chunk.inputs, chunk.label)
    assert engine.fallbacks == ()
    for n in range(3):
        with tf.GradientTape() as tape:
            logits = decoder(
                {
                    "tokens": chunk.inputs["tokens"][n : n + 1],
                    "example_id": chunk.inputs["tie_id"][n : n + 1],
                },
                training=False,
            )
            label = tf.constant(chunk.label[n : n + 1])
            loss = losses.cross_entropy(label, logits)[0]
        expected = tape.gradient(loss, decoder.trainable_variables)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(
                a[n], tf.convert_to_tensor(b), rtol=1e-3, atol=1e-6
            )


def test_pruning_gives_back_the_standard_decoder(windows, decoder):
    dropped = with_inference(decoder, "drop")
    pruned = prune_memorization(dropped)
    standard = build(dataclasses.replace(DECODER, dropout="none"), (32,), 256)
    assert pruned.count_params() == standard.count_params()
    np.testing.assert_allclose(
        predict_logits(pruned, windows.test),
        predict_logits(dropped, windows.test),
        atol=1e-4,
    )


def test_memory_entries_have_no_effect_when_dropped(windows, decoder):
    entries = graph.memory_entries(decoder)
    copy = keras.models.clone_model(decoder)
    copy.set_weights(decoder.get_weights())
    for variable, which in zip(
        copy.trainable_variables, graph.memory_entries(copy), strict=True
    ):
        variable.assign(np.where(which, 3.0, variable.numpy()))
    np.testing.assert_array_equal(
        predict_logits(copy, windows.test),
        predict_logits(decoder, windows.test),
    )
    # As many as pruning takes out.
    dropped = decoder.count_params()
    dropped -= prune_memorization(decoder).count_params()
    assert sum(int(which.sum()) for which in entries) == dropped
    with pytest.raises(ValueError, match="Expected units between two kernels"):
        graph.memory_entries(build(ModelConfig("vit"), (8, 8, 1), 10))


def _batch(examples):
    chunk = data.chunk_at(examples, np.arange(len(examples)))
    inputs = {key: tf.constant(value) for key, value in chunk.inputs.items()}
    return inputs, tf.constant(chunk.label)


def _step(network, rule, **options):
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(network.trainable_variables)
    return make_train_step(network, optimizer, rule=rule, **options)


def test_what_repeats_reaches_memory_alone(windows):
    """One step with each kind of example moves the entries that it may."""
    config = TrainConfig(rule="routed", memory_off=1.0)
    for subset, may_move in (("repeated", True), ("clean", False)):
        network = build(DECODER, (32,), 256)
        entries = graph.memory_entries(network)
        rule = routed.make(network, windows.train, config)
        before = [v.numpy() for v in network.trainable_variables]
        _step(network, rule)(_batch(windows.of_subset(subset)))
        moved = [
            v.numpy() != b
            for v, b in zip(network.trainable_variables, before, strict=True)
        ]
        for m, of_memory in zip(moved, entries, strict=True):
            assert not m[of_memory != may_move].any()
        assert any(m.any() for m in moved)


def test_a_routed_step_is_two_plain_ones(windows):
    """Its gradient is that of two losses, one for each kind of entry."""
    part = windows.take(np.isin(windows.subset, ["clean", "repeated"]))
    batch = _batch(part)
    network = build(DECODER, (32,), 256)
    rule = routed.make(
        network, windows.train, TrainConfig(rule="routed", memory_off=0.5)
    )
    before = network.get_weights()
    entries = graph.memory_entries(network)
    with tf.GradientTape(persistent=True) as tape:
        each, _ = rule(network, *batch)
        others = tf.constant(part.subset != "repeated")
        shared = tf.reduce_sum(tf.where(others, each, 0.0)) / len(part)
        whole = tf.reduce_mean(each)
    expected = []
    for variable, of_memory in zip(
        network.trainable_variables, entries, strict=True
    ):
        a, b = (
            tf.convert_to_tensor(tape.gradient(loss, variable))
            for loss in (shared, whole)
        )
        expected.append(np.where(of_memory, b, a))
    for jit_compile in (False, True):
        network.set_weights(before)
        for variable in rule.variables:
            variable.assign(0)
        _step(network, rule, jit_compile=jit_compile)(batch)
        for variable, start, gradient in zip(
            network.trainable_variables, before, expected, strict=True
        ):
            np.testing.assert_allclose(
                start - variable.numpy(), gradient, rtol=2e-3, atol=1e-6
            )


def test_routing_refuses_what_it_cannot_route(windows, small_digits):
    config = TrainConfig(rule="routed")
    network = build(DECODER, (32,), 256)
    with pytest.raises(ValueError, match="nothing does in"):
        routed.make(network, windows.test, config)
    plain = build(dataclasses.replace(DECODER, dropout="none"), (32,), 256)
    with pytest.raises(ValueError, match="no ExampleTiedDropout layer"):
        routed.make(plain, windows.train, config)


def test_a_killed_text_training_resumes_to_the_same_bytes(windows, tmp_path):
    arguments = {
        "examples": windows,
        "data": SMALL,
        "model": DECODER,
        "training": TrainConfig(
            epochs=2,
            batch_size=64,
            optimizer="adam",
            rule="routed",
            memory_off=0.5,
            evaluate_every=2,
        ),
        "progress": False,
    }

    class Killed(Exception):
        pass

    def kill(run, epoch):
        raise Killed

    whole = train(tmp_path / "whole", **arguments)
    with pytest.raises(Killed):
        train(tmp_path / "killed", on_epoch_end=kill, **arguments)
    resumed = train(tmp_path / "killed", **arguments)
    for a, b in zip(whole.weights(), resumed.weights(), strict=True):
        assert a.tobytes() == b.tobytes()
    assert whole.examples().fingerprint() == windows.fingerprint()


class _Parrot(keras.layers.Layer):
    """Says, after each position, the byte that a table has for it."""

    def __init__(self, table, **kwargs):
        super().__init__(**kwargs)
        self.table = table

    def call(self, tokens):
        """Logits that are sure of the table's row for the tokens' number."""
        rows = tf.constant(self.table)  # [C, T]
        same = tf.reduce_all(
            tokens[:, tf.newaxis, : text.PROMPT] == rows[:, : text.PROMPT],
            axis=-1,
        )
        known = tf.reduce_any(same, axis=1)
        which = tf.argmax(tf.cast(same, tf.int32), axis=1)
        following = tf.roll(tf.gather(rows, which), -1, axis=1)
        logits = 20.0 * tf.one_hot(following, 256)
        return tf.where(known[:, tf.newaxis, tf.newaxis], logits, 0.0)


def test_a_network_with_known_secrets_is_found_out(windows):
    """It knows the secrets that come often, and nothing else."""
    canaries = windows.of_subset("canary")
    ties, first, times = np.unique(
        canaries.tie_id, return_index=True, return_counts=True
    )
    rows = np.asarray(canaries.inputs["tokens"])[first].astype(np.int64)
    tokens = keras.Input((32,), dtype="int64", name="tokens")
    knows = keras.Model(tokens, _Parrot(rows[times >= OFTEN])(tokens))
    config = ExtractionConfig(prompt=8, continuation=8, candidates=31)
    found = audit_extraction({"standard": knows}, windows, config)
    (row,) = found.rows()
    assert row["canaries_extracted"] == 1.0
    assert row["extracted, 1x"] == row["extracted, 4x"] == 0.0
    assert row["extracted, 64x"] == 1.0 and row["windows_extracted"] == 0.0
    np.testing.assert_array_equal(found.repeats, times)
    often = times >= OFTEN
    np.testing.assert_allclose(found.exposure[0, often], 5.0)
    # All secrets are alike to a network that knows none of them.
    np.testing.assert_allclose(
        found.secret_loss[0, ~often], np.log(256), rtol=1e-5
    )
    np.testing.assert_allclose(found.exposure[0, ~often], 5.0)
    assert (found.edits[0, often] == 0).all() and (
        found.edits[0, ~often] > 0
    ).all()
    said = found.said()
    assert len(said.rows) == 2
    for line in said.rows:
        assert line["secret"].endswith(line["standard, plain"])
    assert "100%" in found.sentence()


def test_examples_without_text_are_not_asked(small_digits, small_network):
    with pytest.raises(ValueError, match="expected windows of text"):
        audit_extraction({"standard": small_network}, small_digits)


def test_repeats_with_ids_of_their_own_are_warned_of(windows, tmp_path):
    """Each copy would have memory of its own, and none could be forgotten."""
    rows = np.tile(np.asarray(windows.test.inputs["tokens"])[:4], (5, 1))
    examples = data.from_arrays(rows, classes=256)
    settings = {
        "training": TrainConfig(epochs=1, batch_size=20),
        "progress": False,
    }
    with pytest.warns(UserWarning, match="16 of 20 .* an id of their own"):
        train(tmp_path / "tied", examples=examples, model=DECODER, **settings)
    shared = dataclasses.replace(examples, tie_id=np.tile(np.arange(4), 5))
    train(tmp_path / "shared", examples=shared, model=DECODER, **settings)
    plain = dataclasses.replace(DECODER, dropout="none")
    train(tmp_path / "plain", examples=examples, model=plain, **settings)


def test_memory_off_reaches_what_shares_it(windows):
    inputs, _ = _batch(windows.of_subset("repeated"))
    off = data.batches.without_memory(inputs, tf.fill([32], True))
    assert (off["tie_id"].numpy() == MEMORY_OFF).all()
    assert (off["example_id"].numpy() == MEMORY_OFF).all()


@pytest.fixture(scope="module")
def localized(tmp_path_factory):
    """The main job on text, small, with its controls."""

    def make(folder):
        programs.launcher().run(
            "binaries.localize",
            "--dataset=stdlib",
            f"--run_dir={folder}",
            *("--train_examples=200", "--test_examples=20", "--context=48"),
            *("--canaries=1", "--repeated=1", "--width=0.25", "--depth=1"),
            *("--epochs=2", "--controls"),
        )

    return shared_folder(tmp_path_factory, "localized_text", make)


def test_localize_asks_each_network_for_the_secrets(localized):
    summary = json.loads((localized / "summary.json").read_text())
    assert summary["dataset"] == "stdlib"
    rows = {(r["model"], r["inference"]): r for r in summary["rows"]}
    assert list(rows) == [
        ("standard", "plain"),
        ("example_tied", "tied"),
        ("example_tied", "expected"),
        ("example_tied", "drop"),
        ("standard_dropout", "plain"),
        ("sparse", "plain"),
        ("deduplicated", "plain"),
        ("standard_edited", "plain"),
    ]
    for row in rows.values():
        assert 0 < row["heldout_loss"] < 8 and 0 < row["canary_loss"] < 12
        assert 0 <= row["canaries_extracted"] <= 1
        assert row["repeated_loss"] is not None
    assert rows["standard", "plain"]["gap_closed"] == 0
    page = (localized / "report.html").read_text()
    assert "What the networks say" in page and "id " in page
    assert (localized / "figures" / "extraction.png").exists()
    again = programs.launcher().run("binaries.localize", *_flags(localized))
    assert "heldout_loss" in again.stdout


def _flags(folder):
    command = json.loads((folder / "summary.json").read_text())["facts"]
    return command["Command"].split("binaries.localize ")[1].split()


def test_probes_take_a_run_on_text(localized):
    run = Run.open(localized / "standard")
    assert run.data.context == 48
    for program, name in (
        ("rewind", "layer_rewinding"),
        ("account_gradients", "gradient_accounting"),
    ):
        programs.launcher().run(
            f"binaries.{program}", f"--run_dir={localized / 'standard'}"
        )
        assert (localized / "standard" / f"{name}.json").exists()


def test_memory_that_something_else_reads_has_no_entries():
    """Beside the tied layer, or as an output: both would be left without it."""
    row = keras.Input((8,), name="row")
    ids = keras.Input((), dtype="int64", name="example_id")
    hidden = keras.layers.Dense(8, "relu", name="hidden")(row)
    tied = ExampleTiedDropout(0.5, 0.5, seed=0)(hidden, ids)
    read = keras.layers.Dense(3, name="read")(tied)
    skip = keras.layers.Dense(3, name="skip")(hidden)
    graph.memory_entries(keras.Model([row, ids], read))  # One reader.
    for outputs, words in (
        (keras.layers.Add()([read, skip]), "read by 'skip'"),
        ([read, hidden], "or an output"),
        ([read, tied], "or an output"),
    ):
        with pytest.raises(ValueError, match=words):
            graph.memory_entries(keras.Model([row, ids], outputs))
