"""What a run costs that reads its models block by block: from shapes and counts, and from speeds measured on the spot."""

from functools import cached_property
from typing import Any

import torch

from bico.adapters.folder import weights_in
from bico.calibration.blockwise import groups
from bico.calibration.covariances import most_wanted
from bico.calibration.memory import FLOAT32, covariance_bytes, covariance_shapes, features
from bico.calibration.signals import Signal, signal_key
from bico.linalg.sketch import CORANGE, RANGE, worth_sketching
from bico.models.loading import ModelFiles
from bico.reporting.cost import covariance, decomposition
from flows.planning.costs import resident
from flows.planning.estimate import MAP, SMALL, Known
from flows.planning.forecast import Ahead, Step
from flows.planning.plan import Plan
from flows.planning.speeds import Speed, timed
from tasks.collect import STAGES
from tasks.inputs import TaskRef, open_split

LOOKED_AT = 16
"""Samples whose tokens are counted."""
PREPARED = 1e-3
"""Seconds until an example is tokens."""
OVERHEAD = 1.3
"""Of a pass over the products in it: norms, attention's softmax, activations, and what hooks take."""
FORTH_AND_BACK = 3
"""Forward passes that calibration costs: forth, each block once more, and the gradients of what it reads."""
MERGED = 4.0
"""Of bringing in a block with an update over bringing it in without."""
GIGABYTE_PER_SECOND = 0.5e9
"""At which arrays are written to the store with their digests, and read back."""
DEEPEST = 3.0
"""What a block keeps for its way back, over the values that its sites read and give."""


