"""Removal by the curvature of the loss, from a network that is trained."""

from tfmemloc.removal.curvature.config import CurvatureConfig
from tfmemloc.removal.curvature.edit import remove_memory
from tfmemloc.removal.curvature.result import CurvatureEdit
