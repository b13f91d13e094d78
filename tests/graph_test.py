"""Units and blocks, found in the graphs of our and of other models."""

import keras
import pytest

from tfmemloc import graph
from tfmemloc.configs import ModelConfig
from tfmemloc.models import build


def _names(sites):
    return [site.name for site in sites]


def test_units_of_resnet9_come_out_after_its_activations():
    model = build(ModelConfig(width=0.125, dropout="none"), (32, 32, 3), 10)
    sites = graph.unit_sites(model)
    groups = [
        "conv1", "conv2", "res1a", "res1b", "conv3", "res2a", "res2b", "conv4"
    ]  # fmt: skip
    assert _names(sites) == [f"{group}.conv" for group in groups]
    assert [s.node.operation.name for s in sites] == [
        f"{group}.relu" for group in groups
    ]
    assert [site.units for site in sites] == [8, 16, 16, 16, 32, 32, 32, 16]


def test_blocks_of_resnet9_are_where_the_paper_ties():
    config = ModelConfig(width=0.25, dropout="example_tied")
    tied = build(config, (32, 32, 3), 10)
    ties = [layer.name for layer in tied.layers if "dropout" in layer.name]
    plain = build(ModelConfig(width=0.25, dropout="none"), (32, 32, 3), 10)
    blocks = [name.split(".")[0] for name in _names(graph.block_sites(plain))]
    assert [name.split(".")[0].rstrip("ab") for name in blocks] == [
        name.split(".")[0] for name in ties
    ]


def test_blocks_of_resnet18_are_its_stem_and_residual_blocks():
    model = build(
        ModelConfig(name="resnet18", width=0.125, dropout="none"),
        (32, 32, 3),
        10,
    )
    expected = ["stem.relu"] + [
        f"stage{stage}.block{block}_relu"
        for stage in (1, 2, 3, 4)
        for block in (1, 2)
    ]
    assert _names(graph.block_sites(model)) == expected


@pytest.mark.parametrize(
    ("application", "blocks", "last"),
    [
        ("ResNet50", 17, "conv5_block3_out"),
        ("ConvNeXtTiny", 22, None),
    ],
)
def test_blocks_of_keras_applications(application, blocks, last):
    model = getattr(keras.applications, application)(
        weights=None, input_shape=(32, 32, 3), classes=10
    )
    found = _names(graph.block_sites(model))
    assert len(found) == blocks
    if last is not None:
        assert found[-1] == last


def test_squeeze_and_excitation_belongs_to_its_block():
    model = keras.applications.MobileNetV3Small(
        weights=None, input_shape=(32, 32, 3), classes=10
    )
    found = _names(graph.block_sites(model))
    assert "expanded_conv_squeeze_excite_mul" in found
    assert "re_lu" not in found  # The same units, before they are scaled.


def test_what_makes_the_logits_has_no_units():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, activation="relu", name="hidden")(inputs)
    x = keras.layers.Dense(2, name="out")(x)
    model = keras.Model(inputs, keras.layers.Softmax()(x))
    assert _names(graph.unit_sites(model)) == ["hidden"]


def test_nested_models_have_units_too():
    inner_input = keras.Input((4,))
    x = keras.layers.Dense(3, name="inner")(inner_input)
    inner = keras.Model(inner_input, keras.ops.relu(x))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inner(inputs)))
    (site,) = graph.unit_sites(model)
    assert site.name == "inner"
    assert type(site.node.operation).__name__ == "Relu"


def test_subclassed_models_have_no_known_graph():
    class Own(keras.Model):
        def call(self, x):
            return x

    assert not graph.is_functional(Own())
    assert not graph.is_functional(keras.Sequential([keras.layers.Dense(1)]))


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda x: keras.layers.Dense(3, activation="softmax")(x), True),
        (lambda x: keras.layers.Activation("softmax")(x), True),
        (lambda x: keras.layers.Softmax()(x), True),
        (lambda x: keras.ops.softmax(x), True),
        (lambda x: keras.Sequential([keras.layers.Softmax()])(x), True),
        (lambda x: keras.layers.Dense(3)(keras.ops.softmax(x)), False),
        (lambda x: [keras.ops.softmax(x), x], False),
    ],
)
def test_a_softmax_at_the_end_is_seen(end, expected):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, end(keras.layers.Dense(3)(inputs)))
    assert graph.ends_in_softmax(model) is expected
    inner = keras.Sequential([keras.Input((4,)), model])
    assert graph.ends_in_softmax(inner) is expected
