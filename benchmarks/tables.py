"""Writes the measured tables of docs/results into the texts that show them.

  python -m benchmarks.tables

replaces what stands between `<!-- name -->` and `<!-- /name -->` in README.md
and the texts in docs; `--check` changes nothing and fails where something
would change.
"""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import (
    audit_tables,
    cost_tables,
    label_tables,
    removal_tables,
    tied_tables,
)
from tfmemloc import Result, report, storage
from tfmemloc.probes.critical_units import critical_table
from tfmemloc.result import Table

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
TEXTS = (
    ROOT / "README.md",
    ROOT / "docs" / "audit.md",
    ROOT / "docs" / "costs.md",
    ROOT / "docs" / "injection.md",
    ROOT / "docs" / "labels.md",
    ROOT / "docs" / "paper_map.md",
    ROOT / "docs" / "removal.md",
    ROOT / "docs" / "text.md",
    ROOT / "docs" / "tied_dropout.md",
)
_BLOCK = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", re.DOTALL)


def _read(name: str) -> Any:
    return storage.read_json(RESULTS / f"{name}.json")


def _removals() -> removal_tables.Rows:
    return removal_tables.read(RESULTS / "removal.json")


def _fenced(text: str) -> str:
    return f"```\n{text}\n```\n"


def _main_table(name: str) -> str:
    """The table of a main job."""
    return _fenced(report.text_table(_read(name)["rows"]))


def _critical(rows: list[dict[str, Any]]) -> str:
    """Sizes of critical sets, as `binaries.ablate` prints them."""
    return _fenced(report.text_table(critical_table(rows)))


def _protocols(name: str) -> str:
    """The same search under our options and under the paper's."""
    rows = _read(name)["rows"]
    shown = critical_table(rows)
    lines = [
        {"protocol": row["protocol"], **line}
        for row, line in zip(rows, shown.rows, strict=True)
    ]
    return _fenced(report.text_table(Table(lines, shown.formats)))


def _groups() -> str:
    """How many units hold all wrong labels of a class."""
    rows = Result.load(RESULTS / "digits_group_units").by_subset()
    counts = ("size", "random_size", "activation_size")
    return _fenced(report.text_table(Table(rows, dict.fromkeys(counts, ".3g"))))


def _critical_digits() -> list[dict[str, Any]]:
    return Result.load(RESULTS / "digits_seed0_critical_units").by_subset()


def _sentence(name: str) -> str:
    return Result.load(RESULTS / name).sentence() + "\n"


def _table(name: str) -> str:
    return _fenced(report.text_table(Result.load(RESULTS / name).table()))


def _dropped(name: str) -> dict[str, float]:
    (row,) = [
        row
        for row in _read(name)["rows"]
        if (row["model"], row["inference"]) == ("example_tied", "drop")
    ]
    return row


def _seeds() -> str:
    """What is left after the drop, by seed."""
    rows = []
    for seed in (0, 1, 2):
        name = f"digits_seed{seed}"
        (standard,) = [
            row for row in _read(name)["rows"] if row["model"] == "standard"
        ]
        row = _dropped(name)
        rows.append(
            {
                "seed": str(seed),
                **{
                    subset: row[subset]
                    for subset in ("clean", "noisy", "noisy_true_label", "test")
                },
                "standard_test": standard["test"],
            }
        )
    return _fenced(report.text_table(rows))


def _label_errors(dataset: str, only_real: bool = False) -> list[dict]:
    """The rows of one data set, with labels that are really wrong or not."""
    rows = _read(f"{dataset}_label_errors")["rows"]
    return [row for row in rows if (row["noise"] == "real") == only_real]


def _said() -> str:
    """What our rankings say, of all data sets."""
    return "\n".join(
        f"{name}:\n\n{label_tables.said(_label_errors(dataset))}"
        for name, dataset in (
            ("Digits", "digits"),
            ("CIFAR-10, 5,000", "cifar10"),
            ("CIFAR-10, 10,000", "cifar10_10000"),
            ("MNIST", "mnist"),
        )
    )


def _sweep() -> str:
    return _table("digits_sweep") + _sentence("digits_sweep")


def _faults() -> str:
    return _fenced(report.text_table(_read("faults")["rows"]))


def _over_seeds() -> str:
    """Mean and interval of the probes' numbers."""
    rows = [
        row
        for row in _read("digits_over_seeds")["rows"]
        if ":" not in row["number"]
    ]
    return _fenced(report.text_table(rows, percent=False))


def _before_after(name: str, subset: str) -> str:
    """Accuracy of a subset with the memorization units on, and off."""
    rows = {(r["model"], r["inference"]): r for r in _read(name)["rows"]}
    on, off = (
        100 * rows["example_tied", inference][subset]
        for inference in ("tied", "drop")
    )
    return f"{on:.1f} -> {off:.1f} %"


