"""Fixtures, and where the real data lie."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# TensorFlow leaves oneDNN off on CPUs without AVX-512, and its other kernels
# have no gradient of grouped convolutions.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# There are test processes enough for the cores; more threads wait for each
# other. With one, tests that compute much take up to a third less time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import fcntl
import gc
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.util import tf_stack

# Two logical devices, so that distribution is tested on any machine.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

import keras

from tfmemloc import data, models
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.data.kinds import scale_pixels
from tfmemloc.runs import Run
from tfmemloc.training.loop import train

# For its error messages TensorFlow notes the Python stack of every operation
# that is traced, which is deep under pytest: a tenth of the time.
_STACK = tf_stack.extract_stack()
tf_stack.extract_stack = lambda stacklevel=1: _STACK
# TensorFlow's modules are a million objects; looking through them for garbage
# while functions are traced takes up to a tenth of the time.
gc.freeze()
gc.set_threshold(100_000, 20, 50)

ROOT = pathlib.Path(__file__).resolve().parent.parent
REAL_DATA = ROOT.parent / "shared" / "tfds"


def pytest_configure():
    """Leaves traced functions as they are.

    Rewriting them takes a fifth of the time of tests that trace much and run
    little. Programs that tests start rewrite as always, and so does
    `make test-all`. (In a forked program TensorFlow 2.21 crashes without.)
    """
    if "REWRITE_GRAPHS" not in os.environ:
        tf.config.optimizer.set_experimental_options(
            {"disable_meta_optimizer": True}
        )


def pytest_collection_modifyitems(items):
    """The longest test, which mostly waits, begins while others run."""
    items.sort(key=lambda item: item.path.name != "workers_test.py")


def shared_folder(tmp_path_factory, name, make):
    """A folder that one test process fills and all others read.

    Args:
        tmp_path_factory: of pytest.
        name: of the folder.
        make: fills it; called with its path, once for all processes.
    """
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder


SMALL = DataConfig(train_examples=80, test_examples=40, noise_rate=0.2)


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits, 10 % wrong labels."""
    return data.load(DataConfig())


@pytest.fixture(scope="session")
def small_digits():
    """80 training and 40 test digits, 20 % wrong labels."""
    return data.load(SMALL)


@pytest.fixture(scope="session")
def held_out_digits():
    """80 training, 40 held-out and 40 test digits, some labels wrong."""
    return data.load(
        DataConfig(
            train_examples=120, test_examples=40, noise_rate=0.2, heldout=1 / 3
        )
    )


@pytest.fixture(scope="session")
def overfitted(held_out_digits):
    """A small convolutional network that knows all its training labels."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="hidden"),
            keras.layers.Dense(10, name="head"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.003),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    train = held_out_digits.train
    pixels = data.as_arrays(train)["image"]
    model.fit(pixels, train.label, batch_size=40, epochs=40, verbose=0)
    return model


@pytest.fixture(scope="session")
def tied_run(tmp_path_factory):
    """A run of a network that tells the wrong labels of `digits` apart."""

    def make(folder):
        train(
            folder,
            data=DataConfig(),
            model=ModelConfig(width=0.25, p_gen=0.25),
            training=TrainConfig(
                epochs=15, batch_size=128, learning_rate=0.1, save_every=3
            ),
            progress=False,
        )

    return Run.open(shared_folder(tmp_path_factory, "tied_digits", make))


@pytest.fixture(scope="session")
def real_data():
    """The folder of prepared CIFAR-10 and MNIST."""
    if not REAL_DATA.exists():
        pytest.skip(f"needs prepared TFDS data in {REAL_DATA}")
    return str(REAL_DATA)


@pytest.fixture(scope="session")
def two_devices():
    """One strategy for the whole process: their collectives would clash."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def small_network(small_digits):
    """A narrow ResNet-9 that knows its 80 digits, wrong labels included."""
    config = ModelConfig(width=0.125, dropout="none")
    model = models.build(config, (8, 8, 1), 10)
    train = small_digits.train
    inputs = {
        "image": scale_pixels(train.inputs["image"]),
        "example_id": train.example_id,
    }
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    keras.utils.set_random_seed(0)
    model.fit(inputs, train.label, batch_size=40, epochs=40, verbose=0)
    return model


@pytest.fixture
def small_run(tmp_path, small_network, small_digits):
    """The folder of a run that holds `small_network`."""
    run = Run.create(tmp_path, small_network, data=SMALL, examples=small_digits)
    run.record_epoch(small_network, 1)
    return tmp_path


@pytest.fixture
def rng():
    return np.random.default_rng(0)
