"""How memory is removed by curvature."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tfmemloc.checks import check_range
from tfmemloc.configs import Augmentation
from tfmemloc.fields import check_fields
from tfmemloc.gradients.curvature import Scalar
from tfmemloc.removal.curvature.checks import check_read

Believe = Literal["auto", "network", "all"]


@dataclasses.dataclass(frozen=True)
class CurvatureConfig:
    """How memory is taken out by curvature.

    Attributes:
        keep: share of the curvature of each edited kernel that is kept; None
            chooses on the held-out examples, or by what all other examples say
            where there are none (of next tokens: 0.9); 1 cuts nothing, and
            the refits are all that is done.
        layers: names of the layers that are edited; None chooses as `keep`
            does; without held-out examples and where `keep` is given, all but
            the last.
        scalar: whose curvature: `logits`, `labels` or `sampled`; see
            `tfmemloc.curvature_factors`.
        positions: of each example (of a picture or a text) over which the
            curvature is taken, at most: more than there are takes all, and
            where examples are many, fewer are enough.
        rounds: how often the network is edited and refitted.
        refit_epochs: epochs after each edit on the examples whose label the
            edited network predicts; 0 does not train, and edits once.
        believe: by whom an example must be believed to be refitted on:
            `network`, the edited one, or `all`, by it and by what all other
            examples say together, which never saw its label. Then fewer wrong
            labels are taught anew. `auto` is `all`, but of next tokens, and
            where the others know no more than which class is the most
            frequent, `network`.
        augment: how pictures are changed in these epochs, each time anew:
            `none`, `crop`, `standard` or `strong`; see
            `tfmemloc.TrainConfig`. What was memorized is tied to the very
            pixels; what is common is not. Digits must not be flipped: `crop`.
        refit_rate: peak of the learning rate of these epochs, with Adam.
        batch_size: examples in a step of these epochs.
        seed: of everything that is drawn.
        memory_budget_mib: MiB for a chunk of examples in the pass over them.
        protect: names of groups or subsets whose training examples are known
            to be right, however rare they are: directions that hold the share
            `keep` of their curvature are kept as well, and the refit takes
            them in any case.
    """

    keep: float | None = None
    layers: tuple[str, ...] | None = None
    scalar: Scalar = "logits"
    positions: int = 64
    rounds: int = 2
    refit_epochs: int = 3
    believe: Believe = "auto"
    augment: Augmentation = "none"
    refit_rate: float = 1e-3
    batch_size: int = 128
    seed: int = 0
    memory_budget_mib: int = 1024
    protect: tuple[str, ...] = ()

    def __post_init__(self):
        check_fields(self)
        if self.keep is not None:
            check_range("keep", self.keep, 1e-6, 1.0)
        check_range("positions", self.positions, 1, None)
        check_range("memory_budget_mib", self.memory_budget_mib, 1, None)
        check_range("rounds", self.rounds, 1, None)
        check_range("refit_epochs", self.refit_epochs, 0, None)
        check_range("refit_rate", self.refit_rate, 0.0, None)
        check_range("batch_size", self.batch_size, 1, None)
        check_read(self)
