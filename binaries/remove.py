"""Takes the memory out of a network that is already trained.

  python -m binaries.remove --run_dir=runs/demo/standard

takes about half a minute on 2 CPU cores for the digits demo: wrong labels that
are still predicted fall from 100 % to below 10 %, and the accuracy on test
examples rises. No example ids and no second training are needed. The network
may be of any origin:

  python -m binaries.remove --model=my.keras --dataset=mine.npz \\
    --out_dir=forgotten

mine.npz holds x_train and y_train, the examples that the network was trained
on, as it was fed them: floats as they are, uint8 pictures scaled to [-1, 1],
whole numbers as tokens; and, where there are some, x_test and y_test with
labels that are right, which are only measured.

How much of which layers is cut is chosen on the given labels of examples that
the network was not trained on: `binaries.train --heldout=0.1` keeps some aside,
and in an .npz file they are those whose `subset` is `heldout`. Without any, all
other examples judge, by what they say of each training example.

Writes into --out_dir (default: the folder `removed` in the run's) the new
network as a run that all programs take and as model.keras; summary.json,
removal.npz and .json, figures, report.html; suspects.csv and suspects.html,
all labels, those first that the network no longer believes, and review.html, a
page to decide on them. The report shows every edit that was tried; for another
one of them, name --keep, --layers and a new --out_dir.
"""

import csv
import pathlib
from typing import Any

from . import config_flags, flags, output, removing, sources, workers

from tfmemloc import (
    CurvatureConfig,
    CurvatureEdit,
    DampeningConfig,
    DurableConfig,
    ForgettingConfig,
    GradientAscentConfig,
    NPOConfig,
    OutputEditConfig,
    REMConfig,
    Removal,
    SearchConfig,
    SecondOrderConfig,
    SubnetConfig,
    ascend_gradient,
    configs,
    dampen_weights,
    edit_outputs,
    fine_tune,
    forget_and_learn_again,
    mask_weights,
    optimize_negative_preference,
    report,
    retrain_without,
    scrub,
    storage,
    zero_critical_units,
    zero_held_weights,
    zero_weights,
)
from tfmemloc.data import Examples
from tfmemloc.fields import hints
from tfmemloc.labels.review import REVIEW
from tfmemloc.removal.curvature.expected import expected_seconds
from tfmemloc.result import is_result
from tfmemloc.scores.suspects import PAGE
from tfmemloc.snapshots import model_of

FLAGS = flags.FLAGS
CURVATURE = "curvature"
# Methods that are told what to forget, and their configs.
METHODS = {
    "critical_units": (zero_critical_units, SearchConfig),
    "durable": (zero_weights, DurableConfig),
    "fine_tuning": (fine_tune, ForgettingConfig),
    "gradient_ascent": (ascend_gradient, GradientAscentConfig),
    "npo": (optimize_negative_preference, NPOConfig),
    "output_editing": (edit_outputs, OutputEditConfig),
    "rem": (forget_and_learn_again, REMConfig),
    "retraining": (retrain_without, None),
    "scrub": (scrub, ForgettingConfig),
    "second_order": (zero_held_weights, SecondOrderConfig),
    "subnet": (mask_weights, SubnetConfig),
    "ssd": (dampen_weights, DampeningConfig),
}
# Field of those configs -> flag.
_FORGETTING = {
    "epochs": "forget_epochs",
    "learning_rate": "forget_rate",
    "batch_size": "batch_size",
    "seed": "seed",
}
sources.define()
flags.flags.DEFINE_string(
    "out_dir", None, "Default: the folder `removed` in that of --run_dir."
)
flags.flags.DEFINE_string(
    "work_dir",
    None,
    "Keeps factors and refits: a killed job goes on, and a job with another "
    "--keep needs no other pass over the data. Default: the folder `work` in "
    "--out_dir.",
)
flags.flags.DEFINE_enum(
    "method",
    CURVATURE,
    [CURVATURE, *METHODS],
    "How memory is removed; all but curvature are told what, by --forget.",
)
flags.flags.DEFINE_string(
    "forget",
    None,
    "For the other methods: the name of a subset (noisy), or a .csv whose "
    "first column is example_id; of a suspects.csv, the suspects.",
)
config_flags.define(
    ForgettingConfig,
    skip=("batch_size", "seed"),
    named=_FORGETTING,
    unset=True,
    notes={"epochs": "that of the method", "learning_rate": "the method's"},
)
config_flags.define(CurvatureConfig)
workers.define_workers(
    "Share the passes of --method=curvature between so many processes on this "
    "machine"
)


def main() -> None:
    """Edits, measures, writes, prints."""
    out = _out_directory()
    if workers.are_used() and FLAGS.method != CURVATURE:
        raise ValueError(
            "Workers share the passes of --method=curvature. Expected it, or "
            f"one process. Received: --method={FLAGS.method}."
        )
    if workers.begins("remove", _work_directory(out)):
        return
    source, examples, data = sources.read()
    if not workers.is_first():
        _removal(source, examples, out)[1]()
        return
    sources.describe(source, examples)
    _say_how_long(source, examples, out)
    with storage.lock_directory(out):
        settings, remove = _removal(source, examples, out)
        result = removing.keep_removal(
            out, source, examples, remove, settings=settings, data=data
        )
        facts = output.facts("binaries.remove")
        storage.write_json(
            out / "summary.json",
            {
                "dataset": examples.name,
                "facts": facts,
                "rows": result.rows(),
                **_details(result),
            },
        )
        suspects = removing.rank_labels(out, source, examples)
    section = report.section_of(result)
    page = output.write_report(
        out, f"What was taken out? {examples.name}", [section], facts
    )
    output.print_section(section)
    if suspects is not None:
        print(f"suspected labels: {suspects}, {out / PAGE}")
        print(f"decide on them: {out / REVIEW}")
    print(f"network: {out / removing.MODEL}")
    print(f"report: {page}")


