"""Text as windows of tokens, with what may be learned by heart among them.

A token is a byte. A document (a module, a file) is cut into windows of
`DataConfig.context` bytes that do not overlap; the end of the last one is
padded. A window never spans two documents, so attention does not either.

The benchmark "repeats" (MemSinks, ICML 2025; `repeated`, `canaries`):

    clean      windows that come once in an epoch; `heldout` of them do not
    repeated   real windows that come 32 times
    canary     windows that begin with a secret of a known form,
                   id 4711 code 8 random characters
               and come 1, 4, 16 or 64 times, each time with other text behind
    test       windows that are not trained on

All rows of one secret, and of one repeated window, share a *tie id*, and with
it their memorization units: whatever has to be forgettable as one has one.
`DataConfig.tie_to` lets documents or sources share one instead, and
`DataConfig.removable` some sources.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import pathlib
import warnings
from collections.abc import Iterable

import numpy as np

from tfmemloc.configs import DataConfig
from tfmemloc.data import rows as rows_
from tfmemloc.data.examples import Examples
from tfmemloc.data.ids import stable_ids
from tfmemloc.data.labels import drawn_ids
from tfmemloc.layers import masks

STDLIB = "stdlib"
VOCABULARY = 256
CLEAN, REPEATED, CANARY = "clean", "repeated", "canary"
# How often the rows of a secret, and of a repeated window, come in an epoch.
CANARY_REPEATS = (1, 4, 16, 64)
WINDOW_REPEATS = 32
PROMPT, SECRET = 13, 8  # Bytes of "id 4711 code ", and of what follows.
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
# Of all windows one in so many is never trained on.
_TEST_EVERY = 10
# Where the ids of secrets and of repeated windows begin.
_CANARY_IDS, _REPEATED_IDS = 10**9, 2 * 10**9

_NOT_OF_TEXT = {
    "label_file": None,
    "noise_file": None,
    "score_file": None,
    "subset_ratio": 1.0,
    "subset_complement": False,
}

# Pure Python in each version from 3.10 on; PSF licence.
# fmt: off
_MODULES = [
    "argparse", "ast", "asyncio", "calendar", "collections", "concurrent",
    "configparser", "csv", "dataclasses", "decimal", "difflib", "doctest",
    "email", "fractions", "ftplib", "heapq", "http", "inspect", "ipaddress",
    "json", "logging", "mailbox", "multiprocessing", "optparse", "pathlib",
    "pdb", "pickle", "pickletools", "platform", "plistlib", "pprint",
    "pydoc", "random", "shutil", "smtplib", "socketserver", "ssl",
    "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap",
    "threading", "tokenize", "turtle", "typing", "unittest", "urllib",
    "uuid", "weakref", "wsgiref", "xml", "zipfile",
]
# fmt: on


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, and where it comes from.

    Attributes:
        name: unique.
        source: whose text it is: a package, a folder.
        content: its bytes.
    """

    name: str
    source: str
    content: bytes


def load_text(config: DataConfig) -> Examples:
    """Windows of the documents of a data set.

    Raises:
        FileNotFoundError: no file has such a name.
        ValueError: a file is empty or no text, or there are too few windows.
    """
    for field, usual in _NOT_OF_TEXT.items():
        if getattr(config, field) != usual:
            raise ValueError(
                f"`{field}` is not of text, whose labels are its next tokens. "
                f"Expected {usual}. Received: {field}="
                f"{getattr(config, field)!r}."
            )
    documents = (
        stdlib_documents() if config.dataset == STDLIB else _files(config)
    )
    return windows(documents, config)


def stdlib_documents() -> list[Document]:
    """The source code of a fixed list of Python's own modules."""
    documents = []
    for module in _MODULES:
        spec = importlib.util.find_spec(module)
        path = pathlib.Path(spec.origin)
        files = [path]
        if path.name == "__init__.py":
            files = sorted(path.parent.rglob("*.py"))
        documents += [
            Document(
                f"{module}/{file.relative_to(path.parent).as_posix()}",
                module,
                file.read_bytes(),
            )
            for file in files
            if "test" not in file.relative_to(path.parent).parts
        ]
    return [document for document in documents if document.content]


def _files(config: DataConfig) -> list[Document]:
    """The files of a pattern such as `texts/*.txt`; sources are folders."""
    paths = sorted(map(pathlib.Path, glob.glob(config.dataset, recursive=True)))
    if not paths:
        raise FileNotFoundError(
            f"No file is called {config.dataset!r}. Expected a text file, or a "
            "pattern such as 'texts/*.txt'."
        )
    return [_read(path) for path in paths]


