"""The authors' protocol as one flag: `--protocol=paper`.

Where their code departs from ours and there is an option for it, the flag sets
that option; what a flag of its own says wins. All departures are in
docs/paper_map.md.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from .flags import FLAGS, flags

from tfmemloc import RetrainConfig, RewindConfig, SearchConfig, configs
from tfmemloc.units import PAPER_PROTOCOL

flags.disclaim_key_flags()

Config = TypeVar("Config")

PAPER: Mapping[type, Mapping[str, Any]] = {
    configs.ModelConfig: {"rescale": "mass"},
    RewindConfig: {"statistics": False},
    RetrainConfig: {"train_on": "noisy"},
    SearchConfig: PAPER_PROTOCOL,
}


def define(*kinds: type) -> None:
    """Defines the flag for a program with configs of these kinds."""
    theirs = ", ".join(
        f"{name}={value}"
        for kind in kinds
        for name, value in PAPER[kind].items()
    )
    flags.DEFINE_enum(
        "protocol",
        "ours",
        ["ours", "paper"],
        f"paper sets {theirs}, as the authors' code has it, where no flag says "
        "otherwise.",
    )


def applied(config: Config) -> Config:
    """The config under the protocol that the flag names."""
    if FLAGS.protocol == "ours":
        return config
    theirs = {
        name: value
        for name, value in PAPER[type(config)].items()
        if not (name in FLAGS and FLAGS[name].present)
    }
    return dataclasses.replace(config, **theirs)
