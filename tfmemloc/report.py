"""Results as text tables and as one self-contained HTML page.

The page carries its figures inside, needs no network and no script, and
follows the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from tfmemloc import plots, storage
from tfmemloc.results import (
    CriticalUnits,
    GradientAccounting,
    LayerRetraining,
    LayerRewinding,
    Localization,
    Result,
    SweepResults,
)

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A small picture, what it is, and numbers that unfold on a click."""

    png: bytes
    lines: Sequence[str]
    details: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report: what was asked, what came out."""

    title: str
    text: str
    rows: Sequence[Row] = ()
    figures: Mapping[str, tuple[str, bytes]] = dataclasses.field(
        default_factory=dict
    )  # File name -> caption, PNG.
    percent: bool = True  # Numbers of the table are fractions of 1.
    pictures: Sequence[Picture] = ()
    links: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # Words -> path from the page.


def text_table(rows: Sequence[Row], *, percent: bool = True) -> str:
    """Rows as aligned text.

    Args:
        rows: dicts with the same keys.
        percent: floats are fractions of 1, to be shown as per cent.

    Example:
        >>> print(text_table([{"model": "standard", "noisy": 1.0}]))
        model      noisy
        standard  100.0%
    """
    if not rows:
        return ""
    columns = list(rows[0])
    cells = [columns] + [
        [_cell(row.get(column), percent) for column in columns] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [isinstance(rows[0][column], str) for column in columns]
    lines = [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_text, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join(lines)


def _cell(value: Any, percent: bool) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{100 * value:.1f}%" if percent else f"{value:.3g}"
    return str(value)


def localization_section(
    result: Localization,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Section:
    """The main table: accuracy of each subset before and after the drop."""
    return Section(
        "What the network memorized, and what is left after the drop",
        localization_sentence(result),
        result.rows(),
        {
            "accuracy": (
                "Accuracy of each subset at the end of training.",
                plots.to_png(plots.accuracy_before_after(result)),
            ),
            "learning_curves": (
                "Accuracy of each subset by epoch; dashed lines: "
                "memorization units dropped.",
                plots.to_png(plots.learning_curves(histories)),
            ),
        },
    )


def localization_sentence(result: Localization) -> str:
    """What the table says, in a sentence."""
    tied = result.row("example_tied", "tied")
    drop = result.row("example_tied", "drop")
    memorized = "noisy" if "noisy" in result.subsets else "atypical"
    if memorized not in tied:
        return (
            "No label was made wrong and no score file was given; test "
            f"accuracy is {drop['test']:.1%} after the drop."
        )
    text = (
        "With its memorization units on, the example-tied network gets "
        f"{tied[memorized]:.1%} of the {memorized} training examples right as "
        f"they are labelled; with them off, {drop[memorized]:.1%}"
    )
    if memorized == "noisy":
        text += (
            f", and it gives {drop['noisy_true_label']:.1%} of them their "
            "true label"
        )
    standard = result.row("standard", "plain")
    return (
        f"{text}. Test accuracy is {drop['test']:.1%} after the drop; the "
        f"standard network's is {standard['test']:.1%}."
    )


def history_section(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Section:
    """A run by itself: accuracies at the end, and by epoch."""
    rows = [
        {"run": name, "inference": inference, **accuracy}
        for name, history in histories.items()
        for inference, accuracy in history[-1].get("accuracy", {}).items()
    ]
    epochs = ", ".join(
        f"{name} {len(history)}" for name, history in histories.items()
    )
    return Section(
        "What the network learned",
        f"Epochs recorded: {epochs}.",
        rows,
        {
            "learning_curves": (
                "Accuracy of each subset by epoch; dashed lines: "
                "memorization units dropped.",
                plots.to_png(plots.learning_curves(histories)),
            )
        }
        if rows
        else {},
    )


def gradient_section(result: GradientAccounting) -> Section:
    """Gradient accounting: the table is of the epochs of memorization."""
    figures = {
        "gradient_norms": (
            "L2 norm of the aggregate gradient of each subset, by layer group "
            "and epoch.",
            plots.to_png(plots.gradient_norms(result)),
        )
    }
    if result.memorized is not None and result.ordinary is not None:
        figures["gradient_cosines"] = (
            "Cosine between the aggregate gradients of the two training "
            "subsets.",
            plots.to_png(plots.gradient_cosines(result)),
        )
        figures["gradient_shares"] = (
            "Share of the summed squared per-example gradient norms.",
            plots.to_png(plots.gradient_shares(result)),
        )
    return Section(
        "Whose gradients move which layers",
        gradient_sentence(result),
        result.while_memorizing(),
        figures,
        percent=False,
    )


def gradient_sentence(result: GradientAccounting) -> str:
    """What the accounting says, in a sentence."""
    rows = result.while_memorizing()
    if not rows:
        return (
            "No accounted epoch has between 20% and 90% of the noisy examples "
            "learned, so there is nothing to say of their memorization."
        )
    ratios = [row["norm_ratio"] for row in rows]
    cosines = [row["cosine"] for row in rows]
    statistics = "batch" if result.batch_statistics else "frozen"
    return (
        f"While between 20% and 90% of the {result.memorized} examples were "
        f"learned ({rows[0]['epochs']} accounted epochs), the norm of their "
        f"aggregate gradient was {min(ratios):.2f} to {max(ratios):.2f} times "
        f"that of the {result.ordinary} ones, group by group, and the mean "
        f"cosine between the two {min(cosines):.2f} to {max(cosines):.2f} "
        f"(BatchNorm on {statistics} statistics)."
    )


def rewinding_section(result: LayerRewinding) -> Section:
    """Layer rewinding: the table is of the memorized examples."""
    s = result.subsets.index(result.memorized)
    rows = [
        {
            "group": group,
            **{
                f"epoch {epoch}": float(result.accuracy[e, g, s])
                for e, epoch in enumerate(result.epochs)
            },
        }
        for g, group in enumerate(result.groups)
    ]
    return Section(
        "Which layers can be put back without forgetting",
        rewinding_sentence(result),
        rows,
        {
            "layer_rewinding": (
                "Accuracy after one layer group was set back to an earlier "
                "epoch, or to another initialization (fresh).",
                plots.to_png(plots.rewinding_maps(result)),
            )
        },
    )


def rewinding_sentence(result: LayerRewinding) -> str:
    """What the rewinding says, in a sentence."""
    first = result.epochs[0]
    share = result.robust_share(first)
    group = result.most_sensitive(first)
    return (
        f"The table gives the accuracy on the {result.memorized} examples. "
        f"After a rewind to epoch {first}, {share:.0%} of the "
        f"{len(result.groups)} groups leave it at 90% or more; the most "
        f"sensitive is {group}, {_place(group, result.groups)}."
    )


def retraining_section(result: LayerRetraining) -> Section:
    """Layer retraining: accuracies after the reset and at the end."""
    return Section(
        "Which layers hold the memory of the others",
        retraining_sentence(result),
        result.table(),
        {
            "layer_retraining": (
                "Accuracy while one layer group learns anew, all others "
                "frozen.",
                plots.to_png(plots.retraining_curves(result)),
            )
        },
    )


def retraining_sentence(result: LayerRetraining) -> str:
    """What the retraining says, in a sentence."""
    share = result.robust_share()
    group = result.most_sensitive()
    return (
        f"Reset to epoch {result.reset_to} and trained on the "
        f"{result.trained_on} examples alone, {share:.0%} of the "
        f"{len(result.groups)} groups leave the accuracy on the "
        f"{result.memorized} examples at 90% or more: the memory of these is "
        f"in the other groups. The most sensitive is {group}, "
        f"{_place(group, result.groups)}."
    )


def critical_section(result: CriticalUnits) -> Section:
    """Critical units: how many, against controls, and what they cost."""
    rows = critical_rows(result.table())
    title, text = "How few units hold one example", critical_sentence(result)
    if not rows:
        return Section(title, text)
    return Section(
        title,
        text,
        rows,
        {
            "critical_sizes": (
                "Cumulative distribution of the number of units whose removal "
                "flips a prediction: critical ones, and two controls.",
                plots.to_png(plots.critical_sizes(result)),
            ),
            "critical_harm": (
                "Accuracy on other examples after the critical set of one "
                "example was removed.",
                plots.to_png(plots.critical_harm(result)),
            ),
            "critical_layers": (
                "Where the critical units are.",
                plots.to_png(plots.critical_layers(result)),
            ),
        },
        percent=False,
    )


def critical_rows(table: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows of `CriticalUnits.table`, for people."""
    return [
        {
            "subset": row["subset"],
            "examples": row["examples"],
            "flipped": row["flipped"],
            "median": f"{row['median']:g} "
            f"[{row['median_low']:g}, {row['median_high']:g}]",
            "mean": row["mean"],
            "greedy": row["greedy"],
            "random": row["random"],
            "by_activation": row["by_activation"],
            "to_true_label": f"{row['to_true_label']:.1%}",
            **{
                name: f"{value:.1%}"
                for name, value in row.items()
                if name.endswith("_after")
            },
        }
        for row in table
    ]


