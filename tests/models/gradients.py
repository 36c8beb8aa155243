"""Gradients on the backend in use, for tests that run on all of them."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

if keras.backend.backend() == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)  # else float64 is float32


def gradients(
    function: Callable[..., Any],
    tensors: Sequence[np.ndarray],
    upstream: Callable[[tuple[int, ...]], np.ndarray],
    layer: keras.layers.Layer | None = None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """`function(*tensors)`, and the gradients of Σ function·upstream(shape) by the tensors and a layer's weights."""
    run = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()]
    output, found = run(function, tensors, upstream, layer)
    to_numpy = keras.ops.convert_to_numpy
    return to_numpy(output), [to_numpy(gradient) for gradient in found]


def _tensorflow(function, tensors, upstream, layer):
    import tensorflow as tf

    tensors = [tf.constant(tensor) for tensor in tensors]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        output = function(*tensors)
    wanted = [*tensors, *[weight.value for weight in (layer.trainable_variables if layer else [])]]
    arriving = tf.constant(upstream(tuple(output.shape)), output.dtype)
    return output, tape.gradient(output, wanted, output_gradients=arriving, unconnected_gradients="zero")


def _jax(function, tensors, upstream, layer):
    import jax
    import jax.numpy as jnp

    weights = layer.trainable_variables if layer else []

    def run(tensors, values):
        with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
            return function(*tensors)

    @jax.jit  # one compilation, where each operation would be one
    def both(tensors, values):
        output, back = jax.vjp(run, tensors, values)
        return output, *back(jnp.asarray(upstream(output.shape), output.dtype))

    output, by_tensors, by_weights = both([jnp.asarray(x) for x in tensors], [weight.value for weight in weights])
    return output, [*by_tensors, *by_weights]


def _torch(function, tensors, upstream, layer):
    import torch

    tensors = [torch.tensor(tensor, requires_grad=True) for tensor in tensors]
    output = function(*tensors)
    wanted = [*tensors, *[weight.value for weight in (layer.trainable_variables if layer else [])]]
    arriving = torch.tensor(upstream(tuple(output.shape)), dtype=output.dtype)
    found = torch.autograd.grad(output, wanted, arriving, allow_unused=True)
    pairs = zip(found, wanted, strict=True)
    return output, [torch.zeros_like(x) if gradient is None else gradient for gradient, x in pairs]
