"""Examples that come twice are found, and no others."""

import numpy as np
import pytest

import tfmemloc
from tfmemloc import DuplicateConfig, data, find_duplicates

NAMES = ("different labels", "in training and test", "same label")


@pytest.fixture
def planted(rng):
    """100 pictures; 3, 4 and 5 repeat 0 to 2, and 99 of the test repeats 7."""
    pictures = rng.integers(0, 256, (100, 12, 10, 3)).astype(np.uint8)
    pictures[3] = pictures[0]
    pictures[4] = np.clip(
        pictures[1].astype(int) + rng.integers(-2, 3, (12, 10, 3)), 0, 255
    )
    pictures[5] = pictures[2]
    pictures[99] = pictures[7]
    label = np.arange(100) % 4
    label[3], label[4], label[5] = 1, label[1], label[2]
    label[99] = label[7]
    subset = np.where(np.arange(100) < 90, "clean", "test")
    return data.from_arrays(pictures, label, subset=subset)


def test_planted_pairs_are_found(planted):
    found = find_duplicates(planted)
    rows = {row["example_id"]: row for row in found.rows()}
    assert {n: rows[n]["first_id"] for n in rows} == {3: 0, 4: 1, 5: 2, 99: 7}
    kinds = {n: rows[n]["kind"] for n in rows}
    assert kinds[3] == NAMES[0] and kinds[99] == NAMES[1]
    assert kinds[4] == kinds[5] == NAMES[2]
    assert rows[3]["difference"] == 0 < rows[4]["difference"] < 0.01
    assert found.rows()[0]["example_id"] == 3  # The worst first.
    assert "1 with another label" in found.sentence()
    equal = find_duplicates(planted, DuplicateConfig(difference=0))
    assert set(equal.example_id) == {3, 5, 99}


def test_all_pairs_of_a_slow_search_are_found(rng):
    """Every picture is within reach of the first one of its kind."""
    kinds = rng.integers(0, 256, (5, 8, 8, 1))
    which = rng.integers(0, 5, 60)
    pictures = (kinds[which] + rng.integers(0, 2, (60, 8, 8, 1))) % 256
    examples = data.from_arrays(pictures.astype(np.uint8), which)
    found = find_duplicates(examples, DuplicateConfig(difference=0))
    flat = pictures.reshape(60, -1).astype(np.uint8)
    expected = {}
    for later in range(60):
        for first in range(later):
            if later not in expected and (flat[first] == flat[later]).all():
                expected[later] = first
    rows = found.rows()
    assert {r["example_id"]: r["first_id"] for r in rows} == expected


@pytest.mark.parametrize("count", [1, 5])
def test_one_picture_alone_is_compared_with_none(count):
    examples = data.from_arrays(
        np.full((count, 8, 8, 1), 9, np.uint8), np.arange(count), classes=5
    )
    assert len(find_duplicates(examples).rows()) == count - 1


def test_tables_and_texts_have_equal_ones_alone(rng):
    table = rng.normal(size=(40, 5)).astype(np.float32)
    table[8] = table[2]
    table[9] = table[2] + 1e-6
    label = np.zeros(40, int)
    label[8] = 1
    found = find_duplicates(data.from_arrays(table, label))
    assert [(r["example_id"], r["first_id"]) for r in found.rows()] == [(8, 2)]
    tokens = rng.integers(0, 50, (30, 12))
    tokens[20] = tokens[4]
    found = find_duplicates(data.from_arrays(tokens, tokens))
    assert found.example_id.tolist() == [20] and found.kind[0] == NAMES[2]


def test_real_digits_do_not_repeat(digits):
    found = find_duplicates(digits, DuplicateConfig(difference=0))
    assert not len(found.rows()) and "No two of 1797" in found.sentence()


def test_nonsense_is_refused(digits):
    with pytest.raises(ValueError, match="difference"):
        DuplicateConfig(difference=2)
    with pytest.raises(TypeError, match="Expected Examples"):
        tfmemloc.find_duplicates(np.zeros((3, 4)))
