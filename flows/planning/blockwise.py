"""Models larger than memory: whether a run reads them block by block, and what such a run costs.

That is decided from the files' headers and the memory that is free, before a model is opened. Runs that need a model whole, such
as those that train, are not made so.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from bico.adapters.folder import check_files, is_adapter, read_config
from bico.errors import ConfigError
from bico.methods.aligned import Aligned
from bico.methods.spec import Spec
from bico.methods.unaligned import Naive
from bico.methods.variant import Variant
from bico.models.families import families, get_family
from bico.models.loading import ModelFiles
from bico.models.shards import Shards
from bico.models.weight_files import weight_files
from flows.config import TransferConfig
from flows.planning.disk import bytes_told
from flows.planning.inputs import tell
from flows.settings import Settings

WIDE = 4
"""Bytes of float32, in which experts and task vectors are held."""
VECTORS = 3
"""Task vectors, or states, in float32 that a run holds at once beside its models: an expert, what it changed, what comes of it."""
CGROUP = Path("/sys/fs/cgroup")


def by_block(
    config: TransferConfig,
    settings: Settings,
    models: tuple[ModelFiles, ModelFiles],
    methods: Mapping[Spec, Variant],
) -> tuple[ModelFiles, ModelFiles]:
    """Returns a run's models, to be read block by block if that was asked for, or if they would not fit into memory.

    Raises:
        ConfigError: If it was asked for and is not to be had.
    """
    if settings.blockwise == "never":
        return models
    why_not = hindrance(config, models, methods)
    if settings.blockwise == "always":
        if why_not:
            raise ConfigError(f"--blockwise always: {why_not}")
        return _streamed(models)
    if not all(_is_served(files) for files in models):
        return models
    needed, free = bytes_of_whole(models), free_bytes(settings)
    if needed <= free:
        return models
    about = f"The models whole take about {bytes_told(needed)} of memory, and {bytes_told(free)} are free"
    if why_not:
        tell(f"{about}; they are read whole nevertheless, since block by block {why_not[0].lower()}{why_not[1:]}")
        return models
    tell(f"{about}: they are read block by block (--blockwise never reads them whole).")
    return _streamed(models)


def hindrance(config: TransferConfig, models: tuple[ModelFiles, ModelFiles], methods: Mapping[Spec, Variant]) -> str:
    """Why a run cannot be made block by block, with what would help; empty if it can."""
    for files in models:
        if not _is_served(files):
            names = ", ".join(family.name for family in families() if getattr(family, "blockwise", False))
            return f"{files.ref} is of the family {files.family}, and only {names} in safetensors files can be read so."
    if config.write != "adapter":
        return "Only adapters are written so: leave --merged out, or give write=adapter."
    if not config.expert_files or not all(is_adapter(place) for place in config.expert_files):
        return "Only adapters are carried so, since a full fine-tune is as large as a model: give a LoRA adapter."
    for place in config.expert_files:
        said = read_config(check_files(place))
        if said.get("use_dora") or said.get("modules_to_save") or said.get("bias", "none") != "none":
            return f"{place} has DoRA, biases, or modules kept whole, for which the source is needed whole: give a plain LoRA."
    if config.oracle or config.rivals != "none":
        return "Nothing can be trained so: leave out --oracle and --rivals."
    for spec, variant in methods.items():
        whole = variant.needs.gradients or variant.needs.beside or variant.needs.grams
        if variant.steps or not isinstance(variant.method, Aligned | Naive) or whole:
            return f"Method '{spec}' needs a model whole: take one that aligns and has no last steps, such as bico."
    return ""


def bytes_of_whole(models: tuple[ModelFiles, ModelFiles]) -> int:
    """What a run takes that holds both models whole."""
    found = [_shards(files) for files in models]
    values = [sum(_count(shards.shape(name)) for name in shards) for shards in found]
    weights = sum(n * shards.dtype.itemsize for n, shards in zip(values, found, strict=True))
    return weights + VECTORS * WIDE * max(values)


def free_bytes(settings: Settings) -> int:
    """Memory that is free on this machine, in this container, and by what was said."""
    free = [psutil.virtual_memory().available]
    with suppress(OSError, ValueError):  # no container, or one without a limit
        free.append(int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()))
    if settings.memory is not None:
        free.append(int(settings.memory * 1e9))
    return max(0, min(free))


def _streamed(models: tuple[ModelFiles, ModelFiles]) -> tuple[ModelFiles, ModelFiles]:
    source, target = (replace(files, blockwise=True) for files in models)
    return source, target


def _is_served(files: ModelFiles) -> bool:
    return getattr(get_family(files.family), "blockwise", False) and files.weights.suffix == ".safetensors"


def _shards(files: ModelFiles) -> Shards:
    return Shards(weight_files(files.weights.parent, files.allow_pickle).paths, files.ref)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
