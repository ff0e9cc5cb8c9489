"""Compression of rows: the rank it chooses, the share it loses, and the tangents collected with it."""

from pathlib import Path

import pytest
import torch
from cases import lora_model, tiny_task
from hypothesis import given, settings
from hypothesis import strategies as st
from test_collect import full_gradients
from torch import Tensor
from torch.testing import assert_close

from foretune.kernel import ntk
from foretune.tangents import collect, read_adapters
from foretune.tangents.compress import (
    RANKS,
    SIMULATED_TOLERANCE,
    Ranks,
    by_gram,
    lost_shares,
    low_rank,
    padded,
    ranks_for,
)


def rows(seed: int, tokens: int, decay: float = 0.0) -> tuple[Tensor, Tensor]:
    """Inputs and gradients of three examples; with a decay, later tokens have smaller inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs, gradients = (torch.randn(3, tokens, width, generator=generator).double() for width in (20, 14))
    return inputs * torch.exp(-decay * torch.arange(tokens)).unsqueeze(1), gradients


def products(inputs: Tensor, gradients: Tensor) -> Tensor:
    return gradients.mT @ inputs


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), tokens=st.integers(1, 12), padding=st.integers(0, 5))
def test_a_sufficient_rank_is_exact_for_any_padding(seed: int, tokens: int, padding: int) -> None:
    inputs, gradients = (torch.nn.functional.pad(x, (0, 0, 0, padding)) for x in rows(seed, tokens))
    compressed = low_rank(inputs, gradients, 12)
    assert_close(products(*compressed), products(inputs, gradients), rtol=1e-10, atol=1e-10)
    assert_close(compressed[0] @ compressed[0].mT, torch.eye(12).double().expand(3, -1, -1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("width", [5, 40])  # fewer and more columns than a GPU decomposes at once
def test_by_gram_spans_the_columns_without_dependent_directions(width: int) -> None:
    columns = torch.randn(2, 50, width, dtype=torch.float64)
    basis, true = by_gram(columns), torch.linalg.qr(columns)[0]
    assert_close(basis @ basis.mT, true @ true.mT, rtol=1e-10, atol=1e-10)
    twice = by_gram(torch.cat([columns, columns[..., :3]], 2))  # the last three columns are dependent
    assert_close(twice @ twice.mT, true @ true.mT, rtol=1e-10, atol=1e-10)
    assert not by_gram(torch.zeros(1, 6, 2, dtype=torch.float64)).any()


def test_padding_does_not_change_a_low_rank_result() -> None:
    plain = rows(0, 10, decay=0.5)
    for padding in (7, 70):  # few tokens, whose Gram matrix is used, and many
        inputs, gradients = (torch.nn.functional.pad(x, (0, 0, 0, padding)) for x in plain)
        assert_close(products(*low_rank(inputs, gradients, 3)), products(*low_rank(*plain, 3)), rtol=1e-10, atol=1e-10)


def test_the_lost_share_is_near_the_least_possible() -> None:
    """The singular values give the least share that rank r must lose."""
    inputs, gradients = rows(1, 12, decay=0.6)
    squares = torch.linalg.svdvals(products(inputs, gradients)) ** 2
    least = (1 - squares.cumsum(1) / squares.sum(1, keepdim=True)).mean(0)[:12]
    assert_close(lost_shares(inputs, gradients, 12), least, rtol=1e-6, atol=1e-9)
    for rank in (1, 3, 6):
        compressed = products(*low_rank(inputs, gradients, rank))
        share = ((products(inputs, gradients) - compressed).square().sum((1, 2)) / squares.sum(1)).mean()
        assert least[rank - 1] <= share <= 2 * least[rank - 1] + 1e-9


@pytest.mark.parametrize("tolerance", [0.02, 0.001, 0.3])
def test_ranks_are_the_smallest_that_keep_the_tolerances(tolerance: float) -> None:
    inputs, gradients = rows(2, 12, decay=0.7)
    counts = torch.full((3,), 12)
    ranks = ranks_for(inputs, gradients, counts, tolerance)
    assert ranks is not None
    shares = lost_shares(inputs, gradients, 12)
    for rank, max_share in ((ranks.main, max(tolerance, SIMULATED_TOLERANCE)), (ranks.main + ranks.rest, tolerance)):
        smaller = RANKS[RANKS.index(rank) - 1]
        assert shares[rank - 1] <= max_share < (shares[smaller - 1] if rank > 1 else 1)
    assert ranks_for(inputs, torch.zeros_like(gradients), counts, tolerance) == Ranks(1, 0)


def test_rows_are_not_compressed_if_simulated_runs_would_read_more_than_half() -> None:
    assert ranks_for(*rows(2, 12), torch.full((3,), 10), 0.02) is None  # main would be 6
    ranks = ranks_for(*rows(2, 12, decay=0.7), torch.full((3,), 12), 1e-9)
    assert ranks is not None and ranks.main <= 6 and ranks.main + ranks.rest == 12


def test_padded_splits_rows_into_examples() -> None:
    examples = padded(torch.arange(6).double().unsqueeze(1), [1, 3, 2])
    assert examples.squeeze(2).tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 0]]


@pytest.mark.parametrize("batch_size", [2, 32])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(("simulated", "tolerance"), [(False, 0.01), (True, SIMULATED_TOLERANCE)])
def test_collected_gradients_lose_no_more_than_the_tolerance(
    tmp_path: Path, batch_size: int, on_disk: bool, simulated: bool, tolerance: float
) -> None:
    exact = collect(tiny_task("bert"))
    folder = tmp_path if on_disk else None
    close = collect(tiny_task("bert"), tolerance=0.01, batch_size=batch_size, directory=folder)
    assert close.num_bytes < exact.num_bytes and len({entry.rows_per_example for entry in close.entries}) > 1
    shares: dict[int, list[float]] = {}  # for the layers with the same input together, as ranks are chosen
    for example in range(9):
        compressed = full_gradients(close, example, simulated=simulated)
        pairs = list(zip(compressed, full_gradients(exact, example), strict=True))
        for group in {entry.inputs for entry in exact.entries}:
            group_pairs = [pair for pair, entry in zip(pairs, exact.entries, strict=True) if entry.inputs == group]
            total = sum(float(b.square().sum()) for _, b in group_pairs)
            if total > 0:
                lost = sum(float((a - b).square().sum()) for a, b in group_pairs)
                shares.setdefault(group, []).append(lost / total)
    worst = max(sum(values) / len(values) for values in shares.values())
    # the loss may exceed the tolerance a little: ranks are chosen from 8 examples and for the best projection
    assert tolerance / 5 < worst < 1.5 * tolerance
    assert_close(close.features, exact.features)


def test_rows_in_full_precision_are_not_compressed_by_default() -> None:
    tangents = collect(tiny_task("bert"), dtype=torch.float32)
    assert {entry.rows_per_example for entry in tangents.entries} <= {None, 1}


def test_the_kernel_from_compressed_rows_is_close() -> None:
    adapters = read_adapters(lora_model("roberta", False))
    exact, close = (ntk(collect(tiny_task("roberta"), tolerance=tolerance), adapters) for tolerance in (0.0, 0.02))
    assert 0 < float((close.matrix - exact.matrix).norm() / exact.matrix.norm()) < 0.1


def test_tangents_with_another_tolerance_are_collected_again(tmp_path: Path) -> None:
    collect(tiny_task("bert"), directory=tmp_path, tolerance=0.2)
    assert collect(tiny_task("bert"), directory=tmp_path, tolerance=0.2).reused
    assert not collect(tiny_task("bert"), directory=tmp_path, tolerance=0.1).reused


def test_a_model_in_half_precision_is_compressed_too() -> None:
    """Its rows are in bfloat16, for which torch has no decompositions."""
    task = tiny_task("bert")
    task.model.bfloat16()
    close, exact = collect(task), collect(task, tolerance=0.0)
    assert close.dtype == torch.bfloat16 and close.num_bytes < exact.num_bytes