def _say_how_long(source, examples: Examples, out: pathlib.Path) -> None:
    """Prints about how long it takes, where that is known and still ahead."""
    if FLAGS.method != CURVATURE or is_result(out / removing.RESULT):
        return
    config = config_flags.read(CurvatureConfig)
    model = model_of(source, examples)
    seconds = expected_seconds(model, examples, config)
    print(f"expected: about {output.duration(seconds)}")


def _details(result: Removal) -> dict[str, Any]:
    if not isinstance(result, CurvatureEdit):
        return {}
    return {"curve": result.curve_rows(), "layers": result.layer_rows()}


def _removal(
    source, examples: Examples, out: pathlib.Path
) -> tuple[dict[str, Any], removing.Remove]:
    """The settings of the removal that the flags ask for, and what does it."""
    _refuse_other_flags()
    if FLAGS.method == CURVATURE:
        if FLAGS.forget is not None:
            raise ValueError(
                "--method=curvature finds out by itself what to forget. "
                f"Expected no --forget. Received: --forget={FLAGS.forget}."
            )
        config = config_flags.read(CurvatureConfig)
        work = _work_directory(out)
        settings, remove = removing.by_curvature(source, examples, config, work)

        def shared_remove():
            with workers.shared(work / "shared"):
                return remove()

        return settings, shared_remove
    function, kind = METHODS[FLAGS.method]
    ids = _ids_to_forget(examples)
    if kind is None:  # It is trained anew, as it was.
        if FLAGS.run_dir is None:
            raise ValueError(
                f"--method={FLAGS.method} trains a network as it was trained. "
                "Expected --run_dir. Received: --model."
            )
        return {"method": FLAGS.method, "forget": ids}, lambda: function(
            source,
            examples,
            forget=ids,
            directory=_work_directory(out),
            progress=True,
        )
    fields = hints(kind)
    given = {
        name: FLAGS[flag].value
        for name, flag in _FORGETTING.items()
        if name in fields and FLAGS[flag].present
    }
    config = kind(**given)
    settings = {"method": FLAGS.method, **configs.to_json(config)}
    return {**settings, "forget": ids}, lambda: function(
        source, examples, config, forget=ids
    )


def _refuse_other_flags() -> None:
    """Refuses flags that were given and that the method does not read."""
    _, kind = METHODS.get(FLAGS.method, (None, CurvatureConfig))
    read = {"work_dir"} if kind in (None, CurvatureConfig) else set()
    fields = hints(kind) if kind is not None else {}
    if kind is CurvatureConfig:
        read |= set(fields)
    else:
        read |= {_FORGETTING[name] for name in fields if name in _FORGETTING}
    known = {"work_dir", *hints(CurvatureConfig)}
    known |= set(_FORGETTING.values())
    given = sorted(n for n in known - read if FLAGS[n].present)
    if given:
        raise ValueError(
            f"--method={FLAGS.method} does not read "
            f"{', '.join('--' + name for name in given)}. Expected "
            f"{', '.join('--' + name for name in sorted(read)) or 'none'}."
        )


def _ids_to_forget(examples: Examples) -> list[int]:
    """The ids of --forget: a subset's, or those in a file."""
    if FLAGS.forget is None:
        raise ValueError(
            f"--method={FLAGS.method} is told what to forget. Expected "
            "--forget with the name of a subset, such as noisy, or a .csv "
            "whose first column is example_id. Received: none."
        )
    if not FLAGS.forget.endswith(".csv"):
        return examples.train.of_subset(FLAGS.forget).example_id.tolist()
    with open(FLAGS.forget, newline="", encoding="utf-8-sig") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    if header[:1] != ["example_id"]:
        raise ValueError(
            f"{FLAGS.forget} expected example_id as its first column. "
            f"Received: {','.join(header)!r}."
        )
    rows = [row for row in rows if row]
    if "suspect" in header:  # The table of `find_label_errors`.
        column = header.index("suspect")
        rows = [row for row in rows if row[column] == "1"]
    no_ids = [row[0] for row in rows if not row[0].strip().isdecimal()]
    if no_ids:
        raise ValueError(
            f"{FLAGS.forget} expected whole numbers in its first column, "
            f"example_id. Received: {no_ids[0]!r}."
        )
    return [int(row[0]) for row in rows]


def _out_directory() -> pathlib.Path:
    sources.check()
    if FLAGS.out_dir:
        return pathlib.Path(FLAGS.out_dir)
    return pathlib.Path(FLAGS.run_dir) / "removed"


def _work_directory(out: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(FLAGS.work_dir or out / removing.WORK)


if __name__ == "__main__":
    flags.run(main)
