"""How well members are told from others, before and after each way to forget.

  python -m benchmarks.membership --runs_dir=runs/halves

trains twelve networks on random halves of the digits (6 complementary pairs),
without dropout and with example-tied dropout of the same served width, edits
the former, and attacks all of them; about ten minutes on 2 CPU cores.
Writes docs/results/membership.json: `rows` over all examples, `parts` by
subset, and the accuracy of each kind of network on test examples.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from benchmarks import removal
from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import (
    CurvatureConfig,
    MembershipConfig,
    Run,
    audit_membership,
    confidences_of_runs,
    data,
    evaluate,
    load,
    remove_memory,
    report,
    storage,
    train,
)
from tfmemloc.audits.of_runs import network_name
from tfmemloc.evaluation import inference_models

RESULTS = pathlib.Path("docs") / "results" / "membership.json"
FLAGS = flags.FLAGS


def main() -> None:
    """Trains halves, attacks, writes."""
    setting = removal.SETTINGS["digits"].of_seed(0)
    examples = load(setting.data)
    runs = {
        name: [
            _half(name, setting, examples, pair, complement)
            for pair in range(FLAGS.pairs)
            for complement in (False, True)
        ]
        for name in ("standard", "tied")
    }
    tests: dict[str, list[float]] = {}
    for name, each in runs.items():
        for run in each:
            for how, network in inference_models(run.model()).items():
                kind = network_name(name, how)
                tests.setdefault(kind, []).append(_test(network, examples))

    def edited(run, own):
        network, _ = remove_memory(
            run, own, CurvatureConfig(refit_epochs=FLAGS.refit_epochs)
        )
        tests.setdefault("standard edited", []).append(_test(network, examples))
        return network

    phi, member, everyone = confidences_of_runs(
        runs,
        examples,
        made={"standard edited": ("standard", edited)},
        progress=True,
    )
    result = audit_membership(
        phi, member, MembershipConfig(), subset=everyone.subset
    )
    accuracy = {name: float(np.mean(values)) for name, values in tests.items()}
    storage.write_json(
        FLAGS.results,
        {
            "networks": 2 * FLAGS.pairs,
            "rows": result.rows(),
            "parts": result.all_rows(),
            "test_accuracy": accuracy,
        },
    )
    result.save(pathlib.Path(FLAGS.runs_dir) / "membership")
    print(report.text_table(result.table()), result.sentence(), accuracy)


def _half(name, setting, examples, pair: int, complement: bool) -> Run:
    """A network on one half of the examples."""
    config = dataclasses.replace(
        setting.data,
        subset_ratio=0.5,
        subset_seed=pair,
        subset_complement=complement,
    )
    model = dataclasses.replace(setting.model, seed=pair)
    if name == "tied":
        model = dataclasses.replace(
            model,
            dropout="example_tied",
            width=setting.tied_width,
            p_gen=0.5,
            p_mem=0.1,
        )
    return train(
        pathlib.Path(FLAGS.runs_dir) / name / f"{pair}_{int(complement)}",
        data=config,
        model=model,
        training=dataclasses.replace(
            setting.training, save_every=30, evaluate_every=30, seed=pair
        ),
        examples=data.random_subset(
            examples, 0.5, seed=pair, complement=complement
        ),
        progress=False,
    )


def _test(network, examples) -> float:
    return evaluate(network, examples.test).of("test")["accuracy"]


if __name__ == "__main__":
    flags.flags.DEFINE_integer("pairs", 6, "Complementary pairs of halves.")
    flags.flags.DEFINE_integer(
        "refit_epochs", 0, "Epochs of refitting after the edit."
    )
    flags.flags.DEFINE_string("runs_dir", "runs/halves", "Where runs lie.")
    flags.flags.DEFINE_string("results", str(RESULTS), "File of the rows.")
    flags.run(main)
