"""Published checkpoints: `open_clip:ARCH/TAG`, which open_clip downloads, and checkpoint files of its architectures.

A tag says with what activation and preprocessing its weights were trained. open_clip merges the preprocessing into the
model's and only warns of another activation; here both are taken from the tag.
"""

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import default_bpe
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from bico.errors import CheckpointError, UnknownModelError, nearest, one_line
from bico.models.clip.family import CLIP
from bico.models.files import ModelFiles


def find(ref: str) -> ModelFiles:
    """Finds a file of weights, or has open_clip download those of a tag.

    Raises:
        UnknownModelError: If there is no such architecture, tag or file: names the nearest.
        CheckpointError: If the download fails.
    """
    architecture, tag = parts(ref)
    if architecture not in open_clip.list_models():
        raise UnknownModelError(
            f"{ref}: open_clip has no architecture {architecture!r}: {_few(architecture, open_clip.list_models())}"
        )
    if about := open_clip.get_pretrained_cfg(architecture, tag):
        try:
            weights = Path(open_clip.download_pretrained(about))
        except Exception as error:  # whatever the hub client raises when there is no network or no file
            raise CheckpointError(f"{ref}: could not be downloaded: {one_line(error)}.") from error
    else:
        weights = Path(tag).expanduser()
        if not weights.is_file():
            tags = open_clip.list_pretrained_tags_by_model(architecture)
            raise UnknownModelError(f"{ref}: {tag!r} is neither a file nor a tag of {architecture}: {_few(tag, tags)}")
    return ModelFiles(ref, CLIP.name, weights, (weights,), built_in=_identity(architecture, tag))


def parts(ref: str) -> tuple[str, str]:
    """Architecture, and tag or path, of a reference.

    Example:
        >>> parts("open_clip:ViT-B-32/openai")
        ('ViT-B-32', 'openai')
    """
    architecture, _, tag = ref.removeprefix(f"{CLIP.references.scheme}:").partition("/")
    return architecture, tag


def trained_with(architecture: str, tag: str) -> dict[str, Any]:
    """What of a tag `open_clip.create_model` has to be told when it is given the architecture alone; nothing of a file."""
    about = open_clip.get_pretrained_cfg(architecture, tag)
    return {"force_quick_gelu": bool(about.get("quick_gelu", False)), "force_preprocess_cfg": _preprocessing({}, about)}


def model_config(architecture: str, tag: str) -> dict[str, Any]:
    """open_clip's configuration of an architecture, with the activation that a tag was trained with."""
    config = open_clip.get_model_config(architecture)
    return config | ({"quick_gelu": True} if trained_with(architecture, tag)["force_quick_gelu"] else {})


def _identity(architecture: str, tag: str) -> str:
    """What the digest covers beside the weights.

    Of most tags, which are trained as open_clip builds the architecture by default, that is the architecture's name. Where
    a tag's activation or preprocessing is another, all that is resolved from it is named too.
    """
    usual = asdict(PreprocessCfg())
    resolved = _preprocessing(usual, open_clip.get_pretrained_cfg(architecture, tag))
    config = model_config(architecture, tag)
    if resolved == usual and config == open_clip.get_model_config(architecture):
        return architecture
    tokenizer = config["text_cfg"].get("hf_tokenizer_name") or sha256(Path(default_bpe()).read_bytes()).hexdigest()
    about = {"model_cfg": config, "preprocess_cfg": resolved, "tokenizer": tokenizer}
    return f"{architecture} {json.dumps(about, sort_keys=True)}"


def _preprocessing(base: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What a tag says of preprocessing, over a base; the size is the architecture's, whatever the tag says."""
    return merge_preprocess_dict(base, {key: value for key, value in about.items() if key != "size"})


def _few(name: str, valid: list[str]) -> str:
    return nearest(name, valid if len(valid) < 20 else sorted(valid, key=lambda v: v[:5] != name[:5])[:20])
