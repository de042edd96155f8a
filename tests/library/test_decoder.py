"""Decoders of every kind in the table: their sites, the loss of completions, padding, two tokenizers, and a planted basis."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from bico.calibration.covariances import Batch, cross_covariances, split_at
from bico.calibration.shared_tokens import share
from bico.calibration.signals import Signal, capture, signal_key
from bico.data.text import Chat, Completion
from bico.errors import CheckpointError, ConfigError, DataError, MethodError, ShapeError
from bico.methods import get_method
from bico.models.decoder import decoder as module
from bico.models.decoder.decoder import Decoder
from bico.models.decoder.layouts import LAYOUTS
from bico.models.protocol import Completing, Model, Placed
from bico.rehoming.in_memory import transfer
from tests.tiny_decoder import (
    GATED,
    KINDS,
    bytes_tokenizer,
    examples,
    random_task_vector,
    rotated_copy,
    tiny_decoder,
    words_tokenizer,
)

ALL = list(Signal)
KIND = pytest.mark.parametrize("kind", KINDS)


def batches_of(model: Decoder, count: int, size: int = 16, other: Decoder | None = None, extra: int = 0) -> list[Batch]:
    drawn, none = examples(count), torch.zeros(count, dtype=torch.int64)
    parts = [(drawn[s], none[s]) for s in split_at(count, size, [count])]
    return [Batch(padded(model, t, extra), padded(other or model, t, extra), y) for t, y in parts]


def padded(model: Decoder, drawn: list[Completion], extra: int) -> Tensor:
    inputs = model.prepare(drawn)
    return model.stack([*inputs, inputs.new_zeros(inputs.size(1) + extra, 3)])[:-1] if extra else inputs


@KIND
def test_signals_make_the_parameters_gradients(kind: str) -> None:
    """Every site computes W x + b; dL/dW = Σ g xᵀ and dL/db = Σ g against plain autograd: none is dropped or doubled."""
    model = tiny_decoder(1, kind)
    assert isinstance(model, Model) and isinstance(model, Placed) and isinstance(model, Completing)
    inputs, none, state = model.prepare(examples(6)), torch.zeros(6), model.state()
    before = dict(model.model.named_modules())
    with model.instrument() as modules, capture(model.sites, modules, ALL) as seen:
        opened = model.loss(inputs, none)
        opened.backward()
    assert dict(model.model.named_modules()) == before
    leaves = [p.requires_grad_() for p in model.trainable()]
    plain = model.loss(inputs, none)
    assert_close(opened, plain)
    grads = dict(zip(state, torch.autograd.grad(plain, leaves), strict=True))
    roles = ["q", "k", "v", "o", *(["gate", "up", "down"] if kind in GATED else ["fc_in", "fc_out"])]
    assert [site.name for site in model.sites] == [f"blocks.{b}.{role}" for b in range(2) for role in roles]
    for site in model.sites:
        x, g = seen[signal_key(site, Signal.INPUT)], seen[signal_key(site, Signal.OUTPUT_GRAD)]
        weight, bias = site.weight.read(state), None if site.bias is None else site.bias.read(state)
        assert weight.shape == site.shape
        assert_close(F.linear(x, weight, bias), seen[signal_key(site, Signal.OUTPUT)])
        assert_close(torch.einsum("bto,bti->oi", g, x), site.weight.read(grads))
        if site.bias is not None:
            assert_close(g.sum((0, 1)), site.bias.read(grads))
        assert not g[~model.mask(inputs)].any()  # what is no row has no gradient


@KIND
def test_every_linear_map_of_the_blocks_is_a_site_once(kind: str) -> None:
    model = tiny_decoder(1, kind)
    at = LAYOUTS[kind].blocks
    linear = {
        f"{at}.{name}.weight"
        for name, m in model.model.get_submodule(at).named_modules()
        if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"
    }
    assert {site.weight.parameter for site in model.sites} == linear
    filled = {name: torch.zeros_like(p) for name, p in model.state().items()}
    for site in model.sites:
        for slot in (site.weight, site.bias):
            if slot is not None:
                slot.write(filled, slot.read(filled) + 1)
    assert all((filled[name] == 1).all() for name in linear)


@KIND
def test_the_loss_is_that_of_transformers_on_the_completions_alone(kind: str) -> None:
    model, drawn = tiny_decoder(1, kind), examples(5)
    inputs = model.prepare(drawn)
    ids, asked = inputs[..., 0], inputs[:, 1:, 1].bool()
    with torch.no_grad():
        scores = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1][asked]
    wanted = ids[:, 1:][asked]
    assert_close(model.loss(inputs, torch.zeros(5)), F.cross_entropy(scores, wanted, reduction="sum"))
    for row, example in zip(inputs, drawn, strict=True):
        written = model.tokenizer.decode(row[row[:, 1].bool(), 0].tolist())
        assert written == example.completion + "</s>"
    assert model.answers(inputs).characters.tolist() == [len(example.completion) for example in drawn]


def test_answers_add_up_and_large_vocabularies_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_decoder(1)
    inputs = model.prepare(examples(5))
    found, loss = model.answers(inputs), model.loss(inputs, torch.zeros(5))
    assert_close(found.costs.sum(), loss) and found.tokens.tolist() == inputs[..., 1].sum(1).tolist()
    ids = inputs[..., 0]
    likeliest = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1].argmax(2)
    right = (likeliest == ids[:, 1:]) & inputs[:, 1:, 1].bool()
    assert found.right.tolist() == right.sum(1).tolist() and (found.whole == (found.right == found.tokens)).all()
    leaf = model.trainable()[0].requires_grad_()
    plain = torch.autograd.grad(model.loss(inputs, torch.zeros(5)), leaf)[0]
    monkeypatch.setattr(module, "AT_ONCE", 90 * 4)
    assert_close(torch.autograd.grad(model.loss(inputs, torch.zeros(5)), leaf)[0], plain)
    assert_close(model.answers(inputs).costs, found.costs)


@KIND
def test_several_answers_are_read_behind_one_prompt_as_each_by_itself(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, drawn = tiny_decoder(1, kind), examples(4)
    answers = [
        " bake limo",
        " limo",
        ": bake",
        "lo",
    ]  # of several lengths; the last one may be one word with its prompt
    plain = model.answers(model.prepare([example.answered(answer) for example in drawn for answer in answers]))
    read = 0
    encode = type(model.model.base_model).forward

    def counted(self: Any, input_ids: Tensor, **more: Any) -> Any:
        nonlocal read
        read += input_ids.numel()
        return encode(self, input_ids=input_ids, **more)

    monkeypatch.setattr(type(model.model.base_model), "forward", counted)
    found = model.choose(drawn, answers)
    for field in dataclasses.fields(plain):
        assert_close(getattr(found, field.name), getattr(plain, field.name))
    whole = sum(len(model.prepare([example.answered(answer)])[0]) for example in drawn for answer in answers)
    assert (read < 0.75 * whole) == (kind not in ("gemma2", "gemma3_text"))  # whose layers see eight tokens


@KIND
def test_padding_changes_nothing(kind: str) -> None:
    model, drawn = tiny_decoder(1, kind), examples(5)
    wider = padded(model, drawn, 5)
    single = sum(model.loss(model.prepare([e]), torch.zeros(1)) for e in drawn)
    assert_close(model.loss(wider, torch.zeros(5)), single, rtol=1e-6, atol=1e-6)
    alone = torch.cat([model.features(model.prepare([e])) for e in drawn])
    assert_close(model.features(wider), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokenizers", ["one", "two"])
def test_covariances_know_neither_padding_nor_batch_size(tokenizers: str) -> None:
    ours = tiny_decoder(1)
    other = words_tokenizer() if tokenizers == "two" else None
    theirs, found = tiny_decoder(2, "phi3", other, width=24, hidden=12, heads=6, keys=3), []
    for size, extra in ((1, 0), (5, 0), (12, 4)):
        batches = batches_of(ours, 12, size, theirs, extra)
        ((_, sums),) = cross_covariances(ours, theirs, batches, (None, None), ALL, [12])
        found.append(sums)
    for other_sums in found[1:]:
        for key, value in found[0].items():
            assert_close(other_sums[key], value, rtol=1e-5, atol=1e-5)
    assert found[0]["blocks.0.k", Signal.OUTPUT].shape == (8, 12)  # of other numbers of heads of keys


@KIND
def test_a_planted_change_of_basis_is_recovered(kind: str) -> None:
    """The rotated copy computes the same function, and with the carried vector the function of the expert, biases and all."""
    source, fresh = tiny_decoder(1, kind), examples(9, seed=99)
    target = rotated_copy(source, seed=7)
    inputs = source.prepare(fresh)
    close = {"rtol": 2e-3, "atol": 2e-3}  # norms, softmax and RoPE compute in float32
    assert_close(target.answers(inputs).costs, source.answers(inputs).costs, rtol=1e-4, atol=1e-4)
    tau = random_task_vector(source)
    carried = transfer(tau, source, target, batches_of(source, 60, other=target), (None, None), get_method("bico"))
    plain = source.answers(inputs).costs
    with source.updated(tau):
        expert = source.answers(inputs).costs
    assert (expert - plain).norm() > 0.03 * plain.norm()
    with target.updated(carried):
        assert_close(target.answers(inputs).costs, expert, **close)


def test_two_tokenizers_are_matched_where_both_end_at_the_same_character() -> None:
    first, second = tiny_decoder(1), tiny_decoder(2, tokenizer=words_tokenizer())
    example = [Completion("bake li:", " moba")]
    inputs = first.prepare(example), second.prepare(example)
    ours, theirs = (m.places(i)[0].tolist() for m, i in zip((first, second), inputs, strict=True))
    assert ours != theirs and ours[-1] == theirs[-1] == -1  # the end is told by nobody what comes next
    assert {1 + len("bake"), 1 + len("bake li"), 1 + len("bake li:")} <= {*ours} & {*theirs}
    assert 0 < share(*(m.places(i) for m, i in zip((first, second), inputs, strict=True))).part <= 1
    assert first.vocabulary != second.vocabulary


def test_what_the_assistant_says_is_the_completion_by_the_template() -> None:
    model = tiny_decoder(1)
    chat = Chat((("user", " bake? "), ("assistant", "li mo"), ("user", "ke"), ("assistant", "sto")))
    row = model.prepare([chat])[0]
    assert model.tokenizer.decode(row[:, 0].tolist()) == (
        "<s>[user] bake?</s>[assistant] li mo</s>[user] ke</s>[assistant] sto</s>"
    )
    assert model.tokenizer.decode(row[row[:, 1].bool(), 0].tolist()) == " li mo</s> sto</s>"
    assert (row[1:, 2] >= row[:-1, 2]).all()
    assert chat.answer is None and Chat(chat.turns[:2]).answered("no").turns[1] == ("assistant", "no")


def test_two_templates_are_matched_by_what_the_messages_hold() -> None:
    first, other = tiny_decoder(1), bytes_tokenizer()
    other.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    second, chat = tiny_decoder(2, tokenizer=other), [Chat((("user", "bake li"), ("assistant", "mo ke")))]
    ours, theirs = (m.places(m.prepare(chat))[0] for m in (first, second))
    assert {*theirs[theirs % (1 << 32) > 0].tolist()} <= {*ours.tolist()}  # every end of a token of a message
    assert share(ours[None], theirs[None]).part == 1


def test_plain_text_is_all_completion_and_has_no_end() -> None:
    model, bare = tiny_decoder(1), tiny_decoder(1, tokenizer=bytes_tokenizer(begin=False))
    row = model.prepare(["bake li"])[0]
    assert row[:, 1].tolist() == [0] + [1] * (len(row) - 1) and row[-1, 0] != 2
    assert bare.prepare(["bake li"])[0, 0, 1] == 0  # nothing tells the first token
    assert model.prepare([Completion("bake", " li")])[0, -1].tolist()[:2] == [2, 1]


def test_long_examples_are_cut_and_what_is_left_without_a_completion_is_refused() -> None:
    model, long = tiny_decoder(1), "bake " * 60
    cut = Completion("li", long)
    assert model.prepare([cut]).shape == (1, 48, 3) and model.is_cut(cut) and not model.is_cut(Completion("li", " mo"))
    with pytest.raises(DataError, match=r"nothing of the completion of 'bake bake .*its prompt has 48 tokens"):
        model.prepare([Completion(long, " mo")])


def test_weights_in_bfloat16_are_tuned_and_updated_with_the_digits_of_float32() -> None:
    model = tiny_decoder(1, dtype=torch.bfloat16)
    inputs, before = model.prepare(examples(8)), {k: v.clone() for k, v in model.state().items()}
    ((_, sums),) = cross_covariances(model, model, [Batch(inputs, inputs, torch.zeros(8))], (None, None), ALL, [8])
    assert all(value.dtype == torch.float32 for value in sums.values())
    from bico.finetune import FinetuneConfig, finetune

    config = FinetuneConfig(steps=4, batch_size=8, lr=1e-5, warmup=1)
    tuned = finetune(model, lambda i: (inputs[i], torch.zeros(len(i))), 8, None, config)
    name = "model.layers.0.mlp.up_proj.weight"
    change = tuned[name] - before[name].float()
    assert tuned[name].dtype == torch.float32 and 0 < change.abs().max() < 1e-4  # which bfloat16 would have lost
    assert all(torch.equal(model.state()[k], v) for k, v in before.items())
    step = {name: torch.randn(before[name].shape, generator=torch.Generator().manual_seed(1))}
    with model.updated(step, 0.7):  # rounded once: rounding the update before would change some sums
        wanted = torch.add(before[name].float(), step[name], alpha=0.7).bfloat16()
        assert torch.equal(model.state()[name], wanted)
        assert not torch.equal(wanted, (before[name].float() + 0.7 * step[name].bfloat16().float()).bfloat16())


def test_biases_of_the_source_would_be_lost_and_those_of_the_target_stay() -> None:
    plain, biased = tiny_decoder(1), tiny_decoder(2, "qwen2", width=16)
    carried = transfer(
        random_task_vector(plain), plain, biased, batches_of(plain, 8, other=biased), (None, None), get_method("bico")
    )
    assert not carried["model.layers.0.self_attn.q_proj.bias"].any()
    assert carried["model.layers.0.self_attn.q_proj.weight"].any()
    with pytest.raises(MethodError, match=r"blocks\.0\.q has a bias in the source and none in the target"):
        transfer(random_task_vector(biased), biased, plain, [], (None, None), get_method("bico"))
    with pytest.raises(MethodError, match=r"role fc_in\) has no counterpart"):
        transfer({}, plain, tiny_decoder(1, "gpt2"), [], (None, None), get_method("bico"))


def test_heads_say_what_rope_turns() -> None:
    assert tiny_decoder(1).heads.pairs == ((0, 2), (1, 3))
    assert tiny_decoder(1, "gpt_neox").heads.pairs == ((0, 1),) and tiny_decoder(1, "gpt2").heads.pairs == ()
    heads = tiny_decoder(1, "qwen3").heads
    assert (heads.queries, heads.keys, heads.size, heads.normed) == (4, 2, 4, True)


def test_inputs_and_models_that_make_no_sense_are_refused() -> None:
    model = tiny_decoder(1)
    with pytest.raises(ShapeError, match=r"takes tokens \(batch, tokens, 3\), got torch.int64 of shape \(2, 3\)"):
        model.features(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="has no scores for classes"):
        model.logits(model.prepare(["bake li"]), model.head(()))
    small = tiny_decoder(1, vocab_size=20)
    with pytest.raises(DataError, match=r"has token \d+, and the model knows 20"):
        small.prepare(["bake li"])
    chat, odd = [Chat((("user", "a"), ("assistant", "b")))], bytes_tokenizer()
    for template, error, match in (
        (None, ConfigError, "has no chat template"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            DataError,
            "otherwise when it goes on",
        ),
        ("{{ raise_exception('no such role') }}", DataError, "cannot put the messages user, assistant: .*no such role"),
    ):
        odd.chat_template = template
        reader = tiny_decoder(1, tokenizer=odd)
        with pytest.raises(error, match=match):
            reader.prepare(chat)
    model.model.model.layers[1].self_attn.k_proj = None
    with pytest.raises(CheckpointError, match=r"block 1 of its llama has no linear map self_attn\.k_proj"):
        Decoder(model.model, model.tokenizer, "odd")
