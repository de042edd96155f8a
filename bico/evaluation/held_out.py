"""Samples by which the model to write is chosen: training rows that no calibration looked at, never the test split."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bico.calibration.sampling import Purpose, generator_of
from bico.errors import CalibrationError
from bico.evaluation.predictions import predicted
from bico.evaluation.probe import fit_probe
from bico.linalg.logistic import FOLDS

ROWS = 250
"""Held-out samples of a task. Of two models that differ on every tenth sample, the better one is told by 2 points."""
FEWEST = 50
"""Fewer rows than this choose by chance: calibration samples serve in their place, if there are more of them."""


@dataclass(frozen=True)
class HeldOut:
    """Which rows of the training split judge the cells of one task."""

    rows: tuple[int, ...]
    unseen: bool
    """Whether no calibration looked at them; else they are calibration samples, judged by cross-validated probes."""
    fitted: bool = False
    """Whether an expert of the run was fine-tuned on some of them."""

    def told(self, classless: bool = False) -> str:
        """What they are, for people.

        Arguments:
            classless: Whether samples have no classes that a probe could tell, such as pairs of texts.

        Example:
            >>> HeldOut((3, 1), unseen=True).told()
            '2 training samples that no calibration looked at'
        """
        if self.unseen:
            fitted = ", though the expert was fine-tuned on them in this run" if self.fitted else ""
            return f"{len(self.rows)} training samples that no calibration looked at{fitted}"
        if classless:
            return f"the {len(self.rows)} calibration samples themselves, since no others are left"
        return f"cross-validation of a probe on {len(self.rows)} calibration samples, since no others are left"


def hold_out(
    available: int, taken: Iterable[int], rows: int = ROWS, fewest: int = FEWEST, fitted: Iterable[int] = ()
) -> HeldOut:
    """Draws the rows that judge, the same for all cells of a task, so that their differences are paired.

    Arguments:
        available: Samples of the training split.
        taken: Rows that some cell has learnt from, with labels or without, of all budgets and seeds.
        rows: How many are wanted.
        fewest: With fewer left than this, and more taken than left, the taken ones serve.
        fitted: Rows on which the run itself has fine-tuned an expert: they judge only where fewer than `fewest` others are left.

    Raises:
        CalibrationError: If the training split is empty.

    Example:
        >>> held = hold_out(6, taken=[0, 1], fewest=3)
        >>> sorted(held.rows), held.unseen
        ([2, 3, 4, 5], True)
        >>> hold_out(6, taken=[0, 1, 2, 3], fewest=3).unseen
        False
        >>> hold_out(6, taken=[0], fitted=[1, 2], fewest=3).fitted, hold_out(6, taken=[0], fitted=[1, 2, 3], fewest=3).fitted
        (False, True)
    """
    if available < 1:
        raise CalibrationError("No model can be chosen: the training split holds no samples; use --export all or none.")
    known, trained = set(taken), set(fitted)
    order = torch.randperm(available, generator=generator_of(Purpose.HELD_OUT, 0)).tolist()
    left = [row for row in order if row not in known]
    unseen = len(left) >= min(fewest, len(known) + 1)
    chosen = left if unseen else [row for row in order if row in known]
    fresh = [row for row in chosen if row not in trained]
    if unseen and len(fresh) >= fewest:
        chosen = fresh
    chosen = chosen[:rows]
    return HeldOut(tuple(chosen), unseen, not trained.isdisjoint(chosen))


def cross_validated(
    features: Float[Tensor, "samples features"], labels: Int[Tensor, " samples"], classes: int, of: str = "a model"
) -> float:
    """Returns the share of samples that a probe of the others classifies rightly (four folds), in percent.

    Arguments:
        features: In an order that has nothing to do with the labels, as that of `hold_out`.

    Raises:
        CalibrationError: If there are fewer than four samples, or features are not finite.
    """
    if len(features) < FOLDS:
        raise CalibrationError(
            f"No model can be chosen by {len(features)} samples: raise --samples, or use --export all or none."
        )
    fold, right = torch.arange(len(features), device=features.device) % FOLDS, 0
    for left_out in range(FOLDS):
        kept, held = fold != left_out, fold == left_out
        probe = fit_probe(features[kept], labels[kept], classes)
        right += int((predicted(probe.scores(features[held]), of) == labels[held]).sum())
    return 100 * right / len(features)
