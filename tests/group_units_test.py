"""Units of whole groups: planted ones, the slow twin, and groups of one."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from tests import oracles, programs, toys
from tfmemloc import (
    GroupSearchConfig,
    GroupUnits,
    find_group_units,
)
from tfmemloc.data.kinds import scale_pixels
from tfmemloc.probes.critical_units import find_critical_units
from tfmemloc.units import SearchConfig, UnitGates, drawn


def _rows(result, subset):
    return {r["group"]: r for r in result.rows() if r["subset"] == subset}


def test_planted_units_of_each_class_are_found(tmp_path):
    run, examples = toys.memory_run(tmp_path)
    result = find_group_units(run, examples)
    noisy = examples.of_subset("noisy")
    rows = _rows(result, "noisy")
    assert set(rows) == {"0", "1", "2", "3"}
    for label, row in rows.items():
        markers = np.flatnonzero(noisy.label == int(label))
        expected = {f"first[{toys.CLASSES + k}]" for k in markers}
        # The markers' units, and not the class's, which others need too.
        assert set(row["units"].split()) == expected
        assert row["examples"] == row["size"] == len(markers)
        assert row["flipped"] and row["left"] == 0 and row["to_true_label"] == 1
        assert row["clean_after"] == row["noisy_after"] == 1
    assert len(_rows(result, "clean")) == 4
    assert "The median set whose removal flips 100% of a group" in (
        result.sentence()
    )
    result.save(tmp_path / "group_units")
    assert GroupUnits.load(tmp_path / "group_units").rows() == result.rows()


def test_a_group_of_one_is_its_example(small_network, small_digits):
    alone = dataclasses.replace(
        small_digits, group=small_digits.example_id.astype(str)
    )
    config = GroupSearchConfig(
        by="group", population=40, limit=12, bystanders=5
    )
    result = find_group_units(small_network, alone, config)
    single = find_critical_units(
        small_network,
        small_digits,
        SearchConfig(
            ids=tuple(int(i) for i in result.group),
            population_term="exact",
            population=40,
            limit=12,
            bystanders=5,
        ),
        progress=False,
    )
    assert len(result.group) >= 4 and not result.skipped.any()
    for field in (
        *("units", "critical", "flipped", "accuracy_after", "baseline"),
        *("random_size", "activation_size"),
    ):
        np.testing.assert_array_equal(
            getattr(result, field), getattr(single, field)
        )


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_a_group_is_searched_as_its_slow_twin_does(
    small_network, small_digits, share
):
    config = GroupSearchConfig(
        share=share, population=40, limit=10, bystanders=1
    )
    result = find_group_units(small_network, small_digits, config)
    gates = UnitGates(small_network)
    after = [f"{name.split('.')[0]}.relu" for name in gates.names]
    copy, variables = oracles.gated_copy(small_network, after)
    gradients = oracles.gate_gradients(copy, variables)
    ids = drawn(small_digits.train.example_id, 40, 0, "population")
    sizes = []
    for label, row in _rows(result, "noisy").items():
        noisy = small_digits.of_subset("noisy")
        members = noisy.take(noisy.label == int(label))
        twin = _slow_group(
            gradients,
            variables,
            _as_inputs(members),
            _as_inputs(small_digits.of_ids(ids)),
            share,
            limit=10,
        )
        g = result.group.index(label)
        found = result.units[g][result.units[g] >= 0]
        assert found.tolist() == twin, label
        sizes.append((row["examples"], len(twin)))
    assert max(count for count, _ in sizes) > 1


def _as_inputs(part):
    image = tf.constant(scale_pixels(part.inputs["image"]))
    return {"image": image, "example_id": tf.constant(part.example_id)}, (
        part.label
    )


def _slow_group(gradients, variables, members, population, share, limit):
    """Removes one unit after another; gradients of each example alone."""
    inputs, label = members
    for gate in variables:
        gate.assign(np.ones(gate.shape))
    removed = []
    while True:
        alone = [
            gradients({k: v[i : i + 1] for k, v in inputs.items()}, [label[i]])
            for i in range(len(label))
        ]
        right = [
            int(np.argmax(logits)) == label[i]
            for i, (logits, _) in enumerate(alone)
        ]
        if len(removed) == limit or 1 - np.mean(right) >= share:
            for gate in variables:
                gate.assign(np.ones(gate.shape))
            return removed
        _, of_all = gradients(*population)
        score = sum(
            np.concatenate(of_all) - np.concatenate(own)
            for is_right, (_, own) in zip(right, alone, strict=True)
            if is_right
        )
        score[removed] = -np.inf
        removed.append(int(np.argmax(score)))
        values = np.ones(len(score))
        values[removed] = 0
        starts = np.cumsum([gate.shape[0] for gate in variables])[:-1]
        for gate, part in zip(variables, np.split(values, starts), strict=True):
            gate.assign(part)


def test_what_was_not_memorized_has_no_units(tmp_path):
    run, examples = toys.memory_run(tmp_path)
    with pytest.raises(ValueError, match="predicts none of the noisy labels"):
        find_group_units(run.model(epoch=0), examples)


def test_bad_requests_are_refused(small_network, small_digits):
    clean = small_digits.take(small_digits.subset != "noisy")
    with pytest.raises(ValueError, match="no noisy or atypical examples. Exp"):
        find_group_units(small_network, clean)
    with pytest.raises(ValueError, match="has no groups. Expected examples"):
        find_group_units(
            small_network, small_digits, GroupSearchConfig(by="group")
        )
    with pytest.raises(ValueError, match="`share` must be at least"):
        GroupSearchConfig(share=0.0)
    with pytest.raises(ValueError, match="`ranking` must be one of"):
        GroupSearchConfig(ranking="best")


def test_the_program_writes_rows(small_run):
    done = programs.launcher().run(
        "binaries.ablate_groups",
        f"--run_dir={small_run}",
        "--share=0.5",
        "--bystanders=5",
    )
    rows = json.loads((small_run / "group_units.json").read_text())["rows"]
    assert {"noisy", "clean"} == {row["subset"] for row in rows}
    assert "whose removal flips 50% of a group" in done.stdout
    assert (small_run / "figures" / "group_units.png").exists()
