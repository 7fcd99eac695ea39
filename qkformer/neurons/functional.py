"""A neuron's whole sequence as one operation, on the backend of choice.

The arithmetic is that of ``reference.step``, operation by operation, so that an input which lies on
the threshold falls on the same side of it.
"""

import functools
import logging
import warnings

import torch
from torch import Tensor

from qkformer.neurons import reference
from qkformer.neurons.cuda import loader, ops
from qkformer.neurons.sequence import SpikeSequence
from qkformer.text import did_you_mean

BACKENDS = ("auto", "torch", "cupy")


def check_backend(backend: str) -> str:
    """Return ``backend`` if it can be used.

    Raises:
        ValueError: it is no backend's name.
        RuntimeError: it cannot run here; the message says why and what to do.
    """
    if backend not in BACKENDS:
        hint = did_you_mean(backend, BACKENDS)
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}{hint}")
    if backend == "cupy" and (reason := loader.unavailable()):
        raise _cannot_run(reason)
    return backend


@torch.compiler.assume_constant_result
def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """ "cupy" or "torch": what ``backend`` means for tensors of ``dtype`` on ``device``.

    "auto" takes CuPy's kernels for CUDA tensors where they can run, and says once what it took. A
    file that is exported can hold no kernels.

    Raises:
        RuntimeError: ``backend`` is "cupy", which cannot run; the message says why and what to do.
    """
    on_cpu = backend == "auto" and device.type not in loader.LAUNCHERS
    if backend == "torch" or on_cpu or reference.exporting():
        return "torch"
    reason = loader.unavailable(device, dtype)
    if backend == "cupy" and reason:
        raise _cannot_run(reason)
    if backend == "auto":
        _say_once(reason)
    return "torch" if reason else "cupy"


def _cannot_run(reason: str) -> RuntimeError:
    return RuntimeError(
        f"backend='cupy': CuPy's kernels cannot run: {reason}; backend='torch' needs none of this"
    )


@functools.cache
def _say_once(reason: str | None) -> None:
    if reason:
        warnings.warn(f"backend='auto': the neurons run in plain PyTorch: {reason}", stacklevel=2)
    else:
        logging.getLogger("qkformer").info("backend='auto': the neurons run in CuPy's kernels")


def spike_sequence(
    x: Tensor,
    *,
    reciprocal_tau: float | Tensor | None,
    v_threshold: float = 1.0,
    v_reset: float = 0.0,
    alpha: float = 4.0,
    surrogate: str = "sigmoid",
    backend: str = "auto",
) -> Tensor:
    """Spikes of one neuron per element of ``x[0]``, from ``v_reset`` through all T time steps.

    The same function as :func:`qkformer.neurons.reference.spike_sequence`, as a single node of the
    autograd graph: it keeps ``x`` for backward and recomputes the membrane there.

    Args:
        x: input current [T, ...], floating point. 16-bit inputs are integrated in float32.
        reciprocal_tau: 1 / tau: a float, a scalar tensor (learned: gets a gradient), or None for a
            neuron without leak.
        v_threshold: the neuron fires when its membrane potential reaches this value.
        v_reset: membrane potential at the start and after a spike.
        alpha: steepness of the surrogate.
        surrogate: "sigmoid" or "arctan".
        backend: "auto", "torch" or "cupy".

    Returns:
        Spikes [T, ...], dtype of ``x``.

    Raises:
        ValueError: ``x`` has no time axis or no time steps, or is not floating point.
        RuntimeError: the backend cannot run; the message says why and what to do.
    """
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"a neuron expects [T, ...] with T >= 1, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"a neuron expects floating-point currents, got {x.dtype}")
    if backend not in BACKENDS:
        check_backend(backend)
    constants = dict(v_threshold=v_threshold, v_reset=v_reset, alpha=alpha, surrogate=surrogate)
    if resolve_backend(backend, x.device, x.dtype) == "cupy":
        return ops.neuron(x, reciprocal_tau=reciprocal_tau, **constants)
    if reference.exporting():
        return reference.spike_sequence(x, reciprocal_tau=reciprocal_tau, **constants)
    return SpikeSequence.apply(x, reciprocal_tau, v_threshold, v_reset, alpha, surrogate)
