"""How much a model's layer outputs are like those that other weights give."""

from collections.abc import Iterable, Mapping

import torch.nn.functional as F
from torch import Tensor

from bico.analysis.records import Measurement, RowMeans, layer_of_tensors
from bico.calibration.covariances import collect_signals
from bico.calibration.meeting import real_rows
from bico.calibration.signals import Signal
from bico.models.protocol import Model


def output_similarity(
    model: Model,
    reference: Mapping[str, Tensor],
    vector: Mapping[str, Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    head: Tensor,
    series: str,
    alpha: float = 1.0,
) -> list[Measurement]:
    """Measures the mean cosine between the site outputs of two task vectors' models on the same inputs.

    With the model's own fine-tuning as the reference this asks whether a transferred task vector makes the layers do
    what fine-tuning would have made them do (BiCo, figure 2). Rows are samples x tokens.

    Arguments:
        reference: Task vector of the model to compare with, such as the fine-tuned target.
        vector: Task vector to judge; empty for the model as it is.
        batches: Prepared inputs (batch, ...) and labels (batch,), one pass.
        head: Classification head (classes, features).
        series: The name of what is judged, such as the method.
        alpha: How much of `vector` is added.

    Returns:
        Quantity "cosine" for every site, in -1..1.
    """
    cosines: RowMeans[str] = RowMeans()
    for inputs, labels in batches:
        with model.updated(reference):
            wanted = collect_signals(model, inputs, labels, head, model.sites, [Signal.OUTPUT])
        with model.updated(vector, alpha):
            found = collect_signals(model, inputs, labels, head, model.sites, [Signal.OUTPUT])
        mask = model.mask(inputs)
        for (site, _), value in found.items():
            expected = wanted[site, Signal.OUTPUT]
            cosines.add(site, F.cosine_similarity(real_rows(value, mask), real_rows(expected, mask), dim=1))
    at = layer_of_tensors(model.sites, [Signal.OUTPUT])
    return [Measurement("cosine", series, site, at[site], value) for site, value in cosines.means().items()]
