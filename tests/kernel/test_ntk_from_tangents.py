"""The kernel from collected tangents, compared with reference Jacobians."""

import dataclasses
from typing import Any

import pytest
import torch
from cases import lora_model, tiny_task
from torch.testing import assert_close

from foretune.errors import InputError
from foretune.kernel import Kernel, ntk, summary
from foretune.tangents import Adapter, centring, collect, read_adapters
from foretune.tangents.reference import jacobian, kernel
from foretune.task import Task

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
# LLaMA computes norms and rotations in float32, also in a float64 model
SINGLE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def adapters_of(kind: str, **changes: Any) -> list[Adapter]:
    return read_adapters(lora_model(kind, **changes))


def reference_kernel(task: Task, kind: str, num_labels: int = 3, **changes: Any) -> torch.Tensor:
    """The centred kernel of all examples from reference Jacobians, on one padded batch."""
    model: Any = lora_model(kind, **changes)
    model.base_model.model.load_state_dict(task.model.state_dict(), strict=False)
    rows = [*task.train, *task.eval]
    parts = jacobian(model, task.collator(rows))
    centred = centring(num_labels)
    return kernel({name: torch.einsum("kc,nc...->nk...", centred, part) for name, part in parts.items()})


@pytest.mark.parametrize(
    "kind", ["bert", "llama", "gpt2", "deberta-v2", "roberta", "distilbert"]
)  # the last two have nonlinear heads
def test_the_kernel_from_tangents_equals_the_reference(kind: str) -> None:
    task = tiny_task(kind)
    result = ntk(collect(task, batch_size=4), adapters_of(kind))
    expected = reference_kernel(task, kind)
    assert result.matrix.shape == (18, 12)
    close = SINGLE if kind == "llama" else EXACT
    assert_close(result.matrix, expected[:, :12], **close)
    assert_close(result.k_train_train, expected[:12, :12], **close)
    assert_close(result.k_eval_train, expected[12:, :12], **close)
    logits = task.model(**task.collator([*task.train, *task.eval])).logits.detach()
    assert_close(result.outputs(result.f0), logits - logits.mean(1, keepdim=True), **close)
    one_hot = torch.eye(3, dtype=torch.float64)[[0, 1, 2] * 3]
    assert_close(result.outputs(result.y), one_hot - 1 / 3, **EXACT)
    assert_close(result.r0, (result.y - result.f0)[:6].flatten(), **EXACT)
    assert_close(result.centred(logits), result.f0, **close)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_kernel_of_a_sample_is_a_block_of_the_kernel(kind: str) -> None:
    tangents = collect(tiny_task(kind), batch_size=4)
    whole, part = ntk(tangents, adapters_of(kind)), ntk(tangents.sample(torch.tensor([4, 1, 2])), adapters_of(kind))
    chosen = torch.tensor([4, 1, 2])
    chosen = chosen[tangents.place[chosen].argsort()]
    entries = (chosen[:, None] * 2 + torch.arange(2)).flatten()
    assert_close(part.matrix, whole.k_train_train[entries[:, None], entries], **EXACT)
    assert_close(part.r0, whole.r0[entries], **EXACT)
    assert part.num_train == summary(part, 1.0)["examples"] == 3 and part.k_eval_train.shape == (0, 6)


def test_kernels_of_regression_and_image_models_equal_the_reference() -> None:
    task = tiny_task("bert", num_labels=1)
    result = ntk(collect(task), adapters_of("bert"))
    assert_close(result.matrix, reference_kernel_of_regression(task)[:, :6], **EXACT)
    assert_close(result.y_eval.flatten(), torch.tensor(task.eval["labels"], dtype=torch.float64), **EXACT)
    images = tiny_task("vit", dtype=torch.float32)
    close = ntk(collect(images, dtype=torch.float32), adapters_of("vit"))
    assert_close(close.matrix, reference_kernel(images, "vit")[:, :12], **SINGLE)
    assert close.dtype == torch.float32 and close.matrix.dtype == torch.float64


def reference_kernel_of_regression(task: Task) -> torch.Tensor:
    import peft
    from cases import lora_config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(task.model, lora_config("bert")).double().eval()
    return kernel(jacobian(model, task.collator([*task.train, *task.eval])))


