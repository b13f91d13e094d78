"""Recitation: which wrong sequences does a language model know by heart?

A sequence is wrong where its `label` is not its `true_label`: the noisy ones of
TinyMem, or sequences of your own. The network is shown the beginning of the
*right* sequence and continues it greedily. It

    recites      if it says the wrong one, which it can only know by heart
    is right     if it says the right one

and on sequences that nobody trained on it is right as often as it understands.
Sequences that are not wrong where the network continues are left out.

Reference: Sakarvadia et al., "Mitigating Memorization in Language Models", ICLR
2025, whose share of memorized sequences is `recited`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np

from tfmemloc.checks import check_range
from tfmemloc.data import text
from tfmemloc.data.examples import NEXT_TOKEN, Examples
from tfmemloc.evaluation import Predictor, predict_logits
from tfmemloc.fields import check_fields
from tfmemloc.losses import measured_losses
from tfmemloc.models.generation import Continuation
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table, or_none
from tfmemloc.snapshots import Source, behaviours


@dataclasses.dataclass(frozen=True)
class RecitationConfig:
    """What the networks are shown, and say.

    Attributes:
        prompt: tokens of the right sequence that are shown.
        continuation: tokens that it is to continue with.
    """

    prompt: int = 50
    continuation: int = 50

    def __post_init__(self):
        check_fields(self)
        check_range("prompt", self.prompt, 1, None)
        check_range("continuation", self.continuation, 1, None)


@dataclasses.dataclass(frozen=True, eq=False)
class Recitation(Result):
    """Which wrong sequences some language models know by heart.

    A row is a network in one behaviour.
    """

    title: ClassVar[str] = "Wrong sequences that are known by heart"

    dataset: str
    models: tuple[str, ...]  # R rows: which network.
    inferences: tuple[str, ...]  # R rows: in which behaviour.
    tie_id: np.ndarray  # [C] wrong sequences.
    repeats: np.ndarray  # [C] how often each comes in an epoch.
    recites: np.ndarray  # [R, C] bool.
    is_right: np.ndarray  # [R, C] bool.
    test_right: np.ndarray  # [R] share of the unseen sequences.
    test_loss: np.ndarray  # [R] nats a token of the unseen sequences.

    def rows(self) -> list[dict[str, Any]]:
        """A row for each network and behaviour."""
        return [self._row(r) for r in range(len(self.models))]

    def _row(self, r: int) -> dict[str, Any]:
        row = {"model": self.models[r], "inference": self.inferences[r]}
        for times in np.unique(self.repeats):
            which = self.repeats == times
            row[f"recited, {times}x"] = float(self.recites[r, which].mean())
        return {
            **row,
            "recited": float(self.recites[r].mean()),
            "right": float(self.is_right[r].mean()),
            "test_right": or_none(self.test_right[r]),
            "test_loss": or_none(self.test_loss[r]),
        }

    def table(self) -> Table:
        """All of it."""
        return Table(self.rows(), formats={"test_loss": ".3f"}, default=".0%")

    def sentence(self) -> str:
        """Who recites, and who is right on what nobody has seen."""
        found = [
            f"{row['model']} ({figures.WORDS.get(row['inference']) or 'plain'})"
            f" {row['recited']:.0%}"
            for row in self.rows()
        ]
        return (
            f"Of {len(self.repeats)} wrong sequences, begun as they should be, "
            f"these say the wrong end: {'; '.join(found)}.".replace("\n", " ")
        )

    def figures(self) -> dict[str, Figure]:
        """What is recited, by how often it was repeated."""
        times = np.unique(self.repeats)
        drawing, (axes,) = figures.side_by_side(
            "repeats in an epoch", ["recited (%)"]
        )
        for r, (name, how) in enumerate(
            zip(self.models, self.inferences, strict=True)
        ):
            axes.plot(
                range(len(times)),
                [
                    100 * self.recites[r, self.repeats == n].mean()
                    for n in times
                ],
                **figures.network(r, name, how),
            )
        axes.set_xticks(range(len(times)), times.tolist())
        axes.set_ylim(-5, 105)
        axes.legend(fontsize=7)
        return {
            "recitation": Figure(
                "Wrong sequences that are said by heart, by how often they "
                "were repeated.",
                drawing,
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """What is recited, by network."""
        return {
            f"{row['model']} {row['inference']}: recited": row["recited"]
            for row in self.rows()
        }


def audit_recitation(
    sources: Mapping[str, Source],
    examples: Examples,
    config: RecitationConfig = RecitationConfig(),
) -> Recitation:
    """Begins wrong sequences as they should be, and looks how they go on.

    Args:
        sources: name -> a run or a functional model, which is not changed. One
            with tied layers is asked in each behaviour.
        examples: sequences of tokens, some of them wrong; see
            `tfmemloc.data.tinymem`.
        config: how much is shown and said.

    Raises:
        ValueError: the examples are no sequences, or none of them is wrong
            where the network continues.

    Example:
        >>> numbers = load(DataConfig(
        ...     "tinymem", train_examples=50, test_examples=20, canaries=2,
        ...     context=150,
        ... ))
        >>> small = ModelConfig("transformer", width=0.25, depth=1)
        >>> network = build(small, (150,), 14)
        >>> found = audit_recitation({"untrained": network}, numbers)
        >>> found.rows()[0]["recited"]
        0.0
    """
    wrong = wrong_sequences(examples, config)
    found = [
        (key, _asked(network, wrong, examples, config))
        for key, network in behaviours(sources, examples)
    ]
    columns = {
        name: np.array([values[name] for _, values in found])
        for name in found[0][1]
    }
    return Recitation(
        dataset=examples.name,
        models=tuple(name for (name, _), _ in found),
        inferences=tuple(inference for (_, inference), _ in found),
        tie_id=wrong.ties,
        repeats=np.array([np.sum(examples.ties == tie) for tie in wrong.ties]),
        **columns,
    )


def wrong_sequences(examples: Examples, config: RecitationConfig) -> Examples:
    """A row for each sequence that is wrong where it is continued.

    Raises:
        ValueError: there is none, or they are shorter than what is asked for.
    """
    if examples.task != NEXT_TOKEN:
        raise ValueError(
            f"{examples.name} expected sequences of tokens, with the next "
            f"tokens as labels. Received: {examples!r}."
        )
    train = text.one_of_each(examples.train)
    told = _window(config, examples)
    is_wrong = (train.label != train.true_label)[:, told].any(axis=1)
    if not is_wrong.any():
        raise ValueError(
            f"{examples.name} has no training sequence whose `label` differs "
            f"from its `true_label` in the {config.continuation} tokens behind "
            f"the first {config.prompt}. Expected some that are wrong there, "
            'such as the noisy ones of the data set "tinymem".'
        )
    return train.take(is_wrong)


def _window(config: RecitationConfig, examples: Examples) -> slice:
    """Which labels are said: those of the tokens behind the prompt."""
    last = config.prompt + config.continuation
    if last > examples.label.shape[1]:
        raise ValueError(
            f"prompt and continuation are {last} tokens. Expected at most "
            f"{examples.label.shape[1]}, the length of the sequences of "
            f"{examples.name}. Received: prompt={config.prompt}, "
            f"continuation={config.continuation}."
        )
    return slice(config.prompt - 1, last - 1)


def _asked(
    model: keras.Model,
    wrong: Examples,
    examples: Examples,
    config: RecitationConfig,
) -> dict[str, Any]:
    """What one network says."""
    window = _window(config, examples)
    continued = Continuation(model, config.continuation)

    def said(part: Examples) -> np.ndarray:
        (tokens,) = part.inputs.values()
        tokens, follows = np.asarray(tokens), part.true_label
        # The right sequence: its first token, and those that are to follow;
        # where none counts, what stands there.
        right = np.where(follows[:, :-1] < 0, tokens[:, 1:], follows[:, :-1])
        begun = np.concatenate([tokens[:, :1], right], axis=1)
        return continued(begun[:, : config.prompt], part.ties)

    recited = said(wrong)
    test = examples.test
    test_right, test_loss = np.nan, np.nan
    if len(test):
        test_right = _agrees(said(test), test.true_label[:, window]).mean()
        logits = predict_logits(Predictor(model), test, batch_size=64)
        test_loss = measured_losses(test.true_label, logits).mean()
    return {
        "recites": _agrees(recited, wrong.label[:, window]),
        "is_right": _agrees(recited, wrong.true_label[:, window]),
        "test_right": test_right,
        "test_loss": test_loss,
    }


def _agrees(said: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[N] whether all is said that is wanted; what is behind the end is not."""
    return ((said == wanted) | (wanted < 0)).all(axis=1)
