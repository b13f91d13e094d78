"""Localization with a known truth: a memory that was put into chosen units.

Whether a ranking finds *the* units that hold a memory can be judged only where
one knows them. For each item (an example with a wrong label, or a window of
text that begins with a new secret, which the network does not know):

1. a share r of all units is drawn by (seed, item);
2. their *outgoing weights* alone are trained on the item (Adam, at most
   `steps`) until its loss is below `loss`; all else stays as it was, bit for
   bit;
3. each ranking orders the units of this network for the item, and

       Recall@k  =  drawn units among the first k of each layer / drawn units

   with at least one unit of each layer. By chance it is k, or a little more
   where layers are small; a perfect ranking does not reach 1 where a layer
   holds more drawn units than its share k has places (`possible`).

The network is as before after each item. Rankings that compare with a
population take its curvature from the network before the injection.

Reference: the INJ benchmark of Chang, Thomason and Jia, "Do Localization
Methods Actually Localize Memorized Data in LLMs?", NAACL 2024, on GPT-2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from tqdm import auto as tqdm

from tfmemloc import graph, losses
from tfmemloc.checks import check_range
from tfmemloc.data import text
from tfmemloc.data.chunks import chunk_at
from tfmemloc.data.examples import NEXT_TOKEN, Examples
from tfmemloc.data.labels import drawn_ids
from tfmemloc.evaluation import as_logits
from tfmemloc.gradients.calls import dense_gradients
from tfmemloc.graph.inputs import arranged
from tfmemloc.layers import masks
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table
from tfmemloc.snapshots import Source, model_of
from tfmemloc.statistics import bootstrap_interval
from tfmemloc.units import rankings
from tfmemloc.units.config import SearchConfig
from tfmemloc.units.gated_model import GatedModel
from tfmemloc.units.gates import UnitGates
from tfmemloc.units.ranks import first_of_layers, ranks_within

# A batch of one crashes some kernels of some CPUs; the mean is the same.
_COPIES = 2
_RANKINGS = (
    "random",
    "activations",
    "zero_out",
    "first_order",
    "integrated_gradients",
    "slimming",
    "hard_concrete",
    "own_curvature",
    "own_projection",
)


@dataclasses.dataclass(frozen=True)
class InjectionConfig:
    """What is planted, and who looks for it.

    Attributes:
        rankings: names of modules in `tfmemloc.units.rankings`.
        ratio: share of all units that hold an item.
        items: how many items are planted, one after the other.
        shares: first shares k of each layer, of which recall is measured.
        layers: names of the layers whose units may be drawn; None takes all
            whose outgoing weights are known.
        subset: whose examples get a wrong label; `test` ones are new to the
            network.
        loss: at which an item is known, in nats.
        steps: of the training of an item, at most.
        rate: of Adam.
        population: training examples that stand for all others.
        seed: of items, labels and units.
    """

    rankings: tuple[str, ...] = _RANKINGS
    ratio: float = 0.01
    items: int = 32
    shares: tuple[float, ...] = (0.01, 0.02, 0.05)
    layers: tuple[str, ...] | None = None
    subset: str = "test"
    loss: float = 0.05
    steps: int = 200
    rate: float = 0.02
    population: int = 512
    seed: int = 0

    def __post_init__(self):
        for name in self.rankings:
            rankings.named(name)
        for share in (self.ratio, *self.shares):
            check_range("ratio and shares", share, 1e-6, 1.0)
        for name in ("items", "steps", "population"):
            check_range(name, getattr(self, name), 1, None)
        check_range("loss", self.loss, 0.0, None)
        check_range("rate", self.rate, 0.0, None)


@dataclasses.dataclass(frozen=True, eq=False)
class Injection(Result):
    """Which rankings find the units into which a memory was put."""

    title: ClassVar[str] = "Which ranking finds a memory that was planted?"

    model: str  # The network.
    rankings: tuple[str, ...]  # R names.
    ratio: float  # Of all units, those that hold an item.
    shares: np.ndarray  # [K] first shares of each layer.
    sizes: np.ndarray  # [L] units of each layer.
    recall: np.ndarray  # [R, K, N] in [0, 1], by layer.
    overall: np.ndarray  # [R, K, N] in the first k of all layers together.
    possible: np.ndarray  # [K, N] recall of a perfect ranking, by layer.
    seconds: np.ndarray  # [R, N] of the ranking of an item.
    steps: np.ndarray  # [N] of training until an item was known.
    not_learned: int  # Items that stayed unknown; they are left out.

    def rows(self) -> list[dict[str, Any]]:
        """A row for each ranking and share."""
        rows = []
        for r, ranking in enumerate(self.rankings):
            for k, share in enumerate(self.shares):
                values = self.recall[r, k]
                low, high = bootstrap_interval(values, np.mean)
                rows.append(
                    {
                        "model": self.model,
                        "ranking": ranking,
                        "ratio": float(self.ratio),
                        "k": float(share),
                        "recall": float(values.mean()),
                        "low": low,
                        "high": high,
                        "items": len(values),
                        "possible": float(self.possible[k].mean()),
                        "overall": float(self.overall[r, k].mean()),
                        "seconds": float(np.median(self.seconds[r])),
                    }
                )
        return rows

    def table(self) -> Table:
        """A row for each ranking, the best first."""
        rows = []
        for r in np.argsort(-self.recall.mean(axis=(1, 2)), kind="stable"):
            row: dict[str, Any] = {"ranking": self.rankings[r]}
            for k, share in enumerate(self.shares):
                row[f"recall@{share:.0%}"] = float(self.recall[r, k].mean())
            row["seconds an item"] = float(np.median(self.seconds[r]))
            rows.append(row)
        perfect: dict[str, Any] = {"ranking": "(possible)"}
        for k, share in enumerate(self.shares):
            perfect[f"recall@{share:.0%}"] = float(self.possible[k].mean())
        rows.append({**perfect, "seconds an item": None})
        return Table(rows, formats={"seconds an item": ".2f"})

    def sentence(self) -> str:
        """The best ranking, and how sure that is."""
        means = self.recall.mean(axis=(1, 2))
        order = np.argsort(-means, kind="stable")
        best = order[0]
        k = len(self.shares) - 1
        low, high = bootstrap_interval(self.recall[best, k], np.mean)
        text = (
            f"{self.rankings[best]} finds {self.recall[best, k].mean():.1%} "
            f"[{low:.1%}, {high:.1%}] of the units that hold an item in the "
            f"first {self.shares[k]:.0%} of each layer; {len(self.steps)} "
            f"items, each in {self.ratio:.1%} of {self.sizes.sum()} units."
        )
        if len(order) > 1:
            second = order[1]
            text += (
                f" Next is {self.rankings[second]} with "
                f"{self.recall[second, k].mean():.1%}."
            )
        if self.not_learned:
            text += f" {self.not_learned} items could not be planted."
        return text

    def figures(self) -> dict[str, Figure]:
        """Recall by share of the layers."""
        drawing, (axes,) = figures.side_by_side(
            "first share of each layer (%)", ["recall (%)"]
        )
        for r, ranking in enumerate(self.rankings):
            axes.plot(
                100 * self.shares,
                100 * self.recall[r].mean(axis=1),
                label=ranking,
                marker=figures.MARKERS[r % len(figures.MARKERS)],
                color=figures.SERIES[r % len(figures.SERIES)],
                linestyle="-" if r < len(figures.SERIES) else "--",
            )
        axes.set_ylim(0, 103)
        axes.legend(fontsize=7)
        return {
            "injection": Figure(
                "Units that hold a planted item among the first of each layer.",
                drawing,
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """Recall of each ranking at each share."""
        return {
            f"{row['ranking']}: recall@{row['k']:.0%}": row["recall"]
            for row in self.rows()
        }


def find_planted(
    source: Source,
    examples: Examples,
    config: InjectionConfig = InjectionConfig(),
    *,
    progress: bool = False,
) -> Injection:
    """Plants memories in known units and asks rankings to find them.

    Args:
        source: a run or a functional model; it is as before afterwards.
        examples: of `config.subset` come the items; the training examples are
            the population.
        config: what is planted.
        progress: show a progress bar.

    Raises:
        ValueError: there are too few examples, no layer's outgoing weights
            are known, or no item was learned.

    Example:
        >>> config = InjectionConfig(rankings=("first_order",), items=2)
        >>> found = find_planted(model, examples, config)
        >>> found.recall.shape
        (1, 3, 2)
    """
    model = model_of(source, examples)
    items = _items(examples, config)
    place = _Planting(model, config)
    gated = {
        name: GatedModel(
            model,
            place.gates,
            examples,
            SearchConfig(
                ranking=name,
                layers=place.gates.names,
                population=config.population,
                bystanders=1,
                seed=config.seed,
            ),
        )
        for name in config.rankings
    }
    if "own_curvature" in gated:
        # Of the network as it is before anything is planted.
        _ = gated["own_curvature"].population_squares
    recall, overall, possible, seconds, steps = [], [], [], [], []
    for n in tqdm.tqdm(
        range(len(items)), desc="items", unit="item", disable=not progress
    ):
        item = items.take(np.array([n]))
        truth = place.drawn(item)
        with place.planted(item, truth) as taken:
            if taken is None:
                continue
            steps.append(taken)
            possible.append(
                _recall(truth.astype(float), place.gates, truth, config)[0]
            )
            found = [
                _found(gated[name], name, item, truth, config)
                for name in config.rankings
            ]
        for column, values in zip(
            (recall, overall, seconds), zip(*found, strict=True), strict=True
        ):
            column.append(values)
    if not steps:
        raise ValueError(
            f"None of {len(items)} items was known after {config.steps} steps. "
            "Expected some; raise `steps`, `rate` or `ratio`."
        )
    return Injection(
        model=model.name,
        rankings=config.rankings,
        ratio=config.ratio,
        shares=np.array(config.shares),
        sizes=place.gates.sizes,
        recall=np.moveaxis(np.array(recall), 0, -1),
        overall=np.moveaxis(np.array(overall), 0, -1),
        possible=np.array(possible).T,
        seconds=np.array(seconds).T,
        steps=np.array(steps),
        not_learned=len(items) - len(steps),
    )


def _items(examples: Examples, config: InjectionConfig) -> Examples:
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


def _with_secrets(part: Examples, config: InjectionConfig) -> Examples:
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


class _Planting:
    """Draws units and trains their outgoing weights on an item."""

    def __init__(self, model: keras.Model, config: InjectionConfig):
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


def _found(gated: GatedModel, name: str, item: Examples, truth, config):
    """(recall by layer [K], overall [K], seconds) of one ranking."""
    started = time.perf_counter()
    ranked = rankings.named(name).rank(gated, item, gated.open_gates(1))
    seconds = time.perf_counter() - started
    return *_recall(ranked.score[0], gated.gates, truth, config), seconds


def _recall(score: np.ndarray, gates: UnitGates, truth: np.ndarray, config):
    """Recall by layer and over all units, at each share: [K], [K]."""
    everywhere = ranks_within(score, np.zeros_like(gates.layer_of))
    recall, overall = [], []
    for share in config.shares:
        first = first_of_layers(score[np.newaxis], gates, share)[0]
        recall.append((first & truth).sum() / truth.sum())
        first = everywhere < max(1, round(share * len(score)))
        overall.append((first & truth).sum() / truth.sum())
    return np.array(recall), np.array(overall)
