"""Pictures, a table, text and two inputs go through every method."""

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import kinds
from tfmemloc import data, evaluation, scores
from tfmemloc.report.html import write_html
from tfmemloc.result import Result
from tfmemloc.scores.suspects import appearance


@pytest.fixture(scope="module", params=kinds.KINDS)
def fitted(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("kinds")
    kind = kinds.KINDS[request.param]
    run, examples = kinds.fitted(directory / "run", kind, quick=True)
    return request.param, run, examples, directory


def test_every_method_takes_it(fitted):
    name, run, examples, directory = fitted
    before = run.model().get_weights()
    row = kinds.measured(name, run, examples, directory)
    assert row["noisy_tied"] > row["noisy_drop"]
    assert 0 <= row["own_flips"] <= 1
    for a, b in zip(before, run.model().get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    found = Result.load(directory / "example_scores")
    assert {"aum", "tied_gap", "tracin"} <= set(found.names)
    assert np.isfinite(found.values).all()
    page = (directory / "suspects.html").read_text()
    kind = set(data.input_kinds(examples).values())
    assert ("data:image/png" in page) == ("picture" in kind)
    assert ("<blockquote>" in page) == (kind != {"picture"})
    served = tf.saved_model.load(str(directory / "served"))
    serve = served.signatures["serving_default"]
    given = serve.structured_input_signature[1]
    assert set(given) == set(examples.inputs)
    part = data.as_arrays(examples.test)
    found = serve(
        **{key: tf.cast(part[key], spec.dtype) for key, spec in given.items()}
    )
    expected = evaluation.predict_logits(run.model(), examples.test)
    np.testing.assert_allclose(found["logits"], expected, atol=1e-3)


def test_examples_are_shown_as_what_they_are(tmp_path):
    table, text = kinds.table(), kinds.text()
    _, words = appearance(table, 0)
    assert words.startswith("mean radius ") and "mean texture" in words
    _, words = appearance(text, 0)
    window = np.asarray(text.inputs["tokens"])[0]
    assert words == " ".join(chr(byte) for byte in window)
    both = kinds.two_inputs()
    png, words = appearance(both, 3)
    assert png.startswith(b"\x89PNG") and words.startswith("right: ")
    # Text is escaped.
    card = scores.suspects.report.Card(("<b>",), text="<script>")
    section = scores.suspects.report.Section("t", "s", cards=[card])
    write_html(tmp_path / "page.html", "x", [section], {})
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;" in page and "<script>" not in page


def test_two_inputs_get_each_their_own_and_none_is_left_out():
    examples = kinds.two_inputs()
    model = kinds.two_inputs_network()
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    arrays = data.as_arrays(examples.test)
    expected = model([arrays["left"], arrays["right"]]).numpy()
    found = evaluation.predict_logits(model, examples.test)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    image_only = data.from_arrays(
        np.asarray(examples.inputs["left"]), examples.label
    )
    with pytest.raises(ValueError, match="inputs left, right. .*without left"):
        evaluation.predict_logits(model, image_only)
    narrow = data.from_arrays(
        {"left": arrays["left"], "right": arrays["right"][:, :5]},
        examples.test.label,
    )
    with pytest.raises(ValueError, match=r"right of shape \[None, 32\]"):
        evaluation.predict_logits(model, narrow)
