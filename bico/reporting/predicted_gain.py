"""How much a task vector should lower the loss, to first order, before anything is evaluated."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from bico.errors import ShapeError
from bico.models.sites import Site


def predicted_gain(
    gradient: Mapping[str, Tensor], vector: Mapping[str, Tensor], sites: Iterable[Site], samples: int
) -> dict[str, float]:
    r"""Returns the first-order decrease of the mean loss at each site, in nats.

    .. math:: \Delta_s = -\frac{1}{N} \langle G_B^\top X_B, \tau_B \rangle

    where :math:`G_B^\top X_B` is the gradient of the summed loss with respect to the site's weight, (out, in); a bias adds
    its own product. Positive is good. The sum over sites is the slope of the mean loss at the target, along the vector.

    Arguments:
        gradient: Of the loss summed over the samples, by parameter (`ParameterGradient.SUM`).
        vector: The target's task vector, by parameter; sites that it does not touch gain nothing.
        sites: The target's.
        samples: How many the gradient is summed over, N.

    Raises:
        ShapeError: If N is not positive.
    """
    if samples < 1:
        raise ShapeError(f"A gain is per sample, and the gradient is over {samples} samples.")
    gains = {}
    for site in sites:
        slots = [slot for slot in (site.weight, site.bias) if slot is not None and slot.parameter in vector]
        products = (float((slot.read(gradient).double() * slot.read(vector).double()).sum()) for slot in slots)
        gains[site.name] = -sum(products) / samples
    return gains
