"""What a run is made from: frozen dataclasses with the paper's defaults.

Each is checked when it is made, prints as JSON and comes back from it.
`PRESETS` holds, for each embedded or well-known data set, the settings with
which the programs were measured; everything else keeps the paper's values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

MODELS = ("lenet", "resnet9", "resnet18", "resnet50", "vit")
DROPOUTS = ("none", "standard", "sparse", "example_tied")
INFERENCES = ("drop", "expected", "tied")
RESCALES = ("none", "mass")
STEMS = ("small", "imagenet")
SCHEDULES = ("warmup_cosine", "triangle", "constant")
OPTIMIZERS = ("sgd", "adam")
AUGMENTATIONS = ("none", "standard", "strong")
PLACES = ("unit", "block", "weights")
OBJECTIVES = ("zero", "step")
POPULATION_TERMS = ("frozen", "exact", "none")
REMOVED_VALUES = ("zero", "mean")
DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")

# p_gen and p_mem of the authors' code: for ResNet-9, and for the deeper nets.
_PAPER_TIES = {
    "lenet": (0.2, 0.1),
    "resnet9": (0.2, 0.1),
    "resnet18": (0.5, 0.2),
    "resnet50": (0.5, 0.2),
    "vit": (0.5, 0.2),
}

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which examples, and which of their labels are made wrong.

    Attributes:
        dataset: `digits`, a TFDS name, or the path of an `.npz` file with
            `x_train, y_train` and, if any, `x_test, y_test, class_names`.
        data_dir: the TFDS folder; None is TFDS's own default. Not part of a
            run's identity: the same data may lie elsewhere.
        train_examples: use only the first so many, in the data set's order.
        test_examples: likewise.
        noise_rate: fraction of training examples that get a wrong label.
        noise_seed: which ones, and which label.
        noise_file: `.csv` of `example_id,label` instead of drawn noise.
        score_file: `.csv` of `example_id,score` that splits the training
            examples into typical and atypical; their labels stay.
        score_threshold: atypical is a score below this.
        subset_ratio: train on this fraction of the training examples alone,
            for memorization estimates (see `estimate_memorization`).
        subset_seed: which ones.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    train_examples: int | None = None
    test_examples: int | None = None
    noise_rate: float = 0.1
    noise_seed: int = 0
    noise_file: str | None = None
    score_file: str | None = None
    score_threshold: float = 0.5
    subset_ratio: float = 1.0
    subset_seed: int = 0

    def __post_init__(self):
        _check_range("noise_rate", self.noise_rate, 0.0, 1.0)
        _check_range("subset_ratio", self.subset_ratio, 1e-6, 1.0)
        for name in ("train_examples", "test_examples"):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), 1, None)
        if self.noise_file and self.score_file:
            raise ValueError(
                "`noise_file` and `score_file` exclude each other: a training "
                "example is in one subset. Received: "
                f"noise_file={self.noise_file!r}, "
                f"score_file={self.score_file!r}."
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network, and where its dropout is.

    Attributes:
        name: one of `MODELS`.
        width: multiplies the number of units of every hidden layer.
        dropout: `none`, `standard` (Keras dropout), `sparse` or
            `example_tied`, at the paper's places.
        p_gen: fraction of generalization units; None is the paper's value
            (0.2 for ResNet-9 and LeNet, 0.5 for the others).
        p_mem: probability of a memorization unit; None is the paper's value
            (0.1, and 0.2 for the others). Standard and sparse dropout use
            the rate (1 - p_gen) (1 - p_mem), which drops as many activations.
        rescale: see `tfmemloc.ExampleTiedDropout`.
        stem: `small` or `imagenet`, for ResNet-18 and ResNet-50.
        seed: of the initialization and of the dropout.
    """

    name: str = "resnet9"
    width: float = 1.0
    dropout: str = "example_tied"
    p_gen: float | None = None
    p_mem: float | None = None
    rescale: str = "none"
    stem: str = "small"
    seed: int = 0

    def __post_init__(self):
        _check_choice("name", self.name, MODELS)
        _check_choice("dropout", self.dropout, DROPOUTS)
        _check_choice("rescale", self.rescale, RESCALES)
        _check_choice("stem", self.stem, STEMS)
        _check_range("width", self.width, 0.01, 16.0)
        for index, name in enumerate(("p_gen", "p_mem")):
            if getattr(self, name) is None:
                object.__setattr__(self, name, _PAPER_TIES[self.name][index])
            _check_range(name, getattr(self, name), 1e-6, 1.0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; the defaults are the paper's.

    Attributes:
        epochs: passes over the training examples.
        batch_size: examples in a step; the last step of an epoch may be short.
        optimizer: `sgd` (with `momentum`) or `adam`.
        learning_rate: the schedule's peak.
        schedule: `warmup_cosine` (linear over the first 10 % of the steps,
            then cosine to 0), `triangle` (linear to the peak at 40 % of the
            steps, linear to 0 at the end), or `constant`; per step.
        momentum: of SGD.
        weight_decay: adds weight_decay * w to each gradient, as PyTorch does.
        augment: `none`, `standard` (pad 4, random crop, flip) or `strong`
            (RandAugment).
        dtype: `float32`, `mixed_bfloat16` or `mixed_float16`.
        jit_compile: compile the training step with XLA (slower on a CPU).
        save_every: keep the weights of every so-manieth epoch, and of the
            first and the last.
        evaluate_every: measure the accuracies of every so-manieth epoch, and
            of the last. Measuring takes a forward pass over all examples for
            each behaviour of the network, about a third of the time of a
            tied network's epoch.
        stop_at: stop when the accuracy on all training examples has been at
            least this for `patience` epochs; None never stops early.
        patience: see `stop_at`.
        seed: of the order and the augmentation of the examples.
    """

    epochs: int = 50
    batch_size: int = 512
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    schedule: str = "warmup_cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = "none"
    dtype: str = "float32"
    jit_compile: bool = False
    save_every: int = 1
    evaluate_every: int = 1
    stop_at: float | None = None
    patience: int = 3
    seed: int = 0

    def __post_init__(self):
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("augment", self.augment, AUGMENTATIONS)
        _check_choice("dtype", self.dtype, DTYPES)
        for name in (
            "epochs",
            "batch_size",
            "save_every",
            "evaluate_every",
            "patience",
        ):
            _check_range(name, getattr(self, name), 1, None)
        _check_range("learning_rate", self.learning_rate, 0.0, None)
        _check_range("momentum", self.momentum, 0.0, 1.0)
        _check_range("weight_decay", self.weight_decay, 0.0, None)
        if self.stop_at is not None:
            _check_range("stop_at", self.stop_at, 0.0, 1.0)
            if self.evaluate_every > 1:
                raise ValueError(
                    "`stop_at` looks at the accuracy of each epoch. Expected "
                    "evaluate_every=1 with it. Received: "
                    f"evaluate_every={self.evaluate_every}."
                )


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How critical units are searched for (see `find_critical_units`).

    Attributes:
        place: where a unit is gated: `unit`, its output after normalization
            and activation; `block`, the outputs of blocks; `weights`, the
            kernel's output before normalization, as the authors did.
        objective: `zero` removes the unit that lowers the objective most;
            `step` moves the gate with the largest |gradient| by 1 against
            it, so that a unit may also be doubled.
        population_term: gradient of the population's mean loss: `exact`
            (anew under each example's own gates, at every step), `frozen`
            (once, of the whole network) or `none`.
        population: number of training examples, drawn by `seed`, over which
            that mean is taken.
        copies: take the example's gradient of the logits averaged over so
            many perturbed copies of its image; 0 takes the image itself. The
            authors took 5.
        noise: norm of the Gaussian perturbation relative to the image's.
        removed_value: what a removed unit gives: `zero`, or its `mean` over
            the population.
        limit: remove at most so many units.
        others: accuracy after the removal is measured on so many examples of
            each subset, drawn by `seed`; None takes all.
        seed: of population, others, perturbations and random controls.
    """

    place: str = "unit"
    objective: str = "zero"
    population_term: str = "frozen"
    population: int = 512
    copies: int = 0
    noise: float = 0.01
    removed_value: str = "zero"
    limit: int = 100
    others: int | None = 200
    seed: int = 0

    def __post_init__(self):
        _check_choice("place", self.place, PLACES)
        _check_choice("objective", self.objective, OBJECTIVES)
        _check_choice("population_term", self.population_term, POPULATION_TERMS)
        _check_choice("removed_value", self.removed_value, REMOVED_VALUES)
        for name in ("population", "limit"):
            _check_range(name, getattr(self, name), 1, None)
        _check_range("copies", self.copies, 0, None)
        _check_range("noise", self.noise, 0.0, None)
        if self.others is not None:
            _check_range("others", self.others, 1, None)


# What the programs use where no flag says otherwise: (model, training).
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
}