class ByBlock(Known):
    """Shapes and speeds of a plan whose models are read block by block."""

    source: Any
    target: Any

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._seen: dict[ModelFiles, Any] = {}

    @property
    def memory_plan(self) -> None:
        """One pass serves all blocks, however little memory there is."""
        return None

    def _model(self, files: ModelFiles) -> Any:
        return self.source if files == self.plan.source else self.target

    def inputs(self, files: ModelFiles) -> Any:
        """Some samples, as a model reads them."""
        if files not in self._seen:
            data = open_split(files, self.plan.space.device, next(iter(self.plan.tasks.values())), "train")
            self._seen[files] = data.batch(torch.arange(min(LOOKED_AT, len(data))))[0]
        return self._seen[files]

    def rate_in(self, dtype: torch.dtype) -> float:
        """Operations per second of a product as the blocks have it."""
        rows, width = 512, 2048
        one = torch.ones(rows, width, dtype=dtype, device=self.plan.space.device)
        other = torch.ones(width, width, dtype=dtype, device=self.plan.space.device)
        seconds = min(timed(lambda: one @ other, self.plan.space.device) for _ in range(4))
        return 2 * rows * width**2 / max(1e-6, seconds)

    @cached_property
    def rate(self) -> float:
        return self.rate_in(torch.float32)

    @cached_property
    def rate64(self) -> float:
        return self.rate_in(torch.float64)

    def speed(self, files: ModelFiles, task: TaskRef) -> Speed:
        if (files, task.bare) not in self._speeds:
            model, inputs = self._model(files), self.inputs(files)
            rate = self.rate_in(next(iter(model.state().values())).dtype)
            forward = OVERHEAD * model.operations(inputs) / rate / len(inputs)
            back = FORTH_AND_BACK * forward
            self._speeds[files, task.bare] = Speed(forward, back, PREPARED, inputs[0].nbytes, 0)
        return self._speeds[files, task.bare]

    def reading(self, files: ModelFiles) -> float:
        """Seconds that it takes to bring in all of a model once."""
        model = self._model(files)

        def bring() -> None:
            with model.here(model.blocks - 1):
                pass

        bring()
        per_byte = timed(bring, self.plan.space.device) / model.block_bytes(model.blocks - 1)
        return per_byte * (model.block_bytes(None) + sum(map(model.block_bytes, range(model.blocks))))

    def look(self, step: Step) -> tuple[float, int]:
        stage, args = step.stage, step.args
        if stage in STAGES.values():
            samples = max(args[0].calibration.counts.values())
            return self._calibrating(args[0], samples), 2 * FORTH_AND_BACK * samples
        if stage in ("measure-completions", "validate"):
            uses, more = [*self._uses(step)], MERGED if args[2] is not None else 1
            seconds = sum(
                use.forward * self.speed(use.files, use.task).forward
                + -(-use.forward // LOOKED_AT) * self.reading(use.files) * more
                for use in uses
            )
            return seconds, sum(use.passes for use in uses)
        if stage == "procrustes":
            (block,) = args
            return sum(
                self._solving(*shape, part.rule.most) * len(part.counts)
                for part in block.parts
                for shape in self._shapes(part)
            ), 0
        if stage == "carry-adapter":
            return self._maps_bytes / GIGABYTE_PER_SECOND + self.adapter_bytes / 1e8, 0
        return super().look(step)

    def _calibrating(self, one: Any, samples: int) -> float:
        plan, task = self.plan, one.calibration.task
        both = (plan.source, plan.target)
        passes = sum(FORTH_AND_BACK * samples * self.speed(files, task).forward for files in both)
        batches = -(-samples // plan.config.batch_size)
        brought = sum(self.reading(files) * (batches + 1) for files in both)
        rows, wanted = samples * self._tokens(plan.target), dict.fromkeys(one.signals, one.most)
        products = sum(covariance(rows, *shape, wanted[signal]) for signal, shape in self._crosses(one.signals))
        return passes + brought + products / self.rate + self._kept(wanted) / GIGABYTE_PER_SECOND

    def _solving(self, source: int, target: int, most: int | None) -> float:
        """Seconds until a map is solved, from a covariance or from a sketch of it."""
        if not worth_sketching(source, target, most) or most is None:
            return MAP * decomposition(source, target, most) / self.rate
        outer, inner = RANGE * most, CORANGE * most
        bases = 4 * (source + 2 * target) * outer**2 + 2 * target * inner * outer + 2 * source * inner * outer
        return (bases + 4 * (source + target) * outer**2) / self.rate64

    def _tokens(self, files: ModelFiles) -> int:
        return self.inputs(files).shape[1]

    def _crosses(self, signals: Any) -> list[tuple[Signal, tuple[int, int]]]:
        shapes = covariance_shapes(self.source.sites, self.target.sites, self.target.sites, signals)
        return [(signal, shape) for (_, signal), shape in shapes.items()]

    def _kept(self, wanted: Any) -> int:
        return covariance_bytes(self.source.sites, self.target.sites, self.target.sites, wanted)

    @property
    def _maps_bytes(self) -> int:
        return sum(
            FLOAT32 * (a + b) * min(a, b, rule.most or min(a, b))
            for signal, rule in self.plan.maps
            for _, (a, b) in self._crosses([signal])
        )

    def bytes(self, step: Step) -> int:
        match step.stage:
            case "adopt-expert":
                return sum(path.stat().st_size for place in self.plan.config.expert_files for path in weights_in(place))
            case "carry-adapter":
                return self.adapter_bytes
        return super().bytes(step) if step.stage not in ("measure-completions", "validate") else SMALL

    def passing(self, ahead: Ahead) -> int:
        """What blocks read, and the covariances until their maps are solved."""
        if not {step.stage for step in ahead.steps} & {*STAGES.values()}:
            return 0
        samples = max(self.plan.config.samples)
        read = 0
        for files, model in ((self.plan.source, self.source), (self.plan.target, self.target)):
            width = next(site.shape[1] for site in model.sites)
            read += samples * self._tokens(files) * width * _size(model) * model.blocks
        kept = sum(self._kept(dict.fromkeys(signals, most)) for (most, _), (signals, _) in self.plan.collected.items())
        return read + kept

    def memory(self, ahead: Ahead) -> int:
        """What this process holds by now, and the largest of what comes on top: a head with its scores, blocks with their
        signals, or all maps while an adapter is carried.
        """
        stages = {step.stage for step in ahead.steps}
        heads = [
            model.block_bytes(None) + max(map(model.block_bytes, range(model.blocks)))
            for model in (self.source, self.target)
        ]
        more = [max(heads) + self.target.loss_bytes if stages else 0]
        for (most, _), (signals, _) in self.plan.collected.items() if stages & {*STAGES.values()} else ():
            more.append(self._pair_bytes(dict.fromkeys(signals, most)))
        if "carry-adapter" in stages:
            more.append(self._maps_bytes + 2 * self.adapter_bytes)
        return resident() + max(more)

    def _pair_bytes(self, wanted: Any) -> int:
        """Blocks that are in memory together, their signals of a batch, and their covariances."""
        samples = min(self.plan.config.batch_size, max(self.plan.config.samples))
        ours, theirs = (samples * self._tokens(files) for files in (self.plan.source, self.plan.target))
        copies = 1 if len(self.plan.config.samples) == 1 else 2
        found = [0]
        for block, group in groups(self.source, self.target):
            sites = [site for site in self.target.sites if site.block in group]
            kept = ours * _size(self.source) * _widths(self.source, block, most_wanted(wanted))
            deep = max(
                (theirs * _size(self.target) * DEEPEST * _widths(self.target, b, _ENDS) for b in group), default=0
            )
            wide = 2 * FLOAT32 * theirs * max((max(site.shape) for site in sites), default=0)
            there = self.source.block_bytes(block) + sum(map(self.target.block_bytes, group))
            crosses = copies * covariance_bytes(self.source.sites, self.target.sites, sites, wanted) if sites else 0
            found.append(int(there + kept + deep + wide + crosses))
        return max(found)


_ENDS = (Signal.INPUT, Signal.OUTPUT)


def _size(model: Any) -> int:
    """Bytes of a value of the model's dtype."""
    return next(iter(model.state().values())).dtype.itemsize


def _widths(model: Any, block: int, signals: Any) -> int:
    """Values of some signals of a block, for one token."""
    sites = [site for site in model.sites if site.block == block]
    return sum({signal_key(site, signal): features(site, signal) for site in sites for signal in signals}.values())
