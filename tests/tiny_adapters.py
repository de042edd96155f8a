"""Tiny LoRA adapters as PEFT itself saves them, with random factors, and what PEFT makes of a folder."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bico.models.wrapped import Wrapped, wrap


@torch.no_grad()
def save_lora(base: nn.Module, folder: Path, name: str = "default", dtype: Any = None, **settings: Any) -> Path:
    """Saves an adapter of a copy of a base, with all that PEFT trains changed at random; returns its folder."""
    generator = torch.Generator().manual_seed(11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(copy.deepcopy(base), LoraConfig(**{"r": 4, "lora_alpha": 12} | settings), name)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)
                if dtype is not None:
                    parameter.data = parameter.to(dtype)
        wrapped.save_pretrained(folder)
    return folder if name == "default" else folder / name


def loaded(base: nn.Module, folder: Path, strict: bool = True) -> PeftModel:
    """A copy of a base with an adapter on it; any warning of PEFT about it is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what PEFT calls
        return PeftModel.from_pretrained(copy.deepcopy(base), folder)


def merged_by_peft(base: nn.Module, folder: Path) -> dict[str, Tensor]:
    return loaded(base, folder, strict=False).merge_and_unload().state_dict()


def _no_loss(output: Any, labels: Tensor) -> Tensor:
    return output.logits.sum() * 0


def tiny_llama(seed: int, width: int = 16, layers: int = 2, heads: int = 4, kv: int = 2, hidden: int = 24) -> Wrapped:
    """Grouped queries: keys and values are narrower than queries."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    return _wrapped(LlamaForCausalLM(config), f"tiny-llama-{seed}")


def tiny_gpt2(seed: int, width: int = 16, layers: int = 2) -> Wrapped:
    """Conv1D: weights are stored as (in, out)."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=40, n_positions=32, n_embd=width, n_layer=layers, n_head=2, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _wrapped(GPT2LMHeadModel(config), f"tiny-gpt2-{seed}")


def _wrapped(model: nn.Module, name: str) -> Wrapped:
    sites = [
        path
        for path, part in model.named_modules()
        if type(part).__name__ in ("Linear", "Conv1D") and path != "lm_head"
    ]
    return wrap(model, _no_loss, name=name, sites=sites)


@torch.no_grad()
def logits_of(model: nn.Module, vocabulary: int = 40) -> Tensor:
    tokens = torch.randint(vocabulary, (3, 7), generator=torch.Generator().manual_seed(5))
    output = model.eval()(input_ids=tokens)
    return output.logits if "logits" in output else output.last_hidden_state
