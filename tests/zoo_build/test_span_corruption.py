"""Span corruption against examples worked out by hand, and what must hold of every draw."""

import pytest
import torch

from zoo_build.span_corruption import Corruption, corrupt, draw_spans

FIRST, SECOND, END = 91, 90, 1
SENTINELS = torch.tensor([FIRST, SECOND])


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


def test_the_example_of_the_paper():
    # thank you for inviting me to your party last week: "for inviting" and "last" are hidden
    tokens = torch.tensor([[10, 11, 12, 13, 14, 15, 16, 17, 18, 19]])
    inputs, targets = corrupt(tokens, mask("..xx....x."), SENTINELS, END)
    assert inputs.tolist() == [[10, 11, FIRST, 14, 15, 16, 17, SECOND, 19, END]]
    assert targets.tolist() == [[FIRST, 12, 13, SECOND, 18, END]]


def test_rows_are_corrupted_each_by_its_own_spans():
    tokens = torch.arange(10, 22).view(2, 6)
    inputs, targets = corrupt(tokens, mask(".x..xx", "xx..x."), SENTINELS, END)
    assert inputs.tolist() == [[10, FIRST, 12, 13, SECOND, END], [FIRST, 18, 19, SECOND, 21, END]]
    assert targets.tolist() == [[FIRST, 11, SECOND, 14, 15, END], [FIRST, 16, 17, SECOND, 20, END]]


def test_what_cannot_be_packed_is_refused():
    tokens = torch.arange(12).view(2, 6)
    with pytest.raises(ValueError, match="give every row as many"):
        corrupt(tokens, mask(".x..x.", "...xx."), SENTINELS, END)
    with pytest.raises(ValueError, match="3 spans are hidden, and there are only 2"):
        corrupt(tokens[:1], mask("x.x.x."), SENTINELS, END)


@pytest.mark.parametrize(("density", "span"), [(0.15, 3.0), (0.25, 2.0), (0.4, 1.0), (0.9, 4.0), (0.001, 3.0)])
def test_every_draw_hides_as_much_in_as_many_spans(density, span):
    corruption = Corruption(density, span)
    hidden = draw_spans(500, 40, corruption, torch.Generator().manual_seed(0))
    starts = hidden & ~torch.cat([torch.zeros(500, 1, dtype=torch.bool), hidden[:, :-1]], 1)
    assert (hidden.sum(1) == corruption.hidden(40)).all()
    assert (starts.sum(1) == corruption.spans(40)).all()
    assert not hidden[:, 0].any() and hidden[:, -1].all()
    assert abs(corruption.hidden(40) / 40 - density) < 0.5 / 40 + 1e-9 or density < 1 / 40
    if corruption.hidden(40) > 1:
        assert len(hidden.unique(dim=0)) > 30  # and not the same one again and again


def test_spans_of_all_lengths_are_drawn():
    hidden = draw_spans(2000, 20, Corruption(0.3, 3.0), torch.Generator().manual_seed(1))  # 6 tokens in 2 spans
    last = [len(row) - row.rindex(".") - 1 for row in ("".join(".x"[x] for x in r) for r in hidden.tolist())]
    shares = torch.tensor(last).bincount(minlength=6)[1:] / 2000
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.04, rtol=0)  # 1 to 5, equally likely


def test_nothing_is_lost():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(10, 60, (50, 32), generator=generator)
    sentinels = torch.arange(99, 91, -1)
    inputs, targets = corrupt(tokens, draw_spans(50, 32, Corruption(0.4, 2.0), generator), sentinels, END)
    for text, seen, answer in zip(tokens.tolist(), inputs.tolist(), targets.tolist(), strict=True):
        spans, marks = {}, set(sentinels.tolist())
        for token in answer[:-1]:
            spans.update({token: []}) if token in marks else spans[next(reversed(spans))].append(token)
        assert [t for token in seen[:-1] for t in spans.get(token, [token])] == text
        assert list(spans) == [token for token in seen if token in marks] == sentinels[: len(spans)].tolist()
        assert seen[-1] == answer[-1] == END
