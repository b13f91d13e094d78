"""`tf.function` as the library uses it: without AutoGraph.

AutoGraph rewrites Python that branches or loops on tensors. The library's own
functions, the rules and losses that people pass to them, and Keras layers have
none, or use `tf.cond` and `tf.while_loop`; to look for it costs each process
that trains one to three seconds.
"""

from __future__ import annotations

import functools

import tensorflow as tf

function = functools.partial(tf.function, autograph=False)
