"""How much two models' signals have in common: as geometry (CKA) and coordinate by coordinate (cosine)."""

from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor

from bico.analysis.moments import Moments, linear_cka
from bico.analysis.records import Measurement, RowMeans, layer_of_tensors
from bico.calibration.covariances import Batch, pair_rows
from bico.calibration.signals import Signal, SignalKey
from bico.models.protocol import Model

BEFORE, AFTER = "before", "after"


def compare_signals(
    source: Model,
    target: Model,
    batches: Iterable[Batch],
    heads: tuple[Tensor, Tensor],
    maps: Callable[[SignalKey], Tensor] | None = None,
    signal: Signal = Signal.INPUT,
) -> list[Measurement]:
    """Measures linear CKA and mean cosine of matched rows, before and after the source's rows are mapped.

    High CKA with low cosine means: the same geometry in other coordinates, which is what an alignment map can mend
    (BiCo, figures 1 and B). A row of zeros has no direction and counts as cosine 0.

    Arguments:
        batches: The samples to measure on, one pass; in memory are the rows of one batch.
        heads: Classification heads (classes, features) of source and target.
        maps: Alignment maps (source features x target features) by the target's signal key; without them only "before" is measured.
        signal: What to compare.

    Returns:
        Quantities "cka" and "cosine", series "before" and "after", for every tensor of the target that carries the
        signal. There is no cosine before the map where the two widths differ.

    Raises:
        CalibrationError: If a signal was never seen, or is constant.
    """
    moments: dict[SignalKey, Moments] = {}
    cosines: RowMeans[tuple[str, SignalKey]] = RowMeans()

    def add(key: SignalKey, ours: Tensor, theirs: Tensor) -> None:
        seen = Moments.of(ours, theirs)
        moments[key] = moments[key] + seen if key in moments else seen
        if ours.shape == theirs.shape:
            cosines.add((BEFORE, key), F.cosine_similarity(ours, theirs, dim=1))
        if maps is not None:
            cosines.add((AFTER, key), F.cosine_similarity(ours @ maps(key).to(ours), theirs, dim=1))

    for batch in batches:
        pair_rows(source, target, batch, heads, [signal], add)
    at = layer_of_tensors(target.sites, [signal])
    found = []
    for key, value in moments.items():
        found.append(Measurement("cka", BEFORE, key[0], at[key[0]], linear_cka(value)))
        if maps is not None:
            found.append(Measurement("cka", AFTER, key[0], at[key[0]], linear_cka(value.mapped(maps(key)))))
    found += [Measurement("cosine", series, key[0], at[key[0]], v) for (series, key), v in cosines.means().items()]
    return found
