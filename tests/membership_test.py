"""Attacks on membership: slow twins, closed cases, planted truths."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from tests import programs
from tests.memorization_test import _run_that_saw
from tests.toys import marked_examples
from tfmemloc.audits.attacks import ATTACKS, Shadows
from tfmemloc.audits.membership import (
    MOST,
    MembershipConfig,
    audit_membership,
)
from tfmemloc.audits.of_runs import confidences_of_runs
from tfmemloc.audits.rates import agreement, curve_of, measure

EVERY = MembershipConfig(attacks=tuple(ATTACKS))


def _pairs(rng, models, examples):
    """Random halves in complementary pairs."""
    half = rng.random((models // 2, examples)) < 0.5
    return np.stack([half, ~half], axis=1).reshape(models, examples)


def _gaussians(rng, gap, models=16, examples=4000):
    member = _pairs(rng, models, examples)
    center = 2 * rng.normal(size=examples)
    phi = center + rng.normal(size=member.shape) + gap * member
    return phi, member, center


def _others(phi, member, target, i, side):
    """What the shadows give for one example, in a plain loop."""
    return np.array(
        [
            phi[m, i]
            for m in range(len(phi))
            if m != target and member[m, i] == (side == "in")
        ]
    )


def test_attacks_agree_with_slow_twins(rng):
    phi, member, _ = _gaussians(rng, 1.0, models=6, examples=30)
    shadows, target = Shadows(phi, member), 2
    sides = {
        side: [_others(phi, member, target, i, side) for i in range(30)]
        for side in ("in", "out")
    }
    pooled = {
        side: np.sqrt(
            sum(((x - x.mean()) ** 2).sum() for x in found)
            / sum(len(x) - 1 for x in found)
        )
        for side, found in sides.items()
    }
    p = 1 / (1 + np.exp(-phi))
    for i in range(30):
        inside, outside = sides["in"][i], sides["out"][i]
        own = phi[target, i]
        lira = stats.norm(inside.mean(), pooled["in"]).logpdf(own)
        lira -= stats.norm(outside.mean(), pooled["out"]).logpdf(own)
        assert ATTACKS["lira"](shadows, target)[i] == pytest.approx(lira)
        offline = stats.norm(outside.mean(), pooled["out"]).logcdf(own)
        assert ATTACKS["lira_offline"](shadows, target)[i] == pytest.approx(
            offline
        )
        assert ATTACKS["loss"](shadows, target)[i] == own
    for name, mixed in (
        (
            "rmia",
            lambda a, b: (a.mean() + b.mean()) / 2,
        ),
        ("rmia_offline", lambda a, b: (1.3 * b.mean() + 0.7) / 2),
    ):
        ratio = np.array(
            [
                p[target, i]
                / mixed(
                    1 / (1 + np.exp(-sides["in"][i])),
                    1 / (1 + np.exp(-sides["out"][i])),
                )
                for i in range(30)
            ]
        )
        share = [(ratio < r).sum() / 29 for r in ratio]
        found = ATTACKS[name](shadows, target)
        np.testing.assert_allclose(found, np.log(ratio), atol=1e-9)
        # In the order of the share of others that it beats.
        np.testing.assert_array_equal(np.argsort(found), np.argsort(share))


def test_the_student_attack_agrees_with_its_definition(rng):
    """The predictive is the integral over mean and variance of the normal."""
    phi, member, _ = _gaussians(rng, 1.0, models=8, examples=200)
    shadows, target = Shadows(phi, member), 3
    found = ATTACKS["bavaria"](shadows, target)
    expected = np.zeros(200)
    for side, sign in (("in", 1), ("out", -1)):
        of = [_others(phi, member, target, i, side) for i in range(200)]
        count = np.array([len(x) for x in of])
        mean = np.array([x.mean() for x in of])
        scatter = np.array([((x - x.mean()) ** 2).sum() for x in of])
        within = scatter.sum() / (count - 1).sum()
        between = mean.var() - within * (1 / count).mean()
        variance = scatter[count > 1] / (count[count > 1] - 1)
        noise = 2 * within**2 * (1 / (count[count > 1] - 1)).mean()
        spread = variance.var() - noise
        a0 = np.clip(2 + within**2 / spread if spread > 0 else 1e3, 2.5, 1e3)
        b0, k0, m0 = within * (a0 - 1), within / between, mean.mean()
        for i in range(200):
            n, k = count[i], k0 + count[i]
            m = (k0 * m0 + of[i].sum()) / k
            a = a0 + n / 2
            b = b0 + scatter[i] / 2 + k0 * n * (mean[i] - m0) ** 2 / (2 * k)
            scale = np.sqrt(b * (k + 1) / (a * k))
            density = stats.t(2 * a, m, scale).pdf(phi[target, i])
            expected[i] += sign * np.log(density)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_rate_is_that_of_two_gaussians(rng):
    """With known centers, the best attack on a gap of 2 is a threshold."""
    phi, member, center = _gaussians(rng, 2.0, examples=6000)
    rates = (0.1, 0.01, 0.001)
    found = measure(phi - center, member, rates)
    best = [1 - stats.norm.cdf(stats.norm.ppf(1 - rate) - 2) for rate in rates]
    np.testing.assert_allclose(found["tpr"], best, atol=0.03)
    assert found["auc"] == pytest.approx(stats.norm.cdf(2 / np.sqrt(2)), 0.01)
    # Shadows must find the centers first, and come near that.
    audit = audit_membership({"g": phi}, member, EVERY)
    tpr = {r["attack"]: r["tpr"] for r in audit.rows() if r["fpr"] == 0.01}
    assert max(tpr.values()) > 0.7 * best[1]
    assert max(tpr.values()) < best[1] + 0.03
    assert tpr["loss"] < tpr["lira"]


def test_nothing_memorized_is_the_diagonal_and_all_is_found(rng):
    member = _pairs(rng, 8, 4000)
    noise = rng.normal(size=member.shape)
    audit = audit_membership({"none": noise}, member, EVERY)
    for row in audit.rows():
        assert row["tpr"] == pytest.approx(row["fpr"], abs=0.006)
        # Measured 0.478: a member has a shadow less on its own side.
        assert row["auc"] == pytest.approx(0.5, abs=0.04)
    audit = audit_membership({"all": noise - 20 + 40 * member}, member, EVERY)
    assert all(row["tpr"] == 1 for row in audit.rows())


def test_rates_and_intervals_by_hand():
    scores = np.array([5.0, 4, 3, 2, 4.5, 2.5, 1, 0])
    member = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    found = measure(scores, member, (0.0, 0.25, 0.5))
    # Above 4.5 one of four; above 2.5 three; above 1 all.
    np.testing.assert_array_equal(found["tpr"], [0.25, 0.75, 1.0])
    np.testing.assert_allclose(found["low"][2], 0.025**0.25, rtol=1e-6)
    assert found["high"][2] == 1
    pairs = [(a > b) for a in scores[:4] for b in scores[4:]]
    assert found["auc"] == pytest.approx(np.mean(pairs))
    false, true = curve_of(scores, member)
    assert false[0] == 0.25 and false[-1] == 1 and (np.diff(true) >= 0).all()


def test_parts_show_what_the_mean_hides(rng):
    """A tenth is memorized, all else is not."""
    member = _pairs(rng, 16, 3000)
    remembered = np.arange(3000) < 300
    phi = rng.normal(size=member.shape) + 5 * member * remembered
    subset = np.where(remembered, "noisy", "clean")
    audit = audit_membership({"net": phi}, member, subset=subset)
    rows = {
        (r["examples"], r["attack"]): r["tpr"]
        for r in audit.all_rows()
        if r["fpr"] == 0.01
    }
    assert rows["noisy", "lira"] > 0.9 and rows[MOST, "lira"] > 0.85
    assert rows["clean", "lira"] < 0.02
    assert rows["all", "lira"] < 0.15
    # 0.1 % of 24,000 pairs is enough, of 2,400 it is not.
    enough = {r["examples"]: r["enough"] for r in audit.all_rows()}
    assert enough["all"] and not enough["noisy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, m: (p[:2], m[:2]), "three networks or more.*Received: 2"),
        (lambda p, m: (p[:, :5], m), "the same shape"),
        (lambda p, m: (p, m.astype(int)), "booleans.*dtype int64"),
        (lambda p, m: (1 / (1 + np.exp(-p)), m), "look like probabilities"),
        (lambda p, m: (p, ~m), "seems to be swapped"),
        (lambda p, m: (np.where(m, np.inf, p), m), "finite.*clip"),
        (
            lambda p, m: (p, m | (np.arange(100) >= 7)),
            "of 100 that are .* such as number",
        ),
    ],
)
def test_bad_confidences_are_refused(rng, change, message):
    phi, member, _ = _gaussians(rng, 2.0, models=8, examples=100)
    phi, member = change(phi, member)
    with pytest.raises(ValueError, match=message):
        audit_membership({"net": phi}, member)


def test_an_example_on_one_side_alone_is_judged_by_the_others(rng):
    """Random halves that are no pairs leave some in all networks."""
    phi, member, _ = _gaussians(rng, 3.0, models=8, examples=300)
    member = member | (np.arange(300) < 5)
    audit = audit_membership({"net": phi + 3 * member}, member, EVERY)
    assert np.isfinite(audit.tpr).all() and audit.auc.min() > 0.6


def test_bad_settings_are_refused(rng):
    with pytest.raises(ValueError, match="one of 'loss'.*Received.*'lyra'"):
        MembershipConfig(attacks=("lyra",))
    with pytest.raises(ValueError, match="rates.*at most 1"):
        MembershipConfig(rates=(2.0,))
    with pytest.raises(ValueError, match="Expected confidences"):
        audit_membership({}, np.zeros((3, 4), bool))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    examples = marked_examples()
    directory = tmp_path_factory.mktemp("halves") / "standard"
    return examples, [
        _run_that_saw(directory, examples, seed) for seed in range(8)
    ]


def test_runs_give_the_confidence_of_each_label(planted):
    examples, runs = planted
    phi, member, everyone = confidences_of_runs({"standard": runs}, examples)
    assert phi["standard"].shape == (8, 20) == member["standard"].shape
    run, inside = runs[3], member["standard"][3]
    pixels = np.asarray(everyone.inputs["image"]).reshape(20, 64)
    logits = pixels @ run.model().get_weights()[0]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p = p[np.arange(20), everyone.label]
    np.testing.assert_allclose(
        phi["standard"][3], np.log(p / (1 - p)), rtol=1e-4
    )
    noisy = everyone.subset == "noisy"
    assert phi["standard"][3][noisy & inside].min() > 0
    assert phi["standard"][3][noisy & ~inside].max() < 0


def test_the_program_writes_rows_and_a_document(planted, tmp_path, rng):
    examples, runs = planted
    phi, member, _ = _gaussians(rng, 2.0, models=6, examples=300)
    np.savez(tmp_path / "mine.npz", phi=phi, member=member)
    programs.launcher().run(
        "binaries.audit",
        f"--confidences={tmp_path / 'mine.npz'}",
        f"--out_dir={tmp_path / 'out'}",
    )
    rows = json.loads((tmp_path / "out" / "audit.json").read_text())["rows"]
    assert len(rows) == 4 * 2
    assert {"network", "attack", "fpr", "tpr", "low", "high"} <= set(rows[0])
    expected = audit_membership({"mine": phi}, member).rows()
    assert rows == json.loads(json.dumps(expected))
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "Limits" in page and "too few" in page
    assert "who attacks" in (tmp_path / "out" / "audit.md").read_text()
    for arguments, message in (
        ((), "Expected --run_dir"),
        ((f"--run_dir={tmp_path}",), "holds no runs on random parts"),
        ((f"--confidences={tmp_path / 'no.npz'}",), "--out_dir is missing"),
        (
            (
                f"--confidences={tmp_path / 'no.npz'}",
                f"--out_dir={tmp_path / 'other'}",
            ),
            "there is no file",
        ),
    ):
        done = programs.launcher().run(
            "binaries.audit", *arguments, check=False
        )
        assert done.returncode == 1 and message in done.stderr


def test_the_program_takes_sweeps(tmp_path):
    for name, dropout in (("standard", "none"), ("tied", "example_tied")):
        programs.launcher().run(
            "binaries.sweep",
            "--grid=subset_seed=0,1",
            "--grid=subset_complement=false,true",
            "--over=subset_seed",
            "--base=--train_examples=80 --test_examples=20 --model=lenet "
            "--width=1 "
            f"--subset_ratio=0.5 --dropout={dropout} --epochs=2",
            f"--run_dir={tmp_path / 'halves' / name}",
        )
    programs.launcher().run(
        "binaries.audit", f"--run_dir={tmp_path / 'halves'}"
    )
    rows = json.loads((tmp_path / "halves" / "audit.json").read_text())["rows"]
    assert {row["network"] for row in rows} == {
        *("standard", "tied tied", "tied expected", "tied dropped")
    }
    assert all(row["members"] == row["others"] == 160 for row in rows)


def test_attacks_agree_with_memorization_estimates(rng):
    """Some examples are memorized, by much or little, others not at all."""
    models, examples = 12, 400
    member = rng.random((models, examples)) < 0.5
    memorized = np.linspace(0, 3, examples)
    phi = rng.normal(size=(models, examples)) * 0.3 + member * memorized
    audit = audit_membership({"net": phi}, member)
    assert (audit.agreement > 0.8).all()
    # The estimate is that of its definition.
    chance = 1 / (1 + np.exp(-phi))
    found = Shadows(phi, member).memorization()
    for n in (0, 57, 399):
        expected = (
            chance[member[:, n], n].mean() - chance[~member[:, n], n].mean()
        )
        assert found[n] == pytest.approx(expected)
    # Where all are alike, nothing can be said.
    assert np.isnan(agreement(np.zeros(phi.shape), member, found))
    # Of scores that know nothing there is no agreement.
    assert abs(agreement(rng.normal(size=phi.shape), member, found)) < 0.2
    member[:, 3] = True
    assert np.isnan(Shadows(phi, member).memorization()[3])


def test_a_result_says_how_many_networks(rng):
    phi, member, _ = _gaussians(rng, 3.0, models=8, examples=200)
    audit = audit_membership({"net": phi}, member)
    assert "8 networks for each" in audit.sentence()
    fewer = dataclasses.replace(audit, shadows=np.array([4]))
    assert "4 networks for each" in fewer.sentence()
