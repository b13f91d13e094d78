"""Example masks: which memorization units belong to which example.

Claim (paper, section 5): example-tied dropout keeps a memorization unit on for
an example with probability `p_mem`, *the same units at every step*. The
decision is therefore a function, not a table:

    on(seed, id, unit)  =  hash(seed, id, unit) < p_mem * 2**32

Nothing is stored, and no id is too large. The hash absorbs the seed and the
example id, 32 bits at a time, into two 32-bit words, and then mixes in the
unit; each round is the bijective finalizer `lowbias32`. The TensorFlow version
computes in int64 (every device, XLA and `tf.vectorized_map` have its kernels)
and masks to 32 bits; the NumPy version computes in uint32. They agree bit for
bit, and `tests/masks_test.py` freezes their values for ever.
"""

from __future__ import annotations

import hashlib

import numpy as np
import tensorflow as tf

from tfmemloc import tracing
from tfmemloc.checks import as_ids, check_count, check_range, is_integer

_LOW_32 = 0xFFFFFFFF

_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)

# The two words of the state start, and step, differently (digits of pi and e).
_START = (0x243F6A88, 0xB7E15162)

_STRIDE = (0x9E3779B1, 0x85EBCA77)

_UNIT_STRIDE = 0xC2B2AE3D


def example_mask(
    seed: int, example_ids: tf.Tensor, units: int, p_mem: float
) -> tf.Tensor:
    """The mask of each example: which memorization units are on for it.

    Args:
        seed: names the stream of masks; see `fold_seed`.
        example_ids: int64 tensor [N], not negative.
        units: number of units U.
        p_mem: probability with which a unit is on.

    Returns:
        Boolean tensor [N, U].

    Example:
        >>> example_mask(seed=0, example_ids=tf.constant([5]), units=4,
        ...              p_mem=0.5).shape
        TensorShape([1, 4])
    """
    bits = hash_bits(seed, example_ids, units)
    return bits < threshold(p_mem)


def example_mask_numpy(
    seed: int, example_ids: np.ndarray, units: int, p_mem: float
) -> np.ndarray:
    """The same as `example_mask`, in NumPy; bool [N, U].

    Example:
        >>> ids = np.array([5, 9])
        >>> mask = example_mask_numpy(0, ids, units=4, p_mem=0.5)
        >>> same = example_mask(0, tf.constant(ids), units=4, p_mem=0.5)
        >>> bool((mask == same.numpy()).all())
        True
    """
    ids = as_ids("`example_ids`", example_ids)
    check_count("units", units)
    check_range("p_mem", p_mem, 0.0, 1.0)
    bits = hash_bits_numpy(seed, ids, units)
    return bits.astype(np.int64) < threshold(p_mem)


def threshold(probability: float) -> int:
    """The integer below which a 32-bit hash falls with `probability`."""
    return round(probability * 2**32)


def drawn(
    seed: int, step: tf.Tensor, example_ids: tf.Tensor, probability: float
) -> tf.Tensor:
    """Which examples are drawn in a step, by (seed, step, id): bool [N].

    Args:
        seed: names the stream.
        step: int64 scalar, not negative.
        example_ids: int64 [N], not negative.
        probability: of each, independent of the others.
    """
    of_step = hash_bits(seed, tf.reshape(step, [1]), 1)[0, 0]
    return hash_bits(of_step, example_ids, 1)[:, 0] < threshold(probability)


def hash_bits(
    seed: int | tf.Tensor, example_ids: tf.Tensor, units: int
) -> tf.Tensor:
    """32 random bits for each (seed, example id, unit): int64 [N, U].

    `seed` may be a scalar int64 tensor, so that a data pipeline can derive it
    from the step.
    """
    if isinstance(seed, int):
        state = tf.constant(_absorb_seed_numpy(seed).astype(np.int64))
    else:
        seed = tf.reshape(tf.cast(seed, tf.int64), [1, 1])
        state = tf.constant(_START, tf.int64)[:, tf.newaxis]
        state = _absorb(_absorb(state, _low(seed)), _high(seed))
    ids = tf.cast(example_ids, tf.int64)
    bits = _hashed(state, ids, _unit_bits(units).astype(np.int64))
    bits.set_shape([ids.shape[0], units])
    return bits


# One function for all layers: its seventy operations are traced once, so that a
# layer takes a seventh of the time to trace that it takes to write its own.
@tracing.function(
    input_signature=[
        tf.TensorSpec([2, 1], tf.int64),
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([1, None], tf.int64),
    ],
)
def _hashed(
    state: tf.Tensor, ids: tf.Tensor, unit_bits: tf.Tensor
) -> tf.Tensor:
    """The bits [N, U] of a seed's state, ids [N] and units' words [1, U]."""
    ids = ids[tf.newaxis, :]
    state = _absorb(_absorb(state, _low(ids)), _high(ids))  # [2, N]
    first, second = state[0, :, tf.newaxis], state[1, :, tf.newaxis]
    mixed = _mix(tf.bitwise.bitwise_xor(first, unit_bits)) + second
    return _mix(_low(mixed))