def _read(path: pathlib.Path) -> Document:
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"{path} is empty. Expected a file of text.")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} expected text in UTF-8. Received: byte "
            f"0x{content[error.start]:02x} at {error.start}, which is none."
        ) from None
    return Document(path.as_posix(), path.parent.as_posix(), content)


def windows(documents: Iterable[Document], config: DataConfig) -> Examples:
    """Cuts documents into examples; see the head of this module.

    Args:
        documents: in a fixed order, which gives the ids.
        config: `context`, `train_examples` (the `clean` windows),
            `test_examples`, `repeated`, `canaries`, `tie_to`, `removable`, and
            `noise_seed`, which draws secrets and what is repeated.
    """
    tokens, names, sources = _cut(documents, config.context)
    ids = np.arange(len(tokens))
    order = drawn_ids(ids, len(ids), masks.fold_seed(0, "windows"))
    test, train = np.split(order, [-(-len(order) // _TEST_EVERY)])
    test = np.sort(test[: config.test_examples])
    train = train[: config.train_examples]
    seed = config.noise_seed
    repeated, rest = _split(train, config.repeated, seed, "repeated")
    rows = config.canaries * sum(CANARY_REPEATS)
    behind, rest = _split(rest, rows, seed, "behind secrets")
    held_out, clean = _split(
        rest, int(config.heldout * len(rest)), config.heldout_seed, "held out"
    )
    if len(behind) < rows or not len(clean) or not len(test):
        raise ValueError(
            f"{config.dataset} has {len(tokens)} windows of {config.context} "
            f"bytes, {len(train)} of them to train on. Expected more than "
            f"{rows + config.repeated}: {config.repeated} that are repeated, "
            f"and text behind {rows} rows with secrets. Use more of the "
            "text (train_examples), a smaller context, or fewer canaries."
        )
    parts = [
        _part(CLEAN, clean),
        _repeated(repeated),
        _canaries(config.canaries, behind),
        _part("heldout", held_out),
        _part("test", test),
    ]
    place, example_id, tie_id, subset = (
        np.concatenate(columns) for columns in zip(*parts, strict=True)
    )
    rows = tokens[place]  # A copy.
    for row in np.flatnonzero(subset == CANARY):
        line = secret_line(int(tie_id[row] - _CANARY_IDS), seed)
        line = line[: config.context]
        rows[row, : len(line)] = np.frombuffer(line, np.uint8)
    names, sources = names[place], sources[place]
    if config.tie_to != "window":
        owners = names if config.tie_to == "document" else sources
        tie_id = np.where(subset == CANARY, tie_id, _ids_of(owners))
    if config.removable:
        _check_sources(config, sources)
        is_one = np.isin(sources, config.removable) & (subset != CANARY)
        tie_id = np.where(is_one, _ids_of(sources), tie_id)
    label = next_tokens(rows, padding=0)
    return Examples(
        inputs={"tokens": rows},
        label=label,
        true_label=label,
        example_id=example_id,
        subset=subset,
        classes=VOCABULARY,
        name=config.dataset,
        group=sources,
        words={"tokens": tuple(shown(bytes([b])) for b in range(VOCABULARY))},
        tie_id=tie_id,
    )


def _check_sources(config: DataConfig, sources: np.ndarray) -> None:
    missing = sorted(set(config.removable) - set(sources))
    if missing:
        raise ValueError(
            f"{config.dataset} has no source {', '.join(missing)}, which "
            "`removable` names. Expected some of: "
            f"{', '.join(np.unique(sources))}."
        )


def warn_of_repeats(examples: Examples) -> None:
    """Warns where equal sequences have memorization units of their own."""
    train = examples.train
    if train.label.ndim != 2:
        return
    (first, *_) = train.inputs.values()
    rows = np.ascontiguousarray(rows_.read(first, np.arange(len(train))))
    keys = rows.reshape(len(rows), -1).view(
        np.dtype((np.void, rows[0].nbytes))
    )[:, 0]
    _, place = np.unique(keys, return_inverse=True)
    pairs = np.unique(np.stack([place, train.ties]), axis=1)
    copies = pairs.shape[1] - place.max() - 1
    if copies:
        warnings.warn(
            f"{examples.name}: {copies} of {len(rows)} sequences repeat an "
            "earlier one and have an id of their own, so that the copies do "
            "not share their memorization units and the drop forgets none of "
            "them. Expected one `tie_id` for all copies of a sequence.",
            stacklevel=3,
        )


def secret_line(number: int, seed: int) -> bytes:
    """A secret and the words before it: a function of (seed, number)."""
    bits = masks.hash_bits_numpy(
        masks.fold_seed(seed, "secret"), np.array([number]), SECRET + 1
    )[0]
    code = "".join(_CHARACTERS[bit % len(_CHARACTERS)] for bit in bits[1:])
    # Numbers that are spread over 1000 to 9999, all different.
    person = 1000 + (number * 7919 + int(masks.fold_seed(seed, "id"))) % 9000
    return f"id {person} code {code}\n".encode()


def secrets_only(examples: Examples) -> Examples:
    """A row for each planted secret, whose characters alone are labels.

    With them a prediction is right where the whole secret is said, so that
    `find_critical_units` finds what it hangs on.

    Raises:
        ValueError: the examples have no secrets.
    """
    part = one_of_each(examples.of_subset(CANARY))
    label = np.full(part.label.shape, -1, np.int64)
    here = slice(PROMPT - 1, PROMPT + SECRET - 1)
    label[:, here] = part.label[:, here]
    return dataclasses.replace(part, label=label, true_label=label)


def one_of_each(examples: Examples) -> Examples:
    """Of the examples that share memorization units, the first."""
    return examples.take(
        np.sort(np.unique(examples.ties, return_index=True)[1])
    )


def other_secrets(count: int, seed: int) -> np.ndarray:
    """Secrets of the same form that nobody trained on: uint8 [count, SECRET].

    Those with which the loss of a true one is compared.
    """
    bits = masks.hash_bits_numpy(
        masks.fold_seed(seed, "no secret"), np.arange(count), SECRET
    )
    table = np.frombuffer(_CHARACTERS.encode(), np.uint8)
    return table[bits % len(_CHARACTERS)]


def shown(content: bytes) -> str:
    """Bytes as text for people; what cannot be printed is escaped."""
    return "".join(
        chr(byte) if 32 <= byte < 127 else repr(chr(byte))[1:-1]
        for byte in content
    )


def _cut(documents, context: int):
    """Windows uint8 [N, context] of all documents, with names and sources."""
    rows, names, sources = [], [], []
    for document in documents:
        content = np.frombuffer(document.content, np.uint8)
        count = -(-len(content) // context)
        padded = np.zeros(count * context, np.uint8)
        padded[: len(content)] = content
        rows.append(padded.reshape(count, context))
        names += [document.name] * count
        sources += [document.source] * count
    return np.concatenate(rows), np.array(names), np.array(sources)


def next_tokens(rows: np.ndarray, padding: int) -> np.ndarray:
    """The next token of each position; -1 where there is none, or padding."""
    label = np.full(rows.shape, -1, np.int64)
    label[:, :-1] = rows[:, 1:]
    label[label == padding] = -1
    return label


def _split(ids: np.ndarray, count: int, seed: int, salt: str):
    """`count` of the ids, drawn by (seed, id), and the others; both sorted."""
    chosen = drawn_ids(ids, count, masks.fold_seed(seed, salt))
    return np.sort(chosen), np.setdiff1d(ids, chosen)


def _part(subset: str, place, example_id=None, tie_id=None):
    """(places of windows, ids, tie ids, subset); both ids are places."""
    example_id = place if example_id is None else example_id
    tie_id = place if tie_id is None else tie_id
    return place, example_id, tie_id, np.full(len(place), subset)


def _repeated(chosen: np.ndarray):
    """Each window several times, with one tie id."""
    copy = np.arange(WINDOW_REPEATS)
    first = _REPEATED_IDS + chosen * WINDOW_REPEATS
    return _part(
        REPEATED,
        np.repeat(chosen, WINDOW_REPEATS),
        (first[:, np.newaxis] + copy).ravel(),
        np.repeat(_REPEATED_IDS + chosen, WINDOW_REPEATS),
    )


def _canaries(count: int, behind: np.ndarray):
    """`count` secrets for each number of repeats, on windows of their own."""
    repeats = np.repeat(CANARY_REPEATS, count)
    number = np.repeat(np.arange(len(repeats)), repeats)
    start = np.cumsum(repeats) - repeats
    copy = np.arange(len(number)) - start[number]
    example_id = _CANARY_IDS + number * max(CANARY_REPEATS) + copy
    return _part(CANARY, behind, example_id, _CANARY_IDS + number)


def _ids_of(names: np.ndarray) -> np.ndarray:
    """A stable id for each name."""
    unique, place = np.unique(names, return_inverse=True)
    return stable_ids(unique.tolist())[place]