def critical_sentence(result: CriticalUnits) -> str:
    """What the search says, in a few sentences."""
    rows = result.table()
    if not rows:
        return (
            f"All {len(result.skipped)} examples were misclassified from the "
            "start, so that there was no prediction to flip."
        )
    sizes = " and ".join(
        f"{row['median']:g} units ({row['subset']})" for row in rows
    )
    text = (
        "The median of the smallest sets found is "
        f"{sizes}, with 95% bootstrap intervals in brackets; greedy is the "
        "size before needless units were put back. "
    )
    unflipped = int((~result.flipped).sum())
    if unflipped:
        text += f"{unflipped} predictions had not flipped at the limit. "
    if len(result.skipped):
        text += (
            f"{len(result.skipped)} examples were misclassified from the "
            "start and were skipped. "
        )
    last = rows[-1]
    shared = result.sharing()[-1]
    text += (
        f"The {last['subset']} examples' sets are of {shared['distinct']} "
        f"different units; the most frequent, {shared['top_unit']}, is in "
        f"{shared['top_share']:.1%} of them. "
    )
    harm = ", ".join(
        f"{last[f'{subset}_after']:.1%} of {count} {subset} (before: "
        f"{before:.1%})"
        for subset, count, before in zip(
            result.subsets, result.others, result.baseline, strict=True
        )
    )
    return (
        f"{text}After the removal of one {last['subset']} example's set the "
        f"network is right, on average, on {harm}."
    )


