"""The signals of one batch in two models, brought together: the source's wait until the target's come."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bico.calibration.pairing import partners, sites_met
from bico.calibration.shared_tokens import Between, Take, shared_rows, takes
from bico.calibration.signals import Signal, SignalKey
from bico.calibration.token_grids import resample_tokens
from bico.errors import CalibrationError
from bico.models.inputs import Inputs
from bico.models.protocol import Calibratable, Placed
from bico.models.sites import Site

Receive = Callable[[SignalKey, Float[Tensor, "rows source"], Float[Tensor, "rows target"]], None]
"""Takes what a pair's product is called (`bico.calibration.pairing`), the source's rows and the target's."""


@dataclass(frozen=True)
class RowsOf:
    """How the signals of one batch become rows that belong together."""

    ours: Take
    theirs: Take
    regrouped: bool
    """Whether tokens of two tokenizers are brought to shared ends."""

    @classmethod
    def batch(
        cls, source: Calibratable, target: Calibratable, our_inputs: Inputs, their_inputs: Inputs, between: Between
    ) -> "RowsOf":
        """Of the same samples, as each model wants them."""
        if isinstance(source, Placed) and isinstance(target, Placed):
            ours, theirs = source.places(our_inputs).cpu(), target.places(their_inputs).cpu()
            if not torch.equal(ours, theirs):
                first, second = shared_rows(ours, theirs)
                return cls(takes(first, between), takes(second, between), True)
        first_mask, second_mask = source.mask(our_inputs), target.mask(their_inputs)
        _check_masks(first_mask, second_mask)
        return cls(
            lambda signal, _kind: real_rows(signal, first_mask),
            lambda signal, _kind: real_rows(signal, second_mask),
            False,
        )


class Meeting:
    """Signals of some of the target's sites and of their counterparts, in one batch. Nothing is kept beyond its use."""

    def __init__(
        self,
        source: Calibratable,
        target: Calibratable,
        sites: Sequence[Site],
        signals: Collection[Signal],
        rows: RowsOf,
        receive: Receive,
        beside: Collection[Signal] = (),
    ) -> None:
        """Arguments:
        sites: The target's.
        beside: Signals of which others than the counterparts' are met, too (`bico.calibration.pairing.partners`).
        """
        self._source, self._target, self._rows, self._receive = source, target, rows, receive
        self._partners = partners(source.sites, target.sites, sites, signals, beside)
        # A deeper target uses some of the source's signals more than once, and so do sums over blocks.
        self._uses = Counter(ours for met in self._partners.values() for ours in met.values())
        self._kept: dict[SignalKey, tuple[Tensor, int]] = {}
        self.source_sites = sites_met(self._uses, source.sites)
        self.target_sites = sites_met(self._partners, sites)

    def keep(self, key: SignalKey, ours: Tensor) -> None:
        """Takes a signal of the source."""
        if key in self._uses:
            self._kept[key] = ours, ours._version  # of the storage, which the model may go on to write to

    def meet(self, key: SignalKey, theirs: Tensor) -> None:
        """Takes a signal of the target, and hands its rows over with those that it meets.

        Raises:
            CalibrationError: If the source changed one of these in place, or the two have another number of rows.
        """
        for called, source_key in self._partners.get(key, {}).items():
            ours = self._of_source(source_key)
            self._receive(called, *self._together(key, theirs, source_key, ours))

    def _of_source(self, key: SignalKey) -> Tensor:
        self._uses[key] -= 1
        ours, version = self._kept[key] if self._uses[key] else self._kept.pop(key)
        if ours._version != version:
            raise CalibrationError(
                f"{self._source.name} changes the {key[1]} of {key[0]} in place after it was measured: compute it out of "
                "place (no `+=`, no `inplace=True`)."
            )
        return ours

    def _together(self, key: SignalKey, theirs: Tensor, source_key: SignalKey, ours: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of two signals that belong together."""
        source, target, rows = self._source, self._target, self._rows
        if ours.ndim == 3 and source.grid and target.grid and source.grid != target.grid:
            ours = resample_tokens(ours, source.grid, target.grid)
        if len(ours) != len(theirs) or (ours.shape[:-1] != theirs.shape[:-1] and not rows.regrouped):
            raise CalibrationError(
                f"The {key[1]} of {key[0]} has {_rows(theirs)} in {target.name}, and its counterpart {source_key[0]} has "
                f"{_rows(ours)} in {source.name}: rows can be matched one by one only if both models have as many for the "
                "same samples; leave the site out, or give inputs of a size at which they do."
            )
        wide = torch.promote_types(torch.promote_types(ours.dtype, theirs.dtype), torch.float32)  # sums need the digits
        both = rows.ours(ours.to(theirs.device, wide), key[1]), rows.theirs(theirs.to(wide), key[1])
        return _nonzero(*both) if key[1].is_gradient else both


def real_rows(signal: Tensor, mask: Tensor | None) -> Float[Tensor, "rows features"]:
    """Returns the rows of a signal (batch, [tokens,] features) that belong to real tokens."""
    if mask is None or signal.ndim == 2:
        return signal.flatten(0, -2)
    if signal.shape[:-1] != mask.shape:
        raise CalibrationError(
            f"A signal with rows {tuple(signal.shape[:-1])} does not fit the mask {tuple(mask.shape)} of its tokens: a mask "
            "must be (batch, tokens), as the sites see them."
        )
    return signal[mask]


def _rows(signal: Tensor) -> str:
    """How many rows, and how they come about.

    Example:
        >>> _rows(torch.zeros(4, 3, 3, 8))
        '36 rows (4 x 3 x 3)'
    """
    return f"{signal[..., 0].numel()} rows ({' x '.join(map(str, signal.shape[:-1]))})"


def _nonzero(
    ours: Float[Tensor, "rows source"], theirs: Float[Tensor, "rows target"]
) -> tuple[Float[Tensor, "kept source"], Float[Tensor, "kept target"]]:
    """The rows that are not zero in either model."""
    carries = ours.any(dim=1) & theirs.any(dim=1)
    return (ours, theirs) if carries.all() else (ours[carries], theirs[carries])


def _check_masks(ours: Tensor | None, theirs: Tensor | None) -> None:
    if ours is None and theirs is None:
        return
    if ours is None or theirs is None or not torch.equal(ours.cpu(), theirs.cpu()):
        raise CalibrationError(
            "The two models see other tokens of the same samples: they must share one tokenizer and one length limit."
        )
