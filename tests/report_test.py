import dataclasses
import re

import numpy as np
import pytest

from tfmemloc import report
from tfmemloc.removal.drop import NetworkComparison
from tfmemloc.training import TrainingHistory

HISTORY = [
    {
        "epoch": epoch,
        "accuracy": {
            "tied": {"clean": 0.9, "noisy": 0.5, "test": 0.8},
            "drop": {"clean": 0.9, "noisy": 0.1, "test": 0.9},
        },
    }
    for epoch in (1, 2, 3)
]


@pytest.fixture
def result():
    return NetworkComparison(
        dataset="<digits>",
        models=("standard", "example_tied", "example_tied"),
        inferences=("plain", "tied", "drop"),
        subsets=("clean", "noisy", "test"),
        count=np.array([90, 10, 20]),
        accuracy=np.array([[1, 1, 0.9], [1, 0.99, 0.8], [0.98, 0.01, 0.95]]),
        true_accuracy=np.array([[1, 0, 0.9], [1, 0, 0.8], [0.98, 0.9, 0.95]]),
        loss=np.ones((3, 3)),
    )


def test_rows_are_those_of_the_summary(result):
    assert result.rows()[2] == {
        "model": "example_tied",
        "inference": "drop",
        "clean": 0.98,
        "noisy": 0.01,
        "noisy_true_label": 0.9,
        "test": 0.95,
    }


def test_result_saves_and_loads(result, tmp_path):
    result.save(tmp_path / "localization")
    loaded = NetworkComparison.load(tmp_path / "localization")
    assert loaded.rows() == result.rows()
    (tmp_path / "localization.json").write_text('{"type": "Other"}')
    with pytest.raises(
        ValueError,
        match="name of its module and class. Received: module None, type",
    ):
        NetworkComparison.load(tmp_path / "localization")


def test_text_table(result):
    lines = report.text_table(result.rows()).splitlines()
    assert lines[0].split() == [
        "model",
        "inference",
        "clean",
        "noisy",
        "noisy_true_label",
        "test",
    ]
    assert lines[3].split() == [
        "example_tied",
        "drop",
        "98.0%",
        "1.0%",
        "90.0%",
        "95.0%",
    ]
    assert report.text_table([]) == ""
    assert report.text_table([{"n": 3, "x": None}]).split() == [
        "n",
        "x",
        "3",
        "-",
    ]


def test_sentence_tells_the_numbers(result):
    sentence = result.sentence()
    for number in ("99.0%", "1.0%", "90.0%", "95.0%"):
        assert number in sentence


def test_page_is_self_contained_and_escaped(result, tmp_path):
    history = TrainingHistory.of({"example_tied": HISTORY})
    report.write_html(
        tmp_path / "report.html",
        "<script>alert(1)</script>",
        [report.section_of(result), report.section_of(history)],
        {"Command": "a & b <c>"},
    )
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "a &amp; b &lt;c&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 2
    for row in result.rows():
        assert f'<td class="text">{row["inference"]}</td>' in page


def test_figures_repeat_byte_for_byte(result):
    first, again = (
        report.to_png(result.figures()["accuracy"]) for _ in range(2)
    )
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert first == again


def test_curves_show_the_history():
    history = TrainingHistory.of({"example_tied": HISTORY})
    figure = history.figures()["learning_curves"].drawing
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert set(lines) == {
        f"{subset} {word}"
        for subset in ("clean", "noisy", "test")
        for word in ("tied", "dropped")
    }
    assert lines["noisy dropped"].get_ydata().tolist() == [10, 10, 10]
    assert figure.axes[0].get_xlabel() == "epoch"


def test_networks_of_other_names_are_told_too(result):
    other = dataclasses.replace(result, models=("mine", "yours", "yours"))
    assert other.sentence() == "Networks measured: mine, yours."
    assert report.section_of(other).table.rows


def test_a_long_page_begins_with_its_contents(result, tmp_path):
    section = report.section_of(result)
    for count in (2, 3):
        sections = [
            dataclasses.replace(section, title=f"Part <{n}>")
            for n in range(count)
        ]
        report.write_html(tmp_path / "page.html", "t", sections, {})
        page = (tmp_path / "page.html").read_text()
        assert ("<nav" in page) == (count > 2)
        if count > 2:
            assert '<a href="#part3">Part &lt;2&gt;</a>' in page
            assert '<section id="part3">' in page
