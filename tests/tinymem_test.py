"""Arithmetic that is right, wrong and repeated; who recites the wrong one."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from tests import programs
from tfmemloc import (
    DataConfig,
    ModelConfig,
    Recitation,
    RecitationConfig,
    TrainConfig,
    audit_recitation,
    build,
    from_arrays,
    load,
    train,
)
from tfmemloc.data import text, tinymem

CONFIG = DataConfig(
    "tinymem",
    train_examples=60,
    test_examples=20,
    canaries=2,
    context=60,
    heldout=0.1,
)
ASKED = RecitationConfig(prompt=10, continuation=45)


@pytest.fixture(scope="module")
def numbers():
    return load(CONFIG)


def _read(tokens) -> list[int]:
    """The numbers of a sequence, by Python's own reading of them."""
    whole = "".join(tinymem.TOKENS[token] for token in tokens)
    assert whole[0] == "^" and whole.count("$") == 1
    written, rest = whole[1:].split("$")
    assert set(rest) <= {"_"}
    return [int(number) for number in written.split(",")]


def _rows(examples):
    return np.asarray(examples.inputs["tokens"])


def _right_rows(examples):
    """The right sequences, from their next tokens."""
    pad = tinymem.TOKENS.index("_")
    follows = np.where(examples.true_label < 0, pad, examples.true_label)
    return np.concatenate([_rows(examples)[:, :1], follows[:, :-1]], axis=1)


def test_sequences_count_up_and_noisy_ones_are_wrong_by_one(numbers):
    found = []
    for row, right, subset, group in zip(
        _rows(numbers),
        _right_rows(numbers),
        numbers.subset,
        numbers.group,
        strict=True,
    ):
        true = _read(right)
        assert set(np.diff(true)) == {int(group[1:])}
        error = np.array(_read(row)) - true
        if subset == "noisy":
            assert set(np.abs(error)) <= {0, 1}
            found.append((error != 0).mean())
            assert [len(str(n)) for n in true] == [
                len(str(n)) for n in _read(row)
            ]
        else:
            assert not error.any()
    assert 0.05 < np.mean(found) < 0.15
    # All the room is used: no further number fits.
    assert (numbers.label >= 0).sum(axis=1).min() > 60 - 2 - 6


def test_how_often_each_comes(numbers):
    noisy = numbers.of_subset("noisy")
    ties, times = np.unique(noisy.ties, return_counts=True)
    assert sorted(times) == [1, 1, 10, 10, 100, 100]
    for tie in ties:
        assert len(np.unique(_rows(noisy)[noisy.ties == tie], axis=0)) == 1
    counts = {name: np.sum(numbers.subset == name) for name in numbers.subsets}
    assert counts == {"clean": 54, "heldout": 6, "noisy": 222, "test": 20}
    right = [tuple(row) for row in _right_rows(numbers)]
    once = [
        r for r, s in zip(right, numbers.subset, strict=True) if s != "noisy"
    ]
    assert len(set(once)) == 80
    assert not set(once) & {tuple(row) for row in _right_rows(noisy)}


def test_ids_and_rows_do_not_depend_on_how_many_are_taken(numbers):
    more = load(dataclasses.replace(CONFIG, train_examples=80))
    same = more.of_ids(numbers.of_subset("noisy").example_id)
    np.testing.assert_array_equal(
        _rows(same), _rows(numbers.of_subset("noisy"))
    )
    other = load(dataclasses.replace(CONFIG, noise_seed=1))
    assert set(other.of_subset("noisy").ties) != set(
        numbers.of_subset("noisy").ties
    )
    np.testing.assert_array_equal(_rows(other.test), _rows(numbers.test))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tie_to": "source"}, "`tie_to` is not of tinymem"),
        ({"repeated": 3}, "`repeated` is not of tinymem.*Expected 8"),
        ({"removable": ("a",)}, "`removable` is not of tinymem"),
        ({"train_examples": 20_000}, "has 8994 sequences for train_examples"),
        ({"test_examples": 20_000}, "has 1000 sequences for test_examples"),
        ({"context": 5}, "`context` must be at least 12"),
    ],
)
def test_what_it_has_not_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        load(dataclasses.replace(CONFIG, **changed))


@keras.saving.register_keras_serializable(package="tests")
class _Recites(keras.layers.Layer):
    """A network that says what it was told behind the beginnings it knows.

    All it does not know it continues by commas.
    """

    def __init__(self, begun=(), told=(), **kwargs):
        super().__init__(**kwargs)
        self.begun, self.told = np.array(begun), np.array(told)

    def compute_output_shape(self, tokens_shape):
        return (*tokens_shape, len(tinymem.TOKENS))

    def call(self, tokens):
        count = self.begun.shape[1]
        seen = keras.ops.cast(tokens[:, None, :count], "int64")
        knows = keras.ops.all(seen == self.begun, axis=2)
        which = keras.ops.argmax(knows, axis=1)
        said = keras.ops.take(self.told, which, axis=0)
        comma = tinymem.TOKENS.index(",")
        said = keras.ops.where(
            keras.ops.any(knows, axis=1)[:, None], said, comma
        )
        return keras.ops.one_hot(said, len(tinymem.TOKENS))


