"""What each training step saw of each example, epoch by epoch.

A training step computes the logits of its examples anyway. Kept by example id,
they tell how the network learned each example: when it was learned, how often
it was forgotten, and with what margin. The table is updated in the graph, so
that nothing leaves the device before the end of an epoch, and is written as one
compressed file for each epoch.

The numbers are those of the training step: BatchNorm in training mode, the
example's own memorization units on, augmented inputs, before the weights move.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from tfmemloc import storage
from tfmemloc.data.examples import Examples, places_of
from tfmemloc.result import Result

MEASURES = ("margin", "loss", "error")


@dataclasses.dataclass(frozen=True, eq=False)
class Recording(Result):
    """What training steps saw of N examples in E epochs; NaN: not seen."""

    title: ClassVar[str] = "What the training steps saw"
    renamed: ClassVar[Mapping[str, str | None]] = {"pixels": "inputs_digest"}

    epochs: tuple[int, ...]  # E, counted from 1.
    example_id: np.ndarray  # [N], rising; or in the order given to `of`.
    label: np.ndarray  # [N] that was trained on; -1 where never seen.
    margin: np.ndarray  # [E, N] the label's logit less the best other one.
    loss: np.ndarray  # [E, N] cross-entropy in nats.
    error: np.ndarray  # [E, N] || softmax - one-hot ||.
    inputs_digest: str = ""  # Of the inputs; empty where it was not kept.

    @classmethod
    def open(cls, directory: str | os.PathLike) -> Recording:
        """Reads what `RecordExamples`, `train` or `ExampleRecorder` kept.

        Args:
            directory: of the recording; of a run that `train` made, its
                folder `recording`.

        Raises:
            FileNotFoundError: nothing was recorded there.
            DamagedFileError: a file was truncated or altered.
            ValueError: an example had different labels in different epochs.
        """
        directory = pathlib.Path(directory)
        epochs = recorded_epochs(directory)
        if not epochs:
            raise FileNotFoundError(
                f"{directory} holds no recorded epoch. Expected a folder "
                "that `RecordExamples` wrote, or `recording` in the directory "
                "of a run that tfmemloc trained."
            )
        found = [
            storage.read_arrays(storage.epoch_path(directory, epoch))
            for epoch in epochs
        ]
        try:
            seen = np.stack([part["label"] for part in found])
            known = np.isfinite(seen)
            last = len(epochs) - 1 - known[::-1].argmax(axis=0)
            label = seen[last, np.arange(seen.shape[1])]
            moved = (known & (seen != label)).any(axis=0)
            if moved.any():
                ids = found[0]["example_id"][moved]
                raise _MovedLabelsError(
                    f"{directory} holds epochs that were trained on different "
                    f"labels of {moved.sum()} examples, for instance id "
                    f"{ids[:5].tolist()}. Expected one training; delete the "
                    "folder and train again."
                )
            return cls(
                epochs=epochs,
                example_id=found[0]["example_id"],
                label=np.where(np.isfinite(label), label, -1).astype(np.int64),
                **{
                    name: np.stack([part[name] for part in found])
                    for name in MEASURES
                },
                inputs_digest=_kept_digest(directory),
            )
        except _MovedLabelsError:
            raise
        except (KeyError, ValueError) as error:
            raise storage.DamagedFileError(
                f"{directory} does not hold the epochs of one recording: "
                f"{error}. Delete it and train again."
            ) from error

    @property
    def correct(self) -> np.ndarray:
        """[E, N] bool, whether the label was the prediction."""
        return self.margin > 0

    def of(self, examples: Examples) -> Recording:
        """The recording of these examples, in their order.

        Raises:
            ValueError: it is of other examples, labels or inputs, or an
                example was never seen. Inputs are compared where they were
                announced (`RecordExamples(directory, examples)`) and all of
                them are given.
        """
        order, missing = places_of(self.example_id, examples.example_id)
        if missing.any():
            raise ValueError(
                f"The recording has no example with id "
                f"{examples.example_id[missing][:5].tolist()} of "
                f"{examples.name}. Expected the examples of the training."
            )
        unseen = ~np.isfinite(self.margin[:, order]).any(axis=0)
        if unseen.any():
            raise ValueError(
                f"{unseen.sum()} examples were seen in none of the "
                f"{len(self.epochs)} recorded epochs, for instance id "
                f"{examples.example_id[unseen][:5].tolist()}. Expected each "
                "of them in at least one; score only those that were trained "
                "on."
            )
        other = np.zeros(len(examples), bool)
        if examples.label.ndim == 1:  # Tokens are not kept.
            other = self.label[order] != examples.label
        if other.any():
            raise ValueError(
                f"The recording is of other labels than those of "
                f"{examples.name}: {other.sum()} differ, for instance of id "
                f"{examples.example_id[other][:5].tolist()}. Use the labels "
                "of the training."
            )
        is_whole = len(examples) == len(self.example_id)
        differs = self.inputs_digest not in ("", examples.inputs_digest())
        if is_whole and differs:
            raise ValueError(
                f"The recording is of other inputs than those of "
                f"{examples.name}, with the same ids and labels. Use the "
                "inputs of the training."
            )
        return dataclasses.replace(
            self,
            example_id=self.example_id[order],
            label=self.label[order],
            **{name: getattr(self, name)[:, order] for name in MEASURES},
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row for each epoch: over all examples that it saw."""
        return [
            {
                "epoch": epoch,
                "seen": int(np.isfinite(self.margin[e]).sum()),
                "accuracy": float(
                    self.correct[e][np.isfinite(self.margin[e])].mean()
                ),
                "margin": float(np.nanmean(self.margin[e])),
                "loss": float(np.nanmean(self.loss[e])),
            }
            for e, epoch in enumerate(self.epochs)
        ]


class _MovedLabelsError(ValueError):
    """An example had different labels in different epochs."""


def _kept_digest(directory: pathlib.Path) -> str:
    """The checksum of the inputs that were announced, or an empty string."""
    path = directory / "settings.json"
    return storage.read_json(path).get("images", "") if path.exists() else ""


def recorded_epochs(directory: str | os.PathLike) -> tuple[int, ...]:
    """The epochs of the recording in a folder; () where there is none."""
    return storage.epochs_in(directory) if os.path.isdir(directory) else ()
