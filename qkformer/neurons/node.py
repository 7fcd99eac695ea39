"""LIF, IF and PLIF as modules.

They are SpikingJelly ``MemoryModule``s: its monitors, ``set_step_mode`` and ``reset_net`` work on
them. In multi-step mode (``step_mode="m"``, the default) a call on [T, ...] starts at the reset
potential and leaves no state behind; there is nothing to reset between batches. In single-step
mode (``step_mode="s"``) a call takes [...] and the membrane potential ``v`` stays until
``reset_net``.
"""

import math

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn

from qkformer.neurons import functional, reference


class SpikingNeuron(base.MemoryModule):
    """What LIF, IF and PLIF share. Subclasses define ``reciprocal_tau``.

    Args:
        v_threshold: the neuron fires when its membrane potential reaches this value.
        v_reset: membrane potential at the start and after a spike.
        alpha: steepness of the surrogate gradient; None for the surrogate's usual one.
        step_mode: "m" for input [T, ...], "s" for one time step [...].
        backend: "auto", "torch" or "cupy"; the multi-step implementation.
        surrogate: "sigmoid" (alpha 4), "arctan" (2) or "triangle" (1).
        strict, soft_reset, detach_reset: see :func:`qkformer.neurons.reference.step`.
        v_init: membrane potential at the start, if it is not ``v_reset``.

    The kernels and the fast sequence of the CPU know the sigmoid and the arctan surrogate, and none
    of the options behind; a neuron with any runs step by step, as written in ``reference``.

    Raises:
        ValueError: threshold not above reset, alpha not positive, unknown surrogate, step mode or
            backend.
        RuntimeError: the backend cannot run here, or not such a neuron.
    """

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float = 0.0,
        alpha: float | None = None,
        step_mode: str = "m",
        backend: str = "auto",
        *,
        surrogate: str = "sigmoid",
        strict: bool = False,
        soft_reset: bool = False,
        detach_reset: bool = True,
        v_init: float | None = None,
    ):
        super().__init__()
        if not v_threshold > v_reset:
            raise ValueError(f"v_threshold must exceed v_reset, got {v_threshold} and {v_reset}")
        if surrogate not in reference.SURROGATES:
            names = tuple(reference.SURROGATES)
            raise ValueError(f"surrogate must be one of {names}, got {surrogate!r}")
        alpha = reference.SURROGATES[surrogate][1] if alpha is None else alpha
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.v_threshold, self.v_reset, self.alpha = v_threshold, v_reset, alpha
        self.step_mode = step_mode
        self.backend = functional.check_backend(backend)
        self.surrogate, self.v_init = surrogate, v_init
        # what `reference` alone can do, where it is not the default
        self.options = {
            name: value
            for name, value, default in (
                ("strict", strict, False),
                ("soft_reset", soft_reset, False),
                ("detach_reset", detach_reset, True),
            )
            if value != default
        }
        self.register_memory("v", v_reset if v_init is None else v_init)
        self._check_kernels()

    @property
    def step_mode(self) -> str:
        """ "m" or "s"; a change of mode resets the membrane potential."""
        return self._step_mode

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        base.MemoryModule.step_mode.fset(self, value)
        self.reset()

    @property
    def reciprocal_tau(self) -> float | Tensor | None:
        """1 / tau, None without leak."""
        raise NotImplementedError

    @property
    def constants(self) -> dict[str, float | Tensor | str | None]:
        """The neuron as every implementation knows it."""
        names = ("reciprocal_tau", "v_threshold", "v_reset", "alpha", "surrogate")
        return {name: getattr(self, name) for name in names}

    @property
    def in_kernels(self) -> bool:
        """Whether the fast implementations know this neuron, that is, compute the same."""
        own, base = type(self), SpikingNeuron
        changed = (
            own.forward is not base.forward or own.multi_step_forward is not base.multi_step_forward
        )
        return not changed and not self._beyond_kernels

    @property
    def _beyond_kernels(self) -> bool:
        return bool(self.options) or self.v_init is not None or self.surrogate == "triangle"

    def _check_kernels(self) -> None:
        if self.backend == "cupy" and self._beyond_kernels:
            raise RuntimeError(
                f"backend='cupy' has no kernels for {type(self).__name__} with {self._options()}: "
                "take 'auto' or 'torch'"
            )

    def _options(self) -> str:
        options = dict(self.options)
        if self.surrogate != "sigmoid":
            options["surrogate"] = self.surrogate
        if self.v_init is not None:
            options["v_init"] = self.v_init
        return ", ".join(f"{name}={value}" for name, value in options.items())

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Spikes [T, ...] of currents [T, ...]."""
        if self.in_kernels:
            return functional.spike_sequence(x_seq, **self.constants, backend=self.backend)
        return reference.spike_sequence(x_seq, v_init=self.v_init, **self.constants, **self.options)

    def materialize_states(self, inputs: tuple, states: tuple, step_mode: str) -> tuple:
        """SpikingJelly's hook: turn the initial scalar ``v`` into a tensor like the input."""
        x = inputs[0] if step_mode == "s" else inputs[0][0]
        (v,) = states
        if not isinstance(v, Tensor):
            v = torch.full_like(x, v, dtype=reference.membrane_dtype(x.dtype))
        if v.shape != x.shape:
            raise ValueError(
                f"single-step input {tuple(x.shape)} does not fit the membrane potential "
                f"{tuple(v.shape)} of the steps before: call functional.reset_net first"
            )
        return (v,)

    def single_step_functional_forward(self, inputs: tuple, states: tuple) -> tuple[tuple, tuple]:
        """SpikingJelly's hook: (x,), (v,) -> (spikes,), (v,); all shapes equal."""
        spikes, v = reference.step(inputs[0], states[0], **self.constants, **self.options)
        return (spikes,), (v,)

    def extra_repr(self) -> str:
        text = (
            f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, alpha={self.alpha}, "
            f"step_mode={self.step_mode}, backend={self.backend}"
        )
        return f"{text}, {self._options()}" if self._options() else text