def _tests(name: str) -> str:
    """Test accuracy of the standard network, and after the drop."""
    rows = {(r["model"], r["inference"]): r for r in _read(name)["rows"]}
    standard, dropped = (
        100 * rows[key]["test"]
        for key in (("standard", "plain"), ("example_tied", "drop"))
    )
    return f"{standard:.1f} -> {dropped:.1f} %"


def _seed_means(start: str) -> str:
    (row,) = [
        row
        for row in _read("digits_over_seeds")["rows"]
        if row["number"].startswith(start)
    ]
    return f"{row['mean']:.2f} ({row['smallest']:.2f} to {row['largest']:.2f})"


def _medians(rows: list[dict[str, Any]]) -> str:
    found = {row["subset"]: f"{row['median']:g}" for row in rows}
    return f"{found['noisy']} noisy, {found['clean']} clean"


def _claims() -> str:
    """One row for each claim: published, measured, how."""
    digits, mnist, cifar = "digits_seed0", "mnist_6000", "cifar10_5000"
    drop = ("localize", "compare_networks", "training_test")
    gradients = (
        "account_gradients",
        "account_gradients",
        "gradient_accounting_test",
    )
    rewind = ("rewind", "rewind_layers", "layer_probes_test")
    retrain = ("retrain", "retrain_layers", "layer_probes_test")
    ablate = ("ablate", "find_critical_units", "critical_units_test")
    small, seeds = "CIFAR-10, 5,000", "digits, 3 seeds"
    found = [
        (
            "drop, MNIST: noisy (5)",
            "100 -> 0.1 %",
            _before_after(mnist, "noisy"),
            "MNIST, 6,000",
            drop,
        ),
        (
            "drop, CIFAR-10: noisy (5)",
            "99 -> 3 %",
            _before_after(cifar, "noisy"),
            small,
            drop,
        ),
        (
            "drop, CIFAR-10: clean (5)",
            "99.9 -> 90.8 %",
            _before_after(cifar, "clean"),
            small,
            drop,
        ),
        (
            "drop, CIFAR-10: test, standard -> dropped (5)",
            "79.3 -> 82.7 %",
            _tests(cifar),
            small,
            drop,
        ),
        (
            "drop: noisy (abstract)",
            "100 -> 3 %",
            _before_after(digits, "noisy"),
            "digits",
            drop,
        ),
        (
            "drop: test, standard -> dropped",
            "",
            _tests(digits),
            "digits",
            drop,
        ),
        (
            "norm of noisy gradients / clean ones (4.1)",
            "comparable",
            _seed_means("gradient norm"),
            seeds,
            gradients,
        ),
        (
            "their cosine (4.1)",
            "strongly negative",
            _seed_means("gradient cosine"),
            seeds,
            gradients,
        ),
        (
            "share of groups that can be rewound (4.2)",
            "most",
            _seed_means("groups that can be rewound"),
            seeds,
            rewind,
        ),
        (
            "share of groups that can be retrained (4.3)",
            "most",
            _seed_means("groups that can be retrained"),
            seeds,
            retrain,
        ),
        (
            "median critical set (4.4)",
            "about 5 noisy, far more clean",
            _medians(_critical_digits()),
            "digits",
            ablate,
        ),
        (
            "",
            "",
            _medians(_read("mnist_10000_critical_units")["table"]),
            "MNIST, 10,000",
            ablate,
        ),
        (
            "",
            "",
            _medians(_read("cifar10_5000_critical_units")["table"]),
            small,
            ablate,
        ),
    ]
    rows = [
        (
            *numbers,
            f"`binaries.{program}`",
            f"`{function}`",
            f"`tests/{test}.py`",
        )
        for *numbers, (program, function, test) in found
    ]
    head = (
        "claim (section)",
        "published",
        "measured",
        "size",
        "program",
        "function",
        "tests",
    )
    return (
        "\n".join(
            f"| {' | '.join(row)} |"
            for row in (head, ("---",) * len(head), *rows)
        )
        + "\n"
    )