def own_units_section(results: Mapping[str, CriticalUnits]) -> Section:
    """Whether critical units are the example's own, network by network."""
    rows = [
        {
            "model": name,
            "subset": row["subset"],
            "examples": row["examples"],
            "own": f"{row['own']:.1%} "
            f"[{row['own_low']:.1%}, {row['own_high']:.1%}]",
            "chance": f"{row['chance']:.1%}",
            "median_size": row["median_size"],
            "own_flips": f"{row['own_flips']:.1%}",
            "others_flip": f"{row['others_flip']:.1%}",
        }
        for name, result in results.items()
        for row in result.own_shares()
    ]
    return Section(
        "Do the memorization units hold the memory?",
        "Share of an example's critical units that lie among its own "
        "memorization units, with a 95% bootstrap interval over examples, and "
        "their share among all units that are on for it. Units are gated "
        "where the dropout stands; for a network without tied layers the "
        "masks are those that the tied network gives the same example. Own "
        "flips: how often the prediction changes when all of the example's "
        "own memorization units are removed; others flip: when as many of "
        "the other units that are on are removed, at random.",
        rows,
        percent=False,
    )


def key_numbers(name: str, result: Result) -> dict[str, float]:
    """The one or two numbers of a probe that seeds are compared by."""
    if name == "gradient_accounting":
        rows = result.while_memorizing()
        if not rows:
            return {}
        return {
            "gradient norm, memorized / ordinary (median group)": float(
                np.median([row["norm_ratio"] for row in rows])
            ),
            "gradient cosine (mean of groups)": float(
                np.mean([row["cosine"] for row in rows])
            ),
        }
    if name == "layer_rewinding":
        first = result.epochs[0]
        return {
            f"groups that can be rewound to epoch {first}": (
                result.robust_share(first)
            )
        }
    if name == "layer_retraining":
        return {"groups that can be retrained": result.robust_share()}
    return {
        f"median critical set, {row['subset']}": row["median"]
        for row in result.table()
    }


