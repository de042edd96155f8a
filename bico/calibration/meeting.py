"""The signals of one batch in two models, brought together: the source's wait until the target's come."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bico.calibration.shared_tokens import Between, Take, shared_rows, takes
from bico.calibration.signals import Signal, SignalKey, signal_key
from bico.calibration.token_grids import resample_tokens
from bico.errors import CalibrationError
from bico.models.inputs import Inputs
from bico.models.matching import match_sites
from bico.models.protocol import Calibratable, Placed
from bico.models.sites import Site

Receive = Callable[[SignalKey, Float[Tensor, "rows source"], Float[Tensor, "rows target"]], None]
"""Takes the *target's* signal key, the source's rows and the target's."""


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
        signals: Sequence[Signal],
        rows: RowsOf,
        receive: Receive,
    ) -> None:
        """Arguments:
        sites: The target's.
        """
        matched = match_sites(source.sites, target.sites)
        self.source_sites = list({matched[site.name].name: matched[site.name] for site in sites}.values())
        self._source, self._target, self._rows, self._receive = source, target, rows, receive
        self._partner = _partners(sites, matched, signals)
        self._uses = Counter(self._partner.values())  # a deeper target uses some of the source's signals more than once
        self._kept: dict[SignalKey, tuple[Tensor, int]] = {}

    def keep(self, key: SignalKey, ours: Tensor) -> None:
        """Takes a signal of the source."""
        self._kept[key] = ours, ours._version  # of the storage, which the model may go on to write to

    def meet(self, key: SignalKey, theirs: Tensor) -> None:
        """Takes a signal of the target, and hands its rows over with those of its counterpart.

        Raises:
            CalibrationError: If the source changed the counterpart in place, or the two have another number of rows.
        """
        source, target, rows = self._source, self._target, self._rows
        source_key = self._partner[key]
        self._uses[source_key] -= 1
        ours, version = self._kept[source_key] if self._uses[source_key] else self._kept.pop(source_key)
        if ours._version != version:
            raise CalibrationError(
                f"{source.name} changes the {source_key[1]} of {source_key[0]} in place after it was measured: compute it "
                "out of place (no `+=`, no `inplace=True`)."
            )
        if ours.ndim == 3 and source.grid and target.grid and source.grid != target.grid:
            ours = resample_tokens(ours, source.grid, target.grid)
        if len(ours) != len(theirs) or (ours.shape[:-1] != theirs.shape[:-1] and not rows.regrouped):
            raise CalibrationError(
                f"The {key[1]} of {key[0]} has {_rows(theirs)} in {target.name}, and its counterpart {source_key[0]} has "
                f"{_rows(ours)} in {source.name}: rows can be matched one by one only if both models have as many for the "
                "same samples; leave the site out, or give inputs of a size at which they do."
            )
        wide = torch.promote_types(torch.promote_types(ours.dtype, theirs.dtype), torch.float32)  # sums need the digits
        ours, theirs = ours.to(theirs.device, wide), theirs.to(wide)
        both = rows.ours(ours, key[1]), rows.theirs(theirs, key[1])
        self._receive(key, *(_nonzero(*both) if key[1].is_gradient else both))


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


def _partners(
    sites: Sequence[Site], matched: Mapping[str, Site], signals: Sequence[Signal]
) -> dict[SignalKey, SignalKey]:
    """The source's signal of each of the target's."""
    partner: dict[SignalKey, SignalKey] = {}
    for site in sites:
        for signal in signals:
            key, ours = signal_key(site, signal), signal_key(matched[site.name], signal)
            if partner.setdefault(key, ours) != ours:
                raise CalibrationError(
                    f"{key[0]} is read by several sites of the target, whose counterparts in the source read "
                    f"{partner[key][0]} and {ours[0]}: give both models the `example` that shows what reads what, or neither."
                )
    return partner


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
