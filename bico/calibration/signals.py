"""What is measured at a site, and the context managers that measure it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum

import torch
from torch import Tensor, nn

from bico.errors import CalibrationError
from bico.models.sites import Site


class Signal(StrEnum):
    """A matrix of rows at a site; rows are samples x tokens."""

    INPUT = "input"
    OUTPUT = "output"
    OUTPUT_GRAD = "output_grad"
    INPUT_GRAD = "input_grad"

    @property
    def of_input(self) -> bool:
        return self in (Signal.INPUT, Signal.INPUT_GRAD)

    @property
    def is_gradient(self) -> bool:
        return self in (Signal.OUTPUT_GRAD, Signal.INPUT_GRAD)


SignalKey = tuple[str, Signal]
"""(tensor name, signal). The tensor is what the site reads for input signals, the site itself for output signals."""


def signal_key(site: Site, signal: Signal) -> SignalKey:
    """Returns where a site's signal is kept: sites that read the same tensor share their input's key."""
    return (site.reads if signal.of_input else site.name, signal)


@contextmanager
def capture(
    sites: Iterable[Site], modules: Mapping[str, nn.Module], signals: Iterable[Signal]
) -> Iterator[dict[SignalKey, Tensor]]:
    """Like `watch`, and keeps what it sees.

    Yields:
        A dictionary that fills during the passes, from signal keys to detached tensors (batch, [tokens,] features).
    """
    seen: dict[SignalKey, Tensor] = {}
    with watch(sites, modules, signals, seen.__setitem__):
        yield seen


@contextmanager
def watch(
    sites: Iterable[Site],
    modules: Mapping[str, nn.Module],
    signals: Iterable[Signal],
    receive: Callable[[SignalKey, Tensor], None],
) -> Iterator[None]:
    """Hands over signals of the chosen sites as they come up in one forward (and backward) pass, and keeps none.

    Parameters should be frozen: a site whose output would need no gradient is made a starting point of autograd, so
    the backward pass costs no parameter gradients.

    Arguments:
        sites: Which sites to watch; for input gradients, all sites that read the same tensor together.
        modules: The module that computes each site, by site name; its forward maps (..., in) to (..., out), or has the
            features on the site's `feature_axis`.
        signals: Which signals; gradients need a backward pass before the context ends.
        receive: Called once per signal key with a detached tensor (batch, [tokens,] features).

    Raises:
        CalibrationError: If a module is called twice in the pass; and on leaving, if a selected signal was never seen, as
            happens to the `out_proj` module of PyTorch's fused attention, which is never called.
    """
    sites, signals = list(sites), list(signals)
    gradients = any(signal.is_gradient for signal in signals)
    # q, k and v read one tensor: the first reader records it, once, with its summed gradient.
    recorder: dict[SignalKey, str] = {}
    for site in sites:
        for signal in signals:
            recorder.setdefault(signal_key(site, signal), site.name)
    unseen = dict.fromkeys(recorder)

    called: set[tuple[str, str]] = set()

    def once(site: Site, when: str) -> None:
        if (site.name, when) in called:
            raise CalibrationError(
                f"The module of site {site.name} is called more than once in one pass: its update would have to serve all "
                "the calls, which one pair of maps cannot; leave the site out, or give each call a module of its own."
            )
        called.add((site.name, when))

    def hand_over(key: SignalKey, tensor: Tensor, axis: int) -> None:
        unseen.pop(key, None)
        receive(key, tensor.detach().movedim(axis, -1))

    def before(site: Site, inputs: tuple[Tensor, ...]) -> None:
        once(site, "before")
        if not inputs:
            raise CalibrationError(
                f"The module of site {site.name} is given its input by keyword, which no hook sees: call it by position."
            )
        x, axis = inputs[0], site.feature_axis
        if recorder.get(key := signal_key(site, Signal.INPUT)) == site.name:
            hand_over(key, x, axis)
        if recorder.get(key := signal_key(site, Signal.INPUT_GRAD)) == site.name:
            if not x.requires_grad:
                x.requires_grad_()
            x.register_hook(lambda grad, key=key: hand_over(key, grad, axis))

    def after(site: Site, y: Tensor) -> None:
        once(site, "after")
        axis = site.feature_axis
        if (key := signal_key(site, Signal.OUTPUT)) in recorder:
            hand_over(key, y, axis)
        if gradients and not y.requires_grad:
            y.requires_grad_()
        if (key := signal_key(site, Signal.OUTPUT_GRAD)) in recorder:
            y.register_hook(lambda grad, key=key: hand_over(key, grad, axis))

    handles = []
    for site in sites:
        module = modules[site.name]
        if any(recorder.get(signal_key(site, s)) == site.name for s in signals if s.of_input):
            handles.append(module.register_forward_pre_hook(lambda _m, inputs, site=site: before(site, inputs)))
        # Of every site: whether its module is called twice matters even where another one records what it reads.
        handles.append(module.register_forward_hook(lambda _m, _i, output, site=site: after(site, output)))
    try:
        with torch.enable_grad() if gradients else torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
    if missing := [f"{signal} of {tensor}" for tensor, signal in unseen]:
        raise CalibrationError(
            f"{len(missing)} signals were never seen, first the {missing[0]}: its module was not called, or no backward "
            "pass reached it. Use the model's `instrument()` and call backward() inside the context."
        )


def watching(
    sites: Iterable[Site], signals: Iterable[Signal], receive: Callable[[SignalKey, Tensor], None]
) -> Callable[[Mapping[str, nn.Module]], AbstractContextManager[None]]:
    """`watch` for modules that are only there later."""
    return lambda modules: watch(sites, modules, signals, receive)
