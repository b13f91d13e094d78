"""Starts TensorFlow without its messages; to be imported before all else.

TensorFlow writes to the process's standard error, before anything can be told
not to, that it found no GPU and that it uses oneDNN. These lines are left out;
all others are passed on.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile

# Silences what comes later.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# oneDNN is faster on CPUs without AVX-512, too, where TensorFlow leaves it off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

_NOISE = re.compile(
    r"oneDNN custom operations are on|Could not find cuda drivers|"
    r"failed call to cuInit|absl::InitializeLog|"
    r"This TensorFlow binary is optimized|"
    r"To enable the following instructions|"
    r"Unable to register \w+ factory"
)


def _start() -> None:
    """Imports TensorFlow and lets it look for a GPU."""
    sys.stderr.flush()
    errors = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices("GPU")
        finally:
            os.dup2(errors, 2)
            os.close(errors)
            held.seek(0)
            text = held.read().decode("utf-8", errors="replace")
            for line in text.splitlines():
                if not _NOISE.search(line):
                    print(line, file=sys.stderr)
    # TensorFlow warns of retracing, although each new model is traced once.
    tf.get_logger().setLevel("ERROR")


_start()
