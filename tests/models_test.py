import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmemloc import graph, models
from tfmemloc.configs import ModelConfig
from tfmemloc.layers.sparse_dropout import SparseDropout
from tfmemloc.layers.tied_dropout import ExampleTiedDropout


def _narrow(name, dropout="example_tied"):
    """A small network; LeNet has few units as it is."""
    width = 1.0 if name == "lenet" else 0.25
    return ModelConfig(name, width=width, dropout=dropout)


def _conv_norm(kernel, before, after):
    """Entries of a convolution without bias and its BatchNorm's scale, bias."""
    return kernel * kernel * before * after + 2 * after


def _dense(before, after):
    return before * after + after


def _resnet9(channels):
    return (
        _conv_norm(3, channels, 64)
        + _conv_norm(5, 64, 128)
        + 2 * _conv_norm(3, 128, 128)
        + _conv_norm(3, 128, 256)
        + 2 * _conv_norm(3, 256, 256)
        + _conv_norm(3, 256, 128)
        + 128 * 10
    )


def _resnet18():
    # torchvision's count for 1,000 classes is 11,689,512, with a 7x7 stem.
    return (
        11_689_512
        - _conv_norm(7, 3, 64)
        + _conv_norm(3, 3, 64)
        - _dense(512, 1000)
        + _dense(512, 10)
    )


def _resnet50_imagenet():
    return 25_557_032 - _dense(2048, 1000) + _dense(2048, 10)


def _lenet():
    return (
        (5 * 5 * 1 * 6 + 6)
        + (5 * 5 * 6 * 16 + 16)
        + _dense(5 * 5 * 16, 120)
        + _dense(120, 84)
        + _dense(84, 10)
    )


def _vit():
    patch = 2 * 2 * 3 * 5
    norm = 2 * 512
    embedding = 2 * patch + _dense(patch, 512) + 512 + (256 + 1) * 512
    attention = norm + 512 * 3 * 512 + 1 + _dense(512, 512)
    feed_forward = norm + _dense(512, 512) + _dense(512, 512)
    return embedding + 6 * (attention + feed_forward) + norm + _dense(512, 10)


@pytest.mark.parametrize(
    ("config", "shape", "count"),
    [
        (ModelConfig("lenet"), (28, 28, 1), _lenet()),
        (ModelConfig("resnet9"), (32, 32, 3), _resnet9(3)),
        (ModelConfig("resnet9"), (8, 8, 1), _resnet9(1)),
        (ModelConfig("resnet18"), (32, 32, 3), _resnet18()),
        (
            ModelConfig("resnet50", stem="imagenet"),
            (224, 224, 3),
            _resnet50_imagenet(),
        ),
        (ModelConfig("vit"), (32, 32, 3), _vit()),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_trainable_parameters_counted_by_hand(config, shape, count):
    model = models.build(config, shape, 10)
    found = sum(np.prod(v.shape) for v in model.trainable_variables)
    assert found == count
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("lenet", 5),
        ("resnet9", 9),
        ("resnet18", 6),
        ("resnet50", 6),
        ("vit", 8),
    ],
)
def test_layer_groups_hold_every_variable_once(name, groups):
    model = models.build(_narrow(name), (32, 32, 3), 10)
    found = graph.layer_groups(model)
    assert len(found) == groups
    variables = sum(graph.group_variables(found).values(), [])
    assert len(variables) == len(model.weights)
    assert {id(v) for v in variables} == {id(v) for v in model.weights}


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("lenet", ["conv1", "conv2", "dense1"]),
        ("resnet9", ["conv1", "conv2", "res1", "conv3", "res2", "conv4"]),
        ("resnet18", ["stage2", "stage3"]),
        ("resnet50", ["stage2", "stage3"]),
        ("vit", ["block2", "block4"]),
    ],
)
def test_dropout_stands_at_the_papers_places(name, places):
    kinds = {
        "example_tied": ExampleTiedDropout,
        "sparse": SparseDropout,
        "standard": keras.layers.Dropout,
    }
    for dropout, kind in kinds.items():
        model = models.build(_narrow(name, dropout), (16, 16, 1), 10)
        found = [
            layer.name.removesuffix(".dropout")
            for layer in model.layers
            if isinstance(layer, kind) and layer.name.endswith(".dropout")
        ]
        assert found == places
    tied = models.build(_narrow(name), (16, 16, 1), 10)
    seeds = [layer.seed for layer in graph.tied_layers(tied)]
    assert len(set(seeds)) == len(places)
    none = models.build(_narrow(name, "none"), (16, 16, 1), 10)
    assert not graph.tied_layers(none)


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("name", ["lenet", "resnet9", "resnet18", "vit"])
def test_any_sensible_image_size(name, shape):
    model = models.build(_narrow(name), shape, 7)
    logits = model({"image": tf.zeros([2, *shape]), "example_id": tf.range(2)})
    assert logits.shape == (2, 7)
    assert np.isfinite(logits).all()


def test_initialization_is_a_function_of_the_seed():
    def weights(seed):
        keras.utils.set_random_seed(np.random.randint(1000))
        config = ModelConfig("vit", width=0.125, seed=seed)
        return models.build(config, (8, 8, 1), 10).get_weights()

    for one, again in zip(weights(1), weights(1), strict=True):
        np.testing.assert_array_equal(one, again)
    assert any(
        (one != other).any()
        for one, other in zip(weights(1), weights(2), strict=True)
    )


def test_initialization_is_uniform_by_fan_in():
    model = models.build(ModelConfig("resnet9"), (32, 32, 3), 10)
    kernel = model.get_layer("res2a.conv").kernel.numpy()
    limit = (3 * 3 * 256) ** -0.5
    assert abs(np.abs(kernel).max() / limit - 1) < 1e-3
    assert abs(kernel.std() / (limit / np.sqrt(3)) - 1) < 0.01
    norm = model.get_layer("res2a.norm")
    assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)


def test_mixed_precision_gives_float32_logits():
    model = models.build(
        ModelConfig("resnet9", width=0.125),
        (8, 8, 1),
        10,
        dtype="mixed_bfloat16",
    )
    assert model.get_layer("res1a.conv").compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"


@pytest.mark.parametrize("shape", [(4, 4, 1), (8, 8, 0)])
def test_too_small_images_are_refused(shape):
    with pytest.raises(ValueError, match="at least 8x8"):
        models.build(ModelConfig(), shape, 10)


def test_vit_refuses_images_that_its_patches_do_not_fit():
    with pytest.raises(ValueError, match="Received: 9x9"):
        models.build(ModelConfig("vit"), (9, 9, 1), 10)
