"""Takes the memory out of a network that is already trained.

Claim: what a network shares between examples lies in directions of its kernels
along which the loss of many examples curves; what it memorized of single ones
lies in the others (2510.24256). One pass over the training examples measures
the curvature (`tfmemloc.gradients.curvature`); the directions that few examples
use are cut (`bases`); how much of which kernels is chosen on the given labels
of examples held out (`choice`); and a few epochs on the examples that the
edited network believes mend what was cut too much (`refit`). Then the same once
more. No example ids, no second training, no true labels.

Beyond the reference: convolutions, the choice by the gap, BatchNorm
recalibrated, rounds of edit and refit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from typing import Literal

import keras
import numpy as np

from tfmemloc import evaluation, shares, storage
from tfmemloc.checks import check_range
from tfmemloc.configs import Augmentation, TrainConfig
from tfmemloc.data.batches import check_augmentable
from tfmemloc.data.examples import Examples
from tfmemloc.fields import check_fields
from tfmemloc.gradients.curvature import Scalar, kernels_of
from tfmemloc.removal.copies import (
    check_examples,
    has_batch_norm,
    is_half,
    own_copy,
)
from tfmemloc.removal.curvature.bases import kept_bases
from tfmemloc.removal.curvature.checks import (
    check_labels,
    check_layers,
    check_read,
    protected_examples,
    warn_of_lost_classes,
)
from tfmemloc.removal.curvature.choice import (
    DEFAULT_KEEP,
    Choice,
    Plan,
    choose,
)
from tfmemloc.removal.curvature.refit import (
    believed,
    refit,
    said_by_others,
)
from tfmemloc.removal.curvature.result import (
    CurvatureEdit,
    EditRound,
    details,
)
from tfmemloc.removal.outcome import compared
from tfmemloc.snapshots import Source, model_of

Believe = Literal["network", "all"]
# Not trained on, and so fit to choose by. The test examples choose nothing.
HELD_OUT = ("heldout", "validation")


@dataclasses.dataclass(frozen=True)
class CurvatureConfig:
    """How memory is taken out by curvature.

    Attributes:
        keep: share of the curvature of each edited kernel that is kept; None
            chooses on the held-out examples, and is 0.9 where there are none;
            1 cuts nothing, and the refits are all that is done.
        layers: names of the layers that are edited; None chooses on the
            held-out examples, and is all but the last where there are none.
        scalar: whose curvature: `logits`, `labels` or `sampled`; see
            `tfmemloc.curvature_factors`.
        positions: of each example (of a picture or a text) over which the
            curvature is taken, at most: more than there are takes all, and
            where examples are many, fewer are enough.
        rounds: how often the network is edited and refitted.
        refit_epochs: epochs after each edit on the examples whose label the
            edited network predicts; 0 does not train, and edits once.
        believe: by whom an example must be believed to be refitted on:
            `network`, the edited one, or `all`, by it and by what all other
            examples say together, which never saw its label. Then fewer wrong
            labels are taught anew. Not for next tokens.
        augment: how pictures are changed in these epochs, each time anew:
            `none`, `crop`, `standard` or `strong`; see
            `tfmemloc.TrainConfig`. What was memorized is tied to the very
            pixels; what is common is not. Digits must not be flipped: `crop`.
        refit_rate: peak of the learning rate of these epochs, with Adam.
        batch_size: examples in a step of these epochs.
        seed: of everything that is drawn.
        memory_budget_mib: MiB for a chunk of examples in the pass over them.
        protect: names of groups or subsets whose training examples are known
            to be right, however rare they are: directions that hold the share
            `keep` of their curvature are kept as well, and the refit takes
            them in any case.
    """

    keep: float | None = None
    layers: tuple[str, ...] | None = None
    scalar: Scalar = "logits"
    positions: int = 64
    rounds: int = 2
    refit_epochs: int = 3
    believe: Believe = "network"
    augment: Augmentation = "none"
    refit_rate: float = 1e-3
    batch_size: int = 128
    seed: int = 0
    memory_budget_mib: int = 1024
    protect: tuple[str, ...] = ()

    def __post_init__(self):
        check_fields(self)
        if self.keep is not None:
            check_range("keep", self.keep, 1e-6, 1.0)
        check_range("positions", self.positions, 1, None)
        check_range("memory_budget_mib", self.memory_budget_mib, 1, None)
        check_range("rounds", self.rounds, 1, None)
        check_range("refit_epochs", self.refit_epochs, 0, None)
        check_range("refit_rate", self.refit_rate, 0.0, None)
        check_range("batch_size", self.batch_size, 1, None)
        check_read(self)


def remove_memory(
    source: Source,
    examples: Examples,
    config: CurvatureConfig = CurvatureConfig(),
    *,
    directory: str | os.PathLike | None = None,
    progress: bool = False,
) -> tuple[keras.Model, CurvatureEdit]:
    """Takes memory out of a trained network by the curvature of its loss.

    Args:
        source: a run, or a functional Keras model; it is not changed.
        examples: those that it was trained on, with their labels as given,
            and a subset `heldout` or `validation` of others to choose by.
        config: how.
        directory: keeps factors and refits, so that a killed job goes on and
            another `keep` needs no other pass; None keeps nothing.
        progress: show progress bars.

    Returns:
        The edited network, and what was done; its seconds are those of this
        call, without what was read back from the directory.

    Raises:
        ValueError: no kernel can be edited, a layer or a group to protect is
            not known, there are no training examples, or no pictures to
            augment, or the directory has refits of other settings.

    Example:
        >>> edited, result = remove_memory(
        ...     model, examples, CurvatureConfig(keep=0.9, refit_epochs=0)
        ... )
        >>> [row["stage"] for row in result.rows()]
        ['before', 'after']
    """
    original = model_of(source, examples)
    check_examples(original, examples)
    protected = protected_examples(examples, config.protect)
    also = np.zeros(0, int) if protected is None else protected.example_id
    started = time.perf_counter()
    model = own_copy(original)
    rounds = config.rounds if config.refit_epochs else 1
    done: list[EditRound] = []
    trained, others = examples, None
    check_augmentable(examples, config.augment)  # Before what takes long.
    if config.believe == "all" and config.refit_epochs:
        check_labels(examples)
        others = said_by_others(examples, config.seed, progress=progress)
    for number in range(rounds):
        folder = _folder(directory, number, model, also)
        model, part = _edited(
            model, trained, protected, config, folder, progress, number
        )
        if config.refit_epochs:
            trained = believed(model, examples, also, others)
            refit(
                model,
                trained,
                _refitting(config, model),
                _folder(directory, number, model, also, _refit_name(config)),
                progress=progress,
            )
            part = dataclasses.replace(part, believed=len(trained.train))
        done.append(part)
    seconds = time.perf_counter() - started
    fields, by_class = compared(original, model, examples)
    if by_class is not None:
        counts = np.bincount(examples.train.label, minlength=examples.classes)
        warn_of_lost_classes(model.name, by_class, counts)
    return model, CurvatureEdit(
        method="curvature", seconds=seconds, **fields, **details(done)
    )


def _folder(directory, number: int, model, also, what: str = "factors"):
    """Where what is computed of weights and protected ids; None: nowhere."""
    if directory is None:
        return None
    of = [*model.get_weights(), *([also] if len(also) else [])]
    return pathlib.Path(directory) / (
        f"{what}_{number + 1}_{storage.digest(of)[:12]}"
    )


def _refit_name(config: CurvatureConfig) -> str:
    """Of the folders of refits; those of other ways lie beside them."""
    defaults = (CurvatureConfig.believe, CurvatureConfig.augment)
    ways = [w for w in (config.believe, config.augment) if w not in defaults]
    return "_".join(["refit", *ways])


def _edited(model, examples, protected, config, folder, progress, number):
    """The model with its kernels cut and BatchNorm recalibrated."""
    if config.keep == 1.0:
        return _uncut(model, examples.train, config)
    bases = kept_bases(
        model,
        examples.train,
        folder,
        memory_budget=config.memory_budget_mib * 2**20,
        scalar=config.scalar,
        positions=config.positions,
        seed=config.seed,
        protected=protected,
        progress=progress,
    )
    check_layers(model, [basis.name for basis in bases], config.layers)
    plan, choice = _planned(
        model, bases, examples, config, folder, progress, number
    )
    cuts = [basis.cut(plan.keep_of(basis.name)) for basis in bases]
    for basis, cut in zip(bases, cuts, strict=True):
        if cut.kernel is not basis.value:
            basis.kernel.variable.assign(cut.kernel)
    if has_batch_norm(model):
        model = evaluation.recalibrate_batch_norm(model, examples.train)
    return model, EditRound(
        names=tuple(basis.name for basis in bases),
        keep=tuple(plan.keep_of(basis.name) for basis in bases),
        energy=tuple(cut.energy for cut in cuts),
        choice=choice,
    )


def _uncut(model, train, config):
    """The model with its kernels whole, whose curvature nobody needs."""
    names = [kernel.name for kernel in kernels_of(model, train)]
    check_layers(model, names, config.layers)
    if has_batch_norm(model):
        model = evaluation.recalibrate_batch_norm(model, train)
    whole = (1.0,) * len(names)
    return model, EditRound(tuple(names), whole, whole, choice=None)


def _planned(
    model, bases, examples, config, folder, progress, number
) -> tuple[Plan, Choice | None]:
    """What is cut: as given, chosen, or the default."""
    names = tuple(basis.name for basis in bases)
    held_out = np.isin(examples.subset, HELD_OUT)
    is_given = config.keep is not None and config.layers is not None
    if is_given or not held_out.any():
        rest = names[:-1] or names
        layers = rest if config.layers is None else tuple(config.layers)
        return Plan(layers, config.keep or DEFAULT_KEEP), None
    path = None if folder is None else folder / "choice.json"
    heldout = examples.take(held_out)
    asked = {
        "keep": config.keep,
        "layers": config.layers,
        "seed": config.seed,
        "kernels": names,
        "heldout": storage.digest([heldout.example_id, heldout.label]),
        "inputs": list(heldout.fingerprint()["test"].values()),
    }
    if path is not None and path.exists():
        kept = storage.read_json(path)
        if kept.get("asked") == json.loads(json.dumps(asked)):
            choice = Choice.from_json(kept["choice"])
            return choice.plan, choice

    def chosen() -> dict[str, np.ndarray]:
        choice = choose(
            model,
            bases,
            examples.train,
            heldout,
            layers=config.layers,
            keep=config.keep,
            first=number == 0,
            seed=config.seed,
            progress=progress,
        )
        return {"choice": np.array(json.dumps(dataclasses.asdict(choice)))}

    found = shares.once(
        "choice", lambda: [asked, storage.digest(model.get_weights())], chosen
    )
    fields = json.loads(str(found["choice"]))
    if path is not None:
        storage.write_json(path, {"asked": asked, "choice": fields})
    choice = Choice.from_json(fields)
    return choice.plan, choice


def _refitting(config: CurvatureConfig, model: keras.Model) -> TrainConfig:
    return TrainConfig(
        dtype="mixed_float16" if is_half(model) else "float32",
        epochs=config.refit_epochs,
        batch_size=config.batch_size,
        optimizer="adam",
        learning_rate=config.refit_rate,
        weight_decay=0.0,
        augment=config.augment,
        save_every=config.refit_epochs,
        evaluate_every=config.refit_epochs,
        seed=config.seed,
    )
