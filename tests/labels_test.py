"""Wrong labels found by any network, decided about, corrected."""

import contextlib
import csv
import dataclasses
import json
import re
import shutil
import warnings

import numpy as np
import pytest

from tfmemloc import data, storage
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.evaluation import predict_logits
from tfmemloc.graph import with_inference
from tfmemloc.labels import (
    apply_decisions,
    find_label_errors,
    read_decisions,
    score_by_removal,
)
from tfmemloc.labels.by_removal import course_of
from tfmemloc.labels.review import REVIEW, write_review
from tfmemloc.losses import log_softmax
from tfmemloc.moved import predict_moved
from tfmemloc.removal.curvature import CurvatureConfig, remove_memory
from tfmemloc.scores import (
    ScoreConfig,
    noise,
    ranking,
    scores_of_logits,
    suspects,
)
from tfmemloc.training import Recording, train

HEADER = "example_id,label,decision,new_label"
QUICK = CurvatureConfig(keep=0.9, rounds=1, refit_epochs=1)


def _table(path, *lines):
    storage.write_text(path, "\n".join([HEADER, *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def scored(small_digits, rng_of_module):
    """Scores by which every fifth label is suspected."""
    train = small_digits.train
    logits = rng_of_module.normal(size=(len(train), 10))
    logits[np.arange(len(train)), train.label] += 4
    logits[::5] = rng_of_module.normal(size=logits[::5].shape)
    logits[::5, 7] += 9
    return scores_of_logits(train, dropped=logits, prior="labels")


def test_issues_have_the_columns_of_others(scored, small_digits):
    rows = list(suspects.issues(scored, small_digits))
    assert [row["example_id"] for row in rows] == scored.example_id.tolist()
    scores = np.array([row["label_score"] for row in rows])
    order = np.argsort(scores, kind="stable")
    assert scored.example_id[order][0] == scored.rows()[0]["example_id"]
    issue = np.array([row["is_label_issue"] for row in rows])
    assert scores[issue].mean() < scores[~issue].mean()
    names = {small_digits.class_name(k) for k in range(10)}
    assert {row["given_label"] for row in rows} <= names
    for row, n in zip(rows, range(len(rows)), strict=True):
        is_same = row["given_label"] == row["predicted_label"]
        assert row["is_label_issue"] == (not is_same), n


@pytest.fixture(scope="module")
def rng_of_module():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("labels")


@pytest.fixture(scope="module")
def found(small_network, small_digits, folder):
    before = [w.copy() for w in small_network.get_weights()]
    found = find_label_errors(small_network, small_digits, folder, QUICK)
    for old, new in zip(before, small_network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    return found


def test_any_trained_network_ranks_labels(found, folder):
    written = {path.name for path in folder.iterdir()}
    assert {REVIEW, "suspects.csv", "example_scores.npz"} <= written
    (combined, *_) = found.quality
    # The network knew all labels, right and wrong: by its loss they are even.
    assert combined["auroc"] > 0.7
    assert "tied_gap" in found.names


def test_the_edited_network_judges_and_the_given_one_is_the_gap(
    found, small_network, small_digits
):
    from tfmemloc.losses import log_softmax

    edited, _ = remove_memory(small_network, small_digits, QUICK)
    train = small_digits.train
    rows = np.arange(len(train)), train.label
    on, off = (
        log_softmax(predict_logits(model, train))[rows]
        for model in (small_network, edited)
    )
    np.testing.assert_allclose(found.of("tied_gap"), on - off, atol=1e-4)


def _ranks(values):
    """Shares of the ranks; equal values share the mean of theirs."""
    values = np.asarray(values, float)
    return np.array(
        [
            np.sum(values < value) + (np.sum(values == value) + 1) / 2
            for value in values
        ]
    ) / len(values)


# One epoch: it knows hardly anything.
@pytest.mark.filterwarnings("ignore:Model .* predicts:UserWarning")
def test_the_course_of_the_training_joins_the_ranking(
    tmp_path, small_digits, monkeypatch
):
    """Its rank counts twice as much as those of the networks."""
    monkeypatch.setattr(ranking, "_LEFT_OUT", 0.0)
    run = train(
        tmp_path / "run",
        data=DataConfig(),
        examples=small_digits,
        model=ModelConfig("lenet", dropout="none"),
        training=TrainConfig(epochs=4, batch_size=40),
        progress=False,
    )
    work = {"config": QUICK, "directory": tmp_path / "work"}
    found = score_by_removal(run, small_digits, **work)
    alone = score_by_removal(run.model(), small_digits, **work)
    assert "csl" not in alone.names
    recording = Recording.open(run.directory / "recording")
    recorded = recording.of(small_digits.train)
    np.testing.assert_allclose(
        found.of("csl"), recorded.loss.sum(axis=0), rtol=1e-6
    )
    late = _ranks(recorded.loss.sum(axis=0))
    expected = (alone.of("combined") + 2 * late) / 3
    np.testing.assert_allclose(found.of("combined"), expected)
    # How surely is said by all other examples.
    np.testing.assert_allclose(found.suspicion, alone.suspicion, atol=1e-6)
    # The same for a model whose `fit` was recorded.
    given = score_by_removal(
        run.model(), small_digits, recording=recording, **work
    )
    np.testing.assert_allclose(given.of("combined"), found.of("combined"))
    other = dataclasses.replace(small_digits, label=small_digits.true_label)
    with pytest.raises(ValueError, match="label"):
        score_by_removal(run.model(), other, QUICK, recording=recording)


def _trusts_slowly(classes, label, suspicion):
    """Judges count by how near the number of labels that they doubt is."""
    wrong = max(sum(suspicion), 0.5)
    trusts = []
    for said in classes:
        doubted = max(sum(said != label), 0.5)
        trusts.append((min(doubted, wrong) / max(doubted, wrong)) ** 2)
    return np.array(trusts) / sum(trusts)


def test_networks_count_by_how_many_labels_they_doubt(rng):
    """A hundred labels, four of them wrong; networks that doubt 4, 8, 1, 0."""
    label = rng.integers(0, 3, 100)

    def network(doubted):
        said = np.eye(3)[(label + (np.arange(100) < doubted)) % 3]
        return np.log(0.1 + said)

    def trusts(rate, *doubted):
        return ranking._trusts([network(d) for d in doubted], label, rate)

    np.testing.assert_allclose(trusts(0.04, 8, 1), [0.8, 0.2])
    np.testing.assert_allclose(trusts(0.04, 4, 8, 1), [16 / 21, 4 / 21, 1 / 21])
    # Half an example stands for none.
    np.testing.assert_allclose(trusts(0.04, 4, 0), [64 / 65, 1 / 65])
    np.testing.assert_allclose(trusts(0.0, 4, 0), [1 / 65, 64 / 65])
    np.testing.assert_allclose(trusts(0.04, 7), [1.0])


@pytest.mark.parametrize(
    ("kind", "wrong", "is_uneven"),
    [("pairs", 5.9, False), ("pairs", 6, True), ("class", 3, True)]
    + [("class", 2.9, False), ("any", 99, False), ("none", 99, False)],
)
def test_few_wrong_labels_tell_no_rates_apart(kind, wrong, is_uneven):
    assert noise.Noise(kind, 1.0, np.eye(3)).is_uneven(wrong) == is_uneven


# One epoch: it knows hardly anything.
@pytest.mark.filterwarnings("ignore:Model .* predicts:UserWarning")
def test_several_networks_without_ties_judge_together(
    tmp_path, small_digits, monkeypatch
):
    monkeypatch.setattr(ranking, "_LEFT_OUT", 0.0)
    runs = [
        train(
            tmp_path / str(seed),
            data=DataConfig(),
            examples=small_digits,
            model=ModelConfig("lenet", dropout="none", seed=seed),
            training=TrainConfig(epochs=2, batch_size=40, seed=seed),
            progress=False,
        )
        for seed in (0, 1)
    ]
    directory = tmp_path / "out"
    found = find_label_errors(runs, small_digits, directory, QUICK)
    part = small_digits.train
    alone, judges, before = [], [], []
    for place, run in enumerate(runs):
        # What was kept of the removals makes the same networks.
        work = directory / "work" / str(place)
        edited, _ = remove_memory(run, small_digits, QUICK, directory=work)
        judges.append(predict_moved(edited, part).mean)
        before.append(predict_moved(run.model(), part).mean)
        alone.append(score_by_removal(run, small_digits, QUICK, directory=work))
    for name in found.names[1:]:
        mean = np.mean([scores.of(name) for scores in alone], axis=0)
        np.testing.assert_allclose(found.of(name), mean, rtol=1e-4, atol=1e-4)
    shares = ranking.true_shares(np.stack(judges), part.label, "auto")
    with warnings.catch_warnings():  # A network before its edit is in-sample.
        warnings.simplefilter("ignore")
        doubts = [
            scores_of_logits(part, dropped=np.stack(each), prior=shares)
            for each in (judges, before)
        ]
    trusts = _trusts_slowly(
        [d.suggested for d in doubts], part.label, found.suspicion
    )
    doubt = sum(
        t * d.of("combined") for t, d in zip(trusts, doubts, strict=True)
    )
    late = _ranks(found.of("csl"))
    np.testing.assert_allclose(found.of("combined"), (doubt + 2 * late) / 3)
    for scores in alone:
        np.testing.assert_allclose(scores.suspicion, found.suspicion, atol=1e-5)
    recording = Recording.open(runs[0].directory / "recording")
    with pytest.raises(ValueError, match="`recording` expected one network"):
        score_by_removal(runs, small_digits, QUICK, recording=recording)
    shutil.rmtree(runs[1].directory / "recording")
    with pytest.raises(ValueError, match="only one has the scores"):
        score_by_removal(runs, small_digits, QUICK)


def test_how_a_tied_network_learned_has_no_say(tmp_path, small_digits):
    run = train(
        tmp_path / "run",
        data=DataConfig(),
        examples=small_digits,
        model=ModelConfig("lenet", p_gen=0.5),
        training=TrainConfig(epochs=1, batch_size=40),
        progress=False,
    )
    assert (run.directory / "recording").exists()
    assert course_of(run, run.model(), small_digits) == {}


def test_a_model_with_tied_dropout_is_dropped(tied_run, tmp_path):
    """Not edited, and its memory is on where it stands for the given one."""
    model, examples = tied_run.model(), tied_run.examples()
    train = examples.train
    found = find_label_errors(model, examples, tmp_path)
    log_p = {
        inference: log_softmax(
            predict_logits(with_inference(model, inference), train)
        )[np.arange(len(train)), train.label]
        for inference in ("tied", "drop")
    }
    np.testing.assert_allclose(found.of("loss"), -log_p["tied"], atol=1e-4)
    np.testing.assert_allclose(
        found.of("tied_gap"), log_p["tied"] - log_p["drop"], atol=1e-4
    )
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("network", {"config": ScoreConfig()}, "expected a CurvatureConfig"),
        ("scores", {"config": QUICK}, "expected no config and no options"),
        ("words", {}, "model, scores, or None for no network. Received: str"),
    ],
)
def test_sources_and_options_that_do_not_fit(
    source, options, words, small_network, small_digits, scored, tmp_path
):
    source = {"network": small_network, "scores": scored}.get(source, source)
    with pytest.raises(TypeError, match=words):
        find_label_errors(source, small_digits, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_no_examples_are_shown(scored, small_digits, tmp_path):
    with pytest.raises(ValueError, match="`shown` must be an integer"):
        find_label_errors(scored, small_digits, tmp_path, shown=-1)


def test_decisions_are_applied(small_digits, tmp_path):
    train = small_digits.train
    ids, label = train.example_id[:4].tolist(), train.label[:4].tolist()
    new = [(k + 1) % 10 for k in label]
    path = _table(
        tmp_path / "decisions.csv",
        f"{ids[0]},{label[0]},accept,{new[0]}",
        f"{ids[1]},{label[1]},keep,{label[1]}",
        f"{ids[2]},{label[2]},unsure,{label[2]}",
        f"{ids[3]},{label[3]},other,{new[3]}",
    )
    found = apply_decisions(small_digits, path)
    expected = small_digits.label.copy()
    for k in (0, 3):
        expected[small_digits.example_id == ids[k]] = new[k]
    np.testing.assert_array_equal(found.label, expected)
    np.testing.assert_array_equal(found.true_label, small_digits.true_label)
    is_wrong = found.train.label != found.train.true_label
    np.testing.assert_array_equal(found.train.subset == "noisy", is_wrong)
    without = apply_decisions(small_digits, path, drop_unsure=True)
    assert set(found.example_id) - set(without.example_id) == {ids[2]}


def test_without_known_truth_the_correction_is_the_truth(tmp_path):
    mine = data.from_arrays(np.zeros((4, 3)), [0, 1, 2, 0], ids=[5, 6, 7, 8])
    # As spreadsheets write it.
    path = _table(tmp_path / "decisions.csv", "6,1,other,2", "", ",,,")
    path.write_text("\ufeff" + path.read_text())
    found = apply_decisions(mine, path)
    assert found.label.tolist() == found.true_label.tolist() == [0, 2, 2, 0]
    assert set(found.subset) == {"clean"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("6,1,maybe,1", "line 2: expected an integer id"),
        ("6,1,keep,2", "line 2: expected an integer id"),
        ("six,1,keep,1", "line 2: expected an integer id"),
        ("6,1,keep", "line 2: expected an integer id"),
        ("6,0,accept,2", "decisions about other data than"),
        ("9,1,accept,2", "no example with id 9"),
        ("\n6,1,other,3\n", "Expected labels from 0 to 2|label"),
        ("6,1,keep,1\n6,1,keep,1", "occurs twice"),
    ],
)
def test_bad_decisions_are_refused(line, words, tmp_path):
    mine = data.from_arrays(
        np.zeros((4, 3)), [0, 1, 2, 0], ids=[5, 6, 7, 8], name="mine"
    )
    path = _table(tmp_path / "decisions.csv", line)
    with pytest.raises(ValueError, match=words):
        apply_decisions(mine, path)


def test_a_table_without_decisions_is_refused(tmp_path):
    path = _table(tmp_path / "decisions.csv")
    with pytest.raises(ValueError, match="holds no decision"):
        read_decisions(path)


def test_a_table_without_the_header_is_refused(tmp_path):
    storage.write_text(tmp_path / "x.csv", "example_id,label\n")
    with pytest.raises(ValueError, match="expected the header"):
        read_decisions(tmp_path / "x.csv")


def test_a_label_file_replaces_the_labels_of_a_data_set(tmp_path):
    plain = data.load(DataConfig(noise_rate=0.0))
    first = int(plain.train.example_id[0])
    wanted = (int(plain.train.label[0]) + 1) % 10
    storage.write_text(
        tmp_path / "labels.csv", f"example_id,label\n{first},{wanted}\n"
    )
    found = data.load(
        DataConfig(noise_rate=0.0, label_file=str(tmp_path / "labels.csv"))
    )
    assert found.of_ids([first]).label.tolist() == [wanted]
    assert (found.label != plain.label).sum() == 1
    assert set(found.subset) == {"clean", "test"}


def _data_of(page):
    text = page.read_text("utf-8")
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def test_the_page_asks_suspects_first_and_never_too_few(
    scored, small_digits, tmp_path
):
    page = write_review(tmp_path, scored, small_digits)
    items = _data_of(page)["items"]
    # Fewer suspects than a hundred: all 80 are asked about.
    assert len(items) == 80
    suspects = [row["example_id"] for row in scored.suspects()]
    assert [item["id"] for item in items[: len(suspects)]] == suspects
    assert (
        len(_data_of(write_review(tmp_path, scored, small_digits, 5))["items"])
        == 5
    )


def test_names_of_classes_cannot_break_the_page(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    mine = data.from_arrays(
        np.zeros((3, 2)), [0, 1, 0], class_names=[evil, "b"], name="<b>"
    )
    scores = scores_of_logits(mine, dropped=np.eye(2)[[1, 1, 0]] * 5)
    page = write_review(tmp_path, scores, mine)
    assert "<img src=x" not in page.read_text("utf-8")
    assert _data_of(page)["classes"][0] == evil


@contextlib.contextmanager
def _browser():
    api = pytest.importorskip("playwright.sync_api")
    path = next(
        filter(
            None,
            map(
                shutil.which, ("chromium", "chromium-browser", "google-chrome")
            ),
        ),
        None,
    )
    if path is None:
        pytest.skip("needs Chromium or Chrome on the path")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"]
        )
        try:
            yield browser
        finally:
            browser.close()


@pytest.mark.parametrize("width", (1280, 390))
def test_a_person_decides_by_keys(width, scored, small_digits, tmp_path):
    """Real key presses; decisions outlive the page; the table is applied."""
    page_path = write_review(tmp_path, scored, small_digits)
    items = _data_of(page_path)["items"]
    with _browser() as browser:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, accept_downloads=True
        )
        page = context.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(page_path.as_uri())
        assert page.locator(".card").count() == 24
        for key in "kau":
            page.keyboard.press(key)
        page.keyboard.press("o")  # Opens the choice of another class.
        other = next(k for k in range(10) if k not in (items[3]["label"], 7))
        page.locator(".card.current select").select_option(str(other))
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("k")  # The fourth again: kept after all.
        assert page.locator("#progress").inner_text() == "4 of 80 decided"
        page.reload()
        assert page.locator("#progress").inner_text() == "4 of 80 decided"
        page.locator("#order").select_option("open")
        first = page.locator(".card").first.get_attribute("data-id")
        assert int(first) == items[4]["id"]
        # A filter shows one kind of confusion alone.
        page.locator("#filter").select_option(index=1)
        shown = page.locator(".card p:first-of-type").all_inner_texts()
        assert len(set(shown)) == 1
        page.locator(".card img").first.click()
        assert page.locator("dialog[open] img").is_visible()
        page.keyboard.press("Escape")
        overflow = page.evaluate(
            "document.documentElement.scrollWidth - innerWidth"
        )
        assert overflow <= 0
        with page.expect_download() as saved:
            page.locator("#save").click()
        saved.value.save_as(tmp_path / "decisions.csv")
        assert not errors
    with open(tmp_path / "decisions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["decision"] for row in rows] == [
        "keep",
        "accept",
        "unsure",
        "keep",
    ]
    corrected = apply_decisions(small_digits, tmp_path / "decisions.csv")
    assert (corrected.label != small_digits.label).sum() == 1
    second = corrected.of_ids([items[1]["id"]])
    assert second.label.tolist() == [items[1]["suggested"]]
