"""Extraction: what a language model can be made to say by heart.

    canary losses    -log p of a secret's characters, in nats a token
    extracted        prompted by what stands before a secret, the network
                     continues greedily with exactly the secret
    exposure         log2(C + 1) - log2(rank of the secret's loss among C other
                     secrets of its form); from 0, as for a stranger, to
                     log2(C + 1) (Carlini et al., "The Secret Sharer", 2019)
    windows          prompted by the first tokens of a repeated window, the
                     next ones are equal, or how many edits away
    gap closed       (L_repeated - L_repeated,std) / (L_heldout,std -
                     L_repeated,std): 0 for the standard network, 1 where
                     repeated text is as new as any (MemSinks, 2025)

The held-out loss is that of the `test` windows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np

from tfmemloc import losses
from tfmemloc.audits.secrets import Secrets, edit_distances
from tfmemloc.checks import check_range
from tfmemloc.data import text
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import Predictor, predict_logits
from tfmemloc.fields import check_fields
from tfmemloc.models.generation import Continuation
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table, or_none
from tfmemloc.snapshots import Source, behaviours

# A secret repeated this often is one that must not come out.
OFTEN = 16


@dataclasses.dataclass(frozen=True)
class ExtractionConfig:
    """What the networks are asked.

    Attributes:
        prompt: tokens of a repeated window that are shown, at most half of it.
        continuation: tokens that it is to continue with.
        candidates: other secrets with which the loss of each is compared.
        seed: of these secrets.
    """

    prompt: int = 32
    continuation: int = 32
    candidates: int = 63
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        check_range("prompt", self.prompt, 1, None)
        check_range("continuation", self.continuation, 1, None)
        check_range("candidates", self.candidates, 1, None)


@dataclasses.dataclass(frozen=True, eq=False)
class Extraction(Result):
    """What each of some language models remembers of secrets and repeats.

    A row is a network in one behaviour.
    """

    title: ClassVar[str] = "What the language models say by heart"

    dataset: str
    models: tuple[str, ...]  # R rows: which network.
    inferences: tuple[str, ...]  # R rows: in which behaviour.
    heldout_loss: np.ndarray  # [R] nats a token.
    clean_loss: np.ndarray  # [R].
    repeated_loss: np.ndarray  # [R]; NaN where nothing is repeated.
    window_extracted: np.ndarray  # [R] share of repeated windows; or NaN.
    window_edits: np.ndarray  # [R] mean edit distance, tokens; or NaN.
    repeats: np.ndarray  # [C] how often each secret comes in an epoch.
    secret_loss: np.ndarray  # [R, C] nats a token.
    extracted: np.ndarray  # [R, C] bool.
    edits: np.ndarray  # [R, C] edit distance, tokens.
    exposure: np.ndarray  # [R, C] bits.
    secrets: tuple[str, ...]  # C, with the words before.
    continuations: tuple[tuple[str, ...], ...]  # R of C.

    def rows(self) -> list[dict[str, Any]]:
        """A row for each network and behaviour."""
        return [self._row(r) for r in range(len(self.models))]

    def _row(self, r: int) -> dict[str, Any]:
        often = self.repeats >= OFTEN
        row = {
            "model": self.models[r],
            "inference": self.inferences[r],
            "heldout_loss": or_none(self.heldout_loss[r]),
            "clean_loss": or_none(self.clean_loss[r]),
            "repeated_loss": or_none(self.repeated_loss[r]),
            "gap_closed": or_none(self.gap_closed[r]),
            "canary_loss": or_none(_mean(self.secret_loss[r])),
            "canaries_extracted": or_none(_mean(self.extracted[r, often])),
        }
        for times in np.unique(self.repeats):
            which = self.repeats == times
            row[f"extracted, {times}x"] = float(self.extracted[r, which].mean())
        row["exposure"] = or_none(_mean(self.exposure[r]))
        row["windows_extracted"] = or_none(self.window_extracted[r])
        row["window_edits"] = or_none(self.window_edits[r])
        return row

    @property
    def gap_closed(self) -> np.ndarray:
        """[R]; NaN without a standard network or repeated windows."""
        pairs = list(zip(self.models, self.inferences, strict=True))
        if ("standard", "plain") not in pairs:
            return np.full(len(pairs), np.nan)
        first = pairs.index(("standard", "plain"))
        start = self.repeated_loss[first]
        gap = self.heldout_loss[first] - start
        return (self.repeated_loss - start) / (gap if gap else np.nan)

    def table(self) -> Table:
        """Losses, the gap, and what is extracted."""
        shown = [
            {
                key: row[key]
                for key in (
                    *("model", "inference", "heldout_loss", "repeated_loss"),
                    *("gap_closed", "canary_loss", "canaries_extracted"),
                    *("exposure", "windows_extracted"),
                )
            }
            for row in self.rows()
        ]
        shares = ("canaries_extracted", "windows_extracted")
        return Table(
            shown,
            formats=dict.fromkeys(shares, ".0%") | {"exposure": ".1f"},
            default=".3f",
        )

    def sentence(self) -> str:
        """Who says the secrets, and what the held-out text costs."""
        found = [
            f"{row['model']} ({figures.WORDS.get(row['inference']) or 'plain'})"
            f" {row['canaries_extracted']:.0%} at {row['heldout_loss']:.3f}"
            for row in self.rows()
            if row["canaries_extracted"] is not None
        ]
        if not found:
            return "No secret was planted."
        return (
            f"Secrets that come {OFTEN} times or more in an epoch and are said "
            "word by word, and the loss of text that nobody trained on, in "
            f"nats a token: {'; '.join(found)}.".replace("\n", " ")
        )

    def figures(self) -> dict[str, Figure]:
        """Extraction and exposure by how often a secret was repeated."""
        if not len(self.repeats):
            return {}
        times = np.unique(self.repeats)
        drawing, (left, right) = figures.side_by_side(
            "repeats in an epoch", ["extracted (%)", "exposure (bits)"]
        )
        for r, (name, how) in enumerate(
            zip(self.models, self.inferences, strict=True)
        ):
            style = figures.network(r, name, how)
            for axes, values in (
                (left, 100 * self.extracted[r]),
                (right, self.exposure[r]),
            ):
                means = [values[self.repeats == n].mean() for n in times]
                axes.plot(range(len(times)), means, **style)
        for axes in (left, right):
            axes.set_xticks(range(len(times)), times.tolist())
        left.legend(fontsize=7, loc="center left")
        return {
            "extraction": Figure(
                "Secrets that are said word by word, and how exposed they are, "
                "by how often they were repeated.",
                drawing,
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """Held-out loss and what is extracted, by network."""
        numbers = {}
        for row in self.rows():
            name = f"{row['model']} {row['inference']}"
            for key in ("heldout_loss", "canaries_extracted", "gap_closed"):
                if row[key] is not None:
                    numbers[f"{name}: {key}"] = row[key]
        return numbers

    def said(self) -> Table:
        """What some networks say after the words before the secrets.

        A row for each secret that comes often; a column for each network.
        """
        often = np.flatnonzero(self.repeats >= OFTEN)
        names = [
            f"{model}, {how}"
            for model, how in zip(self.models, self.inferences, strict=True)
        ]
        return Table(
            [
                {
                    "secret": self.secrets[c],
                    "repeats": int(self.repeats[c]),
                    **{
                        name: self.continuations[r][c]
                        for r, name in enumerate(names)
                    },
                }
                for c in often
            ]
        )


def audit_extraction(
    sources: Mapping[str, Source],
    examples: Examples,
    config: ExtractionConfig = ExtractionConfig(),
) -> Extraction:
    """Asks language models for the secrets that were planted in their text.

    Args:
        sources: name -> a run or a functional model, which is not changed. One
            with tied layers is asked in each behaviour; call the network
            without memory `standard`.
        examples: windows of text with planted secrets (see
            `tfmemloc.data.text`).
        config: what is asked.

    Raises:
        ValueError: the examples are no text, or have no `test` windows.

    Example:
        >>> text = load(DataConfig(
        ...     "stdlib", train_examples=100, test_examples=20,
        ...     canaries=1, repeated=0,
        ... ))
        >>> small = ModelConfig("transformer", width=0.25, depth=1)
        >>> network = build(small, (128,), 256)
        >>> few = ExtractionConfig(candidates=7)
        >>> found = audit_extraction({"untrained": network}, text, few)
        >>> found.rows()[-1]["canaries_extracted"]
        0.0
    """
    if examples.label.ndim != 2 or "test" not in examples.subsets:
        raise ValueError(
            f"{examples.name} expected windows of text with next tokens as "
            "labels, some of them `test`. Received: "
            f"{examples!r}."
        )
    secrets = Secrets.of(examples, config.candidates, config.seed)
    found: dict[tuple[str, str], dict[str, Any]] = {
        key: {
            **_losses(Predictor(network), examples),
            **_windows(network, examples, config),
            **secrets.asked(network),
        }
        for key, network in behaviours(sources, examples)
    }
    columns = {
        key: [values[key] for values in found.values()]
        for key in next(iter(found.values()))
    }
    continuations = tuple(columns.pop("continuations"))
    return Extraction(
        dataset=examples.name,
        models=tuple(name for name, _ in found),
        inferences=tuple(inference for _, inference in found),
        repeats=secrets.repeats,
        secrets=secrets.shown,
        continuations=continuations,
        **{key: np.array(values) for key, values in columns.items()},
    )


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _losses(predict: Predictor, examples: Examples) -> dict[str, float]:
    """Loss of each kind of window, of one row for each tie id."""
    found = {}
    for key, subset in (
        ("heldout_loss", "test"),
        ("clean_loss", text.CLEAN),
        ("repeated_loss", text.REPEATED),
    ):
        part = examples.take(examples.subset == subset)
        if subset == text.REPEATED:
            part = text.one_of_each(part)
        found[key] = float("nan")
        if len(part):
            logits = predict_logits(predict, part, batch_size=64)
            each = losses.measured_losses(part.label, logits)
            found[key] = float(each.mean())
    return found


def _windows(
    model: keras.Model, examples: Examples, config: ExtractionConfig
) -> dict[str, float]:
    """How well repeated windows are continued."""
    part = text.one_of_each(examples.take(examples.subset == text.REPEATED))
    nothing = {"window_extracted": np.nan, "window_edits": np.nan}
    if not len(part):
        return nothing
    (rows,) = part.inputs.values()
    whole = np.asarray(rows)
    shown = min(config.prompt, whole.shape[1] // 2)
    count = min(config.continuation, whole.shape[1] - shown)
    said = Continuation(model, count)(whole[:, :shown], part.ties)
    wanted = whole[:, shown : shown + count]
    edits = edit_distances(said, wanted)
    return {
        "window_extracted": float((edits == 0).mean()),
        "window_edits": float(edits.mean()),
    }
