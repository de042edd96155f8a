"""From class scores to predicted classes: the one place where the highest score wins."""

from jaxtyping import Float, Int
from torch import Tensor

from bico.errors import CalibrationError


def check_scores(scores: Float[Tensor, "samples classes"], of: str) -> Float[Tensor, "samples classes"]:
    """Returns the scores as they are.

    Arguments:
        of: Whose scores they are, for the message.

    Raises:
        CalibrationError: If a score is NaN or infinite. The first NaN counts as the highest score, so a model that has
            broken would be said to predict some class, often rightly.
    """
    if not bool(scores.isfinite().all()):
        broken = int((~scores.isfinite()).any(dim=1).sum())
        raise CalibrationError(
            f"The scores of {of} are not finite for {broken} of {len(scores)} samples: its weights or activations "
            "overflow; lower --alpha or the learning rate, or use another checkpoint."
        )
    return scores


def predicted(scores: Float[Tensor, "samples classes"], of: str = "a model") -> Int[Tensor, " samples"]:
    """Returns the class with the highest score.

    Raises:
        CalibrationError: If a score is not finite.

    Example:
        >>> import torch
        >>> predicted(torch.tensor([[0.1, 0.9], [2.0, -1.0]])).tolist()
        [1, 0]
    """
    return check_scores(scores, of).argmax(dim=1)
