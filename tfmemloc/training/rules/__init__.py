"""Rules: what a training step minimizes. One file each, called by its name.

A rule is a function (model, inputs, label) -> (loss of each example [B],
logits), which calls the model with `training=True` itself, so that it may call
it twice, with other inputs or in another behaviour. The name of its module is
the value of `TrainConfig.rule`; the function in it is called `rule`. It is
traced without AutoGraph: it decides by `tf.where` or `tf.cond`, not by `if` on
tensors.

A rule that remembers something is an object that is called in the same way and
has `variables`, which a run saves and restores with its other state, and may
have `tables` (`tfmemloc.training.by_example`) and an `early` part
(`tfmemloc.training.early`), whose epochs the loop tells them. Where it lets
examples pass with their memory off, it says so by `passes_without_memory`:
BatchNorm's statistics of the drop are made of these. Its module
has a function `make(model, examples, training)` that gives one for a training,
or refuses what it cannot train. It may also have
`changed_gradients(gradients, variables)`, called in the step, and
`routes(inputs)`: (weight of each example [B], for each variable which entries
learn from them), where each entry of a variable is in one route.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from tfmemloc.configs import TrainConfig
from tfmemloc.data.examples import Examples

# (model, inputs by name, label) -> losses [B], logits
Rule = Callable[
    [keras.Model, Mapping[str, tf.Tensor], tf.Tensor],
    tuple[tf.Tensor, tf.Tensor],
]


def names() -> tuple[str, ...]:
    """The names of the rules that there are."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def named(
    name: str, model: keras.Model, examples: Examples, training: TrainConfig
) -> Rule:
    """The rule of this name, for a training.

    Args:
        name: one of `names()`.
        model: the network that is trained.
        examples: the training examples.
        training: how they are trained on.

    Raises:
        ValueError: there is none, or it cannot train this network so.
    """
    if name not in names():
        raise ValueError(
            f"`rule` must be one of {', '.join(map(repr, names()))}, or a "
            f"function that is passed to `train`. Received: rule={name!r}."
        )
    module = importlib.import_module(f"{__name__}.{name}")
    if hasattr(module, "make"):
        return module.make(model, examples, training)
    return module.rule


def reads(name: str) -> tuple[str, ...]:
    """Fields of `TrainConfig` that are of some rules, and that a rule reads."""
    if name not in names():
        return ()  # Of one's own: it may read any.
    module = importlib.import_module(f"{__name__}.{name}")
    return getattr(module, "READS", ())


def address_of(rule: Rule) -> str:
    """The name of a rule of one's own: `<module>:<function>`."""
    name = getattr(rule, "__qualname__", type(rule).__qualname__)
    return f"{getattr(rule, '__module__', '?')}:{name}"
