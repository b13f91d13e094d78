"""What an input is: a picture, tokens, or features.

picture   uint8 [N, height, width, channels], scaled to [-1, 1] when it is
          fed; or floats of that rank, which are fed as they are
tokens    integers of any other rank
features  floats of any other rank
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from tfmemloc.data import rows as rows_

PICTURE, TOKENS, FEATURES = "picture", "tokens", "features"
# The name of the one input that was given without a name.
DEFAULT_NAMES = {PICTURE: "image", TOKENS: "tokens", FEATURES: "features"}
# Networks take float32, in which larger numbers are infinite.
_LARGEST = float(np.finfo(np.float32).max)


def kind_of(rows: rows_.Rows) -> str:
    """`picture`, `tokens` or `features`."""
    is_float = np.issubdtype(rows.dtype, np.floating) or rows.dtype == bool
    rank = len(rows.shape)
    if rank == 4 and (is_float or rows.dtype == np.uint8):
        return PICTURE
    return FEATURES if is_float else TOKENS


def scale_pixels(image: Any) -> Any:
    """Scales uint8 pixels to float32 in [-1, 1]; leaves floats as they are.

    Takes and gives NumPy arrays or tensors; other rows become an array.
    """
    if not tf.is_tensor(image):
        image = np.asarray(image)
        if image.dtype == np.uint8:
            return image.astype(np.float32) / np.float32(127.5) - 1
        return image.astype(np.float32)
    if image.dtype == tf.uint8:
        return tf.cast(image, tf.float32) / 127.5 - 1
    return tf.cast(image, tf.float32)


def as_fed(values: Any, kind: str) -> Any:
    """Values of an input as networks take them: scaled, and cast.

    Takes and gives NumPy arrays or tensors.
    """
    if kind == PICTURE:
        return scale_pixels(values)
    dtype = "int64" if kind == TOKENS else "float32"
    if isinstance(values, np.ndarray):
        return values.astype(dtype)
    return tf.cast(values, dtype)


def checked_input(name: str, values: Any, of: str) -> rows_.Rows:
    """Checks that an input is numbers and has rows; makes byte order native.

    Args:
        name: of the input, for messages.
        values: array, list, or other rows.
        of: name of the data set, for messages.

    Raises:
        ValueError: it is not such an input; the message says what it is.
    """
    values = _as_rows(name, values, of)
    dtype = np.dtype(values.dtype)
    if dtype.kind not in "iufb" or not values.shape or 0 in values.shape:
        raise ValueError(
            f"{of}: {name} expected numbers (uint8 pixels, integer tokens, or "
            "floats), at least one row. Received: shape "
            f"{tuple(values.shape)}, dtype {dtype}."
        )
    if dtype.kind in "iu" and dtype != np.uint8 and len(values.shape) == 4:
        raise ValueError(
            f"{of}: {name} expected pictures of uint8, or floats. Received: "
            f"shape {tuple(values.shape)}, dtype {dtype}. x.astype(np.uint8) "
            "makes pixels of whole numbers from 0 to 255."
        )
    if not dtype.isnative and isinstance(values, np.ndarray):
        values = values.astype(dtype.newbyteorder("="))
    if values.dtype == np.uint8 and len(values.shape) == 3:
        is_array = isinstance(values, np.ndarray)
        values = (
            values[..., np.newaxis] if is_array else (rows_.WithChannel(values))
        )
    return values


def _as_rows(name: str, values: Any, of: str) -> rows_.Rows:
    """Tensors and lists as an array; other rows as they are."""
    if hasattr(values, "dtype") and not tf.is_tensor(values):
        return values
    try:
        return np.asarray(values)
    except ValueError:
        raise ValueError(
            f"{of}: {name} expected rows of one shape and kind. Received: rows "
            "of different lengths, or of text and bytes. Pad or cut them to "
            "one length."
        ) from None


# The smallest side of a picture that is guessed to be one.
_SIDE = 8


def _warn_of_odd_shapes(name: str, values: rows_.Rows, of: str) -> None:
    """Warns of pictures that are not stored as pictures are."""
    shape, kind = tuple(values.shape[1:]), kind_of(values)
    if kind == TOKENS and len(shape) == 2 and min(shape) >= _SIDE:
        warnings.warn(
            f"{of}: {name} holds whole numbers of shape {list(shape)}, which "
            "are taken for tokens. Expected uint8, if they are pictures: "
            "x.astype(np.uint8).",
            stacklevel=5,
        )
    first_is_small = kind == PICTURE and shape[0] in (1, 3, 4)
    if first_is_small and shape[1] == shape[2] >= _SIDE:
        warnings.warn(
            f"{of}: {name} holds pictures of shape {list(shape)}, which looks "
            "like channels first. Expected [height, width, channels]: "
            "np.moveaxis(x, 1, -1).",
            stacklevel=5,
        )


def check_values(name: str, values: rows_.Rows, of: str) -> None:
    """Refuses numbers that are not finite; warns of odd ranges of pixels.

    Raises:
        ValueError: a number is NaN or infinite in float32; says of which rows.
    """
    _warn_of_odd_shapes(name, values, of)
    if not np.issubdtype(values.dtype, np.floating):
        return
    largest, start = 0.0, 0
    everything = np.arange(values.shape[0])
    for block in rows_.blocks(values, everything):
        flat = block.reshape(len(block), -1)
        size = np.maximum(-flat.min(axis=1), flat.max(axis=1)).astype(float)
        bad = np.flatnonzero(~(size <= _LARGEST))
        if len(bad):
            places = ", ".join(str(start + place) for place in bad[:5])
            raise ValueError(
                f"{of}: {name} expected finite numbers. Received: NaN, "
                f"infinity or more than float32 holds in {len(bad)} rows, for "
                f"instance {places}."
            )
        largest = max(largest, float(size.max()))
        start += len(block)
    if kind_of(values) == PICTURE and largest > 10:
        warnings.warn(
            f"{of}: {name} holds float pictures with values up to {largest:g}, "
            "which are fed as they are: right for a network that was trained "
            "on such numbers, but a new one trains badly on them. Expected "
            "about [-1, 1] there; uint8 pixels are scaled to it.",
            stacklevel=4,
        )
