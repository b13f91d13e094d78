"""Every removal on the same trained networks, under the same measures.

  python -m benchmarks.removal --only=digits --runs_dir=runs/removal

trains what is not there yet, takes memory out in every way, and writes a row
for each network, seed and method into docs/results/removal.json; a row that is
there is not made again. The digits take about five minutes for a seed on 2 CPU
cores, CIFAR-10 about half an hour. `--lost_units` ranks the critical units of
the digits networks by what the edit took from them.

The settings of the rivals were chosen on seed 10 of the digits, which is not in
the table. `forget` says what a method was told: nothing, the examples that are
truly wrong ("true"), or those whose label the edited network does not believe
("suspects").
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from benchmarks.harness import chosen, kept_rows
from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import (
    CurvatureConfig,
    DampeningConfig,
    DataConfig,
    DurableConfig,
    Examples,
    ForgettingConfig,
    GradientAscentConfig,
    ModelConfig,
    NPOConfig,
    OutputEditConfig,
    REMConfig,
    Removal,
    Run,
    SearchConfig,
    SecondOrderConfig,
    SubnetConfig,
    TrainConfig,
    ascend_gradient,
    audit_durability,
    audit_recitation,
    compare_with_critical_units,
    dampen_weights,
    edit_outputs,
    find_critical_units,
    fine_tune,
    forget_and_learn_again,
    graph,
    load,
    losses,
    mask_weights,
    optimize_negative_preference,
    predict_logits,
    presets,
    recalibrate_batch_norm,
    remove_memory,
    report,
    retrain_without,
    score_without_network,
    scrub,
    storage,
    tie_dropout,
    train,
    with_inference,
    zero_critical_units,
    zero_held_weights,
    zero_weights,
)
from tfmemloc.removal.outcome import measures

RESULTS = pathlib.Path("docs") / "results" / "removal.json"
LOST_UNITS = RESULTS.with_name("digits_lost_units.json")
FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Tied:
    """How a network with example-tied dropout differs from the standard one."""

    model: dict[str, Any]
    training: dict[str, Any] = dataclasses.field(default_factory=dict)

    def of(
        self, model: ModelConfig | keras.Model, training: TrainConfig
    ) -> tuple[ModelConfig | keras.Model, TrainConfig]:
        """The tied network beside a standard one, and its training."""
        training = dataclasses.replace(training, **self.training)
        if isinstance(model, keras.Model):
            return tie_dropout(
                model, **self.model, seed=training.seed
            ), training
        model = dataclasses.replace(model, dropout="example_tied", **self.model)
        return model, training


@dataclasses.dataclass(frozen=True)
class Setting:
    """A data set, a network and how it is trained."""

    data: DataConfig
    # Or makes a network of somebody else's, by its seed.
    model: ModelConfig | Callable[[int], keras.Model]
    training: TrainConfig
    seeds: tuple[int, ...] = (0, 1, 2)
    # What example-tied dropout of the same served width changes of it all.
    tied: Tied | None = None
    # Measured only where it is named: days on a CPU.
    is_for_gpu: bool = False

    def of_seed(self, seed: int) -> Setting:
        """The same with one seed for noise, network and training."""
        data_dir = os.environ.get("TFDS_DATA_DIR")
        model = (
            dataclasses.replace(self.model, seed=seed)
            if isinstance(self.model, ModelConfig)
            else self.model(seed)
        )
        return dataclasses.replace(
            self,
            data=dataclasses.replace(
                self.data, noise_seed=seed, data_dir=data_dir
            ),
            model=model,
            training=dataclasses.replace(self.training, seed=seed),
        )


def _preset(dataset: str, **changed: Any) -> TrainConfig:
    _, preset = presets.PRESETS[dataset]
    return TrainConfig(**{**preset, **changed})


def _mobile_net(seed: int) -> keras.Model:
    """MobileNetV3 as `keras.applications` has it, for MNIST's pictures."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((28, 28, 1), name="image")
    model = keras.applications.MobileNetV3Small(
        input_tensor=keras.layers.ZeroPadding2D(2)(image),
        weights=None,
        classes=10,
        include_preprocessing=False,
        classifier_activation=None,
        dropout_rate=0.0,
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Theirs, 0.999, is for more steps than a thousand.
            layer.momentum = 0.9
    return model


# Served, it is the standard network: its memory stands beside it.
_EXPANDED = Tied(
    {"expand": 1.0}, {"rule": "drop_pass_gate", "memory_off": 0.5, "early": 0.4}
)
_CIFAR = DataConfig(
    "cifar10", train_examples=5555, test_examples=10000, heldout=0.1
)
_TINYMEM, _ = presets.PRESETS["tinymem"]
_CIFAR_TRAINING = _preset("cifar10", epochs=20, evaluate_every=5, save_every=2)
SETTINGS = {
    "digits": Setting(
        DataConfig("digits", heldout=0.1),
        ModelConfig(width=0.5, dropout="none"),
        _preset("digits", save_every=5),
        tied=Tied({"width": 1.0, "p_gen": 0.5}),
    ),
    "vit": Setting(
        DataConfig("digits", heldout=0.1),
        ModelConfig("vit", width=0.25, dropout="none"),
        _preset(
            "digits",
            epochs=40,
            optimizer="adam",
            learning_rate=0.001,
            save_every=5,
            evaluate_every=5,
        ),
        tied=_EXPANDED,
    ),
    "mnist": Setting(
        DataConfig(
            "mnist", train_examples=11111, test_examples=10000, heldout=0.1
        ),
        ModelConfig(width=0.25, dropout="none"),
        _preset("mnist", epochs=12, evaluate_every=6, save_every=2),
        seeds=(0,),
        tied=_EXPANDED,
    ),
    "mobilenet": Setting(
        DataConfig(
            "mnist", train_examples=5555, test_examples=10000, heldout=0.1
        ),
        _mobile_net,
        TrainConfig(
            epochs=25,
            batch_size=128,
            optimizer="adam",
            learning_rate=0.002,
            weight_decay=0.0,
            save_every=5,
            evaluate_every=5,
        ),
        tied=_EXPANDED,
    ),
    "tinymem": Setting(
        DataConfig("tinymem", **presets.TINYMEM_DATA),
        ModelConfig(**{**_TINYMEM, "dropout": "none", "expand": 0.0}),
        _preset("tinymem", rule="cross_entropy", memory_off=0.5),
        tied=Tied(
            {"expand": _TINYMEM["expand"]},
            {"rule": "routed", "memory_off": 1.0},
        ),
    ),
    "cifar": Setting(
        _CIFAR,
        ModelConfig(width=0.25, dropout="none"),
        _CIFAR_TRAINING,
        tied=Tied({"width": 0.5, "p_gen": 0.5}),
    ),
    "cifar10k": Setting(
        dataclasses.replace(_CIFAR, train_examples=11111),
        ModelConfig(width=0.25, dropout="none"),
        _CIFAR_TRAINING,
    ),
    "cifar20": Setting(
        dataclasses.replace(_CIFAR, train_examples=22222),
        ModelConfig(width=0.25, dropout="none"),
        _CIFAR_TRAINING,
        seeds=(0,),
    ),
    # All of CIFAR-10 at the authors' width and schedule.
    "cifar50": Setting(
        dataclasses.replace(_CIFAR, train_examples=None),
        ModelConfig(width=1.0, dropout="none"),
        TrainConfig(
            epochs=50,
            evaluate_every=50,
            save_every=5,
            dtype="mixed_bfloat16",
            jit_compile=True,
        ),
        is_for_gpu=True,
    ),
}


def _changed(name: str, model: Mapping[str, Any], **training: Any) -> Setting:
    """A setting whose network and training differ a little from another's."""
    setting = SETTINGS[name]
    return dataclasses.replace(
        setting,
        model=dataclasses.replace(setting.model, **model),
        training=dataclasses.replace(setting.training, **training),
        is_for_gpu=True,
    )


SETTINGS |= {
    # With augmented pictures, for as long as the authors then trained.
    "cifar50_augmented": _changed(
        "cifar50", {}, epochs=100, evaluate_every=100, augment="standard"
    ),
    # Half as wide and half as long, without XLA, whose compilation would take
    # longer than the training.
    "cifar50_half": _changed(
        "cifar50", {"width": 0.5}, epochs=25, jit_compile=False
    ),
    "cifar50_half_augmented": _changed(
        "cifar50",
        {"width": 0.5},
        epochs=25,
        jit_compile=False,
        augment="standard",
    ),
    "cifar_half": _changed("cifar", {"width": 0.5}),
    "cifar_augmented": _changed("cifar", {}, augment="standard"),
    "cifar10k_half": _changed("cifar10k", {"width": 0.5}),
    "cifar10k_augmented": _changed("cifar10k", {}, augment="standard"),
}


def main() -> None:
    """Trains, removes, measures, writes."""
    if FLAGS.lost_units:
        _lost_units()
        return
    on_cpu = [name for name, s in SETTINGS.items() if not s.is_for_gpu]
    for name in chosen(FLAGS.only or on_cpu, SETTINGS):
        seeds = [int(seed) for seed in FLAGS.seeds] or SETTINGS[name].seeds
        for seed in seeds:
            _measure(name, seed)


def _measure(name: str, seed: int) -> None:
    setting = SETTINGS[name].of_seed(seed)
    examples = load(setting.data)
    directory = pathlib.Path(FLAGS.runs_dir)
    run = train(
        directory / f"{name}_{seed}",
        data=setting.data,
        model=setting.model,
        training=setting.training,
        examples=examples,
    )
    kept = Kept(name, seed, run)
    original = run.model()
    methods = list(_methods(run, examples, setting, directory))
    chosen(FLAGS.methods, {method for method, _, _ in methods}, "methods")
    for method, forget, make in methods:
        if FLAGS.methods and method not in FLAGS.methods:
            continue
        if (method, forget) not in kept:
            kept.add(method, forget, original, *make(), examples)


def _lost_units() -> None:
    """Did the edit take out what critical units hold? For each digits run."""
    found = []
    for seed in SETTINGS["digits"].seeds:
        run = Run.open(pathlib.Path(FLAGS.runs_dir) / f"digits_{seed}")
        examples = run.examples()
        edited, _ = remove_memory(
            run, examples, CurvatureConfig(refit_epochs=0)
        )
        critical = find_critical_units(
            run, examples, SearchConfig(count=128), progress=False
        )
        lost = compare_with_critical_units(run.model(), edited, critical)
        found += [{"seed": str(seed), **row} for row in lost.rows()]
    print(report.text_table(found, percent=False))
    storage.write_json(LOST_UNITS, {"rows": found})


class Kept:
    """The rows of one network in the file of results."""

    def __init__(self, name: str, seed: int, run: Run):
        self._of = {"setting": name, "seed": seed}
        self._epoch_seconds = float(
            np.median([line["seconds"] for line in run.history])
        )

    def __contains__(self, key: tuple[str, str]) -> bool:
        return any(
            all(row[k] == v for k, v in self._of.items())
            and (row["method"], row["forget"]) == key
            for row in rows()
        )

    def add(self, method, forget, original, model, result, examples) -> None:
        """Audits a new network and keeps its row."""
        stage = 0 if method == "before" else 1
        row = {
            **self._of,
            "method": method,
            "forget": forget,
            **{k: v for k, v in result.rows()[stage].items() if k != "stage"},
            "seconds": result.seconds,
            "epoch_seconds": self._epoch_seconds,
            **(
                _recited(model, examples)
                if examples.label.ndim > 1
                else _brought_back(original, model, examples)
            ),
        }
        storage.write_json(FLAGS.results, {"rows": [*rows(), row]})
        shown = {k: f"{v:.1%}" for k, v in row.items() if k in _SHOWN}
        print(self._of, method, forget, shown, f"{row['seconds']:.0f} s")


_SHOWN = (
    *("noisy", "noisy_true_label", "clean", "test", "average_precision"),
    *("recited", "right", "test_right"),
)


def _brought_back(
    original: keras.Model, model: keras.Model, examples: Examples
) -> dict[str, float]:
    """What attacks on a removal bring back of the wrong labels."""
    durable = audit_durability(
        original, model, examples.take(examples.subset != "test")
    )
    return {
        f"noisy after {attack}": value
        for attack, value in zip(
            durable.attacks[1:], durable.after[1:].tolist(), strict=True
        )
    }


def _recited(model: keras.Model, examples: Examples) -> dict[str, float]:
    """Which wrong sequences are known by heart."""
    rows = audit_recitation({"network": model}, examples).rows()
    # Of a tied network, what is served.
    row = next(r for r in rows if r["inference"] in ("plain", "drop"))
    return {
        name: value for name, value in row.items() if not isinstance(value, str)
    }


def rows() -> list[dict[str, Any]]:
    """All rows that were measured so far."""
    return kept_rows(FLAGS.results)


Made = tuple[keras.Model, Removal]


@dataclasses.dataclass(frozen=True)
class Rival:
    """A removal that is told which examples to forget."""

    name: str
    function: Callable[..., Made]
    config: Any = None
    told: tuple[str, ...] = ("true",)

    def on(self, run, examples, ids: Callable) -> Callable[[], Made]:
        """What does it, when it is called."""
        config = () if self.config is None else (self.config,)
        return lambda: self.function(run, examples, *config, forget=ids())


# Refitted on what the edited network believes, all others not asked.
_BY_ITSELF = CurvatureConfig(believe="network")
_BOTH = ("true", "suspects")
RIVALS = (
    Rival(
        "fine-tuning", fine_tune, ForgettingConfig(learning_rate=1e-3), _BOTH
    ),
    Rival(
        "NPO",
        optimize_negative_preference,
        NPOConfig(learning_rate=1e-3),
        _BOTH,
    ),
    Rival("retraining", retrain_without, told=_BOTH),
    Rival(
        "output editing",
        edit_outputs,
        OutputEditConfig(learning_rate=3e-3),
        _BOTH,
    ),
    Rival("REM", forget_and_learn_again, REMConfig(learning_rate=1e-3), _BOTH),
    Rival("SCRUB", scrub, ForgettingConfig(learning_rate=1e-4)),
    Rival(
        "gradient difference",
        ascend_gradient,
        GradientAscentConfig(learning_rate=1e-5, retain=3.0),
    ),
    Rival("SSD", dampen_weights, DampeningConfig(alpha=8.0)),
    Rival("Durable", zero_weights, DurableConfig(share=0.0005)),
    Rival(
        "second order",
        zero_held_weights,
        SecondOrderConfig(share=3e-4, damping=1e-3),
    ),
    Rival("BalancedSubnet", mask_weights, SubnetConfig(share=0.02)),
    Rival(
        "Subnet",
        mask_weights,
        SubnetConfig(share=0.02, learning_rate=1.0, balanced=False),
    ),
    Rival("critical units zeroed", zero_critical_units),
)


def _methods(
    run: Run, examples: Examples, setting: Setting, directory: pathlib.Path
) -> Iterator[tuple[str, str, Callable[[], Made]]]:
    """(name, what it is told, how it is done), in the order of the table."""
    name = run.directory.name
    work = directory / f"{name}_edit"
    edits: dict[str, Made] = {}

    def edited() -> Made:
        # Nothing is kept: what is read back takes no time.
        edits["own"] = remove_memory(run, examples, _BY_ITSELF)
        return edits["own"]

    def cut(**changed) -> Callable[[], Made]:
        config = dataclasses.replace(_BY_ITSELF, **changed)
        return lambda: remove_memory(run, examples, config)

    def suspects() -> np.ndarray:
        train_examples = examples.train
        if "own" not in edits:
            edits["own"] = remove_memory(
                run, examples, _BY_ITSELF, directory=work
            )
        logits = predict_logits(edits["own"][0], train_examples)
        believed = losses.correct(train_examples.label, logits)
        return train_examples.example_id[believed < 0.5]

    yield "before", "-", lambda: _same(run, examples)
    # Without refits nobody is believed.
    yield "curvature edit", "nothing", cut(refit_epochs=0, believe="auto")
    yield "curvature edit and refit twice", "nothing", edited
    if examples.label.ndim == 1:
        # As by a person who kept no examples aside.
        without = examples.take(examples.subset != "heldout")
        yield (
            "the same chosen by all other examples",
            "nothing",
            lambda: remove_memory(run.model(), without, _BY_ITSELF),
        )
    yield (
        "the same at a fixed 0.9",
        "nothing",
        cut(keep=0.9, layers=_all_but_the_last(run, examples)),
    )
    whole = {"keep": 1.0, "layers": ()}
    yield "refits alone (control)", "nothing", cut(**whole)
    if examples.label.ndim == 1:
        # Refits in other ways, and each of them without an edit.
        ways = {
            "believed by all": {"believe": "all"},
            "augmented refits": {"augment": "standard"},
            "augmented and believed by all": {
                "augment": "standard",
                "believe": "all",
            },
        }
        for way, changed in ways.items():
            yield way, "nothing", cut(**changed)
            yield (
                f"{way} without an edit (control)",
                "nothing",
                cut(**whole, **changed),
            )
        if run.model_config is not None:
            # Is it the removal, or who is asked? The network is not asked.
            yield (
                "retraining without doubted labels",
                "nothing",
                lambda: _retrained_without_doubted(run, examples),
            )
    yield "early stopping", "nothing", lambda: _early(run, examples)
    true = examples.of_subset("noisy").example_id
    told = {"true": lambda: true, "suspects": suspects}
    if examples.label.ndim > 1:
        # A sequence has no label that the network could disbelieve.
        del told["suspects"]
    for rival in RIVALS:
        if rival.function is retrain_without and run.model_config is None:
            continue  # Only a network of ours can be made anew.
        for what in rival.told:
            if what in told:
                yield rival.name, what, rival.on(run, examples, told[what])
    if setting.tied is not None:
        yield (
            "tied dropout dropped",
            "nothing",
            lambda: _tied(run, examples, setting, directory),
        )


def _all_but_the_last(run: Run, examples: Examples) -> tuple[str, ...]:
    from tfmemloc.gradients import kernels_of

    return tuple(k.name for k in kernels_of(run.model(), examples))[:-1]


def _same(run: Run, examples: Examples) -> Made:
    model = run.model()
    fields = measures(model, model, examples)
    return model, Removal(method="before", seconds=0.0, **fields)


def early_stopped(run: Run, examples: Examples) -> keras.Model:
    """The saved epoch with the best accuracy on the held-out given labels."""
    held_out = examples.of_subset("heldout")

    def right(epoch: int) -> float:
        logits = predict_logits(run.model(epoch), held_out)
        return float(losses.correct(held_out.label, logits).mean())

    return run.model(max(run.epochs[1:], key=right))


def _doubted(examples: Examples) -> np.ndarray:
    """Ids of labels that all other examples find more likely wrong."""
    scores = score_without_network(examples)
    return scores.example_id[scores.suspicion > 0.5]


def _retrained_without_doubted(run: Run, examples: Examples) -> Made:
    """Trained anew, or as it was where nothing is doubted."""
    doubted = _doubted(examples)
    if not len(doubted):
        return _same(run, examples)
    return retrain_without(run, examples, forget=doubted)


def _early(run: Run, examples: Examples) -> Made:
    started = time.perf_counter()
    model = early_stopped(run, examples)
    seconds = time.perf_counter() - started
    fields = measures(run.model(), model, examples)
    return model, Removal(method="early stopping", seconds=seconds, **fields)


def _tied(run, examples, setting, directory) -> Made:
    """Trained for it: half of the units drop, the other half is served."""
    model_config, training = setting.tied.of(setting.model, setting.training)
    tied = train(
        directory / f"{run.directory.name}_tied",
        data=setting.data,
        model=model_config,
        training=training,
        examples=examples,
    )
    model = with_inference(tied.model(), "drop")
    if graph.batch_norms(model):
        model = recalibrate_batch_norm(model, examples.train)
    seconds = sum(line["seconds"] for line in tied.history)
    fields = measures(run.model(), model, examples)
    return model, Removal(method="tied dropout", seconds=seconds, **fields)


if __name__ == "__main__":
    flags.flags.DEFINE_list("only", [], f"Some of {', '.join(SETTINGS)}.")
    flags.flags.DEFINE_list("seeds", [], "Default: those of the setting.")
    flags.flags.DEFINE_list("methods", [], "Names of methods; default: all.")
    flags.flags.DEFINE_bool(
        "lost_units",
        False,
        f"Only rank the critical units of the digits networks: {LOST_UNITS}.",
    )
    flags.flags.DEFINE_string("runs_dir", "runs/removal", "Where runs lie.")
    flags.flags.DEFINE_string("results", str(RESULTS), "File of the rows.")
    flags.run(main)
