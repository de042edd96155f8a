"""One step of fine-tuning on the calibration samples: what the same budget buys without any expert."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bico.calibration.parameter_gradients import ParameterGradient
from bico.errors import ConfigError
from bico.methods.evidence import Evidence, Needs
from bico.methods.protocol import Pair, Serves
from bico.task_vector import StateDict


@dataclass(frozen=True)
class FewShot:
    r"""The first AdamW step of the target on the mean loss of the calibration samples; serves every pair.

    .. math:: \tau_B = -\eta \left( \frac{g}{|g| + \epsilon} + \lambda \theta_B \right)

    with :math:`g` the mean gradient: bias correction makes AdamW's first step the gradient over its own size. The
    source's task vector is ignored. One forward-backward pass through the target is what BiCo spends on it too, so
    this is the control at matched cost (BiCo, appendix, table C). The step has the size of the learning rate in
    every entry whatever the gradient, so `lr` is its only scale. The pipeline takes the rate that the target is
    fine-tuned with, unless told otherwise; the default here is the paper's.

    References:
        | Decoupled Weight Decay Regularization (Loshchilov and Hutter, 2019)
        | https://arxiv.org/abs/1711.05101
    """

    lr: float = 1e-5
    """Learning rate."""
    weight_decay: float = 0.1
    eps: float = 1e-8

    name: ClassVar[str] = "few-shot"
    label: ClassVar[str] = "few-shot (one step)"
    colour: ClassVar[str] = "#be185d"
    reference: ClassVar[str] = "one step of fine-tuning at matched cost (BiCo, table C)"
    serves: ClassVar[Serves] = Serves.ANY
    carries_expert: ClassVar[bool] = False

    def __post_init__(self) -> None:
        finite = all(math.isfinite(value) for value in (self.lr, self.eps, self.weight_decay))
        if not finite or self.lr <= 0 or self.eps <= 0 or self.weight_decay < 0:
            raise ConfigError(f"few-shot needs lr > 0, eps > 0 and weight_decay >= 0, all finite, got {self}.")

    @property
    def trained(self) -> str:
        return f"all of its trainable parameters took one AdamW step at learning rate {self.lr:g}"

    @property
    def needs(self) -> Needs:
        return Needs(gradients=frozenset({ParameterGradient.SUM}))

    def check(self, pair: Pair) -> None:
        """Any target can be fine-tuned."""

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, evidence: Evidence) -> StateDict:
        step = {}
        for name, total in evidence.gradient(ParameterGradient.SUM).items():
            parameter = pair.target_state[name]
            g = total.to(parameter) / evidence.samples
            step[name] = -self.lr * (g / (g.abs() + self.eps) + self.weight_decay * parameter)
        return step