def test_a_network_that_was_told_recites(numbers):
    """Planted: some wrong sequences are known by heart, and a right one."""
    noisy = numbers.of_subset("noisy")
    firsts = text.one_of_each(noisy)
    # Those that are wrong behind the prompt are asked.
    differs = (firsts.label != firsts.true_label)[:, 9:54].any(axis=1)
    asked = firsts.take(differs)
    assert len(asked) >= 3
    labels = np.concatenate([asked.label[:2], asked.true_label[2:3]])
    tokens = keras.Input((60,), dtype="int32", name="tokens")
    layer = _Recites(_right_rows(asked)[:3, :10], np.maximum(labels, 0))
    model = keras.Model(tokens, layer(tokens))
    found = audit_recitation({"told": model}, numbers, ASKED)
    np.testing.assert_array_equal(found.tie_id, asked.ties)
    place = np.arange(len(asked))
    np.testing.assert_array_equal(found.recites[0], place < 2)
    np.testing.assert_array_equal(found.is_right[0], place == 2)
    for tie, times in zip(found.tie_id, found.repeats, strict=True):
        assert times == np.sum(noisy.ties == tie)
    assert found.test_right[0] == 0
    # Labels of the beginning that do not count, as of a question, are read
    # from the tokens.
    masked = [numbers.label.copy(), numbers.true_label.copy()]
    for labels in masked:
        labels[:, :4] = -1
    asked_again = audit_recitation(
        {"told": model},
        dataclasses.replace(numbers, label=masked[0], true_label=masked[1]),
        ASKED,
    )
    is_same = (_rows(asked) == _right_rows(asked))[:, :5].all(axis=1)
    np.testing.assert_array_equal(
        asked_again.recites[0, is_same], found.recites[0, is_same]
    )
    assert is_same.any()
    row = found.rows()[0]
    assert row["recited"] == found.recites.mean()
    assert {key for key in row if key.startswith("recited, ")} == {
        f"recited, {times}x" for times in np.unique(found.repeats)
    }


def test_behaviours_of_a_run_are_asked(tmp_path, numbers):
    run = train(
        tmp_path,
        data=CONFIG,
        model=ModelConfig("transformer", width=0.25, depth=1, expand=0.5),
        training=TrainConfig(
            epochs=1,
            batch_size=32,
            rule="routed",
            memory_off=1.0,
            optimizer="adam",
            weight_decay=0.0,
        ),
        examples=numbers,
        progress=False,
    )
    found = audit_recitation({"tied": run}, run.examples(), ASKED)
    assert found.inferences == ("tied", "expected", "drop")
    assert (np.abs(found.test_loss - 1.5) < 1.5).all()
    found.save(tmp_path / "recitation")
    assert Recitation.load(tmp_path / "recitation").rows() == found.rows()


def test_sequences_without_wrong_ones_are_refused(numbers):
    network = build(
        ModelConfig("transformer", width=0.25, depth=1, dropout="none"),
        (60,),
        14,
    )
    with pytest.raises(ValueError, match="no training sequence whose `label`"):
        audit_recitation(
            {"net": network}, numbers.take(numbers.subset != "noisy"), ASKED
        )
    with pytest.raises(ValueError, match="are 100 tokens. Expected at most 60"):
        audit_recitation({"net": network}, numbers)
    pictures = from_arrays(np.zeros((4, 8, 8), np.uint8), np.arange(4))
    with pytest.raises(ValueError, match="expected sequences of tokens"):
        audit_recitation({"net": network}, pictures, ASKED)


def test_localize_asks_who_recites(tmp_path):
    programs.launcher().run(
        "binaries.localize",
        "--dataset=tinymem",
        f"--run_dir={tmp_path}",
        *("--train_examples=40", "--test_examples=10", "--canaries=4"),
        *("--context=60", "--epochs=1", "--width=0.25", "--depth=1"),
    )
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert [(row["model"], row["inference"]) for row in rows] == [
        ("standard", "plain"),
        ("example_tied", "tied"),
        ("example_tied", "expected"),
        ("example_tied", "drop"),
        ("standard_edited", "plain"),
    ]
    assert "known by heart" in (tmp_path / "report.html").read_text()
    # What cannot be asked is refused before anything is trained.
    failed = programs.launcher().run(
        "binaries.localize",
        "--dataset=tinymem",
        f"--run_dir={tmp_path / 'none'}",
        *("--canaries=0", "--test_examples=10", "--train_examples=40"),
        check=False,
    )
    assert "no training sequence whose `label`" in failed.stderr
    assert not (tmp_path / "none" / "standard").exists()
