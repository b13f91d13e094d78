"""One training step, traced once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import tracing
from tfmemloc.data.examples import IDS
from tfmemloc.training.recorder import ExampleRecorder
from tfmemloc.training.rules import Rule, cross_entropy


def make_train_step(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    *,
    rule: Rule = cross_entropy.rule,
    weight_decay: float = 0.0,
    jit_compile: bool = False,
    strategy: tf.distribute.Strategy | None = None,
    batch_spec: Any = None,
    recorder: ExampleRecorder | None = None,
) -> Callable[[Any], tf.Tensor]:
    """Makes a traced function that takes a step and gives the loss before it.

    The loss is the batch's mean of what the rule gives. The weight decay adds
    weight_decay * w to the gradient of every trainable weight, as PyTorch's
    optimizers do. BatchNorm is in training mode: batch statistics, and its
    moving statistics move.

    Args:
        model: inputs by name, or its one input -> logits.
        optimizer: built for the model's trainable variables.
        rule: what is minimized; see `tfmemloc.training.rules`.
        weight_decay: see above.
        jit_compile: compile with XLA.
        strategy: replicas that share each batch.
        batch_spec: the element spec of the batches; None infers it and may
            trace more than once.
        recorder: notes what the step sees of each example.

    Returns:
        `step((inputs, label))` -> float32 scalar.
    """
    strategy = strategy or tf.distribute.get_strategy()
    variables = model.trainable_variables

    def replica_step(batch):
        inputs, label = batch
        context = tf.distribute.get_replica_context()
        size = tf.cast(tf.shape(label)[0], tf.float32)
        total_size = context.all_reduce("sum", size)
        is_routed = hasattr(rule, "routes")
        with tf.GradientTape(persistent=is_routed) as tape:
            losses, logits = rule(model, inputs, label)
            # A replica without examples has an empty sum, hence no NaN.
            loss = tf.reduce_sum(losses) / total_size
            decay = tf.add_n(
                [tf.nn.l2_loss(tf.convert_to_tensor(v)) for v in variables]
            )
            share = weight_decay / context.num_replicas_in_sync

            def scaled(mean):
                return optimizer.scale_loss(mean + share * decay)

            routes = rule.routes(inputs) if is_routed else []
            scaled_losses = [
                scaled(tf.reduce_sum(w * losses) / total_size)
                for w, _ in routes
            ] or [scaled(loss)]
        if recorder is not None:
            recorder.update(inputs[IDS], label, logits)
        if routes:
            gradients = _routed(tape, scaled_losses, routes, variables)
        else:
            gradients = tape.gradient(scaled_losses[0], variables)
        if hasattr(rule, "changed_gradients"):
            gradients = rule.changed_gradients(gradients, variables)
        # Keras's optimizer itself adds up the gradients of the replicas.
        optimizer.apply(gradients, variables)
        return loss

    def step(batch):
        loss = strategy.run(replica_step, (batch,))
        return strategy.reduce("sum", loss, axis=None)

    signature = None if batch_spec is None else [batch_spec]
    return tracing.function(
        step,
        input_signature=signature,
        jit_compile=jit_compile,
        reduce_retracing=batch_spec is None,
    )


def _routed(tape, losses, routes, variables) -> list[tf.Tensor]:
    """Of each entry of a weight, the gradient of the loss it learns from.

    Args:
        tape: persistent.
        losses: a scalar for each route.
        routes: as a rule gives them; each entry is in one of them.
        variables: whose gradients are wanted.
    """
    parts: list[list[tf.Tensor]] = [[] for _ in variables]
    for loss, (_, entries) in zip(losses, routes, strict=True):
        # Of what learns nothing from it no gradient is taken.
        asked = [k for k, which in enumerate(entries) if np.any(which)]
        found = tape.gradient(loss, [variables[k] for k in asked])
        for k, gradient in zip(asked, found, strict=True):
            gradient = tf.convert_to_tensor(gradient)
            if not np.all(entries[k]):
                gradient *= tf.cast(entries[k], gradient.dtype)
            parts[k].append(gradient)
    return [tf.add_n(of_variable) for of_variable in parts]
