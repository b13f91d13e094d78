"""Layer rewinding: which layers can be put back without forgetting?

Claim (paper, section 4.2): after one layer group of the trained network is put
back to an early epoch, most groups leave the accuracy on the noisy examples
high; the memory of the wrong labels is not in the last layers, nor in any one.

For each group and epoch: the group's weights, normalization statistics
included, become those of the epoch; all else stays trained; everything is
measured with `training=False`. (The authors' code leaves the trained
statistics in the rewound group; `statistics=False` repeats that.)

What lies before the first rewound group is the same for all epochs. It runs
once for each batch; only the suffix behind it (see `cuts`) runs again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from tqdm import auto as tqdm

from tfmemloc import configs, cuts, evaluation, masks, models, surgery
from tfmemloc.batches import scale_pixels
from tfmemloc.data import Examples
from tfmemloc.results import LayerRewinding
from tfmemloc.runs import Run

MODES = ("single", "up_to", "from")
AUTHORS_EPOCHS = tuple(range(0, 15, 2))

Weights = Sequence[np.ndarray]


def rewind_layers(
    run: Run,
    examples: Examples,
    *,
    epochs: Sequence[int] | None = None,
    mode: str = "single",
    statistics: bool = True,
    groups: Mapping[str, Sequence[str]] | None = None,
    inference: str | None = None,
    batch_size: int = 512,
    progress: bool = True,
) -> LayerRewinding:
    """Rewinds each layer group of a run to each of some epochs.

    Args:
        run: any run whose model can be rebuilt.
        examples: the data of the run.
        epochs: saved epochs to rewind to; None is 0, 2, ..., 14 where saved.
        mode: `single` groups; all groups `up_to` one, counted from the input;
            or all groups `from` one to the output.
        statistics: also rewind the statistics of normalizations.
        groups: names of groups -> names of layers; None is `layer_groups`.
        inference: behaviour of tied layers; None leaves the model's.
        batch_size: how many examples go through the network at once.
        progress: show a progress bar.

    Returns:
        Arrays with axes [epochs, groups, subsets].

    Raises:
        ValueError: an epoch was not saved, the data are not the run's, or no
            example is noisy or atypical.

    Example:
        >>> result = rewind_layers(Run.open("runs/demo/standard"), examples)
        >>> result.robust_share(epoch=0)
    """
    run.check(examples)
    if epochs is None:
        epochs = [epoch for epoch in AUTHORS_EPOCHS if epoch in run.epochs]
    run.check_epochs(epochs)
    model = run.model(inference=inference)
    weights = {epoch: run.weights(epoch) for epoch in epochs}
    return rewind_weights(
        model,
        weights,
        examples,
        fresh=_fresh_weights(run, examples),
        mode=mode,
        statistics=statistics,
        groups=groups,
        batch_size=batch_size,
        progress=progress,
    )


def rewind_weights(
    model: keras.Model,
    weights: Mapping[int, Weights],
    examples: Examples,
    *,
    fresh: Weights | None = None,
    mode: str = "single",
    statistics: bool = True,
    groups: Mapping[str, Sequence[str]] | None = None,
    batch_size: int = 512,
    progress: bool = True,
) -> LayerRewinding:
    """The same for any Keras model and weights of its earlier epochs.

    Args:
        model: trained; comes back with the weights that it had.
        weights: epoch -> values in the order of `model.weights`.
        examples: what to measure.
        fresh: weights of another initialization, or None.
        mode: as in `rewind_layers`.
        statistics: as in `rewind_layers`.
        groups: as in `rewind_layers`.
        batch_size: as in `rewind_layers`.
        progress: show a progress bar.
    """
    if mode not in MODES:
        raise ValueError(
            f"`mode` must be one of {', '.join(map(repr, MODES))}. Received: "
            f"mode={mode!r}."
        )
    _check_memorized(examples)
    found = surgery.layer_groups(model, groups)
    sources = [*weights.values(), *([fresh] if fresh is not None else [])]
    sweep = Sweep(model, found, mode, statistics, sources)
    logits, plain = sweep.run(examples, batch_size, progress)
    metrics = [
        [evaluation.metrics_of_logits(one, examples) for one in by_group]
        for by_group in logits
    ]
    baseline = evaluation.metrics_of_logits(plain, examples)
    accuracy, loss = (
        np.array([[getattr(m, name) for m in row] for row in metrics])
        for name in ("accuracy", "loss")
    )
    count, subsets = len(weights), examples.subsets
    empty = np.zeros((0, len(subsets)))
    return LayerRewinding(
        mode=mode,
        groups=tuple(found),
        epochs=tuple(weights),
        subsets=subsets,
        accuracy=accuracy[:count],
        loss=loss[:count],
        fresh_accuracy=empty if fresh is None else accuracy[count],
        fresh_loss=empty if fresh is None else loss[count],
        baseline=baseline.accuracy,
        baseline_loss=baseline.loss,
    )


class Sweep:
    """All (source, group) pairs over all batches; one trace per suffix."""

    def __init__(self, model, groups, mode, statistics, sources):
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
        self.cuts = cuts.cuts_before(model, layers)
        self.stages = [
            (place, evaluation.make_predictor(stage))
            for place, stage in cuts.stages(model, list(self.cuts.values()))
        ]
        self.suffixes = {
            cut.place: evaluation.make_predictor(cut.suffix)
            for cut in self.cuts.values()
        }
        self.plain = self.suffixes.get(0) or evaluation.make_predictor(model)
        self.variables = _variables(groups, rewound, statistics)
        place = {id(v): n for n, v in enumerate(model.weights)}
        self.values = [
            {
                name: [source[place[id(v)]] for v in variables]
                for name, variables in self.variables.items()
            }
            for source in sources
        ]

    def run(self, examples, batch_size, progress):
        """Logits by source and group [K][G][N, classes], and unchanged."""
        parts: list = [
            [[] for _ in self.variables] for _ in range(len(self.values))
        ]
        plain = []
        starts = range(0, len(examples), batch_size)
        with tqdm.tqdm(
            total=len(starts) * len(self.values) * len(self.variables),
            desc="rewinding",
            disable=not progress,
        ) as bar:
            for start in starts:
                batch = slice(start, start + batch_size)
                image = tf.constant(scale_pixels(examples.image[batch]))
                ids = tf.constant(examples.example_id[batch])
                plain.append(self.plain(image, ids).numpy())
                reached = {0: image}
                x = image
                for place, stage in self.stages:
                    reached[place] = x = stage(x, ids)
                for g, (name, variables) in enumerate(self.variables.items()):
                    place = self.cuts[name].place
                    suffix = self.suffixes[place]
                    first = self.values[0][name]
                    # The trained values come back once for each group.
                    with surgery.swapped_weights(variables, first):
                        for k, values in enumerate(self.values):
                            surgery.assign_weights(variables, values[name])
                            logits = suffix(reached[place], ids)
                            parts[k][g].append(logits.numpy())
                            bar.update()
        return (
            [[np.concatenate(p) for p in row] for row in parts],
            np.concatenate(plain),
        )


def _variables(groups, rewound, statistics):
    """Name -> the variables that are set back together."""
    by_group = surgery.group_variables(groups, trainable_only=not statistics)
    return {
        name: [v for n in members for v in by_group[n]]
        for name, members in rewound.items()
    }


def _fresh_weights(run: Run, examples: Examples) -> Weights | None:
    """Another initialization of a network of ours; None for anybody's."""
    if run.model_config is None:
        return None
    fields = configs.to_json(run.model_config)
    seed = masks.fold_seed(run.model_config.seed, "fresh") % 2**31
    config = configs.from_json(configs.ModelConfig, {**fields, "seed": seed})
    model = models.build(config, examples.image.shape[1:], examples.classes)
    return model.get_weights()


def _check_memorized(examples: Examples) -> None:
    if examples.memorized is None:
        raise ValueError(
            f"{examples.name} has no noisy or atypical examples, whose memory "
            "could be looked for. Expected label noise or a score file; "
            f"received the subsets {', '.join(examples.subsets)}."
        )
