"""What a run is made from: frozen dataclasses with the paper's defaults.

The config of a method is in the method's file. Each config is checked when it
is made, and can be written as JSON and read back.

`tfmemloc.presets` holds, for each well-known data set, the settings with
which the programs were measured; all other settings keep the paper's values.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from tfmemloc.checks import check_range
from tfmemloc.fields import check_fields, hints

ModelName = Literal[
    "lenet", "resnet9", "resnet18", "resnet50", "vit", "transformer"
]
Dropout = Literal["none", "standard", "sparse", "example_tied"]
Inference = Literal["drop", "expected", "tied"]
Places = Literal["paper", "layers"]
TiedTo = Literal["window", "document", "source"]
Rescale = Literal["none", "mass"]
Stem = Literal["small", "imagenet"]
Schedule = Literal["warmup_cosine", "triangle", "constant"]
EarlyEnds = Literal["share", "heldout", "weight_norm"]
Optimizer = Literal["sgd", "adam"]
Augmentation = Literal["none", "crop", "standard", "strong"]
Dtype = Literal["float32", "mixed_bfloat16", "mixed_float16"]

# p_gen and p_mem of the authors' code: for ResNet-9, and for the deeper nets.
_PAPER_TIES = {
    "lenet": (0.2, 0.1),
    "resnet9": (0.2, 0.1),
    "resnet18": (0.5, 0.2),
    "resnet50": (0.5, 0.2),
    "vit": (0.5, 0.2),
    "transformer": (0.5, 0.2),
}

Config = TypeVar("Config")


def is_own(dataset: str) -> bool:
    """Whether a data set is a file or folder of the user's own."""
    return dataset.endswith(".npz") or any(
        pathlib.Path(dataset).glob("x_train*.npy")
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which examples, and which of their labels are made wrong.

    Attributes:
        dataset: `digits` (comes with scikit-learn); the name of a TFDS
            image-classification set (`mnist`, `cifar10`, `svhn_cropped`); or
            an `.npz` file, or a folder of `.npy` files that stay on disk. It
            holds `x_train` (uint8 pictures, integer tokens or floats [N, ...])
            and `y_train` (labels [N], integers from 0), and may hold `x_test`,
            `y_test`, `class_names`, `example_id`, `subset` and `group`.
            Several inputs are called `x_train_<input>`. Or text: `stdlib`
            (Python's own modules), a pattern such as `texts/*.txt`, or the
            arithmetic of `tinymem`.
        data_dir: the TFDS folder; None is TFDS's own default. Not part of a
            run's identity: the same data may lie elsewhere.
        train_examples: use only this many training examples, the first in the
            data set's order.
        test_examples: use only this many test examples, the first ones.
        label_file: `.csv` of `example_id,label` of labels that were corrected;
            they replace those of the data set, before any noise.
        noise_rate: fraction of training examples that get a wrong label; None
            is 0.1, and 0 for a file or folder of your own, whose labels stay
            as they are.
        noise_seed: decides which examples get a wrong label, and which label.
        noise_file: `.csv` of `example_id,label` to use instead of random noise.
        score_file: `.csv` of `example_id,score` that splits the training
            examples into typical and atypical; their labels stay.
        score_threshold: an example with a score below this is atypical.
        heldout: keep this fraction of the training examples aside, with the
            labels that they have, wrong ones among them: the subset
            `heldout`, by which `remove_memory` chooses.
        heldout_seed: decides which examples are kept aside.
        subset_ratio: train on this fraction of the training examples alone,
            for memorization estimates (see `estimate_memorization`).
        subset_seed: decides which examples are in that fraction.
        subset_complement: train on all the others instead, so that two runs
            share the examples between them.
        context: of text, the bytes of a window; of tinymem, the tokens.
        canaries: of text, secrets for each number of repeats (1, 4, 16, 64);
            of tinymem, wrong sequences for each of 1, 10 and 100 repeats.
        repeated: of text, windows that come 32 times in an epoch.
        tie_to: of text, what shares memorization units and is forgotten as
            one: a `window` and its repeats, a `document`, or a `source` (a
            package, a folder).
        removable: of text, names of sources each of which shares memorization
            units, whatever the others do: with rule="routed" they alone learn
            from it, and the drop removes it.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    train_examples: int | None = None
    test_examples: int | None = None
    label_file: str | None = None
    noise_rate: float | None = None
    noise_seed: int = 0
    noise_file: str | None = None
    score_file: str | None = None
    score_threshold: float = 0.5
    heldout: float = 0.0
    heldout_seed: int = 0
    subset_ratio: float = 1.0
    subset_seed: int = 0
    subset_complement: bool = False
    context: int = 128
    canaries: int = 8
    repeated: int = 8
    tie_to: TiedTo = "window"
    removable: tuple[str, ...] = ()

    def __post_init__(self):
        check_fields(self)
        if self.noise_rate is None:
            rate = 0.0 if is_own(self.dataset) else 0.1
            object.__setattr__(self, "noise_rate", rate)
        check_range("noise_rate", self.noise_rate, 0.0, 1.0)
        check_range("heldout", self.heldout, 0.0, 0.9)
        check_range("subset_ratio", self.subset_ratio, 1e-6, 1.0)
        check_range("context", self.context, 2, None)
        check_range("canaries", self.canaries, 0, 1000)
        check_range("repeated", self.repeated, 0, None)
        for name in ("train_examples", "test_examples"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1, None)
        if self.noise_file and self.score_file:
            raise ValueError(
                "Expected `noise_file` or `score_file`, not both: a training "
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
        places: where example-tied dropout is: at the `paper`'s places, or
            after all `layers` with units, those inside of residual blocks
            among them, so that pruning makes them narrower too.
        p_gen: fraction of generalization units; None is the paper's value
            (0.2 for ResNet-9 and LeNet, 0.5 for the others).
        p_mem: probability with which an example keeps a memorization unit;
            None is the paper's value (0.1 for ResNet-9 and LeNet, 0.2 for the
            others). Standard and sparse dropout use the rate
            (1 - p_gen) (1 - p_mem), which drops as many activations.
        expand: add this many memorization units for each unit of a tied
            place, instead of carving them out of its own (see
            `tie_dropout`). All units of the network then generalize, so that
            neither `p_gen` nor `rescale` is used; 0 carves, as the paper does.
            Of example-tied dropout alone: under another, it changes nothing.
        own_statistics: BatchNorm behind a tied place keeps statistics of its
            own for the drop, so that nothing is to be recalibrated; for rules
            with a drop-mode pass.
        rescale: see `tfmemloc.ExampleTiedDropout`.
        stem: `small` or `imagenet`, for ResNet-18 and ResNet-50.
        depth: the number of blocks of the transformer.
        seed: of the initialization and of the dropout.
    """

    name: ModelName = "resnet9"
    width: float = 1.0
    dropout: Dropout = "example_tied"
    places: Places = "paper"
    p_gen: float | None = None
    p_mem: float | None = None
    expand: float = 0.0
    own_statistics: bool = False
    rescale: Rescale = "none"
    stem: Stem = "small"
    depth: int = 2
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        check_range("width", self.width, 0.01, 16.0)
        check_range("depth", self.depth, 1, 64)
        check_range("expand", self.expand, 0.0, 64.0)
        for name, usual in (("places", "paper"), ("own_statistics", False)):
            value = getattr(self, name)
            if value != usual and self.dropout != "example_tied":
                raise ValueError(
                    f"`{name}={value!r}` is of example-tied dropout. Expected "
                    'dropout="example_tied" with it. Received: '
                    f"dropout={self.dropout!r}."
                )
        for index, name in enumerate(("p_gen", "p_mem")):
            if getattr(self, name) is None:
                object.__setattr__(self, name, _PAPER_TIES[self.name][index])
            check_range(name, getattr(self, name), 1e-6, 1.0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; the defaults are the paper's.

    Attributes:
        epochs: passes over the training examples.
        rule: what a training step minimizes: the name of a module in
            `tfmemloc.training.rules`, or `<module>:<function>` for a function
            that is passed to `train`.
        memory_off: the share of the examples of each step that pass with
            their memorization units off, where the rule lets some.
        early: the share of the steps that a rule takes for early: until then
            `drop_pass_gate` uses all labels, and `late_tying` no memory.
        early_ends: a sign that ends the early part sooner: `heldout`, the
            accuracy on held-out given labels, memory off, has not risen for
            two epochs; `weight_norm`, the norm of the given network's weights
            has fallen in an epoch; `share` looks for none.
        batch_size: examples in a step; the last step of an epoch may be short.
        optimizer: `sgd` (with `momentum`) or `adam`.
        learning_rate: the schedule's peak.
        schedule: `warmup_cosine` (linear over the first 10 % of the steps,
            then cosine to 0), `triangle` (linear to the peak at 40 % of the
            steps, linear to 0 at the end), or `constant`; per step.
        momentum: of SGD.
        weight_decay: adds weight_decay * w to each gradient, as PyTorch does.
        augment: `none`, `crop` (pad an eighth of the sides, random crop),
            `standard` (pad 4, random crop, flip) or `strong` (RandAugment).
        dtype: `float32`, `mixed_bfloat16` or `mixed_float16`.
        jit_compile: compile the training step with XLA (slower on a CPU).
        save_every: keep the weights of every n-th epoch, and of the
            first and the last.
        evaluate_every: measure the accuracies of every n-th epoch, and
            of the last. Measuring takes a forward pass for each behaviour of
            the network, about a third of the time of a tied network's epoch.
        evaluate_examples: measure them on at most so many examples of each
            subset, drawn by their ids; on all after the last epoch, and where
            `stop_at` looks at them. None measures all.
        stop_at: stop when the accuracy on all training examples has been at
            least this for `patience` epochs; None never stops early.
        patience: see `stop_at`.
        seed: of the order and the augmentation of the examples.
    """

    epochs: int = 50
    rule: str = "cross_entropy"
    memory_off: float = 0.5
    early: float = 0.4
    early_ends: EarlyEnds = "share"
    batch_size: int = 512
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.01
    schedule: Schedule = "warmup_cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: Augmentation = "none"
    dtype: Dtype = "float32"
    jit_compile: bool = False
    save_every: int = 1
    evaluate_every: int = 1
    evaluate_examples: int | None = 10_000
    stop_at: float | None = None
    patience: int = 3
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        for name in (
            "epochs",
            "batch_size",
            "save_every",
            "evaluate_every",
            "patience",
        ):
            check_range(name, getattr(self, name), 1, None)
        if self.evaluate_examples is not None:
            check_range("evaluate_examples", self.evaluate_examples, 1, None)
        check_range("learning_rate", self.learning_rate, 0.0, None)
        check_range("memory_off", self.memory_off, 0.0, 1.0)
        check_range("early", self.early, 0.0, 1.0)
        check_range("momentum", self.momentum, 0.0, 1.0)
        check_range("weight_decay", self.weight_decay, 0.0, None)
        if self.stop_at is not None:
            check_range("stop_at", self.stop_at, 0.0, 1.0)
            if self.evaluate_every > 1:
                raise ValueError(
                    "`stop_at` looks at the accuracy of each epoch. Expected "
                    "evaluate_every=1 with it. Received: "
                    f"evaluate_every={self.evaluate_every}."
                )


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
    known = hints(cls)
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no field {', '.join(map(repr, unknown))}. "
            f"Expected some of: {', '.join(known)}."
        )
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


def extends(old: Any, new: Any) -> bool:
    """Whether a training is the same with more epochs, at a constant rate.

    Under any other schedule the rate of a step depends on the last epoch.
    """
    return (
        isinstance(new, TrainConfig)
        and new.schedule == "constant"
        and new.epochs > old.epochs
    )
