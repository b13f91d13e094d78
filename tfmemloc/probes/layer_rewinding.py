"""Layer rewinding: which layers can be put back without forgetting?

Claim (paper, section 4.2): after one layer group of the trained network is put
back to an early epoch, most groups leave the accuracy on the noisy examples
high; the memory of the wrong labels is not in the last layers, nor in any one.

For each group and epoch: the group's weights, normalization statistics
included, become those of the epoch; all else stays trained; everything is
measured with `training=False`. (The authors' code leaves the trained
statistics in the rewound group; `statistics=False` repeats that.)

What lies before the first rewound group is the same for all epochs. It runs
once for each batch; only the suffix behind it (see `graph.cuts`) runs again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from tqdm import auto as tqdm

from tfmemloc import configs, evaluation, graph
from tfmemloc.data.chunks import IDS, chunks
from tfmemloc.data.examples import Examples
from tfmemloc.fields import check_fields
from tfmemloc.layers import masks
from tfmemloc.models import build_network
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table
from tfmemloc.snapshots import Source, as_source
from tfmemloc.subsets import OfSubsets

AUTHORS_EPOCHS = tuple(range(0, 15, 2))

Weights = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class RewindConfig:
    """How layers are rewound.

    Attributes:
        epochs: saved epochs to rewind to; None is 0, 2, ..., 14 where saved.
        mode: rewind `single` groups; all groups `up_to` one, counted from the
            input; or all groups `from` one to the output.
        statistics: also rewind the statistics of normalizations.
        inference: behaviour of tied layers; None leaves it as built (drop).
        batch_size: how many examples go through the network at once.
    """

    epochs: tuple[int, ...] | None = None
    mode: Literal["single", "up_to", "from"] = "single"
    statistics: bool = True
    inference: configs.Inference | None = None
    batch_size: int = 512

    def __post_init__(self):
        check_fields(self)
        configs.check_range("batch_size", self.batch_size, 1, None)


@dataclasses.dataclass(frozen=True, eq=False)
class LayerRewinding(OfSubsets, Result):
    """Accuracy after layers are set back to an earlier epoch (paper, 4.2)."""

    title: ClassVar[str] = "Which layers can be put back without forgetting"

    # What was set back: `single` groups, or all groups `up_to` or `from` one.
    mode: str
    groups: tuple[str, ...]  # G names, input to output.
    epochs: tuple[int, ...]  # E epochs rewound to; 0 is initialization.
    subsets: tuple[str, ...]  # S names.
    accuracy: np.ndarray  # [E, G, S] in [0, 1], of the labels trained on.
    loss: np.ndarray  # [E, G, S] mean cross-entropy in nats.
    fresh_accuracy: np.ndarray  # [G, S] of another initialization; or [0, S].
    fresh_loss: np.ndarray  # [G, S], or [0, S] where there is none.
    baseline: np.ndarray  # [S] accuracy of the trained model, unchanged.
    baseline_loss: np.ndarray  # [S].

    def rows(self) -> list[dict[str, Any]]:
        """A row for each epoch, group and subset; `fresh` is an epoch too."""
        pairs = [
            (epoch, self.accuracy[e], self.loss[e])
            for e, epoch in enumerate(self.epochs)
        ]
        if len(self.fresh_accuracy):
            pairs.append(("fresh", self.fresh_accuracy, self.fresh_loss))
        return [
            {
                "epoch": epoch,
                "group": group,
                "subset": subset,
                "accuracy": float(accuracy[g, s]),
                "loss": float(loss[g, s]),
                "baseline": float(self.baseline[s]),
            }
            for epoch, accuracy, loss in pairs
            for g, group in enumerate(self.groups)
            for s, subset in enumerate(self.subsets)
        ]

    def table(self) -> Table:
        """The accuracy on the memorized examples, by group and epoch."""
        s = self.subsets.index(self.focus)
        return Table(
            [
                {
                    "group": group,
                    **{
                        f"epoch {epoch}": float(self.accuracy[e, g, s])
                        for e, epoch in enumerate(self.epochs)
                    },
                }
                for g, group in enumerate(self.groups)
            ]
        )

    def sentence(self) -> str:
        """How many groups can be rewound, and which one matters most."""
        first = self.epochs[0]
        group = self.most_sensitive(first)
        return (
            f"The table gives the accuracy on the {self.focus} examples. "
            f"After a rewind to epoch {first}, {self.robust_share(first):.0%} "
            f"of the {len(self.groups)} groups leave it at 90% or more; the "
            f"most sensitive is {group}, {position(group, self.groups)}."
        )

    def figures(self) -> dict[str, Figure]:
        """A map of the accuracy for each subset."""
        return {
            "layer_rewinding": Figure(
                "Accuracy after one layer group was set back to an earlier "
                "epoch, or to another initialization (fresh).",
                _maps(self),
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """The share of groups that can be rewound to the first epoch."""
        first = self.epochs[0]
        name = f"groups that can be rewound to epoch {first}"
        return {name: self.robust_share(first)}

    def robust_share(self, epoch: int, at_least: float = 0.9) -> float:
        """Share of groups whose rewinding leaves the memory at `at_least`."""
        s = self.subsets.index(self.focus)
        return float(np.mean(self.accuracy[self._at(epoch), :, s] >= at_least))

    def most_sensitive(self, epoch: int) -> str:
        """The group whose rewinding costs the memorized examples the most."""
        s = self.subsets.index(self.focus)
        accuracy = self.accuracy[self._at(epoch), :, s]
        # Where several are equal, the one that costs the most loss.
        loss = self.loss[self._at(epoch), :, s]
        return self.groups[int(np.lexsort((-loss, accuracy))[0])]

    def _at(self, epoch: int) -> int:
        return self.epochs.index(epoch)


def position(group: str, groups: Sequence[str]) -> str:
    """Where a group stands, in words."""
    return f"number {groups.index(group) + 1} of {len(groups)} from the input"


def _maps(result: LayerRewinding):
    """Accuracy by group and epoch rewound to, a map for each subset."""
    labels = [str(epoch) for epoch in result.epochs]
    accuracy = result.accuracy
    if len(result.fresh_accuracy):
        labels = ["fresh", *labels]
        accuracy = np.concatenate([result.fresh_accuracy[np.newaxis], accuracy])
    count, groups, subsets = accuracy.shape
    figure = figures.Drawing(
        figsize=((0.36 * count + 1.2) * subsets + 1, 0.28 * groups + 1.4),
        layout="constrained",
    )
    panels = figure.subplots(1, subsets, sharey=True, squeeze=False)[0]
    for s, panel in enumerate(panels):
        image = panel.imshow(
            100 * accuracy[:, :, s].T,
            aspect="auto",
            cmap="cividis",
            vmin=0,
            vmax=100,
        )
        panel.set_title(result.subsets[s], fontsize=10)
        panel.set_xticks(range(count), labels, fontsize=7, rotation=60)
        panel.set_xlabel("rewound to epoch")
    panels[0].set_yticks(range(groups), result.groups, fontsize=8)
    figure.colorbar(image, ax=list(panels), label="accuracy (%)")
    return figure


def rewind_layers(
    source: Source,
    examples: Examples,
    config: RewindConfig = RewindConfig(),
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    progress: bool = True,
) -> LayerRewinding:
    """Rewinds each layer group of a network to each of some epochs.

    Args:
        source: a run whose model can be rebuilt, or `Snapshots` of any model;
            it comes back with the weights that it had.
        examples: what to measure; of a run, its data.
        config: which epochs, and how.
        groups: names of groups -> names of layers; None is `layer_groups`.
        progress: show a progress bar.

    Returns:
        Arrays with axes [epochs, groups, subsets].

    Raises:
        ValueError: an epoch was not saved, or the data are not the run's.

    Example:
        >>> run = Run.open("runs/demo/standard")
        >>> result = rewind_layers(run, run.examples())
        >>> 0 <= result.robust_share(epoch=0) <= 1
        True
    """
    source = as_source(source)
    source.check(examples)
    epochs = config.epochs
    if epochs is None:
        epochs = tuple(e for e in AUTHORS_EPOCHS if e in source.epochs)
    source.check_epochs(epochs)
    model = source.model(inference=config.inference)
    named = graph.layer_groups(model, groups)
    weights = [source.weights(epoch) for epoch in epochs]
    fresh = _fresh_weights(source, examples)
    rewinder = Rewinder(
        model,
        named,
        config.mode,
        config.statistics,
        [*weights, *([] if fresh is None else [fresh])],
    )
    metrics, plain = rewinder.run(examples, config.batch_size, progress)
    accuracy, loss = (
        np.array([[getattr(m, name) for m in row] for row in metrics])
        for name in ("accuracy", "loss")
    )
    count = len(epochs)
    empty = np.zeros((0, len(examples.subsets)))
    return LayerRewinding(
        mode=config.mode,
        groups=tuple(named),
        epochs=tuple(epochs),
        subsets=examples.subsets,
        accuracy=accuracy[:count],
        loss=loss[:count],
        fresh_accuracy=empty if fresh is None else accuracy[count],
        fresh_loss=empty if fresh is None else loss[count],
        baseline=plain.accuracy,
        baseline_loss=plain.loss,
    )


class Rewinder:
    """Measures all (weights, group) pairs on all batches; a trace per suffix.

    Args:
        model: comes back with the weights that it had.
        groups: of `layer_groups`.
        mode: see `RewindConfig`.
        statistics: also rewind those of normalizations.
        sources: lists of weights, each in the order of `model.weights`.
    """

    def __init__(
        self,
        model,
        groups: graph.Groups,
        mode: str,
        statistics: bool,
        sources: Sequence[Weights],
    ):
        self.model = model
        names = list(groups)
        rewound = {
            name: {
                "single": names[g : g + 1],
                "up_to": names[: g + 1],
                "from": names[g:],
            }[mode]
            for g, name in enumerate(names)
        }
        layers = {
            name: [layer for n in members for layer in groups[n]]
            for name, members in rewound.items()
        }
        self.cuts = graph.cuts_before(model, layers)
        self.stages = [
            (place, evaluation.Predictor(stage, raw=True))
            for place, stage in graph.stages(model, list(self.cuts.values()))
        ]
        self.suffixes = {
            cut.place: evaluation.Predictor(cut.suffix)
            for cut in self.cuts.values()
        }
        self.plain = self.suffixes.get(0) or evaluation.Predictor(model)
        self.variables = _variables(groups, rewound, statistics)
        place = {id(v): n for n, v in enumerate(model.weights)}
        self.values = [
            {
                name: [source[place[id(v)]] for v in variables]
                for name, variables in self.variables.items()
            }
            for source in sources
        ]

    def run(self, examples: Examples, batch_size: int, progress: bool):
        """Metrics by weights and group [K][G], and of the model unchanged."""
        parts = [[[] for _ in self.variables] for _ in self.values]
        plain = []
        total = -(-len(examples) // batch_size)
        with tqdm.tqdm(
            total=total * len(self.values) * len(self.variables),
            desc="rewinding",
            disable=not progress,
        ) as bar:
            for chunk in chunks(examples, batch_size):
                self._run_chunk(chunk, examples, parts, plain, bar)
        joined = [
            [evaluation.joined_metrics(p, examples) for p in row]
            for row in parts
        ]
        return joined, evaluation.joined_metrics(plain, examples)

    def _run_chunk(self, chunk, examples, parts, plain, bar) -> None:
        def measure(logits):
            return evaluation.measured(logits.numpy(), examples, chunk.places)

        plain.append(measure(self.plain(chunk.inputs)))
        reached = {0: chunk.inputs}
        x = chunk.inputs
        for place, stage in self.stages:
            x = {"x": stage(x), IDS: chunk.inputs[IDS]}
            reached[place] = x
        for g, (name, variables) in enumerate(self.variables.items()):
            place = self.cuts[name].place
            suffix = self.suffixes[place]
            # The trained values come back once for each group.
            with graph.swapped_weights(variables, self.values[0][name]):
                for k, values in enumerate(self.values):
                    graph.assign_weights(variables, values[name])
                    parts[k][g].append(measure(suffix(reached[place])))
                    bar.update()


def _variables(groups, rewound, statistics):
    """Name -> the variables that are set back together."""
    by_group = graph.group_variables(groups, trainable_only=not statistics)
    return {
        name: [v for n in members for v in by_group[n]]
        for name, members in rewound.items()
    }


def _fresh_weights(source, examples: Examples) -> Weights | None:
    """Another initialization of a network that tfmemloc built; else None."""
    config = source.model_config
    if config is None:
        return None
    seed = masks.fold_seed(config.seed, "fresh") % 2**31
    config = dataclasses.replace(config, seed=seed)
    return build_network(config, examples).get_weights()