def hash_bits_numpy(
    seed: int, example_ids: np.ndarray, units: int
) -> np.ndarray:
    """The same as `hash_bits`, in NumPy; uint32 [N, U]."""
    ids = np.asarray(example_ids, np.int64).astype(np.uint64)[np.newaxis, :]
    state = _absorb_seed_numpy(seed)
    for word in (ids & np.uint64(_LOW_32), ids >> np.uint64(32)):
        state = _absorb_numpy(state, word.astype(np.uint32))
    first, second = state[0][:, np.newaxis], state[1][:, np.newaxis]
    return _mix_numpy(_mix_numpy(first ^ _unit_bits(units)) + second)


def fold_seed(seed: int, *salts: int | str) -> int:
    """A new seed in [0, 2**63) that is a function of `seed` and the salts.

    Gives each tied layer, each kind of randomness and each step a stream of
    its own: `fold_seed(0, "noise")` and `fold_seed(0, "order")` are unrelated.

    Raises:
        TypeError: the seed is no integer, or a salt neither that nor a string.
        ValueError: a salt is too large.

    Example:
        >>> fold_seed(0, "order") == fold_seed(0, "order")
        True
        >>> fold_seed(0, "order") == fold_seed(0, "noise")
        False
    """
    if not is_integer(seed):
        raise TypeError(
            "Expected a seed that is an integer. Received: "
            f"seed={seed!r} of type {type(seed).__name__}."
        )
    for salt in salts:
        if not (is_integer(salt) or isinstance(salt, str)):
            raise TypeError(
                "Expected salts that are integers or strings. Received: "
                f"{salt!r} of type {type(salt).__name__}."
            )
        if is_integer(salt) and not -(2**63) <= salt < 2**63:
            raise ValueError(
                "Expected salts that 64 bits hold, -2**63 to 2**63 - 1. "
                f"Received: {salt!r}."
            )
        if isinstance(salt, str):
            digest = hashlib.sha256(salt.encode("utf-8")).digest()
            salt = int.from_bytes(digest[:8], "big") >> 1
        high, low = hash_bits_numpy(seed, np.array([salt]), 2)[0]
        seed = (int(high) >> 1 << 32) | int(low)
    return seed


def _low(x: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_and(x, tf.constant(_LOW_32, tf.int64))


def _high(x: tf.Tensor) -> tf.Tensor:
    return _low(tf.bitwise.right_shift(x, tf.constant(32, tf.int64)))


def _absorb(state: tf.Tensor, word: tf.Tensor) -> tf.Tensor:
    """Mixes a 32-bit word [1, N] into both words of the state [2, N]."""
    stride = tf.constant(_STRIDE, tf.int64)[:, tf.newaxis]
    return _mix(_low(tf.bitwise.bitwise_xor(state, word) + stride))


def _mix(x: tf.Tensor) -> tf.Tensor:
    """`lowbias32`: a bijection of [0, 2**32) that flips half of the bits.

    The products wrap around in int64; their low 32 bits are right.
    """
    for shift, multiplier in zip((16, 15), _MULTIPLIERS, strict=True):
        x = _xor_shift(x, shift)
        x = _low(x * tf.constant(multiplier, tf.int64))
    return _xor_shift(x, 16)


def _xor_shift(x: tf.Tensor, shift: int) -> tf.Tensor:
    shifted = tf.bitwise.right_shift(x, tf.constant(shift, tf.int64))
    return tf.bitwise.bitwise_xor(x, shifted)


def _absorb_seed_numpy(seed: int) -> np.ndarray:
    """The state [2, 1] after the seed has been absorbed."""
    state = np.array(_START, np.uint32)[:, np.newaxis]
    for word in (seed & _LOW_32, (seed >> 32) & _LOW_32):
        state = _absorb_numpy(state, np.uint32(word))
    return state


def _absorb_numpy(state: np.ndarray, word: np.ndarray) -> np.ndarray:
    stride = np.array(_STRIDE, np.uint32)[:, np.newaxis]
    return _mix_numpy((state ^ word) + stride)


def _mix_numpy(x: np.ndarray) -> np.ndarray:
    for shift, multiplier in zip((16, 15), _MULTIPLIERS, strict=True):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(multiplier)
    return x ^ (x >> np.uint32(16))


def _unit_bits(units: int) -> np.ndarray:
    """A well-spread word for each unit: uint32 [1, U]."""
    index = np.arange(1, units + 1, dtype=np.uint32)[np.newaxis, :]
    return index * np.uint32(_UNIT_STRIDE)
