"""An adapter out of a full fine-tune: the nearest update of a rank to what fine-tuning changed in each module."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bico.adapters.adapter import Adapter
from bico.adapters.factors import LowRank, alpha_for, factorised
from bico.adapters.names import paths_of
from bico.adapters.sites import paired
from bico.errors import MethodError
from bico.models.experts import everything
from bico.models.protocol import Calibratable
from bico.models.sites import Slot
from bico.task_vector import norm


@dataclass(frozen=True)
class Extracted:
    """An adapter, and how much of a task vector it holds."""

    adapter: Adapter
    paths: frozenset[str]
    """All modules of its base, for `write_adapter`."""
    kept: Mapping[str, float]
    """The share of its change's energy (squared norm) that each module keeps."""
    share: float
    """Of the energy of the whole task vector."""
    left: Mapping[str, float]
    """Parameters that have no LoRA and change (norms, biases, embeddings), and their shares of that energy."""

    def told(self) -> list[str]:
        """Lines for people: what is kept, in all and where least of it, and what is left out."""
        worst = sorted(self.kept, key=lambda path: self.kept[path])[:3]
        lines = [
            f"Rank {max(u.rank for u in self.adapter.modules.values())} keeps {100 * self.share:.1f} % of the energy of the change; "
            f"least in {', '.join(f'{path} ({100 * self.kept[path]:.1f} %)' for path in worst)}."
        ]
        if self.left:
            most = max(self.left, key=lambda name: self.left[name])
            lines.append(
                f"{len(self.left)} parameters that no LoRA holds are left out, with {100 * sum(self.left.values()):.2g} % of it, "
                f"most in {most}."
            )
        return lines


def extract(
    tau: Mapping[str, Tensor],
    model: Calibratable,
    rank: int,
    alpha: float | None = None,
    config: Mapping[str, Any] | None = None,
) -> Extracted:
    """Returns the adapter of a rank that comes nearest to a task vector.

    Linear maps of blocks get one; what else changed is told and left out. A fused module is one map.

    Arguments:
        tau: A task vector of the model, in part or whole.
        alpha: Of the adapter; the rank unless told, which is a scale of one.
        config: Settings that `adapter_config.json` is to keep, such as the task.

    Raises:
        MethodError: If the rank is none, or the task vector changes no linear map that a module of the model holds.
    """
    if rank < 1:
        raise MethodError(f"A LoRA has a rank of at least 1, got {rank}.")
    state = everything(model)
    paths = paths_of(model, state)
    slots = {
        site.weight.parameter: Slot(site.weight.parameter, transposed=site.weight.transposed) for site in model.sites
    }
    total = norm(tau) ** 2 or 1.0
    modules: dict[str, LowRank] = {}
    kept: dict[str, float] = {}
    left: dict[str, float] = {}
    inside = 0.0
    for name, change in tau.items():
        energy = float(change.double().square().sum()) / total
        if not energy:
            continue
        if name in slots and name in paths:
            update = slots[name].read(tau)
            scale = (rank if alpha is None else alpha) / rank
            low = min(rank, *update.shape)
            modules[paths[name]], kept[paths[name]] = factorised(update, low, alpha_for(scale, low, False))
            inside += energy * kept[paths[name]]
        else:
            left[name] = energy
    if not modules:
        raise MethodError(
            f"The task vector changes no linear map of {model.name} that a LoRA can hold: nothing is left of it."
        )
    about = {"base_model_name_or_path": model.name, **(config or {}), "bias": "none", "modules_to_save": None}
    about["fan_in_fan_out"] = any(slots[name].transposed for name in slots if paths.get(name) in modules)
    adapter = Adapter(model.name, paired(modules, paths, state), about)
    return Extracted(adapter, frozenset(paths.values()), kept, inside, left)
