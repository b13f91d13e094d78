"""Critical units: the smallest set of units that holds one example.

Claim (paper, section 4.4): the prediction on a memorized example hangs on
about five units, on a typical one on many more, and removing those few costs
the other examples little.

For one example i with loss l_i and a population of examples j, a unit with
gate m_u (1 is on; see `gates`) has, to first order, the score

    score_u  =  d (mean_j l_j - l_i) / d m_u

which is how much the objective  mean_j l_j - l_i  falls when the unit is
removed. The unit with the largest score is removed, again and again, until
the prediction on i flips or a limit is reached. That set is an upper bound:
each of its units is then put back, where the prediction stays flipped without
it, until every unit that is left is needed.

All examples of a block are searched side by side, each under its own gates:
one forward and one backward pass for a removed unit of every example. With
the population term `frozen` the gradient of mean_j l_j is taken once, on the
whole network; `exact` takes it again for each example at each step, under
that example's gates, which costs a pass over the population each time.

Everything runs with `training=False`: BatchNorm uses its moving statistics,
and tied layers do what their `inference` says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from tqdm import auto as tqdm

from tfmemloc import configs, evaluation, graph, masks, storage, surgery
from tfmemloc.batches import scale_pixels
from tfmemloc.configs import SearchConfig
from tfmemloc.data import Examples
from tfmemloc.gates import UnitGates
from tfmemloc.gradients import (
    MEMORY_BUDGET,
    cross_entropy,
    examples_that_fit,
)
from tfmemloc.results import CriticalUnits
from tfmemloc.runs import Run

_LARGEST_CHUNK = 256
_LAST = 2**32  # Sorts behind every hash.
_BLOCK = 256


def find_critical_units(
    source: Run | keras.Model,
    examples: Examples,
    *,
    ids: Sequence[int] | None = None,
    search: SearchConfig | None = None,
    layers: Sequence[str] | None = None,
    inference: str | None = None,
    masks_of: keras.Model | None = None,
    directory: str | os.PathLike | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = True,
) -> CriticalUnits:
    """Finds the units without which each example's prediction flips.

    Args:
        source: a run whose model can be rebuilt, or any functional model.
        examples: the data: those searched, the population and the others.
        ids: of the examples to search; None takes all noisy (atypical) ones
            and as many clean (typical) ones, see `choose_ids`.
        search: how; see `SearchConfig`.
        layers: names of the layers whose units may be removed; None takes all
            but those that make the logits.
        inference: behaviour of tied layers; None leaves the model's.
        masks_of: a model with tied layers of the names of `layers`, whose
            masks say which units are an example's own; None takes the
            searched model itself.
        directory: where finished blocks of examples are kept, so that a
            killed search goes on there. None keeps nothing.
        memory_budget: bytes for the activations of a chunk of examples.
        progress: show a progress bar.

    Returns:
        For each example, in the order of `ids`, its units and what their
        removal did. Examples that are misclassified from the start are
        listed in `skipped`.

    Raises:
        ValueError: an id is not in the data or given twice, a layer has no
            units, the model's graph is not known,
            or `directory` holds a search with other settings.

    Example:
        >>> run = Run.open("runs/demo/standard")
        >>> result = find_critical_units(run, run.examples())
        >>> result.table()
    """
    search = search or SearchConfig()
    model = _model_of(source, examples, inference)
    if ids is None:
        ids = choose_ids(examples, seed=search.seed)
    wanted = _checked(examples, ids)
    gates = UnitGates(model, layers=layers, place=search.place)
    searcher = Searcher(model, gates, examples, search, memory_budget)
    right = searcher.predict(wanted) == wanted.label
    found = wanted.take(right)
    finished = storage.Parts(
        directory,
        {
            "search": configs.to_json(search),
            "layers": list(gates.names),
            "weights": storage.digest(model.get_weights()),
            "examples": storage.digest(
                [found.example_id, found.label, found.image]
            ),
        },
        "search",
    )
    parts = [_no_columns(len(examples.subsets))]
    with tqdm.tqdm(
        total=len(found), desc="critical units", disable=not progress
    ) as bar:
        for b in range(-(-len(found) // _BLOCK)):
            rows = np.arange(len(found))[b * _BLOCK : (b + 1) * _BLOCK]
            block = found.take(rows)
            part = finished.read(f"block_{b:04d}")
            if part is None:
                part = searcher.search(block)
                finished.write(f"block_{b:04d}", part)
            parts.append(part)
            bar.update(len(block))
    columns = _joined(parts)
    own = _own_units(searcher, masks_of or model, found, columns["units"])
    return CriticalUnits(
        layers=gates.names,
        subsets=examples.subsets,
        place=search.place,
        objective=search.objective,
        population_term=search.population_term,
        limit=search.limit,
        sizes=gates.sizes,
        example_id=found.example_id,
        subset=found.subset,
        label=found.label,
        true_label=found.true_label,
        skipped=wanted.example_id[~right],
        baseline=searcher.baseline(),
        others=searcher.others_count(),
        **own,
        **columns,
    )


def choose_ids(
    examples: Examples, *, count: int | None = None, seed: int = 0
) -> np.ndarray:
    """Ids of as many ordinary as memorized examples, drawn by the seed.

    Args:
        examples: with noisy or atypical ones.
        count: of each subset; None takes all memorized ones.
        seed: the examples with the smallest hashes of it are taken.

    Returns:
        int64, the ordinary (clean or typical) examples first.

    Raises:
        ValueError: there are no noisy or atypical examples.
    """
    if examples.memorized is None:
        raise ValueError(
            f"{examples.name} has no noisy or atypical examples. Expected "
            "some, or `ids` that say which examples to search; received the "
            f"subsets {', '.join(examples.subsets)}."
        )
    if count is None:
        count = len(examples.of_subset(examples.memorized))
    return np.concatenate(
        [
            _drawn(examples.of_subset(subset).example_id, count, seed, "search")
            for subset in (examples.ordinary, examples.memorized)
            if subset is not None
        ]
    )


def _drawn(ids: np.ndarray, count: int, seed: int, what: str) -> np.ndarray:
    """At most `count` of the ids, in rising order."""
    stream = masks.fold_seed(seed, what)
    hashes = masks.hash_bits_numpy(stream, ids, 1)[:, 0]
    return np.sort(ids[np.argsort(hashes, kind="stable")[:count]])


def _model_of(source, examples, inference) -> keras.Model:
    if isinstance(source, Run):
        source.check(examples)
        return source.model(inference=inference)
    if inference is None:
        return source
    return surgery.with_inference(source, inference)


def _checked(examples: Examples, ids) -> Examples:
    """The examples with these ids; each once, and at least one."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or not ids.size:
        raise ValueError(
            "`ids` expected a list of at least one example id. Received: "
            f"shape {ids.shape}."
        )
    found, count = np.unique(ids, return_counts=True)
    if np.any(count > 1):
        raise ValueError(
            "`ids` expected each id once. Received more than once: "
            f"{', '.join(map(str, found[count > 1][:5]))}."
        )
    return examples.of_ids(ids)


