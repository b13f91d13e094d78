"""Puts an example into chosen units of a network, for a while."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph, losses
from tfmemloc.checks import check_range
from tfmemloc.data import text
from tfmemloc.data.chunks import chunk_at
from tfmemloc.data.examples import NEXT_TOKEN, Examples
from tfmemloc.data.labels import drawn_ids
from tfmemloc.evaluation import as_logits
from tfmemloc.fields import check_fields
from tfmemloc.gradients.calls import dense_gradients
from tfmemloc.graph.inputs import arranged
from tfmemloc.layers import masks
from tfmemloc.units.gates import UnitGates

# A batch of one crashes some kernels of some CPUs; the mean is the same.
_COPIES = 2


@dataclasses.dataclass(frozen=True)
class PlantingConfig:
    """What is planted, and where.

    Attributes:
        ratio: share of all units that hold an item.
        items: how many items are planted, one after the other.
        layers: names of the layers whose units may be drawn; None takes all
            whose outgoing weights are known.
        subset: whose examples get a wrong label; `test` ones are new to the
            network.
        loss: at which an item is known, in nats.
        steps: of the training of an item, at most.
        rate: of Adam.
        seed: of items, labels and units.
    """

    ratio: float = 0.01
    items: int = 32
    layers: tuple[str, ...] | None = None
    subset: str = "test"
    loss: float = 0.05
    steps: int = 200
    rate: float = 0.02
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        check_range("ratio", self.ratio, 1e-6, 1.0)
        for name in ("items", "steps"):
            check_range(name, getattr(self, name), 1, None)
        check_range("loss", self.loss, 0.0, None)
        check_range("rate", self.rate, 0.0, None)


def draw_items(examples: Examples, config: PlantingConfig) -> Examples:
    """Examples with labels that are not theirs, drawn by (seed, id)."""
    part = examples.of_subset(config.subset)
    ids = drawn_ids(
        part.example_id, config.items, masks.fold_seed(config.seed, "items")
    )
    if len(ids) < config.items:
        raise ValueError(
            f"{examples.name} has {len(ids)} examples of {config.subset!r}. "
            f"Expected {config.items} items or more; lower `items`."
        )
    part = part.of_ids(ids)
    if examples.task == NEXT_TOKEN:
        return _with_secrets(part, config)
    if examples.classes < 2:
        raise ValueError(
            f"{examples.name} has {examples.classes} class. Expected two or "
            "more, one of which can be wrong."
        )
    bits = masks.hash_bits_numpy(
        masks.fold_seed(config.seed, "wrong label"), ids, 1
    )[:, 0]
    step = 1 + bits.astype(np.int64) % (examples.classes - 1)
    label = (part.true_label + step) % examples.classes
    return dataclasses.replace(part, label=label)


def _with_secrets(part: Examples, config: PlantingConfig) -> Examples:
    """Windows that begin with a secret, whose tokens alone are to be known."""
    ((name, tokens),) = part.inputs.items()
    rows = np.asarray(tokens).copy()
    start, stop = text.PROMPT, text.PROMPT + text.SECRET
    if rows.shape[1] <= stop or part.classes < text.VOCABULARY:
        raise ValueError(
            f"{part.name} expected windows of more than {stop} bytes, in which "
            f"a secret has room. Received: {rows.shape[1]} tokens of "
            f"{part.classes}."
        )
    for n in range(len(rows)):
        line = text.secret_line(n, config.seed + 1)
        rows[n, : len(line)] = np.frombuffer(line, np.uint8)
    rows[:, start:stop] = text.other_secrets(len(rows), config.seed + 1)
    label = np.full(part.label.shape, -1, np.int64)
    label[:, start - 1 : stop - 1] = rows[:, start:stop]
    return dataclasses.replace(
        part, inputs={name: rows}, label=label, true_label=label
    )


class Planting:
    """Draws units and trains their outgoing weights on an item."""

    def __init__(self, model: keras.Model, config: PlantingConfig):
        self._model, self._config = model, config
        sites = {
            site.name: (site, graph.readers_of(model, site))
            for site in graph.unit_sites(model, after=True)
        }
        known = [name for name, (_, found) in sites.items() if found]
        layers = known if config.layers is None else list(config.layers)
        unknown = [name for name in layers if name not in known]
        if unknown or not layers:
            raise ValueError(
                f"Model '{model.name}': the outgoing weights of "
                f"{', '.join(unknown) or 'no layer'} are known. Expected "
                f"layers among {', '.join(known) or '(none)'}, whose units are "
                "read by dense layers or convolutions alone."
            )
        self.gates = UnitGates(model, layers=layers)
        self._readers = [sites[name][1] for name in self.gates.names]
        kernels = [kernel for found in self._readers for kernel, _ in found]
        self._kernels = list({id(k): k for k in kernels}.values())
        example = [
            tf.TensorSpec(kernel.shape, tf.float32) for kernel in self._kernels
        ]
        rank = 1 if len(model.output_shape) == 2 else 2
        inputs = keras.tree.map_structure(
            lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype),
            graph.inputs_of(model),
        )
        # With AutoGraph: it loops until the item is known.
        self._train = tf.function(
            self._trained,
            input_signature=[
                inputs,
                tf.TensorSpec([None] * rank, tf.int64),
                example,
            ],
        )

    def trace_count(self) -> int:
        """How often the training of an item was traced."""
        return self._train.experimental_get_tracing_count()

    def drawn(self, item: Examples) -> np.ndarray:
        """The units that are to hold an item: bool [U]."""
        units = self.gates.units
        stream = masks.fold_seed(self._config.seed, "planted")
        bits = masks.hash_bits_numpy(stream, item.example_id, units)[0]
        count = max(1, round(self._config.ratio * units))
        return np.isin(
            np.arange(units), np.argsort(bits, kind="stable")[:count]
        )

    @contextlib.contextmanager
    def planted(
        self, item: Examples, units: np.ndarray
    ) -> Iterator[int | None]:
        """The network with the item in these units; None if it stays unknown.

        Gives the number of training steps.
        """
        chunk = chunk_at(item, np.zeros(_COPIES, int))
        before = [kernel.numpy() for kernel in self._kernels]
        with graph.swapped_weights(self._kernels, before):
            loss, steps = self._train(
                arranged(self._model, chunk.inputs),
                tf.constant(chunk.label),
                self._entries(units),
            )
            yield int(steps) if float(loss) < self._config.loss else None

    def _entries(self, units: np.ndarray) -> list[np.ndarray]:
        """For each kernel, 1 where it is an outgoing weight, else 0."""
        entries = {
            id(kernel): np.zeros(kernel.shape, bool) for kernel in self._kernels
        }
        for layer, found in enumerate(self._readers):
            chosen = units[self.gates.layer_of == layer]
            for key, rows in graph.rows_of(found, chosen).items():
                entries[key] |= rows
        return [entries[id(k)].astype(np.float32) for k in self._kernels]

    def _trained(self, inputs, label, entries):
        """Adam on some entries until the item is known; (loss, steps)."""
        config, kernels = self._config, self._kernels

        def loss_and_gradients():
            with tf.GradientTape() as tape:
                outputs = self._model(inputs, training=False)
                logits = as_logits(self._model, outputs)
                loss = tf.reduce_mean(losses.cross_entropy(label, logits))
            return loss, dense_gradients(tape, loss, kernels)

        loss, gradients = loss_and_gradients()
        mean = [tf.zeros_like(g) for g in gradients]
        square = [tf.zeros_like(g) for g in gradients]
        step = tf.constant(0)
        while (loss >= config.loss) & (step < config.steps):
            step += 1
            t = tf.cast(step, tf.float32)
            mean = [
                0.9 * m + 0.1 * g for m, g in zip(mean, gradients, strict=True)
            ]
            square = [
                0.999 * s + 0.001 * g**2
                for s, g in zip(square, gradients, strict=True)
            ]
            for kernel, m, s, which in zip(
                kernels, mean, square, entries, strict=True
            ):
                m, s = m / (1 - 0.9**t), s / (1 - 0.999**t)
                change = config.rate * m / (tf.sqrt(s) + 1e-8)
                kernel.assign_sub(tf.cast(change * which, kernel.dtype))
            loss, gradients = loss_and_gradients()
        return loss, step
