"""Word vectors against counts made by hand, and on a language whose words come in kinds."""

import math

import torch

from zoo_build.cooccurrence import count_pairs, positive_information, word_vectors


def test_pairs_are_counted_on_both_sides_and_less_where_they_are_far():
    counts = count_pairs([torch.tensor([0, 1]), torch.tensor([2])], 4, window=2)
    expected = torch.tensor([[0, 1, 0.5, 0], [1, 0, 1, 0], [0.5, 1, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(counts, expected)


def test_information_is_that_of_the_formula():
    counts = torch.tensor([[0.0, 8.0, 0.0], [8.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    contexts = [8**0.75, 9**0.75, 1.0]
    expected = math.log(8 / (8 * contexts[1] / sum(contexts)))
    found = positive_information(counts)
    torch.testing.assert_close(found[0, 1].item(), expected, atol=1e-5, rtol=0)
    assert found[0, 2] == 0 and (found >= 0).all()
    assert positive_information(torch.zeros(2, 2)).isfinite().all()


def kinds() -> torch.Tensor:
    """Tokens 0..4 stand between 5s, tokens 6..10 between 11s."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(low, low + 5, (2000,), generator=generator) for low in (0, 6))
    return torch.stack([first, torch.full_like(first, 5), second[:], torch.full_like(first, 11)], 1)[
        :, [0, 1, 0, 1, 2, 3, 2, 3]
    ].flatten()


def test_words_of_one_kind_are_alike():
    vectors = word_vectors([kinds()], 14, 8, torch.Generator().manual_seed(1), window=2)
    torch.testing.assert_close(vectors.square().mean(1), torch.ones(14))  # tokens that never occur, too
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    within = torch.cat([cosines[:5, :5].flatten(), cosines[6:11, 6:11].flatten()]).mean()
    assert within > cosines[:5, 6:11].mean() + 0.3


def test_another_seed_gives_another_basis_of_the_same_geometry():
    one, same, other = (word_vectors([kinds()], 12, 8, torch.Generator().manual_seed(s), window=2) for s in (1, 1, 2))
    assert torch.equal(one, same)
    # Unrotated, the first number of every vector is its share of the leading direction, whatever the seed.
    assert torch.nn.functional.cosine_similarity(one[:, 0], other[:, 0], dim=0).abs() < 0.9
    torch.testing.assert_close(one @ one.T, other @ other.T, atol=0.05, rtol=0)