def seeds_section(numbers: Mapping[str, Mapping[str, float]]) -> Section:
    """How sure the numbers are: mean and interval over runs.

    Args:
        numbers: of each run: name of the number -> value.
    """
    names = list(
        dict.fromkeys(name for run in numbers.values() for name in run)
    )
    rows = []
    for name in names:
        values = np.array(
            [run[name] for run in numbers.values() if name in run]
        )
        low, high = t_interval(values)
        rows.append(
            {
                "number": name,
                "runs": len(values),
                "mean": float(values.mean()),
                "interval": f"{low:.3g} to {high:.3g}",
                "smallest": float(values.min()),
                "largest": float(values.max()),
            }
        )
    return Section(
        "How sure this is",
        f"Means over {len(numbers)} runs, with the 95% interval of Student's "
        "t for the mean; accuracies and shares are fractions of 1. The figures "
        f"below are of the first run, {next(iter(numbers))}.",
        rows,
        percent=False,
    )


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean of a few values; NaN for one value."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = special.stdtrit(len(values) - 1, (1 + level) / 2)
    half *= values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def sweep_section(result: SweepResults, over: str = "seed") -> Section:
    """A sweep: mean and standard deviation over seeds, and curves."""
    groups = result.groups(over)
    names = _sweep_names(result)
    others = result.other_flags(over)
    rows = [
        {
            **dict(zip(others, key, strict=True)),
            "runs": count,
            **{
                name: f"{100 * mean[k]:.1f} ± {100 * spread[k]:.1f}%"
                if count > 1
                else f"{100 * mean[k]:.1f}%"
                for k, name in enumerate(result.names)
                if name in names
            },
        }
        for key, (mean, spread, count) in groups.items()
    ]
    figures = {}
    if others and all(_is_number(key[0]) for key in groups):
        figures["sweep"] = (
            f"Accuracy by {others[0]}; bars are one standard deviation over "
            f"{over}s.",
            plots.to_png(plots.sweep_curves(result, names, over)),
        )
    return Section(
        f"What {' and '.join(others) or over} change",
        sweep_sentence(result, over),
        rows,
        figures,
    )


def sweep_sentence(result: SweepResults, over: str = "seed") -> str:
    """How many runs there are, and where the best ones are."""
    groups = result.groups(over)
    others = result.other_flags(over)
    counts = {count for _, _, count in groups.values()}
    text = (
        f"{len(result.values)} runs; mean and standard deviation over "
        f"{min(counts)}"
        + (f" to {max(counts)}" if len(counts) > 1 else "")
        + f" {over}s."
    )
    tests = [name for name in result.names if name.endswith("test")]
    if not others or not tests:
        return text
    k = result.names.index(
        next((name for name in tests if "drop_" in name), tests[0])
    )
    best = max(groups, key=lambda key: groups[key][0][k])
    where = ", ".join(
        f"{flag} {value}" for flag, value in zip(others, best, strict=True)
    )
    return (
        f"{text} The best {result.names[k].replace('_', ' ')} accuracy, "
        f"{groups[best][0][k]:.1%}, is at {where}."
    )


def _sweep_names(result: SweepResults) -> list[str]:
    """The numbers that a table has room for: those after the drop, if any."""
    dropped = [
        name
        for name in result.names
        if re.match(r"(example_tied_)?drop_(?!recalibrated)", name)
    ]
    return dropped or list(result.names)[:6]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _place(group: str, groups: tuple[str, ...]) -> str:
    return f"number {groups.index(group) + 1} of {len(groups)} from the input"


def write_html(
    path: str | os.PathLike,
    title: str,
    sections: Sequence[Section],
    facts: Mapping[str, str],
) -> None:
    """Writes the report.

    Args:
        path: of the `.html` file.
        title: of the page.
        sections: in order.
        facts: what was run, with which versions: name -> text.
    """
    body = "\n".join(_section_html(section) for section in sections)
    facts_html = "\n".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"
        for name, text in facts.items()
    )
    storage.write_text(
        path,
        _PAGE.format(
            title=html.escape(title), style=_STYLE, body=body, facts=facts_html
        ),
    )


def write_markdown(
    path: str | os.PathLike,
    title: str,
    sections: Sequence[Section],
    facts: Mapping[str, str],
    *,
    figures: str = "figures",
) -> None:
    """Writes the report as Markdown.

    Args:
        path: of the `.md` file.
        title: of the page.
        sections: in order.
        facts: what was run, with which versions: name -> text.
        figures: folder of the PNG files, from the page.
    """
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts += [f"## {_plain(section.title)}", _plain(section.text)]
        table = _table_markdown(section)
        if table:
            parts.append(table)
        parts += [
            f"![{_plain(caption)}]({figures}/{name}.png)"
            for name, (caption, _) in section.figures.items()
        ]
        parts += [
            f"[{_plain(words)}]({urllib.parse.quote(target)})"
            for words, target in section.links.items()
        ]
    parts.append("## What was run")
    parts.append(
        "\n".join(
            f"- {_plain(name)}: {_code(text)}" for name, text in facts.items()
        )
    )
    storage.write_text(path, "\n\n".join(parts) + "\n")