def test_half_precision_rows_are_close() -> None:
    task, adapters = tiny_task("roberta"), adapters_of("roberta")
    exact, close = ntk(collect(task), adapters), ntk(collect(task, dtype=torch.bfloat16, tolerance=0.0), adapters)
    assert float((close.matrix - exact.matrix).norm() / exact.matrix.norm()) < 0.01


def test_kernels_add_up_over_modules_and_ranks() -> None:
    tangents, adapters = collect(tiny_task("bert")), adapters_of("bert")
    whole, rows = ntk(tangents, adapters), ntk(tangents, adapters, granularity="rank_row")
    assert all(name.endswith(".B") for name in whole.names)  # B = 0: the Jacobian in A is zero
    assert_close(rows.matrix, whole.matrix, **EXACT)
    query = "bert.encoder.layer.0.attention.self.query"
    queries = [x for x in adapters if x.layer.endswith("query")]
    names = [x.layer for x in queries]
    assert_close(whole.subset(names).matrix, ntk(tangents, queries).matrix, **EXACT)
    assert rows.subset([query]).names == (f"{query}.B.0", f"{query}.B.1")
    smaller = [dataclasses.replace(x, a=x.a[:1], b=x.b[:, :1]) for x in adapters]
    first_rows = [name for name in rows.names if name.endswith(".0")]
    assert_close(rows.subset(first_rows).matrix, ntk(tangents, smaller).matrix, **EXACT)
    rest = [name for name in whole.names if not name.startswith(tuple(names))]
    assert_close((whole.subset(names) + whole.subset(rest)).matrix, whole.matrix, **EXACT)
    with pytest.raises(ValueError, match="a parameter counts once"):
        whole + whole.subset(names)
    with pytest.raises(ValueError, match="no block 'pooler'"):
        whole.subset(["pooler"])


def test_trained_adapters_have_blocks_of_both_factors() -> None:
    tangents, adapters = collect(tiny_task("bert")), adapters_of("bert", trained=True)
    result = ntk(tangents, adapters)
    assert {name[-2:] for name in result.names} == {".A", ".B"}
    assert float(torch.linalg.eigvalsh(result.k_train_train).min()) > -1e-10
    assert_close(result.k_train_train, result.k_train_train.T, rtol=0, atol=0)


def test_rslora_changes_the_scale_and_not_the_condition_number() -> None:
    tangents = collect(tiny_task("bert"))
    plain, stable = ntk(tangents, adapters_of("bert")), ntk(tangents, adapters_of("bert", use_rslora=True))
    assert stable.spectrum().trace == pytest.approx(2 * plain.spectrum().trace)  # (α/√r)² = r (α/r)²
    assert stable.condition_number() == pytest.approx(plain.condition_number())
    assert set(summary(plain, 1.0)) == {
        "examples",
        "condition_number",
        "condition_number_std",
        "regularised_condition_number",
        "trace",
        "effective_dimension",
        "alignment",
        "spectrum",
        "strength",
    }


def test_missing_layers_and_unknown_names_are_named() -> None:
    tangents = collect(tiny_task("bert"), modules=["query"])
    with pytest.raises(ValueError, match=r"layer\.0\.attention\.self\.key.*layer\.1\.output\.dense"):
        ntk(tangents, adapters_of("bert"))
    with pytest.raises(ValueError, match="adapters is empty"):
        ntk(tangents, [])
    with pytest.raises(ValueError, match="granularity"):
        unchecked: Any = getattr(ntk, "__wrapped__", ntk)  # without the run-time check of annotations
        unchecked(tangents, adapters_of("bert"), granularity="layer")
    with pytest.raises(InputError, match="querry"):
        collect(tiny_task("bert"), modules=["querry"])


def test_kernels_of_different_examples_cannot_be_added() -> None:
    tangents, adapters = collect(tiny_task("bert")), adapters_of("bert")
    one = ntk(tangents, adapters[:1])
    other: Kernel = dataclasses.replace(ntk(tangents, adapters[1:]), f0=one.f0 + 1)
    with pytest.raises(ValueError, match="different examples"):
        one + other
