"""The ranking by the rise of the loss without one unit."""

import numpy as np

from tests import oracles, toys
from tfmemloc.data import as_arrays
from tfmemloc.probes.critical_units import find_critical_units
from tfmemloc.units import GatedModel, SearchConfig, UnitGates, rankings

CONFIG = SearchConfig(ranking="zero_out", bystanders=1)


def test_the_planted_unit_goes_first(tmp_path):
    run, examples = toys.memory_run(tmp_path)
    result = find_critical_units(run, examples, CONFIG, progress=False)
    noisy = result.subset == "noisy"
    assert result.flipped[noisy].all()
    np.testing.assert_array_equal(result.size[noisy], 1)
    # Without its marker or without the weight behind it: one of the two.
    for units, example_id in zip(
        result.units[noisy], result.example_id[noisy], strict=True
    ):
        layer, unit = UnitGates(run.model()).label_of(units[0])
        if layer == "first":
            assert unit == toys.CLASSES + example_id - 100
        else:
            assert unit == examples.of_ids([example_id]).label[0]


def test_scores_are_their_slow_twin(small_network, small_digits):
    gates = UnitGates(small_network)
    gated = GatedModel(small_network, gates, small_digits, CONFIG)
    part = small_digits.take(np.arange(3))
    ranked = rankings.named("zero_out").rank(gated, part, gated.open_gates(3))
    after = [f"{name.split('.')[0]}.relu" for name in gates.names]
    copy, variables = oracles.gated_copy(small_network, after)
    inputs = as_arrays(part)

    def losses():
        logits = copy(inputs, training=False).numpy()
        return oracles.cross_entropy(logits, part.label)

    whole = losses()
    for unit in range(0, gates.units, 29):
        layer = int(gates.layer_of[unit])
        value = np.ones(gates.sizes[layer])
        value[unit - gates.starts[layer]] = 0
        variables[layer].assign(value)
        expected = losses() - whole
        variables[layer].assign(np.ones(gates.sizes[layer]))
        # float32 losses of trained examples are near 1e-3.
        np.testing.assert_allclose(
            ranked.score[:, unit], expected, rtol=1e-3, atol=1e-5
        )
    assert gated.trace_count() == 1
