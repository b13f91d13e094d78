"""What all other examples say about a label, and how labels go wrong."""

import dataclasses
import json

import numpy as np
import pytest

from tests import programs
from tfmemloc import (
    DataConfig,
    data,
    find_label_errors,
    from_arrays,
    score_without_network,
)
from tfmemloc.layers import masks
from tfmemloc.losses import log_softmax
from tfmemloc.scores import left_out, noise, ranking
from tfmemloc.scores.descriptions import Description
from tfmemloc.scores.quality import calibration_error, evaluate_scores
from tfmemloc.statistics import shared_ranks


def _blobs(rng, count, spread=1.0, classes=3):
    """Overlapping clouds of points, and their classes."""
    true = rng.integers(0, classes, count)
    x = rng.normal(size=(count, 4)) * spread + 2 * np.eye(classes, 4)[true]
    return x.astype(np.float32), true


@pytest.mark.parametrize("landmarks", [400, 25])
def test_each_prediction_is_that_of_a_fit_without_the_example(
    rng, monkeypatch, landmarks
):
    monkeypatch.setattr(left_out, "_LANDMARKS", landmarks)
    monkeypatch.setattr(left_out, "_CHUNK", 16)
    x, true = _blobs(rng, 60)
    y, test_y = true[:48], true[48:]
    examples = from_arrays(x[:48], y, x[48:], test_y)
    train = examples.train
    found = left_out.predict_left_out(train, examples.test)
    # The same by hand: one fit for each example, without it.
    rank = masks.hash_bits_numpy(0, train.example_id, 1)[:, 0]
    chosen = np.lexsort((train.example_id, rank))[:landmarks]
    points = Description(train.take(chosen), 0)
    z, of_test = points({"features": x[:48]}), points({"features": x[48:]})
    centers = z[chosen].astype(float)

    def distances(a):
        return ((a[:, None].astype(float) - centers[None]) ** 2).sum(axis=2)

    among = distances(centers)
    median = np.median(among[~np.eye(len(among), dtype=bool)])
    rows, rows_of_test = (np.exp(-distances(a) / median) for a in (z, of_test))
    penalty = np.exp(-among / median)
    share = np.bincount(y, minlength=3) / 48
    wanted = np.eye(3)[y] - share

    def fit(kept):
        normal = rows[kept].T @ rows[kept] + penalty
        normal += 1e-8 * np.trace(normal) / len(normal) * np.eye(len(normal))
        return np.linalg.solve(normal, rows[kept].T @ wanted[kept])

    for n in (0, 17, 47):
        kept = np.arange(48) != n
        np.testing.assert_allclose(
            found.train[n], 10 * (rows[n] @ fit(kept) + share), atol=1e-4
        )
    expected = 10 * (rows_of_test @ fit(np.ones(48, bool)) + share)
    np.testing.assert_allclose(found.others, expected, atol=1e-4)


def test_large_kernels_are_computed_again_and_the_same(rng, monkeypatch):
    x, y = _blobs(rng, 90)
    train = from_arrays(x, y).train
    none = train.take(np.arange(0))
    kept = left_out.predict_left_out(train, none)
    monkeypatch.setattr(left_out, "_KEPT_NUMBERS", 10)
    again = left_out.predict_left_out(train, none)
    np.testing.assert_allclose(again.train, kept.train, atol=1e-9)
    assert again.others.shape == (0, 3)


def test_the_order_of_the_examples_is_nothing(rng, small_digits):
    train = small_digits.train
    none = train.take(np.arange(0))
    order = rng.permutation(len(train))
    found = left_out.predict_left_out(train, none).train
    shuffled = left_out.predict_left_out(train.take(order), none).train
    np.testing.assert_allclose(shuffled, found[order], atol=1e-4)


def test_a_label_has_no_say_about_itself(digits):
    train = digits.train.take(np.arange(300))
    none = train.take(np.arange(0))
    found = left_out.predict_left_out(train, none).train
    changed = train.label.copy()
    changed[7] = (changed[7] + 1) % 10
    other = left_out.predict_left_out(
        dataclasses.replace(train, label=changed), none
    ).train
    # Only the shares of the classes, by one of 300.
    gap = 10 * (np.eye(10)[changed[7]] - np.eye(10)[train.label[7]]) / 300
    assert np.abs(other[7] - found[7]).max() < 2 * np.abs(gap).max()
    assert np.abs(other - found).max() > 2 * np.abs(gap).max()


