"""Who loses when a network forgets: a planted minority, by hand."""

import dataclasses

import keras
import numpy as np
import pytest

from tfmemloc import GroupConfig, audit_groups, data


@pytest.fixture(scope="module")
def planted():
    """Ten of a hundred examples are known by one input alone."""
    x = np.zeros((100, 3), np.float32)
    label = np.arange(100) % 2
    minority = np.arange(100) % 10 == 3
    x[~minority, 0] = 2 * label[~minority] - 1
    x[minority, 1] = 2 * label[minority] - 1
    group = np.where(minority, "few", "many").astype("<U8")
    group[:3] = ["x", "y", "z"]
    examples = data.from_arrays(
        x, label, group=group, subset=np.full(100, "test")
    )

    def network(weights):
        given = keras.Input((3,))
        model = keras.Model(given, keras.layers.Dense(2, use_bias=False)(given))
        column = np.array(weights, np.float32)[:, np.newaxis]
        model.set_weights([np.concatenate([-column, column], axis=1)])
        return model

    return examples, network


def test_the_minority_pays_for_what_the_mean_hides(planted):
    examples, network = planted
    found = audit_groups(
        {"before": network([1, 1, 0]), "after": network([1, -0.5, 0])},
        examples,
    )
    # Groups of one example each are put together.
    assert set(found.groups) == {"many", "few", "other"}
    assert found.count.tolist() == [87, 10, 3]
    rows = {(r["model"], r["group"]): r for r in found.rows()}
    assert rows["before", "few"]["accuracy"] == 1
    assert rows["after", "few"]["accuracy"] == 0
    assert rows["after", "few"]["lost"] == 1
    assert rows["after", "many"]["lost"] == 0
    expected = np.log1p(np.exp(2 * 0.5))
    assert rows["after", "few"]["loss"] == pytest.approx(expected, rel=1e-4)
    (before, after) = found.table().rows
    assert before["accuracy"] == 1 and after["accuracy"] == 0.9
    assert after["worst group"] == after["lost most"] == "few"
    assert "after (plain) 0.0% on few (all: 90.0%)" in found.sentence()


def test_bad_input_is_refused(planted):
    examples, network = planted
    with pytest.raises(ValueError, match="has no groups. Expected `group`"):
        audit_groups(
            {"net": network([1, 0, 0])},
            dataclasses.replace(examples, group=None),
        )
    with pytest.raises(ValueError, match="has no subset 'heldout'"):
        audit_groups(
            {"net": network([1, 0, 0])}, examples, GroupConfig("heldout")
        )
    with pytest.raises(ValueError, match="Expected a network"):
        audit_groups({}, examples)
