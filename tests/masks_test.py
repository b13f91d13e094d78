import numpy as np
import pytest
import tensorflow as tf

from tfmemloc.layers import masks

IDS = np.array([0, 1, 5, 2**31, 2**32, 2**40 + 3, 2**63 - 1])
SEEDS = (0, 1, 2**32, 2**62 + 5)

# Frozen for ever: a change of these bits changes every published mask.
GOLDEN_SEED_0 = [
    [648030709, 680409699, 1357923752],
    [4163522735, 1439504217, 1491311826],
    [1356582433, 2718549129, 3072427035],
]


def test_golden_values():
    bits = masks.hash_bits_numpy(0, np.array([0, 1, 2**40 + 3]), 3)
    assert bits.tolist() == GOLDEN_SEED_0
    assert masks.fold_seed(0, "order") == 863361658678863940
    assert masks.fold_seed(7, 1, 2) == 319327454741979705


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", ["eager", "graph", "xla", "tensor_seed"])
def test_tensorflow_equals_numpy(seed, how):
    ids = tf.constant(IDS)
    expected = masks.hash_bits_numpy(seed, IDS, 9)
    if how == "eager":
        bits = masks.hash_bits(seed, ids, 9)
    elif how == "tensor_seed":
        bits = masks.hash_bits(tf.constant(seed, tf.int64), ids, 9)
    else:
        function = tf.function(
            lambda ids: masks.hash_bits(seed, ids, 9),
            jit_compile=how == "xla",
        )
        bits = function(ids)
    np.testing.assert_array_equal(bits, expected)


def test_vectorized_map_equals_numpy_without_fallback():
    with tf.device("/CPU:0"):
        bits = tf.vectorized_map(
            lambda example_id: masks.hash_bits(3, example_id[None], 9)[0],
            tf.constant(IDS),
            fallback_to_while_loop=False,
        )
    np.testing.assert_array_equal(bits, masks.hash_bits_numpy(3, IDS, 9))


def test_mask_equals_its_twin_and_the_plain_definition():
    on = masks.example_mask(2, tf.constant(IDS), 50, 0.3).numpy()
    np.testing.assert_array_equal(on, masks.example_mask_numpy(2, IDS, 50, 0.3))
    plain = masks.hash_bits_numpy(2, IDS, 50) / 2**32 < 0.3
    np.testing.assert_array_equal(on, plain)


def test_the_hash_is_a_function_of_the_id_not_of_its_place():
    shuffled = np.random.default_rng(0).permutation(IDS)
    together = masks.hash_bits_numpy(1, IDS, 4)
    for example_id, row in zip(IDS, together, strict=True):
        place = list(shuffled).index(example_id)
        np.testing.assert_array_equal(
            masks.hash_bits_numpy(1, shuffled, 4)[place], row
        )
    # More units leave the first ones as they were.
    np.testing.assert_array_equal(
        masks.hash_bits_numpy(1, IDS, 99)[:, :4], together
    )


@pytest.mark.parametrize("p_mem", [0.03, 0.1, 0.5])
@pytest.mark.parametrize("offset", [0, 2**31, 2**45])
def test_keep_rate(p_mem, offset):
    # A million (id, unit) pairs; the bound is five standard deviations.
    on = masks.example_mask_numpy(0, offset + np.arange(10_000), 100, p_mem)
    deviation = np.sqrt(p_mem * (1 - p_mem) / on.size)
    assert abs(on.mean() - p_mem) < 5 * deviation
    # Rows and columns spread as binomials do: chi-square within five sigma.
    for axis, trials in ((0, 10_000), (1, 100)):
        counts = on.sum(axis=axis)
        variance = trials * p_mem * (1 - p_mem)
        chi2 = ((counts - trials * p_mem) ** 2 / variance).sum()
        assert abs(chi2 - len(counts)) < 5 * np.sqrt(2 * len(counts))


@pytest.mark.parametrize("what", ["ids", "units", "seeds", "layers"])
def test_independence(what):
    ids, units = np.arange(10_000), 100
    first = masks.example_mask_numpy(0, ids, units + 1, 0.5)
    other = {
        "ids": masks.example_mask_numpy(0, ids + 1, units, 0.5),
        "units": first[:, 1:],
        "seeds": masks.example_mask_numpy(1, ids, units, 0.5),
        "layers": masks.example_mask_numpy(
            masks.fold_seed(0, "dropout", "conv2"), ids, units, 0.5
        ),
    }[what]
    agreement = (first[:, :units] == other).mean()
    # A million comparisons: standard deviation 0.0005; five of them.
    assert abs(agreement - 0.5) < 0.0025


def test_all_output_bits_are_balanced():
    bits = masks.hash_bits_numpy(0, np.arange(10_000), 100)
    for place in range(32):
        share = ((bits >> np.uint32(place)) & 1).mean()
        assert abs(share - 0.5) < 0.0025


def test_no_two_examples_share_a_mask():
    bits = masks.hash_bits_numpy(0, np.arange(100_000), 2).astype(np.uint64)
    words = bits[:, 0] << np.uint64(32) | bits[:, 1]
    assert len(np.unique(words)) == len(words)


def test_fold_seed_gives_separate_streams():
    seeds = {masks.fold_seed(s, salt) for s in range(50) for salt in range(50)}
    seeds |= {masks.fold_seed(0, "a", "b"), masks.fold_seed(0, "b", "a")}
    assert len(seeds) == 2502
    assert all(0 <= seed < 2**63 for seed in seeds)