def _planted(rng, kind, count=4000, classes=5):
    """Predictions that are true, and labels that went wrong in one way."""
    true = rng.integers(0, classes, count)
    centers = 2.2 * np.eye(classes)
    logits = (rng.normal(size=(count, classes)) + centers[true]) @ centers.T
    rate = np.full(classes, {"none": 0.0, "any": 0.15}.get(kind, 0.0))
    if kind == "class":
        rate[2] = 0.4
    other = (true + rng.integers(1, classes, count)) % classes
    if kind == "pairs":
        rate[:], other = 0.2, (true + 1) % classes
    wrong = rng.random(count) < rate[true]
    return logits, np.where(wrong, other, true), wrong


@pytest.mark.parametrize("kind", noise.KINDS)
def test_the_planted_kind_of_noise_is_found(rng, kind):
    logits, label, wrong = _planted(rng, kind)
    found = noise.fit_noise(3 * logits, label)  # Too sure by a factor of 3.
    assert found.kind == kind
    assert found.temperature == pytest.approx(3, rel=0.15)
    suspicion = found.suspicion(3 * logits, label)
    assert suspicion.sum() == pytest.approx(wrong.sum(), rel=0.1, abs=1e-6)
    edges = np.minimum((suspicion * 10).astype(int), 9)
    gaps = np.bincount(edges, wrong - suspicion, minlength=10)
    assert np.abs(gaps).sum() / len(label) < 0.02
    if kind == "class":
        assert found.rates[2, 2] == pytest.approx(0.6, abs=0.06)
        assert np.delete(np.diag(found.rates), 2).min() > 0.97


def test_rates_and_suspicion_are_their_slow_twins(rng):
    logits, label, _ = _planted(rng, "pairs", count=300, classes=3)
    found = noise.fit_noise(logits, label)
    chance = np.exp(log_softmax(logits / found.temperature))
    rates = np.full((3, 3), 0.05)
    np.fill_diagonal(rates, 0.9)
    for _ in range(2000):
        counts, true = np.zeros((3, 3)), []
        for p, y in zip(chance, label, strict=True):
            joint = np.array([p[t] * rates[t, y] for t in range(3)])
            true.append(joint / joint.sum())
            counts[:, y] += true[-1]
        rates = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.rates, rates, atol=2e-3)
    np.testing.assert_allclose(
        found.true_classes(logits, label), true, atol=5e-3
    )


def test_noise_that_follows_from_the_inputs_is_noticed(rng):
    label = rng.integers(0, 4, 5000)
    agrees = 5 * np.eye(4)[np.where(rng.random(5000) < 0.9, label, 0)]
    train, others = slice(0, 3000), slice(3000, None)
    pair = agrees[train], label[train]
    # Others are as often right: nothing to notice.
    assert not noise.is_predictable(pair, (agrees[others], label[others]))
    clean = np.where(rng.random(2000) < 0.1, 1, label[others])
    assert noise.is_predictable(pair, (agrees[others], clean))
    assert not noise.is_predictable(pair, (agrees[:0], label[:0]))


def test_many_classes_do_not_take_pairs_apart(rng):
    """There are too few labels for 100 x 99 rates; 20 % are wrong."""
    true = rng.integers(0, 100, 1500)
    wrong = rng.random(1500) < 0.2
    label = np.where(wrong, (true + rng.integers(1, 100, 1500)) % 100, true)
    logits = 7 * np.eye(100)[true] + rng.normal(size=(1500, 100))
    found = noise.fit_noise(logits, label)
    assert found.kind == "any"
    assert 1 - found.rates[0, 0] == pytest.approx(0.2, abs=0.03)


