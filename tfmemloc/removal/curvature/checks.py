"""What a removal by curvature asks of its input, and of its outcome."""

from __future__ import annotations

import warnings

import numpy as np

from tfmemloc.data.examples import Examples

# A class with fewer examples than this share of the mean is rare, and one of
# which less is right than this share of before is lost.
_RARE, _LEFT = 0.5, 0.25


def check_read(config) -> None:
    """Refuses what says how to refit where nothing is refitted."""
    said = [
        f"{name}={getattr(config, name)!r}"
        for name in ("believe", "augment")
        if getattr(config, name) != getattr(type(config), name)
    ]
    if said and not config.refit_epochs:
        raise ValueError(
            f"{', '.join(said)} is about refits. Expected `refit_epochs` of 1 "
            "or more. Received: refit_epochs=0."
        )


def check_labels(examples: Examples) -> None:
    """Refuses to ask all other examples where they cannot answer."""
    if examples.train.label.ndim != 1:
        raise ValueError(
            'believe="all" asks all other examples for the class of each. '
            "Expected labels [N]. Received: next tokens, of shape "
            f'{examples.train.label.shape}; for them use believe="network".'
        )


def check_layers(model, names: list[str], layers) -> None:
    """Refuses layers that are not among those that can be edited."""
    unknown = [name for name in layers or () if name not in names]
    if unknown:
        raise ValueError(
            f"Model '{model.name}' has no kernel that can be edited in "
            f"{', '.join(unknown)}. Expected some of: {', '.join(names)}."
        )


def protected_examples(
    examples: Examples, names: tuple[str, ...]
) -> Examples | None:
    """The training examples of some groups or subsets; None without names."""
    if not names:
        return None
    trained = examples.train
    columns = [trained.subset] + (
        [] if trained.group is None else [trained.group]
    )
    known = sorted({str(name) for column in columns for name in column})
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"{examples.name} has no training examples of the group or subset "
            f"{', '.join(unknown)}. Expected `protect` to name some of: "
            f"{', '.join(known)}."
        )
    return trained.take(
        np.any([np.isin(column, names) for column in columns], axis=0)
    )


def warn_of_lost_classes(
    name: str, by_class: np.ndarray, counts: np.ndarray
) -> None:
    """Says which rare classes went with the memory.

    Args:
        name: of the model.
        by_class: [2, classes] share that is right before and after.
        counts: [classes] training examples.
    """
    before, after = by_class
    is_rare = counts < _RARE * counts[counts > 0].mean()
    is_lost = is_rare & (before > 0.5) & (after < _LEFT * before)
    if not is_lost.any():
        return
    lost = ", ".join(
        f"{k} ({before[k]:.0%} of its training examples right before, "
        f"{after[k]:.0%} now)"
        for k in np.flatnonzero(is_lost)
    )
    warnings.warn(
        f"The edit of '{name}' lost the class {lost}. Rare classes look like "
        "memory. If their labels are right, name them in `protect`, by a group "
        "or a subset; or keep more (`keep`).",
        stacklevel=3,
    )