def _plain(text: str) -> str:
    """Text that Markdown does not take for markup."""
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", str(text).replace("\n", " "))


def _code(text: str) -> str:
    """Text as it stands, between more backticks than it has in a row."""
    text = text.replace("\n", " ")
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _table_markdown(section: Section) -> str:
    if not section.rows:
        return ""
    columns = list(section.rows[0])
    lines = [
        [_plain(column.replace("_", " ")) for column in columns],
        [
            "---" if isinstance(section.rows[0][column], str) else "---:"
            for column in columns
        ],
    ]
    lines += [
        [_plain(_cell(row.get(column), section.percent)) for column in columns]
        for row in section.rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _section_html(section: Section) -> str:
    figures = "\n".join(
        '<figure><div class="chart"><img alt="{0}" '
        'src="data:image/png;base64,{1}"></div>'
        "<figcaption>{0}</figcaption></figure>".format(
            html.escape(caption), base64.b64encode(png).decode("ascii")
        )
        for caption, png in section.figures.values()
    )
    pictures = "\n".join(map(_picture_html, section.pictures))
    if pictures:
        figures += f'<div class="pictures">{pictures}</div>'
    links = "\n".join(
        f'<p><a href="{html.escape(urllib.parse.quote(target))}">'
        f"{html.escape(words)}</a></p>"
        for words, target in section.links.items()
    )
    return (
        f"<section>\n<h2>{html.escape(section.title)}</h2>\n"
        f"<p>{html.escape(section.text)}</p>\n{_table_html(section)}\n"
        f"{links}\n{figures}\n</section>"
    )


def _picture_html(picture: Picture) -> str:
    lines = "<br>".join(map(html.escape, picture.lines))
    details = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        for name, value in picture.details.items()
    )
    if details:
        lines += (
            f"<details><summary>scores</summary><dl>{details}</dl></details>"
        )
    return (
        '<figure><img alt="" src="data:image/png;base64,'
        f'{base64.b64encode(picture.png).decode("ascii")}">'
        f"<figcaption>{lines}</figcaption></figure>"
    )


def _table_html(section: Section) -> str:
    rows = section.rows
    if not rows:
        return ""
    kind = {
        column: ' class="text"' if isinstance(value, str) else ""
        for column, value in rows[0].items()
    }
    head = "".join(
        f"<th{kind[column]}>{html.escape(column.replace('_', ' '))}</th>"
        for column in rows[0]
    )
    lines = "\n".join(
        "<tr>"
        + "".join(
            f"<td{kind[column]}>"
            f"{html.escape(_cell(row.get(column), section.percent))}</td>"
            for column in rows[0]
        )
        + "</tr>"
        for row in rows
    )
    return (
        '<div class="table"><table><thead><tr>'
        f"{head}</tr></thead><tbody>\n{lines}\n</tbody></table></div>"
    )


_STYLE = """
:root { color-scheme: light dark; --line: #8886; --back: #fff; --ink: #1a1a1a; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --ink: #e8e8e8; }
}
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--back);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; }
.text { text-align: left; }
figure { margin: 1.5rem 0; }
/* Figures are drawn on white; give them a frame of it on a dark page. */
img { max-width: 100%; background: #fff; border-radius: 4px; }
figcaption { font-size: .9rem; opacity: .8; }
/* A small screen scrolls a chart sideways, so that its words stay legible. */
@media screen and (max-width: 40rem) {
  .chart { overflow-x: auto; } .chart img { max-width: 44rem; }
}
.pictures { display: grid; gap: .75rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); }
.pictures figure { margin: 0; }
.pictures img { width: 100%; image-rendering: pixelated; }
.pictures figcaption { font-size: .75rem; }
.pictures dl { display: grid; grid-template-columns: auto auto; margin: 0; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; }
.pictures dt { font-weight: 400; }
.pictures dd { margin: 0; text-align: right; }
summary { cursor: pointer; }
a { color: inherit; }
@media print { body { max-width: none; } section { break-inside: avoid; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
<section>
<h2>What was run</h2>
<dl>
{facts}
</dl>
</section>
</body>
</html>
"""
