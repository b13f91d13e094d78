"""Finds the few units without which single predictions of a run flip.

  python -m binaries.ablate --run_dir=runs/demo/standard

takes about 15 seconds on 2 CPU cores for the 143 noisy and 143 clean examples
of the digits demo. Writes critical_units.npz and .json (a row for each
example: its units, and what their removal did), figures and report.html into
--out_dir (the run's folder); killed, the same command goes on with the next
block of examples. Expect about five units for a wrong label, more for a right
one, and little harm to the other examples.
"""

import pathlib

from binaries import flags, output
from tfmemloc import configs, report
from tfmemloc.probes.critical_units import choose_ids, find_critical_units
from tfmemloc.runs import Run

FLAGS = flags.FLAGS
flags.define_probe_flags()
flags.flags.DEFINE_list(
    "ids", None, "Examples to search; default: all noisy, as many clean ones."
)
flags.flags.DEFINE_integer("count", None, "At most so many of each subset.")
flags.flags.DEFINE_list(
    "layers", None, "Layers whose units may be removed; default: all."
)
flags.flags.DEFINE_enum(
    "place",
    "unit",
    configs.PLACES,
    "Gate units after normalization and activation, blocks at their outputs, "
    "or weights before normalization, as the authors did.",
)
flags.flags.DEFINE_enum(
    "objective",
    "zero",
    configs.OBJECTIVES,
    "zero: remove the best unit; step: move the gate with the largest "
    "gradient.",
)
flags.flags.DEFINE_enum(
    "population_term",
    "frozen",
    configs.POPULATION_TERMS,
    "Gradient of the other examples' loss: frozen, taken once; exact, anew at "
    "every step (slow); none.",
)
flags.flags.DEFINE_integer(
    "population",
    512,
    "Number of training examples in the population term (--population_term).",
)
flags.flags.DEFINE_integer(
    "copies", 0, "Perturbed copies to average the logits over; authors: 5."
)
flags.flags.DEFINE_float("noise", 0.01, "Relative norm of the perturbation.")
flags.flags.DEFINE_enum(
    "removed_value",
    "zero",
    configs.REMOVED_VALUES,
    "What a removed unit gives.",
)
flags.flags.DEFINE_integer("limit", 100, "Remove at most so many units.")
flags.flags.DEFINE_integer(
    "others", 200, "Measure the harm on so many of each subset; 0: all."
)
flags.flags.DEFINE_integer("seed", 0, "Of all random choices.")
flags.flags.DEFINE_string(
    "masks_of",
    None,
    "Run of an example-tied network, whose masks say which units of --layers "
    "are an example's own; default: --run_dir itself.",
)


def main() -> None:
    """Searches, writes, prints."""
    run = Run.open(FLAGS.run_dir)
    examples = run.examples(download=FLAGS.download)
    search = configs.SearchConfig(
        place=FLAGS.place,
        objective=FLAGS.objective,
        population_term=FLAGS.population_term,
        population=FLAGS.population,
        copies=FLAGS.copies,
        noise=FLAGS.noise,
        removed_value=FLAGS.removed_value,
        limit=FLAGS.limit,
        others=FLAGS.others or None,
        seed=FLAGS.seed,
    )
    ids = flags.integers("ids")
    if ids is None:
        ids = choose_ids(examples, count=FLAGS.count, seed=FLAGS.seed)
    out = pathlib.Path(FLAGS.out_dir or FLAGS.run_dir)
    result = find_critical_units(
        run,
        examples,
        ids=ids,
        search=search,
        layers=FLAGS.layers,
        inference=FLAGS.inference,
        masks_of=Run.open(FLAGS.masks_of).model() if FLAGS.masks_of else None,
        directory=out / "critical_units",
    )
    output.write_probe(
        result,
        "critical_units",
        report.critical_section(result),
        "binaries.ablate",
    )


if __name__ == "__main__":
    flags.run(main)
