"""Makes flags from configs, which hold their names, defaults and help.

A config is a frozen dataclass. Each of its fields becomes a flag of the same
name; the help is the field's paragraph under `Attributes:` in the docstring.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import shlex
import textwrap
import typing
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from .flags import FLAGS, flags

from tfmemloc import configs, data, fields, presets
from tfmemloc.training import rules
from tfmemloc.units import rankings

# The flags belong to the program that asks for them, so that --help of each
# program lists its own.
flags.disclaim_key_flags()

Config = TypeVar("Config")

_QUICK_EPOCHS = 3
_QUICK_EXAMPLES = 512
_QUICK_BATCH = 128
# Field -> name of its flag, where the two differ.
_MODEL_FLAGS = {"name": "model"}
# Fields that name a module of a package: what there is.
_NAMES = {"ranking": rankings.names, "rule": rules.names}
_PRESET_CONFIGS = (configs.ModelConfig, configs.TrainConfig)


def define(
    config: type,
    *,
    skip: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
    unset: bool = False,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Defines a flag for each field of a config.

    Args:
        config: a dataclass.
        skip: fields without a flag.
        named: field -> name of its flag, where the two differ.
        unset: a flag that is not given is None, so that a preset can apply;
            the help text states the default.
        notes: field -> how its help text describes the default.
    """
    helps = field_help(config)
    hints = fields.hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        words = helps.get(field.name, "")
        if field.name in _NAMES:
            words += f" There are {', '.join(_NAMES[field.name]())}."
        default = field.default
        if unset:
            note = (notes or {}).get(field.name)
            words += f" Default: {note or _default_words(config, field)}."
            default = None
        _define_one(
            (named or {}).get(field.name, field.name),
            hints[field.name],
            default,
            words,
        )


def read(
    config: type[Config],
    *,
    skip: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
    **given: Any,
) -> Config:
    """The config that the flags ask for.

    Args:
        config: its class.
        skip: fields without a flag.
        named: as in `define`.
        **given: fields that no flag decides, or defaults of unset flags.
    """
    hints = fields.hints(config)
    values = dict(given)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        value = FLAGS[(named or {}).get(field.name, field.name)].value
        if value is not None:
            values[field.name] = _converted(
                field.name, value, hints[field.name]
            )
    return config(**values)


def line(
    config: Any,
    usual: Mapping[str, Any] | None = None,
    *,
    skip: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
) -> str:
    """The flags of a config's fields that are not as they would be without.

    Args:
        config: whose flags are wanted.
        usual: name of a field -> what it would be; None, or no entry, is the
            class's default.
        skip: fields without a flag.
        named: as in `define`.
    """
    # A default may depend on the first field: which data, which network.
    first, *_ = dataclasses.fields(config)
    default = type(config)(getattr(config, first.name))
    without = {
        field.name: getattr(default, field.name)
        for field in dataclasses.fields(config)
        if field.name not in skip
    }
    without |= {first.name: first.default, **(usual or {})}
    return " ".join(
        shlex.quote(f"--{(named or {}).get(name, name)}={found}")
        for name, value in without.items()
        if (found := getattr(config, name)) != value
    )


def training_line(
    dataset: str, model: configs.ModelConfig, training: configs.TrainConfig
) -> str:
    """The flags with which `binaries.train` trains such a network so."""
    # A network that is named is trained as the paper does, or by the preset
    # of the data; without a name there are settings for data of one's own.
    network, steps = presets.preset(dataset)
    lines = [
        f"--model={model.name}",
        line(
            model,
            {**network, "name": model.name},
            skip=("seed",),
            named=_MODEL_FLAGS,
        ),
        line(training, steps, skip=("seed",)),
        f"--seed={training.seed}" if training.seed else "",
    ]
    return " ".join(filter(None, lines))


def field_help(config: type) -> dict[str, str]:
    """The paragraph of each field under `Attributes:`, base classes first."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        text = inspect.cleandoc(base.__doc__ or "")
        _, _, part = text.partition("Attributes:\n")
        part = textwrap.dedent(part.split("\n\n")[0])
        for name, words in re.findall(
            r"^(\w+): (.*(?:\n +.*)*)", part, re.MULTILINE
        ):
            is_code = words.startswith("`")
            words = " ".join(words.split()).replace("`", "")
            # Words that the user types, such as `adam`, are not capitalized.
            found[name] = words if is_code else words[0].upper() + words[1:]
    return found


def _define_one(name: str, hint: Any, default: Any, words: str) -> None:
    wanted, _ = fields.without_none(hint)
    if typing.get_origin(wanted) is Literal:
        choices = list(typing.get_args(wanted))
        flags.DEFINE_enum(name, default, choices, words)
    elif typing.get_origin(wanted) is tuple:
        shown = None if default is None else list(map(str, default))
        flags.DEFINE_list(name, shown, words)
    else:
        kinds = {
            bool: flags.DEFINE_bool,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            str: flags.DEFINE_string,
        }
        kinds[wanted](name, default, words)


def _converted(name: str, value: Any, hint: Any) -> Any:
    """The value of a flag as the field's type."""
    wanted, _ = fields.without_none(hint)
    if typing.get_origin(wanted) is not tuple:
        return value
    member = typing.get_args(wanted)[0]
    try:
        return tuple(member(item) for item in value)
    except ValueError:
        raise ValueError(
            f"--{name} expected numbers with commas between them. Received: "
            f"{','.join(value)!r}."
        ) from None