def test_who_is_more_often_right_counts_more(digits, rng):
    train, test = digits.train, digits.test
    said = left_out.predict_left_out(train, test)
    chosen = [train.true_label, test.label]
    judge = [
        log_softmax(3 * np.eye(10)[c] + rng.normal(size=(len(c), 10)))
        for c in chosen
    ]
    found = ranking.ranked(
        train,
        judge[0][np.newaxis],
        (judge[1][np.newaxis], test.label),
        "equal",
        {},
        None,
        left_out=said,
    )

    def odds(logits):
        right = np.mean(logits.argmax(axis=1) == test.label)
        share = (right * len(test) + 0.5) / (len(test) + 1)
        return (share - 0.1) / (1 - share)

    def fair(log_p):
        return log_softmax(log_p - np.log(np.exp(log_p).mean(axis=0)))

    def doubts(log_p):
        own = log_p[np.arange(len(train)), train.label]
        rest = log_p.copy()
        rest[np.arange(len(train)), train.label] = -np.inf
        margin = rest.max(axis=1) - own
        return (shared_ranks(margin) + shared_ranks(-own)) / 2

    better = min((odds(said.others) / odds(judge[1])) ** 2, 10)
    temperature = noise.fit_noise(said.train, train.label).temperature
    other = fair(log_softmax(said.train / temperature))
    judged = fair(fair(judge[0]))
    weighed = (doubts(judged) + 3 * better * doubts(other)) / (1 + 3 * better)
    np.testing.assert_allclose(found.of("combined"), weighed, atol=2e-3)
    both = (judged + better * other).argmax(axis=1)
    assert (found.suggested == both).mean() > 0.995
    assert found.noise == "any"


def test_wrong_labels_are_found_without_a_network(digits, tmp_path):
    found = find_label_errors(None, digits, tmp_path)
    assert found.names == ("combined", "left_out")
    (quality, _) = evaluate_scores(found)
    # Measured: 0.999, and an error of the suspicion of 0.2 %.
    assert quality["average_precision"] > 0.99
    assert calibration_error(found) < 0.01
    wrong = (found.label != found.true_label).sum()
    assert found.suspicion.sum() == pytest.approx(wrong, rel=0.1)
    assert "of all labels are wrong, of no class more" in found.sentence()
    assert (tmp_path / "review.html").exists()
    clean = dataclasses.replace(digits, label=digits.true_label)
    none = score_without_network(clean)
    assert none.noise == "none"
    assert "no suspicion is above 0" in none.sentence()
    assert none.suspicion.max() == 0
    with pytest.raises(TypeError, match="Without a network, `config`"):
        find_label_errors(None, digits, tmp_path, config=object())


@pytest.mark.parametrize(
    "kind", ["table", "categories", "tokens", "floats", "two inputs"]
)
def test_any_kind_of_examples_is_judged(rng, kind):
    x, true = _blobs(rng, 400, spread=0.6)
    wrong = rng.random(400) < 0.1
    label = np.where(wrong, (true + 1) % 3, true)
    if kind == "categories":
        x = np.stack([true, rng.integers(0, 5, 400)], axis=1)[:, :1]
    elif kind == "tokens":
        x = np.where(
            rng.random((400, 12)) < 0.5,
            true[:, None] * 7 + rng.integers(0, 7, (400, 12)),
            rng.integers(0, 21, (400, 12)),
        )
    elif kind == "floats":
        pictures = np.zeros((400, 9, 11, 2), np.float32)
        pictures[np.arange(400), 2 + true * 2, 3:8] = 1
        x = pictures + rng.normal(size=pictures.shape).astype(np.float32) / 9
    elif kind == "two inputs":
        x = {"a": x, "b": rng.normal(size=(400, 3)).astype(np.float32)}
    examples = from_arrays(x, label, true_label=true)
    (quality, _) = evaluate_scores(score_without_network(examples))
    assert quality["average_precision"] > 0.9


def test_the_unit_of_a_column_says_nothing(rng):
    x, true = _blobs(rng, 400, spread=0.5)
    wrong = rng.random(400) < 0.1
    label = np.where(wrong, (true + 1) % 3, true)
    units = np.logspace(-3, 5, x.shape[1])
    steady = np.full((400, 1), 7.0)
    found = [
        score_without_network(
            from_arrays(
                np.concatenate([columns, steady], axis=1),
                label,
                true_label=true,
            )
        )
        for columns in (x, x * units)
    ]
    np.testing.assert_allclose(
        found[0].suspicion, found[1].suspicion, atol=1e-6
    )
    assert evaluate_scores(found[1])[0]["average_precision"] > 0.9


def test_examples_that_are_all_the_same_are_judged():
    same = from_arrays(np.ones((80, 3), np.float32), np.arange(80) % 2)
    found = score_without_network(same)
    assert np.isfinite(found.values).all()
    assert found.noise == "none"


def test_large_pictures_are_made_small_first(rng):
    large = rng.integers(0, 256, (12, 70, 90, 3)).astype(np.uint8)
    examples = from_arrays(large, np.arange(12) % 2)
    described = Description(examples, 0)({"image": large / 127.5 - 1})
    # 256 patches, likeness and its negative, four quarters.
    assert described.shape == (12, 2048)
    assert np.isfinite(described).all()


