"""What the programs use for well-known data, where no flag says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DECODER = {"name": "transformer", "expand": 0.5}
_DECODER_TRAINING = {
    "epochs": 7,
    "rule": "routed",
    "memory_off": 1.0,
    "batch_size": 32,
    "optimizer": "adam",
    "learning_rate": 0.002,
    "weight_decay": 0.0,
    "save_every": 7,
    "evaluate_every": 7,
}
# Data set -> settings of (model, training).
PRESETS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "digits": (
        {"width": 0.5},
        {"epochs": 30, "batch_size": 128, "learning_rate": 0.1},
    ),
    "mnist": (
        {"width": 0.5},
        {"epochs": 25, "batch_size": 128, "learning_rate": 0.05},
    ),
    "cifar10": ({}, {"batch_size": 128, "learning_rate": 0.05}),
    "svhn_cropped": ({}, {"learning_rate": 0.001}),
    "stdlib": (_DECODER, _DECODER_TRAINING),
    "tinymem": (
        {**_DECODER, "width": 0.5},
        {**_DECODER_TRAINING, "epochs": 24, "learning_rate": 0.004},
    ),
}
# The same for pictures of one's own: (up to so many labels, settings). They
# train in minutes, on 2 CPU cores and up to 5,000 pictures of 32 x 32 pixels,
# and leave a small network enough steps.
_OWN_TRAINING = {"batch_size": 128, "learning_rate": 0.05}
OWN_SETTINGS = (
    (5_000, ({"width": 0.25}, {"epochs": 30, **_OWN_TRAINING})),
    (50_000, ({"width": 0.5}, {"epochs": 30, **_OWN_TRAINING})),
    (float("inf"), ({}, _OWN_TRAINING)),
)
# Settings of the data themselves; any text is trained on as `stdlib` is.
TEXT_DATA = {
    "train_examples": 3000,
    "test_examples": 500,
    "heldout": 0.05,
    "canaries": 4,
}
TINYMEM_DATA = {
    "train_examples": 2000,
    "test_examples": 300,
    "heldout": 0.05,
    "canaries": 20,
    "context": 150,
}


def is_text(dataset: str) -> bool:
    """Whether a data set is text: `stdlib`, or files that end in `.txt`."""
    return dataset == "stdlib" or dataset.endswith(".txt")


def data_settings(dataset: str) -> Mapping[str, Any]:
    """What the programs use of a data set where no flag says otherwise."""
    if is_text(dataset):
        return TEXT_DATA
    return TINYMEM_DATA if dataset == "tinymem" else {}


def preset(
    dataset: str, labels: int | None = None
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What the programs use for a data set where no flag says otherwise.

    Args:
        dataset: a name, or a path.
        labels: of data of one's own, how many there are to train on.
    """
    if labels is not None:
        return next(
            settings for most, settings in OWN_SETTINGS if labels <= most
        )
    name = "stdlib" if is_text(dataset) else dataset
    return PRESETS.get(name, ({}, {}))
