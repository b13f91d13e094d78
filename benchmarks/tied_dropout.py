"""Example-tied dropout on natural images, beside its controls.

  python -m benchmarks.tied_dropout --runs_dir=runs/tied

trains what is not there yet and writes a row for each method, seed and
behaviour into docs/results/tied_dropout.json; a row that is there is not made
again. CIFAR-10 with 5,000 images, 20 epochs, takes two to four minutes for a
network on 2 CPU cores; the standard networks are those of `benchmarks.removal`
and may lie in the same `--runs_dir`.

`--mechanism` asks the tied networks of seed 0 whether critical units are the
example's own memorization units (docs/results/tied_mechanism.json), and
`--figure` draws docs/tied_dropout.png from the rows.

`--only=cifar50` compares the paper's own network on all of CIFAR-10, at its
width and schedule, with standard ones; it wants a GPU.

All networks of a table have the same served width, the same examples, epochs
and steps. The settings were chosen on seed 10, which is not in the table.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras

from benchmarks import tied_tables
from benchmarks.harness import chosen
from benchmarks.removal import SETTINGS, Setting, early_stopped, rows
from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import (
    CurvatureConfig,
    DataConfig,
    Examples,
    OwnUnitsConfig,
    Run,
    build,
    evaluate,
    find_own_units,
    load,
    prune_memorization,
    recalibrate_batch_norm,
    remove_memory,
    report,
    storage,
    train,
    with_inference,
)
from tfmemloc.evaluation import inference_models

RESULTS = pathlib.Path("docs") / "results" / "tied_dropout.json"
MECHANISM = RESULTS.with_name("tied_mechanism.json")
FIGURE = pathlib.Path("docs") / "tied_dropout.png"
FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Method:
    """A network and how it is trained, where not as the standard one."""

    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    wider: float = 1.0  # Than the standard network, before anything is dropped.
    # What is done to the dropped network afterwards: names of AFTERWARDS.
    after: tuple[str, ...] = ()
    early: bool = False
    rescaled: bool = False  # As the authors' drop, beside ours.


# Each is a removal from a network that is served, and so is its row's name.
_UNCUT = {"keep": 1.0, "layers": ()}
AFTERWARDS: dict[str, dict[str, Any]] = {
    "edited": {"believe": "network"},
    "edited, believed by all": {"believe": "all"},
    "refitted, believed by all": {**_UNCUT, "believe": "all"},
    "refitted on augmented, believed by all": {
        **_UNCUT,
        "believe": "all",
        "augment": "standard",
    },
}


def _tied(rule: str = "cross_entropy", off: float = 0.5, **model) -> Method:
    return Method(
        {"dropout": "example_tied", **model},
        {"rule": rule, "memory_off": off},
    )


def _halved(dropout: str) -> Method:
    """Twice as wide, of which the drop leaves half."""
    return Method({"dropout": dropout, "p_gen": 0.5}, wider=2.0)


def _gate(early: float, rule: str = "drop_pass_gate", **training) -> Method:
    method = _tied(rule, expand=1.0)
    training = {**method.training, "early": early, **training}
    return dataclasses.replace(method, training=training, after=("edited",))


def _late_tying(**training) -> Method:
    method = _tied("late_tying", expand=1.0)
    return dataclasses.replace(method, training=method.training | training)


def _standard(rule: str = "cross_entropy", off: float = 1.0) -> Method:
    return Method({}, {"rule": rule, "memory_off": off})


METHODS = {
    "standard": Method(),
    "standard early-stopped": Method(early=True),
    "standard edited": Method(after=("edited",)),
    "standard + gate": _standard("drop_pass_gate"),
    "standard + GCE": _standard("drop_pass_gce"),
    "standard + SOP": _standard("sop"),
    "sparse": _halved("sparse"),
    "carved": _halved("example_tied"),
    "expanded": _tied(expand=1.0),
    "expanded + gate": _gate(0.4),
    "expanded + early gate": _gate(0.2),
    "expanded + gate by held-out": _gate(0.4, early_ends="heldout"),
    "expanded + routing": _gate(0.4, "routed_suspects"),
    "expanded + GCE": _tied("drop_pass_gce", expand=1.0),
    "expanded + late tying": _late_tying(),
    "expanded + late tying by held-out": _late_tying(early_ends="heldout"),
    "expanded + late tying by norm": _late_tying(early_ends="weight_norm"),
}
# At the paper's own size; `a fifth` is as wide as its dropped network, and
# `frozen statistics` are the authors': of the first epoch alone.
_FROZEN = {"rule": "first_epoch_statistics"}
_PAPER = dataclasses.replace(_tied(p_gen=0.2, p_mem=0.1), rescaled=True)
AT_PAPER_SIZE = {
    "standard": Method(),
    "standard edited": Method(after=("edited",)),
    "standard a fifth": Method(wider=0.2),
    "standard + frozen statistics": Method({}, _FROZEN),
    "paper": _PAPER,
    "paper + frozen statistics": dataclasses.replace(_PAPER, training=_FROZEN),
    # XLA cannot compile an expanded network in bfloat16.
    "expanded + gate": dataclasses.replace(
        _gate(0.4, jit_compile=False), after=()
    ),
    "expanded + early gate": dataclasses.replace(
        _gate(0.2, jit_compile=False), after=()
    ),
}


def main() -> None:
    """Trains, measures, writes."""
    if FLAGS.figure:
        tied_tables.draw(rows(), "cifar", FIGURE)
        return
    if FLAGS.mechanism:
        _mechanism()
        return
    for name in chosen(FLAGS.only or ["cifar"], SETTINGS):
        seeds = [int(seed) for seed in FLAGS.seeds] or SETTINGS[name].seeds
        for seed in seeds:
            for method in chosen(FLAGS.methods, _methods(name), "methods"):
                _measure(name, method, seed)


def _methods(setting: str) -> dict[str, Method]:
    is_papers = SETTINGS[setting].model.width == 1.0
    return AT_PAPER_SIZE if is_papers else METHODS


@functools.lru_cache(maxsize=1)
def _examples(data: DataConfig) -> Examples:
    """Loaded once for all that is trained on them, one after the other."""
    return load(data)


def _mechanism() -> None:
    """Where the memory sits after each way to train, for seed 0."""
    found = []
    measured = {row["method"] for row in rows()}
    for method, how in METHODS.items():
        is_tied = how.model.get("dropout") == "example_tied"
        if not is_tied or method not in measured:
            continue
        setting = SETTINGS["cifar"].of_seed(0)
        examples = load(setting.data)
        run = _trained("cifar", method, setting, examples, 0)
        result = find_own_units(
            run,
            examples,
            OwnUnitsConfig(inference="tied"),
            network=method,
            progress=False,
        )
        found += result.rows()
        print(report.text_table(result.table()))
    storage.write_json(MECHANISM, {"rows": found})


def _measure(name: str, method: str, seed: int) -> None:
    key = {"setting": name, "method": method, "seed": seed}
    how = _methods(name)[method]
    present = {
        row["inference"]
        for row in rows()
        if all(row[k] == v for k, v in key.items())
    }
    if present.issuperset(_behaviours(how)):
        return
    setting = SETTINGS[name].of_seed(seed)
    examples = _examples(setting.data)
    run = _trained(name, method, setting, examples, seed)
    found = [
        {**key, "inference": inference, **_measures(make(), examples)}
        for inference, make in _networks(run, how, examples)
        if inference not in present
    ]
    seconds = sum(line["seconds"] for line in run.history)
    for row in found:
        row["training_seconds"] = round(seconds, 1)
        print(
            {
                k: round(v, 3) if isinstance(v, float) else v
                for k, v in row.items()
            }
        )
    storage.write_json(FLAGS.results, {"rows": [*rows(), *found]})


def _trained(
    name: str, method: str, setting: Setting, examples: Examples, seed: int
) -> Run:
    """The run of a method; the standard one is shared."""
    how = _methods(name)[method]
    is_standard = (how.model, how.training, how.wider) == ({}, {}, 1)
    directory = f"{name}_{seed}"
    if not is_standard:
        directory += "_" + "_".join(re.findall(r"\w+", method))
    training = setting.training
    if not is_standard:
        # Nobody asks for their course; measuring takes time.
        training = dataclasses.replace(
            training, evaluate_every=training.epochs, save_every=training.epochs
        )
    return train(
        pathlib.Path(FLAGS.runs_dir) / directory,
        data=setting.data,
        model=dataclasses.replace(
            setting.model,
            width=how.wider * setting.model.width,
            **how.model,
        ),
        training=dataclasses.replace(training, **how.training),
        examples=examples,
        progress=False,
    )


def _behaviours(method: Method) -> list[str]:
    """What `_networks` gives for a method, in its order."""
    if method.model.get("dropout") == "example_tied":
        rescaled = ["rescaled"] if method.rescaled else []
        return ["tied", "drop", *rescaled, "recalibrated", *_ways(method)]
    return _ways(method) if method.after else ["plain"]


def _networks(
    run: Run, method: Method, examples: Examples
) -> Iterator[tuple[str, Callable[[], keras.Model]]]:
    """(behaviour, what makes the network) for each row of a method."""
    if method.early:
        yield "plain", lambda: early_stopped(run, examples)
        return
    if method.after and not method.model:
        for way in _ways(method):
            yield way, functools.partial(_removed, way, run, examples)
        return
    models = inference_models(run.model())
    if "drop" not in models:
        yield "plain", lambda: models["plain"]
        return

    @functools.cache
    def pruned() -> keras.Model:
        dropped = recalibrate_batch_norm(models["drop"], examples.train)
        return prune_memorization(dropped)

    yield "tied", lambda: models["tied"]
    yield "drop", lambda: models["drop"]
    if method.rescaled:
        yield "rescaled", lambda: _rescaled(run, examples)
    yield "recalibrated", pruned
    for way in _ways(method):
        yield (
            way,
            lambda way=way: _removed(way, pruned(), examples, run),
        )


def _rescaled(run: Run, examples: Examples) -> keras.Model:
    """The drop as the authors have it, where what is left is made larger."""
    config = dataclasses.replace(run.model_config, rescale="mass")
    shape = examples.inputs["image"].shape[1:]
    model = build(config, shape, examples.classes)
    model.set_weights(run.weights())
    return with_inference(model, "drop")


def _ways(method: Method) -> list[str]:
    """What is done afterwards, as the flags have it."""
    return list(FLAGS.after or method.after)


def _removed(
    way: str,
    source: Run | keras.Model,
    examples: Examples,
    run: Run | None = None,
) -> keras.Model:
    """The served network after a removal.

    Args:
        way: key of AFTERWARDS.
        source: the served network, or the run whose network is served whole.
        examples: of the setting.
        run: that the served network comes from, where it is not the source.
    """
    directory = (run or source).directory
    # Curvature and eigenvectors are the same for all ways.
    work = directory.with_name(f"{directory.name}_edit")
    config = CurvatureConfig(**AFTERWARDS[way])
    return remove_memory(source, examples, config, directory=work)[0]


def _measures(model: keras.Model, examples: Examples) -> dict[str, float]:
    metrics = evaluate(model, examples)
    return {
        **{
            name: float(value)
            for name, value in zip(
                metrics.subsets, metrics.accuracy, strict=True
            )
        },
        "noisy_true_label": metrics.of("noisy")["true_accuracy"],
    }


if __name__ == "__main__":
    flags.flags.DEFINE_list("only", [], f"Some of {', '.join(SETTINGS)}.")
    flags.flags.DEFINE_list("seeds", [], "Default: those of the setting.")
    flags.flags.DEFINE_list("methods", [], "Names of methods; default: all.")
    flags.flags.DEFINE_multi_enum(
        "after",
        [],
        list(AFTERWARDS),
        "What is done to served networks, instead of what a method says.",
    )
    flags.flags.DEFINE_bool("mechanism", False, f"Only write {MECHANISM}.")
    flags.flags.DEFINE_bool("figure", False, f"Only draw {FIGURE}.")
    flags.flags.DEFINE_string("runs_dir", "runs/tied", "Where runs lie.")
    flags.flags.DEFINE_string("results", str(RESULTS), "File of the rows.")
    flags.run(main)
