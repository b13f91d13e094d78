"""One round of a removal by curvature: cut, recalibrate, refit."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

import keras
import numpy as np

from tfmemloc import evaluation, shares, storage
from tfmemloc.configs import TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.gradients.curvature import kernels_of
from tfmemloc.removal.copies import has_batch_norm, is_half
from tfmemloc.removal.curvature.bases import kept_bases
from tfmemloc.removal.curvature.checks import check_layers
from tfmemloc.removal.curvature.choice import (
    DEFAULT_KEEP,
    Choice,
    Judge,
    Plan,
    choose,
)
from tfmemloc.removal.curvature.config import CurvatureConfig
from tfmemloc.removal.curvature.others import know_more_than_shares
from tfmemloc.removal.curvature.refit import believed, refit
from tfmemloc.removal.curvature.result import EditRound

# Not trained on, and so fit to choose by. The test examples choose nothing.
HELD_OUT = ("heldout", "validation")


def is_held_out(examples: Examples) -> np.ndarray:
    """[N] whether an example may choose: neither trained on nor a test."""
    return np.isin(examples.subset, HELD_OUT)


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A removal: what is the same in all of its rounds.

    Attributes:
        examples: those that the network was trained on, and held-out ones.
        config: how.
        directory: keeps what was computed; None keeps nothing.
        protected: training examples that are right in any case, or None.
        others: log-probabilities [N, classes] of the training examples by all
            other examples, where they are asked, or None.
        progress: show progress bars.
    """

    examples: Examples
    config: CurvatureConfig
    directory: pathlib.Path | None
    protected: Examples | None
    others: np.ndarray | None
    progress: bool

    @functools.cached_property
    def judge_name(self) -> str:
        """By whom a cut is chosen: `heldout`, `others`, or nobody."""
        config = self.config
        is_given = config.keep is not None and config.layers is not None
        if is_given or config.keep == 1.0:
            return ""
        if is_held_out(self.examples).any():
            return "heldout"
        # A strength that is given needs no more than the usual layers.
        if config.keep is not None:
            return ""
        return "others" if self._others_know else ""

    @functools.cached_property
    def believe(self) -> str:
        """By whom the examples of a refit are believed: `network` or `all`."""
        if self.config.believe != "auto":
            return self.config.believe
        return "all" if self._others_know else "network"

    @functools.cached_property
    def _others_know(self) -> bool:
        """Whether all other examples were asked, and know something."""
        return self.others is not None and know_more_than_shares(
            self.others, self.examples.train.label
        )

    @functools.cached_property
    def _judge(self) -> Judge:
        if self.judge_name == "heldout":
            held_out = self.examples.take(is_held_out(self.examples))
            return Judge.held_out(held_out)
        return Judge.others(
            self.examples.train, np.exp(self.others), self.config.seed
        )

    def edited(
        self, model: keras.Model, trained: Examples, number: int
    ) -> tuple[keras.Model, EditRound]:
        """The model with its kernels cut and BatchNorm recalibrated.

        Args:
            model: it is changed.
            trained: the examples that it was trained or refitted on.
            number: of the round, from 0.
        """
        config = self.config
        if config.keep == 1.0:
            return _uncut(model, trained.train, config)
        folder = self._folder(model, number)
        bases = kept_bases(
            model,
            trained.train,
            folder,
            memory_budget=config.memory_budget_mib * 2**20,
            scalar=config.scalar,
            positions=config.positions,
            seed=config.seed,
            protected=self.protected,
            progress=self.progress,
        )
        check_layers(model, [basis.name for basis in bases], config.layers)
        plan, choice = self._planned(model, bases, trained, number, folder)
        cuts = [basis.cut(plan.keep_of(basis.name)) for basis in bases]
        for basis, cut in zip(bases, cuts, strict=True):
            if cut.kernel is not basis.value:
                basis.kernel.variable.assign(cut.kernel)
        if has_batch_norm(model):
            model = evaluation.recalibrate_batch_norm(model, trained.train)
        return model, EditRound(
            names=tuple(basis.name for basis in bases),
            keep=tuple(plan.keep_of(basis.name) for basis in bases),
            energy=tuple(cut.energy for cut in cuts),
            choice=choice,
        )

    def refitted(self, model: keras.Model, number: int) -> Examples:
        """Trains an edited model on what is believed, and says what that is."""
        others = self.others if self.believe == "all" else None
        trained = believed(model, self.examples, self._protected_ids, others)
        refit(
            model,
            trained,
            _refitting(self.config, model),
            self._folder(model, number, self._refit_name),
            progress=self.progress,
        )
        return trained

    @property
    def _refit_name(self) -> str:
        """Of the folders of refits; those of other ways lie beside them."""
        ways = [self.believe] if self.believe != "network" else []
        if self.config.augment != "none":
            ways.append(self.config.augment)
        return "_".join(["refit", *ways])

    @property
    def _protected_ids(self) -> np.ndarray:
        if self.protected is None:
            return np.zeros(0, int)
        return self.protected.example_id

    def _folder(
        self, model: keras.Model, number: int, what: str = "factors"
    ) -> pathlib.Path | None:
        """Where what is computed of weights, labels and protected ids lies."""
        if self.directory is None:
            return None
        train = self.examples.train
        of = [train.example_id, train.label, self._protected_ids]
        digest = storage.digest([*model.get_weights(), *of])
        return self.directory / f"{what}_{number + 1}_{digest[:12]}"

    def _planned(
        self, model, bases, trained: Examples, number: int, folder
    ) -> tuple[Plan, Choice | None]:
        """What is cut: as given, chosen, or the default."""
        names = tuple(basis.name for basis in bases)
        config = self.config
        if not self.judge_name:
            rest = names[:-1] or names
            layers = rest if config.layers is None else tuple(config.layers)
            return Plan(layers, config.keep or DEFAULT_KEEP), None
        asked = {
            "keep": config.keep,
            "layers": config.layers,
            "seed": config.seed,
            "kernels": names,
            **self._judge.fingerprint(),
        }
        path = None if folder is None else folder / "choice.json"
        if path is not None and path.exists():
            kept = storage.read_json(path)
            if kept.get("asked") == json.loads(json.dumps(asked)):
                choice = Choice.from_json(kept["choice"])
                return choice.plan, choice

        def chosen() -> dict[str, np.ndarray]:
            choice = choose(
                model,
                bases,
                trained.train,
                self._judge,
                layers=config.layers,
                keep=config.keep,
                first=number == 0,
                seed=config.seed,
                progress=self.progress,
            )
            return {"choice": np.array(json.dumps(dataclasses.asdict(choice)))}

        found = shares.once(
            "choice",
            lambda: [asked, storage.digest(model.get_weights())],
            chosen,
        )
        fields = json.loads(str(found["choice"]))
        if path is not None:
            storage.write_json(path, {"asked": asked, "choice": fields})
        choice = Choice.from_json(fields)
        return choice.plan, choice


def _uncut(model, train, config):
    """The model with its kernels whole, whose curvature nobody needs."""
    names = [kernel.name for kernel in kernels_of(model, train)]
    check_layers(model, names, config.layers)
    if has_batch_norm(model):
        model = evaluation.recalibrate_batch_norm(model, train)
    whole = (1.0,) * len(names)
    return model, EditRound(tuple(names), whole, whole, choice=None)


def _refitting(config: CurvatureConfig, model: keras.Model) -> TrainConfig:
    return TrainConfig(
        dtype="mixed_float16" if is_half(model) else "float32",
        epochs=config.refit_epochs,
        batch_size=config.batch_size,
        optimizer="adam",
        learning_rate=config.refit_rate,
        weight_decay=0.0,
        augment=config.augment,
        save_every=config.refit_epochs,
        evaluate_every=config.refit_epochs,
        seed=config.seed,
    )