def test_the_program_needs_no_network(tmp_path):
    x, true = _blobs(np.random.default_rng(0), 300, spread=0.5)
    label = true.copy()
    label[:20] = (label[:20] + 1) % 3
    np.savez(
        tmp_path / "mine.npz",
        x_train=x,
        y_train=label,
        true_label=true,
        subset=np.where(np.arange(300) < 200, "clean", "val"),
    )
    run = programs.launcher().run
    done = run(
        "binaries.score_examples",
        f"--dataset={tmp_path / 'mine.npz'}",
        f"--out_dir={tmp_path / 'labels'}",
    )
    assert "decide on:" in done.stdout
    assert "data: Examples('mine.npz': 200 clean, 100 val;" in done.stdout
    assert "\nwarning: mine.npz: examples of the subset val are" in (
        f"\n{done.stderr}"
    )
    assert "UserWarning" not in done.stderr
    rows = json.loads((tmp_path / "labels" / "example_scores.json").read_text())
    first = [row["example_id"] for row in rows["rows"][:15]]
    assert set(first) <= set(range(20))
    # Three labels become the true ones, which the file knows.
    decided = [f"{n},{label[n]},accept,{true[n]}" for n in range(3)]
    (tmp_path / "decisions.csv").write_text(
        "\n".join(["example_id,label,decision,new_label", *decided])
    )
    (tmp_path / "noise.csv").write_text(
        "\n".join(["example_id,label", *(f"{n},{label[n]}" for n in range(20))])
    )
    done = run(
        "binaries.score_examples",
        f"--dataset={tmp_path / 'mine.npz'}",
        f"--noise_file={tmp_path / 'noise.csv'}",
        f"--decisions={tmp_path / 'decisions.csv'}",
        f"--out_dir={tmp_path / 'corrected'}",
    )
    assert "3 labels corrected" in done.stdout
    assert "noise_file" not in done.stdout
    config = DataConfig(
        str(tmp_path / "mine.npz"),
        noise_rate=0.0,
        label_file=str(tmp_path / "corrected" / "corrected_labels.csv"),
    )
    with pytest.warns(UserWarning, match="of the subset val are trained on"):
        corrected = data.load(config)
    assert corrected.of_ids(np.arange(3)).label.tolist() == true[:3].tolist()
    assert (corrected.label != true).sum() == 17
    command = "binaries.score_examples", "--dataset=digits"
    alone = run(*command, check=False)
    assert "--dataset expected an --out_dir" in alone.stderr


def test_rates_of_classes_join_the_ranking(rng):
    """Half of the labels that say 0 are wrong, and no others."""
    x, true = _blobs(rng, 1500, spread=0.7)
    moved = (true == 1) & (rng.random(1500) < 0.4)
    label = np.where(moved, 0, true)
    examples = from_arrays(x, label, true_label=true)
    found = score_without_network(examples)
    assert found.noise == "pairs"
    (quality, _) = evaluate_scores(found)
    said = left_out.predict_left_out(
        examples.train, examples.take(np.arange(0))
    ).train
    plain = shared_ranks(-log_softmax(said)[np.arange(1500), label])
    without = dataclasses.replace(found, values=np.stack([plain] * 2, axis=1))
    assert (
        quality["average_precision"]
        > evaluate_scores(without)[0]["average_precision"] + 0.05
    )
    # Labels that nobody gets wrongly come last.
    assert found.of("combined")[label != 0].max() < np.quantile(
        found.of("combined")[moved], 0.2
    )


def test_the_page_says_where_nothing_can_be_known(rng):
    """Labels that were drawn anew by half of the plane, and right ones."""
    x, true = _blobs(rng, 3000, spread=0.6)
    label = np.where(x[:, 3] > 0.7, 0, true)
    train, others = slice(0, 2000), slice(2000, None)
    examples = from_arrays(x[train], label[train], x[others], true[others])
    said = left_out.predict_left_out(examples.train, examples.test)
    judges = log_softmax(said.train)[np.newaxis]
    held_out = log_softmax(said.others)[np.newaxis], examples.test.label
    found = ranking.ranked(
        examples.train, judges, held_out, "auto", {}, None, left_out=said
    )
    assert found.noise == "follows"
    assert "no suspicion for a probability" in found.sentence()
