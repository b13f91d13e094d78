"""The paper's networks as Keras functional models."""

from tfmemloc.models.generation import Continuation
from tfmemloc.models.networks import build, build_network
