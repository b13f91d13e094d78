"""A run: a directory from which a training can be studied or continued.

    config.json            what it was made from, the data's fingerprint
    model.json             the network's architecture (Keras's own json)
    history.json           a line for each epoch
    weights/epoch_0000.npz initialization, and then each epoch that was kept
    recording/             what each step saw of each example, by epoch
    state.npz              everything that the next epoch needs

`Run.open(directory)` gives back model, data and weights from the directory
alone. Every file is written atomically and checked when it is read.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import configs, data, graph, storage
from tfmemloc.data.examples import Examples, require_examples

_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run directory and what its config says.

    Attributes:
        directory: where it lies.
        data: the data's config; None where the data were the caller's own.
        model_config: the network's; None where the model was the caller's.
        training: how it was trained; None where the caller did it.
        fingerprint: of the data, from `Examples.fingerprint`; may be None.
    """

    directory: pathlib.Path
    data: configs.DataConfig | None = None
    model_config: configs.ModelConfig | None = None
    training: configs.TrainConfig | None = None
    fingerprint: Mapping | None = None

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike,
        model: keras.Model,
        *,
        data: configs.DataConfig | None = None,
        model_config: configs.ModelConfig | None = None,
        training: configs.TrainConfig | None = None,
        examples: Examples | None = None,
        may_grow: bool = True,
    ) -> Run:
        """Starts a run directory, or reopens one with the same settings.

        Args:
            directory: made if it does not exist.
            model: its architecture is kept, so that `Run.open` needs nothing
                else. That of a subclassed model cannot be kept: make such a
                model yourself and pass it to `load_weights`.
            data: config of the data, if tfmemloc loaded them.
            model_config: config of the network, if tfmemloc built it.
            training: config of the training, if tfmemloc does it.
            examples: the data, whose fingerprint is kept.
            may_grow: whether a run that is there is the same with more
                epochs, where the learning rate is constant.

        Raises:
            ValueError: the directory holds a run made with other settings or
                other data; the message lists what differs.
        """
        run = cls(
            pathlib.Path(directory),
            data,
            model_config,
            training,
            examples.fingerprint() if examples is not None else None,
        )
        (run.directory / "weights").mkdir(parents=True, exist_ok=True)
        if (run.directory / "config.json").exists():
            there = cls.open(directory)
            run._check_same(there, examples, may_grow)
            if run.training != there.training:  # More epochs than before.
                storage.write_json(
                    run.directory / "config.json", run._to_json()
                )
            return run
        if isinstance(model, keras.Sequential) or hasattr(model, "input"):
            storage.write_text(run.directory / "model.json", model.to_json())
        storage.write_json(run.directory / "config.json", run._to_json())
        return run

    @classmethod
    def open(cls, directory: str | os.PathLike) -> Run:
        """Opens a run directory.

        Raises:
            FileNotFoundError: there is no run in it.
            ValueError: its config is damaged or of another version.
        """
        directory = pathlib.Path(directory)
        path = directory / "config.json"
        if not path.exists():
            main_job = any(
                (directory / f"{name}.json").exists()
                for name in ("networks", "localization")
            )
            raise FileNotFoundError(
                f"{directory} holds no run: it has no config.json. Expected a "
                "directory that tfmemloc's train, `RecordRun` or "
                "binaries.train wrote."
                + (
                    f" A main job holds four; name one, such as "
                    f"{directory / 'standard'}."
                    if main_job
                    else ""
                )
            )
        fields = storage.read_json(path)
        if not isinstance(fields, dict) or fields.get("version") != _VERSION:
            raise storage.DamagedFileError(
                f"{path} is not the config of a run. Expected version "
                f"{_VERSION}."
            )
        try:
            parts = [
                configs.from_json(config, fields[name])
                if fields[name] is not None
                else None
                for name, config in (
                    ("data", configs.DataConfig),
                    ("model", configs.ModelConfig),
                    ("training", configs.TrainConfig),
                )
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise storage.DamagedFileError(
                f"{path} is damaged: {error}."
            ) from error
        return cls(directory, *parts, fields.get("fingerprint"))

    def _to_json(self) -> dict[str, Any]:
        def fields(config):
            return None if config is None else configs.to_json(config)

        return {
            "version": _VERSION,
            "data": fields(self.data),
            "model": fields(self.model_config),
            "training": fields(self.training),
            "fingerprint": self.fingerprint,
            "versions": {
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
            },
        }

    def _check_same(self, there: Run, examples, may_grow: bool) -> None:
        """Refuses to go on with a run that has other settings or data."""
        wrong = []
        for old, new, ignore in (
            (there.data, self.data, ("data_dir",)),
            (there.model_config, self.model_config, ()),
            (there.training, self.training, ()),
        ):
            if old is not None and new is not None:
                if may_grow and configs.extends(old, new):
                    ignore = (*ignore, "epochs")
                wrong += configs.differences(old, new, ignore)
            elif old is not new:
                wrong.append(f"{old} there, {new} here")
        if wrong:
            raise ValueError(
                f"{self.directory} holds a run that was started with other "
                f"settings: {'; '.join(wrong)}. Use the original settings, "
                "another directory, or start over in this one (--fresh)."
            )
        if examples is not None and there.fingerprint is not None:
            data.check_fingerprint(examples, there.fingerprint)

    def examples(self, *, download: bool = False) -> Examples:
        """Loads the run's data and checks that they have not changed.

        Raises:
            ValueError: the run was recorded on the caller's own data, or the
                data have changed.
        """
        if self.data is None:
            raise ValueError(
                f"The run in {self.directory} was recorded on data that "
                "tfmemloc did not load. Pass your own `Examples`, with the "
                "ids of its training."
            )
        examples = data.load(self.data, download=download)
        self.check(examples)
        return examples

    def check(self, examples: Examples) -> None:
        """Refuses examples other than the run's; see `check_fingerprint`."""
        require_examples(examples)
        if self.fingerprint is None:
            return
        try:
            data.check_fingerprint(examples, self.fingerprint)
        except ValueError as error:
            raise ValueError(f"{self.directory}: {error}") from None

    def model(
        self, epoch: int | None = None, inference: str | None = None
    ) -> keras.Model:
        """The network with the weights of an epoch.

        Args:
            epoch: a saved epoch; None is the last.
            inference: behaviour of tied layers; None leaves it as built.

        Raises:
            ValueError: the epoch was not saved, its file is damaged, or the
                model was subclassed and cannot be rebuilt.
        """
        path = self.directory / "model.json"
        if not path.exists():
            raise ValueError(
                f"The run in {self.directory} is of a subclassed model, which "
                "cannot be rebuilt from a file. Make the model yourself and "
                "call run.load_weights(model, epoch)."
            )
        try:
            model = keras.models.model_from_json(path.read_text("utf-8"))
        except (ValueError, TypeError, KeyError) as error:
            raise storage.DamagedFileError(
                f"{path} does not give a model: {error}. If the model has "
                "layers of your own, register them with "
                "keras.saving.register_keras_serializable and import them."
            ) from error
        self.load_weights(model, epoch)
        if inference is not None:
            return graph.with_inference(model, inference)
        return model

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs whose weights are saved; 0 is the initialization."""
        return storage.epochs_in(self.directory / "weights")

    def check_epochs(self, epochs: Sequence[int]) -> None:
        """Refuses epochs of which no weights are saved; lists those there are.

        Raises:
            ValueError: one of the epochs is missing, or none was given.
        """
        check_saved(f"The run in {self.directory}", epochs, self.epochs)

    def weights_path(self, epoch: int) -> pathlib.Path:
        """Where the weights of an epoch lie."""
        return storage.epoch_path(self.directory / "weights", epoch)

    def weights(self, epoch: int | None = None) -> list[np.ndarray]:
        """The weights of a saved epoch, in the order of `model.weights`.

        Raises:
            ValueError: the epoch was not saved, or its file is damaged.
        """
        if epoch is None:
            epoch = max(self.epochs, default=0)
        self.check_epochs([epoch])
        arrays = storage.read_arrays(self.weights_path(epoch))
        return list(arrays.values())

    def load_weights(
        self, model: keras.Model, epoch: int | None = None
    ) -> None:
        """Sets the weights of `model` to those of a saved epoch.

        Raises:
            ValueError: `model` is another network than the run's.
        """
        values = self.weights(epoch)
        wanted = [tuple(weight.shape) for weight in model.weights]
        found = [value.shape for value in values]
        if wanted != found:
            raise ValueError(
                f"The run in {self.directory} is of another model than "
                f"'{model.name}'. Expected {len(wanted)} weights of shapes "
                f"{wanted}. Received: {len(found)} of shapes {found}."
            )
        model.set_weights(values)

    def save_weights(self, model: keras.Model, epoch: int) -> None:
        """Keeps the weights of `model` as those of an epoch.

        Raises:
            FloatingPointError: a weight is NaN or infinite; nothing is saved.
        """
        arrays = variable_arrays(model.weights)
        check_finite(arrays, epoch)
        storage.write_arrays(self.weights_path(epoch), arrays)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A dict for each epoch: loss, learning rate, accuracies."""
        path = self.directory / "history.json"
        if not path.exists():
            return []
        history = storage.read_json(path)
        try:
            return list(history["epochs"])
        except (KeyError, TypeError):
            raise storage.DamagedFileError(
                f'{path} is damaged. Expected {{"epochs": [...]}}.'
            ) from None

    def save_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Replaces the history."""
        storage.write_json(
            self.directory / "history.json", {"epochs": list(history)}
        )

    def record_epoch(
        self,
        model: keras.Model,
        epoch: int,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Records an epoch of a custom training loop.

        Args:
            model: with the weights after that epoch.
            epoch: 0 for the initialization, then 1, 2, ...
            metrics: what to note in the history, as json.

        Example:
            >>> run = Run.create("runs/loop", model)
            >>> run.record_epoch(model, 0)
            >>> for epoch in (1, 2):
            ...     loss = 1 / epoch  # Of a training loop of your own.
            ...     run.record_epoch(model, epoch, {"loss": loss})
            >>> [line["loss"] for line in run.history[1:]]
            [1.0, 0.5]
        """
        self.save_weights(model, epoch)
        history = [line for line in self.history if line["epoch"] < epoch]
        self.save_history([*history, {"epoch": epoch, **(metrics or {})}])

    def accuracy_by_epoch(self, inference: str, subset: str) -> np.ndarray:
        """Accuracy by epoch of one subset, [len(history)]; NaN where unknown.

        Args:
            inference: `plain`, `tied`, `expected` or `drop`.
            subset: `clean`, `noisy`, `test`, ...
        """
        return np.array(
            [
                line.get("accuracy", {}).get(inference, {}).get(subset, np.nan)
                for line in self.history
            ]
        )


def check_saved(
    owner: str, epochs: Sequence[int], saved: Sequence[int]
) -> None:
    """Refuses epochs that are not among the saved ones.

    Raises:
        ValueError: one is missing, or none was given.
    """
    missing = [epoch for epoch in epochs if epoch not in saved]
    if missing or not epochs:
        raise ValueError(
            f"{owner} has no weights of epoch "
            f"{', '.join(map(str, missing)) or '(none given)'}. Saved epochs: "
            f"{', '.join(map(str, saved)) or 'none'}."
        )


def variable_arrays(
    variables: Sequence[keras.Variable],
) -> dict[str, np.ndarray]:
    """The values of variables by place and path, in order."""
    arrays = {}
    for index, variable in enumerate(variables):
        value = variable.numpy()
        if value.dtype.name == "bfloat16":  # npz knows no bfloat16.
            value = value.astype(np.float32)
        name = getattr(variable, "path", None) or variable.name
        name = re.sub(r"[^\w./-]", "_", name)
        arrays[f"{index:04d}/{name}"] = value
    return arrays


def check_finite(arrays: Mapping[str, np.ndarray], epoch: int) -> None:
    """Raises FloatingPointError where an array holds NaN or infinity."""
    for name, array in arrays.items():
        is_float = np.issubdtype(array.dtype, np.floating)
        if is_float and not np.isfinite(array).all():
            raise FloatingPointError(
                f"The weights {name} are not finite after epoch {epoch}; "
                "nothing was saved. Lower the learning rate."
            )