def _no_columns(subsets: int) -> dict[str, np.ndarray]:
    """What the search of no example gives."""
    return {
        "units": np.zeros((0, 1), np.int32),
        "gate": np.zeros((0, 1), np.float32),
        "kept": np.zeros((0, 1), bool),
        "flipped": np.zeros(0, bool),
        "prediction": np.zeros(0, np.int64),
        "random_size": np.zeros(0),
        "activation_size": np.zeros(0),
        "accuracy_after": np.zeros((0, subsets)),
    }


def _joined(parts: Sequence[dict]) -> dict[str, np.ndarray]:
    """The columns of blocks, whose longest sets differ, one below the other."""
    longest = max(part["units"].shape[1] for part in parts)
    padding = {"units": -1, "gate": 1.0, "kept": False}

    def padded(name, value):
        if name not in padding:
            return value
        width = ((0, 0), (0, longest - value.shape[1]))
        return np.pad(value, width, constant_values=padding[name])

    return {
        name: np.concatenate([padded(name, part[name]) for part in parts])
        for name in parts[0]
    }


class Searcher:
    """The search on one model; each of its functions is traced once.

    Args:
        model: functional.
        gates: of its units.
        examples: population and others are drawn from them.
        search: how.
        memory_budget: bytes for the activations of a chunk.
    """

    def __init__(
        self,
        model: keras.Model,
        gates: UnitGates,
        examples: Examples,
        search: SearchConfig,
        memory_budget: int = MEMORY_BUDGET,
    ):
        self._model = model
        self.gates = gates
        self._search = search
        self._chunk = _chunk_size(model, search, memory_budget)
        train = examples.train
        ids = _drawn(
            train.example_id, search.population, search.seed, "population"
        )
        self._population = _stacked(train.of_ids(ids), self._chunk)
        self._others = _draw_others(examples, search)
        spec = [
            tf.TensorSpec([None, *examples.image.shape[1:]], tf.float32),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.int64),
        ]
        gate = tf.TensorSpec([None, gates.units], tf.float32)
        self._functions = {
            "own_gradient": tf.function(
                self._own_gradient_of, input_signature=[*spec, gate]
            ),
            "classes": tf.function(
                self._classes_of, input_signature=[*spec, gate]
            ),
            "activity": tf.function(self._activity_of, input_signature=spec),
            "population": tf.function(
                self._population_gradients, input_signature=[gate]
            ),
            "others": tf.function(
                self._others_of, input_signature=[*spec[:2], gate]
            ),
        }
        self._fill = self._population_means()
        self._frozen = self._frozen_term()

    def trace_count(self) -> int:
        """How often any of the functions was traced."""
        return sum(
            function.experimental_get_tracing_count()
            for function in self._functions.values()
        )

    def predict(
        self, examples: Examples, gate: np.ndarray | None = None
    ) -> np.ndarray:
        """The predicted class of each example under gates [N, U]: [N]."""
        if gate is None:
            gate = self._open(len(examples))
        (classes,) = self._in_chunks("classes", examples, gate)
        return classes

    def search(self, block: Examples) -> dict[str, np.ndarray]:
        """Searches examples that are predicted as labelled, side by side.

        Returns:
            The columns of `CriticalUnits` that are found for each example;
            `_no_columns` lists them.
        """
        units, gate_values, flipped = self.greedy(block)
        kept = self._needed(block, units, gate_values, flipped)
        gate = self._gate(units, gate_values, kept)
        return {
            "units": units,
            "gate": gate_values,
            "kept": kept,
            "flipped": flipped,
            "prediction": self.predict(block, gate),
            "random_size": self._crossing(block, self._random_rank(block)),
            "activation_size": self._crossing(
                block, self._activation_rank(block)
            ),
            "accuracy_after": self._accuracy_after(block, gate),
        }

    def baseline(self) -> np.ndarray:
        """Accuracy of each subset of the others, nothing removed: [S]."""
        right = self.predict(self._others) == self._others.label
        return np.array([right[member].mean() for member in self._members()])

    def others_count(self) -> np.ndarray:
        """How many others there are of each subset: [S]."""
        return np.array([member.sum() for member in self._members()])

    def _members(self) -> list[np.ndarray]:
        subset = self._others.subset
        return [subset == name for name in self._others.subsets]

    def _open(self, count: int) -> np.ndarray:
        return np.ones((count, self.gates.units), np.float32)

    def _gate(self, units, values, chosen) -> np.ndarray:
        """Gates [N, U] with the chosen units [N, K] at their values."""
        gate = self._open(len(units))
        rows, places = np.nonzero(chosen & (units >= 0))
        gate[rows, units[rows, places]] = values[rows, places]
        return gate

    def greedy(
        self, block: Examples
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Removes the best unit of each example until its prediction flips.

        Returns:
            units [N, K] in the order of removal (-1 is padding), what their
            gates became [N, K], and who flipped [N].
        """
        count = len(block)
        limit = min(self._search.limit, self.gates.units)
        gate = self._open(count)
        free = np.ones(gate.shape, bool)
        units = np.full((count, limit), -1, np.int32)
        values = np.ones((count, limit), np.float32)
        flipped = np.zeros(count, bool)
        active = np.arange(count)
        for step in range(limit + 1):
            classes, own = self._in_chunks(
                "own_gradient", block.take(active), gate[active]
            )
            done = classes != block.label[active]
            flipped[active[done]] = True
            active, own = active[~done], own[~done]
            if step == limit or not len(active):
                break
            unit, value = self._best(
                self._population_term(gate[active]) - own, free[active]
            )
            units[active, step], values[active, step] = unit, value
            gate[active, unit] = value
            free[active, unit] = False
        longest = max(1, int((units >= 0).sum(axis=1).max()))
        return units[:, :longest], values[:, :longest], flipped

    def _best(self, gradient: np.ndarray, free: np.ndarray):
        """The free unit that lowers the objective most, and its new gate.

        Args:
            gradient: [B, U] of the objective with respect to the gates.
            free: [B, U] units that have not been taken yet.
        """
        is_step = self._search.objective == "step"
        score = np.abs(gradient) if is_step else gradient
        unit = np.where(free, score, -np.inf).argmax(axis=1)
        rises = gradient[np.arange(len(unit)), unit] <= 0
        return unit, np.where(rises & is_step, 2.0, 0.0)

    def _population_term(self, gate: np.ndarray) -> np.ndarray:
        """d mean_j l_j / d gate under each row of gates: [B, U] or [1, U]."""
        if self._search.population_term == "exact":
            return self._functions["population"](gate).numpy()
        return self._frozen

    def _needed(self, block, units, values, flipped) -> np.ndarray:
        """Puts units back, first removed first, while the flip survives.

        Repeated until a round puts nothing back.
        """
        kept = units >= 0
        while True:
            before = kept.copy()
            for k in range(units.shape[1]):
                tried = np.flatnonzero(kept[:, k] & flipped)
                if not len(tried):
                    continue
                without = kept[tried].copy()
                without[:, k] = False
                gate = self._gate(units[tried], values[tried], without)
                part = block.take(tried)
                survives = self.predict(part, gate) != part.label
                kept[tried[survives], k] = False
            if np.array_equal(kept, before):
                return kept

    def _crossing(self, block: Examples, rank: np.ndarray) -> np.ndarray:
        """How many units, in an order, flip the prediction: float [N].

        By doubling and then bisection: removing the first n flips it, and the
        first n - 1 do not. NaN where removing all does not flip.

        Args:
            block: N examples.
            rank: [N, U] place of each unit in its example's order.
        """
        units = self.gates.units
        below = np.zeros(len(block), int)  # So many do not flip it,
        above = np.full(len(block), units + 1)  # and so many do.
        while True:
            doubled = np.minimum(np.maximum(2 * below, 1), units)
            middle = (below + above) // 2
            tried = np.where(above > units, doubled, middle)
            active = np.flatnonzero((above - below > 1) & (below < units))
            if not len(active):
                break
            gate = (rank[active] >= tried[active, np.newaxis]).astype(
                np.float32
            )
            part = block.take(active)
            flips = self.predict(part, gate) != part.label
            above[active[flips]] = tried[active[flips]]
            below[active[~flips]] = tried[active[~flips]]
        return np.where(above > units, np.nan, above)

    def hashes(self, examples: Examples) -> np.ndarray:
        """Random numbers below `_LAST` for each example and unit: [N, U]."""
        stream = masks.fold_seed(self._search.seed, "control")
        return masks.hash_bits_numpy(
            stream, examples.example_id, self.gates.units
        ).astype(np.int64)

    def _random_rank(self, block: Examples) -> np.ndarray:
        """A random order of the units for each example: its ranks [N, U]."""
        return _ranks(self.hashes(block))

    def _activation_rank(self, block: Examples) -> np.ndarray:
        """Ranks [N, U] of units by falling activation."""
        (activity,) = self._in_chunks("activity", block)
        return _ranks(-activity)

    def _accuracy_after(self, block: Examples, gate: np.ndarray) -> np.ndarray:
        """[N, S] accuracy on the others, the example itself left out."""
        classes = np.zeros((len(block), len(self._others)), np.int64)
        size = self._chunk
        for start in range(0, len(self._others), size):
            rows = np.arange(start, min(start + size, len(self._others)))
            part = _Tensors(self._others, rows)
            classes[:, start : start + size] = self._functions["others"](
                part.image, part.example_id, gate
            ).numpy()
        right = classes == self._others.label
        other = self._others.example_id != block.example_id[:, np.newaxis]
        return np.stack(
            [
                (right & other)[:, member].sum(axis=1)
                / np.maximum(1, other[:, member].sum(axis=1))
                for member in self._members()
            ],
            axis=1,
        )

    def _in_chunks(self, name: str, examples: Examples, *gates: np.ndarray):
        """Calls a function on chunks of examples and joins what it gives.

        A chunk is filled up to a power of two, so that kernels meet few
        shapes, and none meets a batch of one.
        """
        function: Callable = self._functions[name]
        parts = []
        for start in range(0, len(examples), self._chunk):
            stop = min(start + self._chunk, len(examples))
            size = max(8, 1 << (stop - start - 1).bit_length())
            rows = np.minimum(np.arange(start, start + size), stop - 1)
            part = _Tensors(examples, rows)
            found = function(
                part.image,
                part.example_id,
                part.label,
                *(gate[rows] for gate in gates),
            )
            parts.append([t.numpy()[: stop - start] for t in found])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    # What follows is traced.

    def _logits(self, image, example_id, gate):
        """Logits in float32 under gates [B, U] or [1, U]."""
        with self.gates.applied(gate, self._fill):
            outputs = self._model(
                evaluation.model_inputs(self._model, image, example_id),
                training=False,
            )
        return tf.cast(evaluation.as_logits(self._model, outputs), tf.float32)

    def _own_gradient_of(self, image, example_id, label, gate):
        """The predicted classes [B], and d l_i / d gate [B, U]."""
        with tf.GradientTape() as tape:
            tape.watch(gate)
            logits = judged = self._logits(image, example_id, gate)
            if self._search.copies:
                judged = self._perturbed_logits(image, example_id, gate)
            losses = tf.reduce_sum(cross_entropy(label, judged))
        return tf.argmax(logits, axis=1), tape.gradient(losses, gate)

    def _classes_of(self, image, example_id, label, gate):
        del label
        return (tf.argmax(self._logits(image, example_id, gate), axis=1),)

    def _activity_of(self, image, example_id, label):
        """The mean |output| of each unit: [B, U]."""
        del label
        return (
            self._unit_outputs(
                image, example_id, lambda x: tf.reduce_mean(tf.abs(x), axis=1)
            ),
        )

    def _unit_outputs(self, image, example_id, measure):
        """A measure of each unit's output [B, P, units], over all units."""
        with self.gates.recorded() as outputs:
            self._model(
                evaluation.model_inputs(self._model, image, example_id),
                training=False,
            )
        return tf.concat(
            [measure(outputs[start]) for start in self.gates.starts], axis=-1
        )

    def _perturbed_logits(self, image, example_id, gate):
        """Logits averaged over perturbed copies of each image."""
        copies = self._search.copies
        noisy = perturbed(
            image, example_id, copies, self._search.noise, self._search.seed
        )
        logits = self._logits(
            tf.reshape(noisy, [-1, *image.shape[1:]]),
            tf.repeat(example_id, copies),
            tf.repeat(gate, copies, axis=0),
        )
        logits = tf.reshape(logits, [-1, copies, logits.shape[-1]])
        return tf.reduce_mean(logits, axis=1)

    def _population_gradients(self, gate):
        """d mean_j l_j / d gate for each row of gates: [B, U]."""

        def of_row(row):
            return self._over_population(lambda *part: of_chunk(row, *part))

        def of_chunk(row, image, example_id, label, weight):
            row = row[tf.newaxis]
            with tf.GradientTape() as tape:
                tape.watch(row)
                logits = self._logits(image, example_id, row)
                loss = tf.reduce_sum(weight * cross_entropy(label, logits))
            return tape.gradient(loss, row)[0]

        return tf.map_fn(of_row, gate, parallel_iterations=1)

    def _over_population(self, function):
        """The sum of what a function gives for the population's chunks."""
        return tf.reduce_sum(
            tf.map_fn(
                lambda part: function(*part),
                self._population,
                fn_output_signature=tf.float32,
                parallel_iterations=1,  # One chunk's activations at a time.
            ),
            axis=0,
        )

    def _others_of(self, image, example_id, gate):
        """Classes of the others under each row of gates: [B, M]."""
        return tf.map_fn(
            lambda row: tf.argmax(
                self._logits(image, example_id, row[tf.newaxis]), axis=1
            ),
            gate,
            fn_output_signature=tf.int64,
            parallel_iterations=1,
        )

    def _frozen_term(self) -> np.ndarray:
        if self._search.population_term != "frozen":
            return np.zeros((1, self.gates.units), np.float32)
        return self._functions["population"](self._open(1)).numpy()

    def _population_means(self) -> tf.Tensor | None:
        """[U] what a removed unit gives; None is 0."""
        if self._search.removed_value == "zero":
            return None

        def of_chunk(image, example_id, label, weight):
            del label
            # Every position of every example counts alike.
            return self._unit_outputs(
                image,
                example_id,
                lambda x: tf.linalg.matvec(
                    tf.reduce_mean(x, axis=1), weight, transpose_a=True
                ),
            )

        means = tf.function(lambda: self._over_population(of_chunk))()
        return tf.constant(means)


def perturbed(image, example_id, copies: int, noise: float, seed: int):
    """Copies of images with Gaussian noise of a given relative norm.

    Args:
        image: [B, ...].
        example_id: [B]; the noise is a function of it and of the seed.
        copies: how many.
        noise: norm of the noise relative to the image's.
        seed: of the noise.

    Returns:
        [B, copies, ...].
    """
    shape = image.shape[1:]
    pixels = int(np.prod(shape))
    stream = masks.fold_seed(seed, "perturbation")
    bits = masks.hash_bits(stream, example_id, 2 * copies * pixels)
    uniform = (tf.cast(bits, tf.float32) + 0.5) / 2**32
    first, second = tf.split(uniform, 2, axis=1)
    # Box and Muller; clipped, as 1 - 2**-33 rounds to 1 and 2**-33 is tiny.
    radius = tf.sqrt(-2 * tf.math.log(tf.clip_by_value(first, 1e-9, 1.0)))
    normal = radius * tf.cos(2 * np.pi * second)
    normal = tf.reshape(normal, [-1, copies, pixels])
    flat = tf.reshape(image, [-1, 1, pixels])
    scale = tf.norm(flat, axis=-1, keepdims=True) / tf.norm(
        normal, axis=-1, keepdims=True
    )
    return tf.reshape(flat + noise * scale * normal, [-1, copies, *shape])


class _Tensors(tuple):
    """Images, ids and labels of the examples in some rows, as tensors."""

    def __new__(cls, examples: Examples, rows: np.ndarray):
        return super().__new__(
            cls,
            (
                tf.constant(scale_pixels(examples.image[rows])),
                tf.constant(examples.example_id[rows]),
                tf.constant(examples.label[rows]),
            ),
        )

    image = property(lambda self: self[0])
    example_id = property(lambda self: self[1])
    label = property(lambda self: self[2])


def _ranks(keys: np.ndarray) -> np.ndarray:
    """The place of each key in its row's rising order."""
    order = np.argsort(keys, axis=1, kind="stable")
    ranks = np.empty_like(order)
    places = np.broadcast_to(np.arange(keys.shape[1]), order.shape)
    np.put_along_axis(ranks, order, places, axis=1)
    return ranks


def _draw_others(examples: Examples, search: SearchConfig) -> Examples:
    """The examples on which accuracy after a removal is measured."""
    if search.others is None:
        return examples
    ids = [
        _drawn(
            examples.of_subset(subset).example_id,
            search.others,
            search.seed,
            "others",
        )
        for subset in examples.subsets
    ]
    return examples.of_ids(np.concatenate(ids))


def _stacked(examples: Examples, chunk: int) -> tuple[tf.Tensor, ...]:
    """Images, ids, labels, weights of examples in chunks: [C, chunk, ...].

    The weights are those of a mean; what fills the last chunk up weighs 0.
    """
    count = len(examples)
    chunks = -(-count // chunk)
    size = -(-count // chunks)
    rows = np.arange(chunks * size)
    weight = np.where(rows < count, 1 / count, 0).astype(np.float32)
    tensors = _Tensors(examples, np.minimum(rows, count - 1))
    return tuple(
        tf.reshape(tensor, [chunks, size, *tensor.shape[1:]])
        for tensor in (*tensors, tf.constant(weight))
    )


def _chunk_size(model, search, memory_budget: int) -> int:
    """Examples at a time: forward, gated and backward activations of each."""
    each = 3 * graph.activation_bytes(model) * max(1, search.copies)
    fits = examples_that_fit(each, memory_budget)
    # A power of two, as chunks are filled up to one.
    return min(_LARGEST_CHUNK, 1 << (fits.bit_length() - 1))


def _own_units(
    searcher: Searcher, model: keras.Model, found: Examples, units: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns of `CriticalUnits` about designated units.

    A designated unit of an example is a memorization unit that is on for it.
    """
    designated, on = _designated(searcher.gates, model, found.example_id)
    rows = np.arange(len(found))[:, np.newaxis]
    any_tied = len(found) > 0 and designated.any()
    count = designated.sum(axis=1)
    chance = count / np.maximum(1, on.sum(axis=1))
    flips = np.zeros((2, len(found)), bool)
    if any_tied:
        rank = _ranks(np.where(on & ~designated, searcher.hashes(found), _LAST))
        others = rank < count[:, np.newaxis]
        for k, removed in enumerate((designated, others)):
            gate = (~removed).astype(np.float32)
            flips[k] = searcher.predict(found, gate) != found.label
    return {
        "own": designated[rows, np.maximum(units, 0)] & (units >= 0),
        "own_chance": chance if any_tied else np.full(len(found), np.nan),
        "own_flips": flips[0],
        "others_flip": flips[1],
    }


def _designated(gates: UnitGates, model, ids) -> tuple[np.ndarray, np.ndarray]:
    """Which units are an example's own, and which are on: bool [N, U]."""
    tied = {layer.name: layer for layer in surgery.tied_layers(model)}
    designated = np.zeros((len(ids), gates.units), bool)
    on = np.ones_like(designated)
    for name, start, size in zip(
        gates.names, gates.starts, gates.sizes, strict=True
    ):
        if name in tied and tied[name].units == size:
            layer, part = tied[name], slice(start, start + size)
            on[:, part] = designated[:, part] = layer.example_units(ids)
            designated[:, start : start + layer.generalization_units] = False
    return designated, on
