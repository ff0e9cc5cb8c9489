"""Models that must run on one example at a time, because rows of a layer belong to several examples."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import HEADS, lora_model, tiny_task
from helpers import ONE_BY_ONE, tiny_batch
from test_collect import EXACT, assert_same, full_gradients
from torch import Tensor, nn
from torch.testing import assert_close

from foretune.errors import InputError
from foretune.tangents import collect
from foretune.tangents.one_by_one import layer_gradients_one_by_one, one_by_one_plan, singles
from foretune.tangents.reference import jacobian, kernel
from foretune.testing import ntk

VARIANTS: list[dict[str, Any]] = [
    {},
    {"pos_att_type": ["c2p"]},
    {"pos_att_type": ["p2c"]},
    {"share_att_key": False},
    {"position_biased_input": True, "norm_rel_ebd": "none"},
    {"position_buckets": -1, "share_att_key": False},
    {"relative_attention": False},
]


@pytest.mark.parametrize("trained", [False, True], ids=["B=0", "B≠0"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_the_ntk_of_deberta_equals_the_reference(changes: dict[str, Any], trained: bool) -> None:
    model, batch = lora_model("deberta-v2", trained, **changes), tiny_batch("roberta")
    assert_close(ntk(model, batch), kernel(jacobian(model, batch)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["deberta", "xlnet"])
def test_the_ntk_of_similar_models_equals_the_reference(kind: str) -> None:
    model, batch = lora_model(kind, True), tiny_batch("roberta")
    assert_close(ntk(model, batch), kernel(jacobian(model, batch)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_tangents_do_not_depend_on_batches_and_order(kind: str, tmp_path: Path) -> None:
    # XLNet reads the last token, and computes positions in float32
    options: dict[str, Any] = {"n": 5, "num_train": 3, "padding_side": "left" if kind == "xlnet" else "right"}
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5} if kind == "xlnet" else EXACT
    heads = HEADS.get(kind, ["classifier"])
    expected = collect(tiny_task(kind, **options), heads=heads, batch_size=2)
    order = [2, 0, 1]
    shuffled = collect(tiny_task(kind, order=order, **options), heads=heads, directory=tmp_path)
    assert_same(shuffled, expected, [*order, 3, 4], **close)
    assert collect(tiny_task(kind, order=order, **options), heads=heads, directory=tmp_path).reused


class Shared(nn.Module):
    """Adds to a layer a second one that runs on one table for the whole batch."""

    def __init__(self, inner: nn.Module, rows: int) -> None:
        super().__init__()
        self.inner, self.rows = inner, rows
        self.table = nn.Linear(16, 16, dtype=torch.float64)

    def forward(self, hidden: Tensor) -> Tensor:
        table = torch.linspace(-1, 1, self.rows * 16, dtype=hidden.dtype).view(self.rows, 16)
        return self.inner(hidden) + torch.tanh(self.table(table)).mean(0)


def with_table(rows: int) -> Any:
    task: Any = tiny_task("bert", n=5, num_train=3)
    dense = task.model.bert.encoder.layer[0].output.dense
    torch.manual_seed(0)
    task.model.bert.encoder.layer[0].output.dense = Shared(dense, rows)
    return task


def features(model: Any, **inputs: Tensor) -> Tensor:
    """The features that enter the classifier."""
    recorded: list[Tensor] = []
    handle = model.classifier.register_forward_pre_hook(lambda _, args: recorded.append(args[0][0]))
    model(**inputs)
    handle.remove()
    return recorded[0]


@pytest.mark.parametrize("kind", ["1", "2", "7", "deberta", "deberta-v2"])  # rows of the table, or a model with one
def test_rows_of_a_table_hold_the_gradients_of_every_example(kind: str) -> None:
    task: Any = with_table(int(kind)) if kind.isdigit() else tiny_task(kind, n=5, num_train=3)
    tangents = collect(task)
    ending = {"deberta": "0.attention.self.pos_proj", "deberta-v2": "0.attention.self.query_proj"}.get(kind, "table")
    (layer,) = (name for name in tangents.layers if name.endswith(ending))
    close = {"rtol": 1e-5, "atol": 1e-8} if kind == "deberta" else EXACT  # its norms are in float32
    weight = task.model.get_parameter(f"{layer}.weight")
    for number, row in enumerate([*task.train, *task.eval]):
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}
        entries = features(task.model, **inputs)
        gradients = torch.stack([torch.autograd.grad(entry, weight, retain_graph=True)[0] for entry in entries])
        basis = tangents.basis[number if len(tangents.basis) > 1 else 0]
        expected = torch.einsum("qd,qe,eoi->doi", basis, basis, gradients)
        assert_close(full_gradients(tangents, number)[tangents.layers.index(layer)], expected, **close)


def test_compressed_rows_of_a_table_are_close() -> None:
    exact, short = collect(with_table(40)), collect(with_table(40), tolerance=1e-3)
    (entry,) = (entry for entry in short.entries if entry.layer.endswith("table") and entry.simulated)
    assert entry.rows_per_example is not None and entry.rows_per_example < 40
    for number in range(5):
        for a, b in zip(full_gradients(exact, number), full_gradients(short, number), strict=True):
            assert float((a - b).norm()) <= 0.3 * float(a.norm())


def test_batches_are_used_where_they_are_possible() -> None:
    model, batch = lora_model("bert", True), tiny_batch("bert")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    example = next(singles(batch))
    assert one_by_one_plan(model, layers, lambda x: model(**x).logits, example, example) is None


@pytest.mark.parametrize("fault", ["rows", "calls"])
def test_layers_that_run_differently_for_some_examples_are_an_error(fault: str) -> None:
    model, calls = nn.Linear(3, 2), 0

    def forward(batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        output = model(batch["x"].expand(calls if fault == "rows" else 1, 3)).sum(0, keepdim=True)
        return output + model(torch.ones(1, 3)) if fault == "calls" and calls == 2 else output

    examples = [{"x": torch.randn(1, 3)} for _ in "12"]
    with pytest.raises(InputError, match=r"more rows for some text|equally often"):
        layer_gradients_one_by_one(model, {"map": model}, forward, examples, (1,))
