"""Batches of examples of similar length."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from foretune.tangents.lengths import TOKENS, alike, alike_in_splits

lengths_of_texts = st.lists(st.integers(1, 2 * TOKENS), min_size=1, max_size=60)


@given(lengths_of_texts, st.integers(1, 40))
def test_every_example_is_in_one_batch_that_fits(lengths: list[int], max_examples: int) -> None:
    batches = alike(lengths, max_examples)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= max_examples
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= TOKENS
    batched = [lengths[i] for batch in batches for i in batch]
    assert batched == sorted(batched)


@given(lengths_of_texts, st.integers(1, 40))
def test_no_batch_has_space_for_the_next_example(lengths: list[int], max_examples: int) -> None:
    batches = alike(lengths, max_examples)
    for batch, following in itertools.pairwise(batches):
        assert len(batch) == max_examples or (len(batch) + 1) * lengths[following[0]] > TOKENS


def test_batches_do_not_mix_splits() -> None:
    assert alike_in_splits([5, 3], [4, 9, 1], max_examples=2) == [[1, 0], [4, 2], [3]]