BLOCKS: Mapping[str, Callable[[], str]] = {
    "digits": lambda: _main_table("digits_seed0"),
    "claims": _claims,
    "digits_seeds": _seeds,
    "over_seeds": _over_seeds,
    "mnist": lambda: _main_table("mnist_6000"),
    "cifar10": lambda: _main_table("cifar10_5000"),
    "gradients": lambda: _sentence("digits_seed0_gradient_accounting"),
    "rewinding": lambda: _sentence("digits_seed0_layer_rewinding"),
    "retraining": lambda: _sentence("digits_seed0_layer_retraining"),
    "critical_digits": lambda: _critical(_critical_digits()),
    "critical_sentence": lambda: _sentence("digits_seed0_critical_units"),
    "critical_mnist": lambda: _critical(
        _read("mnist_10000_critical_units")["table"]
    ),
    "critical_cifar10": lambda: _critical(
        _read("cifar10_5000_critical_units")["table"]
    ),
    "protocols": lambda: _protocols("digits_protocols"),
    "protocols_cifar10": lambda: _protocols("cifar10_10000_protocols"),
    "own_units": lambda: _table("digits_seed0_own_units_example_tied"),
    **{
        f"label_errors_{name}": lambda name=name: label_tables.errors(
            _label_errors(name)
        )
        for name in ("digits", "mnist", "cifar10", "cifar10_10000")
    },
    **{
        f"labels_real_{name}": lambda name=name: label_tables.real(
            _label_errors(name, only_real=True)
        )
        for name in ("mnist", "cifar10")
    },
    "labels_said": _said,
    "label_rates": lambda: label_tables.rates(_read("label_rates")["rows"]),
    "kinds": lambda: _fenced(report.text_table(_read("kinds")["rows"])),
    "sweep": _sweep,
    "faults": _faults,
    "removal": lambda: removal_tables.short(
        [
            *_read("refits")["rows"],
            *(r for r in _read("rivals")["rows"] if r["setting"] != "vit"),
        ]
    ),
    **{
        f"removal_{name}": lambda name=name: removal_tables.full(
            _removals(), name
        )
        for name in (
            *("digits", "vit", "mnist", "mobilenet"),
            *("cifar", "cifar10k", "cifar50"),
        )
    },
    "removal_cifar_rivals": lambda: removal_tables.full(
        _read("cifar10_rivals")["rows"], "cifar"
    ),
    **{
        f"refits_{name}": lambda name=name: removal_tables.full(
            _read("refits")["rows"], name
        )
        for name in ("digits", "vit", "cifar", "cifar10k")
    },
    **{
        f"others_{name}": lambda name=name: removal_tables.full(
            _read("others")["rows"], name
        )
        for name in ("digits", "cifar")
    },
    **{
        f"rivals_{name}": lambda name=name: removal_tables.full(
            _read("rivals")["rows"], name
        )
        for name in ("mobilenet", "vit")
    },
    "removal_tinymem": lambda: removal_tables.recitation(_removals()),
    "protect": lambda: removal_tables.protect(_read("protect")["rows"]),
    "durability_digits": lambda: removal_tables.durability(
        _removals(), "digits"
    ),
    "durability_cifar": lambda: removal_tables.durability(_removals(), "cifar"),
    **{
        f"tied_{name}": lambda name=name: tied_tables.table(
            _read("tied_dropout")["rows"], name
        )
        for name in tied_tables.NAMES
    },
    "tied_refits": lambda: tied_tables.table(
        tied_tables.beside_standard(
            _read("tied_refits")["rows"], _read("refits")["rows"]
        ),
        "cifar",
    ),
    "tied_mechanism": lambda: tied_tables.mechanism(
        _read("tied_mechanism")["rows"]
    ),
    "text": lambda: audit_tables.text(_read("text")["rows"]),
    "sources": lambda: audit_tables.sources(_read("sources")["rows"]),
    "groups": _groups,
    "injection": lambda: audit_tables.injection(_read("injection")["rows"]),
    **{
        f"membership_{name}": lambda name=name: audit_tables.membership(
            _read(f"membership_{name}")
        )
        for name in ("digits", "cifar")
    },
    "worst_group": lambda: audit_tables.worst_group(
        _read("worst_group")["rows"]
    ),
    "costs": lambda: cost_tables.seconds(_read("costs")["rows"]),
    "costs_memory": lambda: cost_tables.memory(_read("costs")["rows"]),
    "lost_units": lambda: _fenced(
        report.text_table(_read("digits_lost_units")["rows"], percent=False)
    ),
}


def filled(text: str) -> str:
    """A text with its blocks made anew."""

    def block(found: re.Match) -> str:
        name = found[1]
        return f"<!-- {name} -->\n{BLOCKS[name]()}<!-- /{name} -->"

    return _BLOCK.sub(block, text)


def main(arguments: list[str]) -> None:
    """Fills the texts, or only checks them."""
    for path in TEXTS:
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if old == new:
            continue
        if "--check" in arguments:
            sys.exit(f"{path.name} does not show docs/results. Run this.")
        storage.write_text(path, new)
        print(f"{path.name}: filled")


if __name__ == "__main__":
    main(sys.argv[1:])