class LIF(SpikingNeuron):
    """Leaky integrate-and-fire neuron: ``h = v + (x - (v - v_reset)) / tau``.

    Args:
        tau: membrane time constant in time steps, at least 1.
        decay_input: if False, ``h = v - (v - v_reset) / tau + x``; of ``reference`` only.
        kwargs: those of :class:`SpikingNeuron`.

    Shape: [T, ...] -> [T, ...], spikes in the input's dtype.
    """

    def __init__(self, tau: float = 2.0, *, decay_input: bool = True, **kwargs):
        super().__init__(**kwargs)
        if not tau >= 1:
            raise ValueError(f"tau must be at least 1 time step, got {tau}")
        self.tau = tau
        if not decay_input:
            self.options["decay_input"] = False
            self._check_kernels()

    @property
    def reciprocal_tau(self) -> float:
        return 1 / self.tau

    def extra_repr(self) -> str:
        return f"tau={self.tau}, {super().extra_repr()}"


class IF(SpikingNeuron):
    """Integrate-and-fire neuron, no leak: ``h = v + x``. Arguments of :class:`SpikingNeuron`."""

    @property
    def reciprocal_tau(self) -> None:
        return None


class PLIF(SpikingNeuron):
    """LIF whose time constant is learned, one per layer: ``1 / tau = sigmoid(w)``.

    Args:
        init_tau: initial time constant in time steps, above 1.
        kwargs: those of :class:`SpikingNeuron`.

    Source: Fang et al., "Incorporating Learnable Membrane Time Constant ...", ICCV 2021.
    """

    def __init__(self, init_tau: float = 2.0, **kwargs):
        super().__init__(**kwargs)
        if not init_tau > 1:
            raise ValueError(f"init_tau must exceed 1 time step, got {init_tau}")
        self.init_tau = init_tau
        self.w = nn.Parameter(torch.tensor(-math.log(init_tau - 1)))

    @property
    def reciprocal_tau(self) -> Tensor:
        return self.w.sigmoid()

    def extra_repr(self) -> str:
        return f"init_tau={self.init_tau}, {super().extra_repr()}"


NEURONS: dict[str, type[SpikingNeuron]] = {"lif": LIF, "if": IF, "plif": PLIF}