def to_json(config: Any) -> dict[str, Any]:
    """The fields of a config as a plain dict."""
    return dataclasses.asdict(config)


def from_json(cls: type[Config], fields: Mapping[str, Any]) -> Config:
    """Makes a config of class `cls` from what `to_json` gave.

    Raises:
        ValueError: a field is unknown, of a wrong type or out of its range.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(
            f"{cls.__name__} expected a mapping of its fields. Received: "
            f"{type(fields).__name__}."
        )
    known = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no field {', '.join(map(repr, unknown))}. "
            f"Expected some of: {', '.join(known)}."
        )
    for name, value in fields.items():
        _check_type(cls.__name__, name, known[name].type, value)
    return cls(**fields)


def differences(old: Any, new: Any, ignore: tuple[str, ...] = ()) -> list[str]:
    """What differs between two configs of one class, a line each."""
    return [
        f"{type(old).__name__}.{field.name}: {getattr(old, field.name)!r} "
        f"there, {getattr(new, field.name)!r} here"
        for field in dataclasses.fields(old)
        if field.name not in ignore
        and getattr(old, field.name) != getattr(new, field.name)
    ]


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}. "
            f"Received: {name}={value!r}."
        )


def _check_range(name: str, value: Any, low: Any, high: Any) -> None:
    inside = value >= low and (high is None or value <= high)
    if not inside:  # Also refuses NaN.
        limits = f"at least {low}" + (
            "" if high is None else f", at most {high}"
        )
        raise ValueError(
            f"`{name}` must be {limits}. Received: {name}={value!r}."
        )


_TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool}


def _check_type(owner: str, name: str, annotation: str, value: Any) -> None:
    """Checks a value against an annotation such as `float | None`."""
    allowed = [part.strip() for part in annotation.split("|")]
    if value is None and "None" in allowed:
        return
    expected = _TYPES[allowed[0]]
    is_stray_bool = isinstance(value, bool) and allowed[0] != "bool"
    if is_stray_bool or not isinstance(value, expected):
        raise ValueError(
            f"{owner}.{name} expected {annotation}. Received: {value!r} of "
            f"type {type(value).__name__}."
        )
