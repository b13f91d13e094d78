"""The secrets that were planted in a text, and how networks are asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from rapidfuzz.distance import Levenshtein

from tfmemloc import losses
from tfmemloc.data import text
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import Predictor, predict_logits
from tfmemloc.models.generation import Continuation


@dataclasses.dataclass(frozen=True)
class Secrets:
    """The planted secrets, and how networks are asked for them."""

    part: Examples  # C, a row each.
    repeats: np.ndarray  # [C].
    others: np.ndarray  # [candidates, SECRET].

    @classmethod
    def of(cls, examples: Examples, candidates: int, seed: int) -> Secrets:
        """Those of a text, and others of their form to compare with."""
        part = text.one_of_each(examples.take(examples.subset == text.CANARY))
        repeats = [np.sum(examples.ties == tie) for tie in part.ties]
        return cls(
            part,
            np.array(repeats, int),
            text.other_secrets(candidates, seed),
        )

    @property
    def _rows(self) -> np.ndarray:
        (rows,) = self.part.inputs.values()
        return np.asarray(rows)

    @property
    def shown(self) -> tuple[str, ...]:
        """Each secret with the words before it."""
        stop = text.PROMPT + text.SECRET
        return tuple(text.shown(row[:stop].tobytes()) for row in self._rows)

    def asked(self, model: keras.Model) -> dict[str, Any]:
        """What one network says, and how likely it finds the secrets."""
        start, stop = text.PROMPT, text.PROMPT + text.SECRET
        if not len(self.part):
            nothing = np.zeros(0)
            names = ("secret_loss", "extracted", "edits", "exposure")
            return dict.fromkeys(names, nothing) | {"continuations": ()}
        true = self._rows[:, start:stop]
        said = Continuation(model, text.SECRET)(
            self._rows[:, :start], self.part.ties
        )
        predict = Predictor(model)
        own = self._loss(predict, np.arange(len(true)), true)
        rank = 1 + sum(
            others < own for others in self._losses_of_others(predict)
        )
        return {
            "secret_loss": own,
            "extracted": (said == true).all(axis=1),
            "edits": edit_distances(said, true),
            "exposure": np.log2(len(self.others) + 1) - np.log2(rank),
            "continuations": tuple(
                text.shown(bytes(row.tolist())) for row in said
            ),
        }

    def _losses_of_others(self, predict: Predictor) -> Iterator[np.ndarray]:
        """For each other secret, its loss in the place of each true one."""
        places = np.arange(len(self.part))
        for other in self.others:
            there = np.repeat(other[np.newaxis], len(places), axis=0)
            yield self._loss(predict, places, there)

    def _loss(self, predict, places, secrets) -> np.ndarray:
        """Nats a token of secrets in these rows, [len(places)]."""
        start, stop = text.PROMPT, text.PROMPT + text.SECRET
        rows = self._rows[places].copy()
        rows[:, start:stop] = secrets
        part = dataclasses.replace(
            self.part.take(places),
            inputs=dict.fromkeys(self.part.inputs, rows),
        )
        logits = predict_logits(predict, part)[:, start - 1 : stop - 1]
        label = secrets.astype(np.int64)
        return losses.measured_losses(label, logits)


def edit_distances(said: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Edit distance of each row, in tokens."""
    return np.array(
        [
            Levenshtein.distance(a.tolist(), b.tolist())
            for a, b in zip(said, wanted, strict=True)
        ]
    )
