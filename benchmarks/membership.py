"""How well members are told from others, before and after each way to forget.

  python -m benchmarks.membership --only=digits --runs_dir=runs/halves

trains networks on random halves of the data (complementary pairs), without
dropout and with example-tied dropout of the same served width, takes memory out
of each in several ways, and attacks what comes out, with shadows that were made
in the same way. On 2 CPU cores the digits take a quarter of an hour, CIFAR-10
an hour; killed, the same command goes on with what is trained.

Writes docs/results/membership_<data>.json: `rows` over all examples, `parts` by
subset, and the accuracy of each kind of network on test examples; and draws the
curves of the strongest attacks, docs/membership_<data>.png.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import keras
import numpy as np

from benchmarks import removal, tied_dropout
from benchmarks.harness import chosen
from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import (
    CurvatureConfig,
    DataConfig,
    Examples,
    MembershipConfig,
    ModelConfig,
    NPOConfig,
    Run,
    TrainConfig,
    audit_membership,
    confidences_of_runs,
    data,
    evaluate,
    load,
    optimize_negative_preference,
    prune_memorization,
    recalibrate_batch_norm,
    remove_memory,
    report,
    storage,
    train,
    with_inference,
)
from tfmemloc.audits.of_runs import network_name
from tfmemloc.evaluation import inference_models

DOCS = pathlib.Path("docs")
FLAGS = flags.FLAGS


Make = Callable[[Run, Examples], keras.Model]


def _edited(run: Run, own: Examples) -> keras.Model:
    return remove_memory(run, own, CurvatureConfig(refit_epochs=0))[0]


def _edited_and_refit(run: Run, own: Examples) -> keras.Model:
    work = run.directory.with_name(f"{run.directory.name}_edit")
    config = CurvatureConfig(believe="network")
    return remove_memory(run, own, config, directory=work)[0]


def _told(run: Run, own: Examples) -> keras.Model:
    wrong = own.of_subset("noisy").example_id
    config = NPOConfig(learning_rate=1e-3)
    return optimize_negative_preference(run, own, config, forget=wrong)[0]


def _pruned(run: Run, own: Examples) -> keras.Model:
    dropped = with_inference(run.model(), "drop")
    return prune_memorization(recalibrate_batch_norm(dropped, own.train))


# Name of a kind of network -> (whose runs, how it is made of one).
MADE: dict[str, tuple[str, Make]] = {
    "standard early-stopped": ("standard", removal.early_stopped),
    "standard edited": ("standard", _edited),
    "standard edited and refit": ("standard", _edited_and_refit),
    "standard after NPO, told": ("standard", _told),
    "tied pruned": ("tied", _pruned),
}


@dataclasses.dataclass(frozen=True)
class Halves:
    """Networks on halves of a data set.

    Attributes:
        setting: data, standard network and its training.
        tied: what example-tied dropout of the same served width changes.
        pairs: of complementary halves.
        made: which of `MADE` are attacked, too.
    """

    setting: removal.Setting
    tied: removal.Tied
    pairs: int
    made: tuple[str, ...]


_GATE = tied_dropout.METHODS["expanded + gate"]
HALVES = {
    "digits": Halves(
        removal.SETTINGS["digits"],
        removal.SETTINGS["digits"].tied,
        pairs=8,
        made=tuple(MADE),
    ),
    "cifar": Halves(
        removal.SETTINGS["cifar"],
        removal.Tied({"expand": 1.0}, _GATE.training),
        pairs=4,
        made=("standard early-stopped", "standard edited", "tied pruned"),
    ),
}


def main() -> None:
    """Trains halves, attacks, writes."""
    for name in chosen(FLAGS.only, HALVES):
        _attack(name, HALVES[name])


def _attack(name: str, halves: Halves) -> None:
    setting = halves.setting.of_seed(0)
    examples = load(setting.data)
    standard = setting.model, setting.training
    tied = halves.tied.of(*standard)
    runs = {
        kind: [
            _half(f"{name}_{kind}", setting.data, *of, examples, pair, other)
            for pair in range(halves.pairs)
            for other in (False, True)
        ]
        for kind, of in (("standard", standard), ("tied", tied))
    }
    accuracy = Accuracies(examples.test)
    for kind, each in runs.items():
        for run in each:
            for how, network in inference_models(run.model()).items():
                accuracy.add(network_name(kind, how), network)
    phi, member, everyone = confidences_of_runs(
        runs,
        examples,
        made={
            kind: (MADE[kind][0], accuracy.measured(kind, MADE[kind][1]))
            for kind in halves.made
        },
        progress=True,
    )
    result = audit_membership(
        phi, member, MembershipConfig(), subset=everyone.subset
    )
    storage.write_json(
        DOCS / "results" / f"membership_{name}.json",
        {
            "networks": 2 * halves.pairs,
            "rows": result.rows(),
            "parts": result.all_rows(),
            "test_accuracy": accuracy.means,
        },
    )
    result.save(pathlib.Path(FLAGS.runs_dir) / f"{name}_membership")
    drawing = result.figures()["membership"].drawing
    drawing.savefig(DOCS / f"membership_{name}.png", dpi=150)
    print(report.text_table(result.table()), result.sentence())


class Accuracies:
    """Accuracy on test examples, by kind of network."""

    def __init__(self, test: Examples):
        self._test = test
        self._found: dict[str, list[float]] = {}

    def add(self, kind: str, network: keras.Model) -> None:
        """Measures one network of a kind."""
        accuracy = evaluate(network, self._test).of("test")["accuracy"]
        self._found.setdefault(kind, []).append(accuracy)

    def measured(self, kind: str, make: Make) -> Make:
        """The same way to make a network, which is also measured."""

        def made(run: Run, own: Examples) -> keras.Model:
            network = make(run, own)
            self.add(kind, network)
            return network

        return made

    @property
    def means(self) -> dict[str, float]:
        """Name of a kind -> mean over its networks."""
        return {kind: float(np.mean(v)) for kind, v in self._found.items()}


def _half(
    folder: str,
    config: DataConfig,
    model: ModelConfig,
    training: TrainConfig,
    examples: Examples,
    pair: int,
    complement: bool,
) -> Run:
    """A network on one half of the examples."""
    return train(
        pathlib.Path(FLAGS.runs_dir) / folder / f"{pair}_{int(complement)}",
        data=dataclasses.replace(
            config,
            subset_ratio=0.5,
            subset_seed=pair,
            subset_complement=complement,
        ),
        model=dataclasses.replace(model, seed=pair),
        training=dataclasses.replace(
            training, evaluate_every=training.epochs, seed=pair
        ),
        examples=data.random_subset(
            examples, 0.5, seed=pair, complement=complement
        ),
        progress=False,
    )


if __name__ == "__main__":
    flags.flags.DEFINE_list("only", [], f"Some of {', '.join(HALVES)}.")
    flags.flags.DEFINE_string("runs_dir", "runs/halves", "Where runs lie.")
    flags.run(main)
