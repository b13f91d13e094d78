import numpy as np

from tfmemloc import statistics


def test_an_interval_does_not_depend_on_how_many_are_drawn_at_once(
    rng, monkeypatch
):
    values = rng.normal(size=3000)
    whole = statistics.bootstrap_interval(values, np.median)
    # A few resamples at a time, so that a million values fit in memory.
    monkeypatch.setattr(statistics, "_RESAMPLED_NUMBERS", 20_000)
    assert statistics.bootstrap_interval(values, np.median) == whole
    middle, error = np.median(values), 1.2533 / np.sqrt(3000)
    np.testing.assert_allclose(
        whole, (middle - 1.96 * error, middle + 1.96 * error), atol=0.4 * error
    )