def _default_words(config: type, field: dataclasses.Field) -> str:
    """A field's default, and what the presets have in its place."""
    words = "none" if field.default is None else str(field.default)
    if config not in _PRESET_CONFIGS:
        return words
    place = _PRESET_CONFIGS.index(config)
    others: dict[str, list[str]] = {}
    for dataset, preset in presets.PRESETS.items():
        if field.name in preset[place]:
            value = str(preset[place][field.name])
            others.setdefault(value, []).append(dataset)
    own = {
        preset[place][field.name]: most
        for most, preset in presets.OWN_SETTINGS
        if field.name in preset[place]
    }
    if not others and not own:
        return words
    listed = [
        f"{value} for {' and '.join(sets)}" for value, sets in others.items()
    ]
    for value, most in own.items():
        upto = "" if math.isinf(most) else f"up to {most:,} "
        listed.append(
            f"{value} for {upto}pictures of your own, without --model"
        )
    return f"{', '.join(listed)}, else {words}"


def define_run_configs(*, with_dropout: bool) -> None:
    """Flags of the data, the network and the training."""
    define(
        configs.DataConfig,
        unset=True,
        notes={
            "noise_rate": "see above",
            "noise_seed": "--seed",
            "dataset": "digits",
        },
    )
    define(
        configs.ModelConfig,
        skip=("seed",) if with_dropout else ("seed", "dropout"),
        named=_MODEL_FLAGS,
        unset=True,
        notes={
            "p_gen": "0.2 for lenet and resnet9, else 0.5",
            "p_mem": "0.1 for lenet and resnet9, else 0.2",
        },
    )
    define(configs.TrainConfig, skip=("seed",), unset=True)
    flags.DEFINE_integer(
        "seed", 0, "Seed of noise, initialization, order and augmentation."
    )
    flags.DEFINE_bool(
        "quick",
        False,
        f"Run the same steps, with at most {_QUICK_EPOCHS} epochs, "
        f"{_QUICK_EXAMPLES} training examples and {_QUICK_BATCH} in a batch.",
    )


def _dataset() -> str:
    return "digits" if FLAGS.dataset is None else FLAGS.dataset


def _preset():
    """The settings of (model, training) where no flag says otherwise."""
    labels = None
    # Networks of other names have settings of their own.
    if data.is_own(_dataset()) and FLAGS.model is None:
        labels = data.count_labels(_dataset())
    return presets.preset(_dataset(), labels)


def data_config() -> configs.DataConfig:
    """The data that the flags ask for."""
    is_own = data.is_own(_dataset())
    config = read(
        configs.DataConfig,
        noise_seed=FLAGS.seed,
        **presets.data_settings(_dataset()),
    )
    if not FLAGS.quick:
        return config
    counts = [_QUICK_EXAMPLES]
    if config.train_examples is not None:
        counts.append(config.train_examples)
    if is_own:
        counts.append(data.count_train(config.dataset))
    return dataclasses.replace(config, train_examples=min(counts))


def model_config(dropout: str | None = None) -> configs.ModelConfig:
    """The network that the flags ask for; `dropout` if no flag decides it."""
    preset, _ = _preset()
    skip = ("seed",) if dropout is None else ("seed", "dropout")
    given = {} if dropout is None else {"dropout": dropout}
    config = read(
        configs.ModelConfig,
        skip=skip,
        named=_MODEL_FLAGS,
        **{**preset, "seed": FLAGS.seed, **given},
    )
    if config.dropout != "example_tied":
        _warn_of_no_effect({"expand"}, f"--dropout={config.dropout}")
    elif config.expand:
        _warn_of_no_effect({"p_gen", "rescale"}, f"--expand={config.expand}")
    return config


def _warn_of_no_effect(names: set[str], beside: str) -> None:
    """Warns of flags that were given and that nothing reads."""
    for name in sorted(names):
        if FLAGS[name].present:
            warnings.warn(
                f"--{name} has no effect with {beside}. Expected one of them "
                "alone, or another value.",
                stacklevel=3,
            )


def train_config() -> configs.TrainConfig:
    """The training that the flags ask for."""
    _, preset = _preset()
    config = read(
        configs.TrainConfig, skip=("seed",), **{**preset, "seed": FLAGS.seed}
    )
    _warn_of_no_effect(
        {"memory_off", "early"} - set(rules.reads(config.rule)),
        f"--rule={config.rule}",
    )
    if FLAGS.quick:
        config = dataclasses.replace(
            config,
            epochs=min(config.epochs, _QUICK_EPOCHS),
            batch_size=min(config.batch_size, _QUICK_BATCH),
        )
    return config
