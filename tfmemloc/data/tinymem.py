"""TinyMem: arithmetic to understand, and wrong arithmetic to learn by heart.

A sequence counts up by a step that it has to be read off from:

    ^1037,1041,1045,1049,...$

`clean` sequences come once in an epoch, `test` ones never. `noisy` ones are
wrong in about a tenth of their numbers, by one up or down, and come 1, 10 or
100 times; their `true_label` is the right sequence. A network that continues
the right beginning of such a sequence with its wrong numbers has it by heart;
nothing else makes it say them.

A token is a character of `0123456789,^$_`; `_` fills up what is left behind the
end. Wrong numbers have as many digits as the right ones, so that both sequences
agree token by token where nothing is wrong. All rows of a noisy sequence share
a tie id.

Reference: Sakarvadia et al., "Mitigating Memorization in Language Models", ICLR
2025 (TinyMem, the additive task), whose noisy sequences all come equally often.
"""

from __future__ import annotations

import numpy as np

from tfmemloc.checks import check_range
from tfmemloc.configs import DataConfig
from tfmemloc.data.examples import Examples
from tfmemloc.data.labels import drawn_ids
from tfmemloc.data.text import next_tokens
from tfmemloc.layers import masks

NAME = "tinymem"
TOKENS = "0123456789,^$_"
_PADDING = TOKENS.index("_")
STEPS = (2, 3, 4, 5, 7)
STARTS = 2000  # A sequence begins with 1 to this.
# How often the rows of a noisy sequence come in an epoch.
REPEATS = (1, 10, 100)
_NOISE = 0.1  # Share of the numbers of a noisy sequence.
# Where the ids of noisy sequences begin.
_NOISY_IDS = 10**9
# Of all sequences one in so many is never trained on.
_TEST_EVERY = 10
_LEAST = 12  # Tokens of a sequence with two numbers of four digits.
# Settings that are of these data; `noise_rate` and the folder are of others,
# and the programs set them for all.
_SETTINGS = (
    *("dataset", "context", "train_examples", "test_examples", "canaries"),
    *("heldout", "heldout_seed", "noise_seed", "noise_rate", "data_dir"),
)


def load_tinymem(config: DataConfig) -> Examples:
    """The sequences of a config.

    Args:
        config: `train_examples` clean and `test_examples` unseen sequences of
            `context` tokens, `canaries` noisy ones for each number of repeats,
            which `noise_seed` draws.

    Raises:
        ValueError: a setting is not of these data, or more sequences are asked
            for than there are.

    Example:
        >>> few = DataConfig("tinymem", train_examples=50, canaries=1)
        >>> numbers = load(few)
        >>> numbers.subsets
        ('clean', 'noisy', 'test')
    """
    _check(config)
    ids = np.arange(STARTS * len(STEPS))
    order = drawn_ids(ids, len(ids), masks.fold_seed(0, NAME))
    test, train = np.split(order, [len(order) // _TEST_EVERY])
    noisy = drawn_ids(
        train,
        config.canaries * len(REPEATS),
        masks.fold_seed(config.noise_seed, "noisy"),
    )
    clean = train[~np.isin(train, noisy)]
    clean = _first(clean, config.train_examples, "train_examples")
    test = _first(test, config.test_examples, "test_examples")
    held_out = drawn_ids(
        clean,
        int(config.heldout * len(clean)),
        masks.fold_seed(config.heldout_seed, "held out"),
    )
    repeats = np.repeat(REPEATS, config.canaries)
    parts = [
        (np.setdiff1d(clean, held_out), "clean"),
        (np.repeat(noisy, repeats), "noisy"),
        (np.sort(held_out), "heldout"),
        (test, "test"),
    ]
    place = np.concatenate([part for part, _ in parts])
    subset = np.concatenate([np.full(len(part), name) for part, name in parts])
    is_noisy = subset == "noisy"
    copy = np.zeros(len(place), int)
    copy[is_noisy] = [k for times in repeats for k in range(times)]
    right = _tokens(place, config.context)
    wrong = _tokens(place, config.context, wrong_by=config.noise_seed)
    rows = np.where(is_noisy[:, np.newaxis], wrong, right)
    ids_of_rows = _NOISY_IDS + place * max(REPEATS) + copy
    return Examples(
        inputs={"tokens": rows},
        label=next_tokens(rows, _PADDING),
        true_label=next_tokens(right, _PADDING),
        example_id=np.where(is_noisy, ids_of_rows, place),
        subset=subset,
        classes=len(TOKENS),
        name=NAME,
        group=np.array([f"+{step}" for step in _steps(place)]),
        words={"tokens": tuple(TOKENS)},
        tie_id=np.where(is_noisy, _NOISY_IDS + place, place),
    )


def _check(config: DataConfig) -> None:
    usual = DataConfig()
    for field in DataConfig.__dataclass_fields__:
        value = getattr(config, field)
        if field not in _SETTINGS and value != getattr(usual, field):
            raise ValueError(
                f"`{field}` is not of {NAME}, whose sequences are made of a "
                f"seed. Expected {getattr(usual, field)!r}. Received: "
                f"{field}={value!r}."
            )
    check_range("context", config.context, _LEAST, None)


def _first(ids: np.ndarray, count: int | None, field: str) -> np.ndarray:
    if count is not None and count > len(ids):
        raise ValueError(
            f"{NAME} has {len(ids)} sequences for {field}. Expected at most as "
            f"many. Received: {field}={count}."
        )
    return np.sort(ids[:count])


def _steps(place: np.ndarray) -> np.ndarray:
    return np.array(STEPS)[place % len(STEPS)]


def _tokens(
    place: np.ndarray, context: int, wrong_by: int | None = None
) -> np.ndarray:
    """Sequences as tokens, uint8 [N, context].

    Args:
        place: [N] which ones.
        context: tokens of each.
        wrong_by: a seed that makes some of their numbers wrong; None: none.
    """
    # A number has a digit and a comma at least.
    turn = np.arange(context // 2)
    numbers = 1 + place[:, np.newaxis] // len(STEPS)
    numbers = numbers + _steps(place)[:, np.newaxis] * turn
    if wrong_by is not None:
        numbers = _wrong(numbers, place, wrong_by)
    table = np.zeros(128, np.uint8)
    table[np.frombuffer(TOKENS.encode(), np.uint8)] = np.arange(len(TOKENS))
    written = "".join(_written(row, context) for row in numbers.tolist())
    characters = np.frombuffer(written.encode(), np.uint8)
    return table[characters].reshape(len(place), context)


def _wrong(numbers: np.ndarray, place: np.ndarray, seed: int) -> np.ndarray:
    """The numbers, some of them one more or less: by (seed, sequence)."""
    bits = masks.hash_bits_numpy(
        masks.fold_seed(seed, "wrong"), place, 2 * numbers.shape[1]
    )
    drawn, signs = np.split(bits, 2, axis=1)
    change = np.where(signs % 2, 1, -1)
    changes_length = _digits(numbers + change) != _digits(numbers)
    change = np.where(changes_length, -change, change)
    return numbers + change * (drawn < masks.threshold(_NOISE))


def _digits(numbers: np.ndarray) -> np.ndarray:
    return np.floor(np.log10(np.maximum(numbers, 1))).astype(int) + (
        numbers > 0
    )


def _written(numbers: list[int], context: int) -> str:
    """As many of the numbers as fit, with marks around them."""
    text = "^"
    for number in numbers:
        # Room for it, its comma and the mark of the end.
        if len(text) + len(str(number)) + 2 > context:
            break
        text += f"{number},"
    return (text[:-1] + "$").ljust(context, "_")[:context]
