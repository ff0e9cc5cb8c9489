"""Every block of the documentation is run, every link and every reference leads somewhere."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_batch, tiny_model
from peft import LoraConfig, get_peft_model

import foretune as ft
import foretune.cli as cli
from docs.blocks import PAGES, ROOT, Block, blocks, commands
from foretune.task.config import load_config
from foretune.train import build_peft_model

RUN = "# run.yaml\n"


def typed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command line as it is written."""
    first, *rest = shlex.split(command)
    if first == "foretune":
        monkeypatch.setattr("sys.argv", ["foretune", *rest])
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, command
    elif first == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.M), f"there is no target for: {command}"
    elif first == "python":
        assert (ROOT / rest[0]).is_file(), f"there is no script for: {command}"
    elif first == "bash":
        assert (ROOT / rest[0]).is_file(), command
    else:
        assert first in {"pip", "git", "cd", "pre-commit"}, f"nobody knows how to check: {command}"


def namespace(folder: Path) -> dict[str, Any]:
    """What Python blocks take for granted: a task, a peft model, a batch, arguments."""
    task = ft.load_task(folder / "run.yaml")
    candidate = task.candidates[0]
    model = build_peft_model(task, candidate, 0)
    batch = task.collator([task.eval[i] for i in range(4)])
    args = candidate.training_arguments(folder / "trainer", save_strategy="no", max_steps=2)
    return {
        "task": task,
        "model": model,
        "base_model": task.model,
        "peft_model": model,
        "tokenizer": task.tokenizer,
        "train": task.train,
        "evaluation": task.eval,
        "batch": batch,
        "args": args,
    }


def run_python(block: Block, page: Path, names: dict[str, Any], folder: Path) -> None:
    fresh = namespace(folder)
    names |= {name: value for name, value in fresh.items() if name in {"peft_model", "model", "args", "batch"}}
    names.setdefault("task", fresh["task"])
    for name, value in fresh.items():
        names.setdefault(name, value)
    code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
    exec(code, names)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in {"log.md"}], ids=lambda page: page.stem)
def test_every_block_runs(
    page: Path, folder: Callable[[str], Path], real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.mark == "not run" or (block.mark == "slow" and not real):
            continue
        if block.kind == "yaml" and block.text.startswith(RUN):
            load_config(folder(block.text))
        elif block.kind == "bash":
            for command in commands(block):
                typed(command, monkeypatch)
        elif block.kind == "python":
            run_python(block, page, names, tmp_path)
        else:
            assert block.kind in {"text", "yaml"}, f"{page.name}, line {block.line}: nobody runs {block.kind}"


LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert all(f"({page.name})" in index for page in PAGES if page.name not in {"README.md", "index.md"})


THEORY = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
SECTIONS = {int(number) for number in re.findall(r"^## (\d+) ", THEORY, re.M)}
STATEMENTS = {int(number) for number in re.findall(r"\*\*P(\d+)\b", THEORY)}
SOURCES = [
    path
    for folder in ("src", "tests", "benchmarks", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".md", ".html", ".yaml"} and path.name not in {"theory.md", "test_docs.py"}
]
CITED = re.compile(r"docs/theory\.md((?:,? (?:and |to )?(?:P\d+|sections? \d+(?: and \d+)?))+)")


def test_every_reference_to_the_theory_is_resolved() -> None:
    resolved = 0
    for path in SOURCES:
        text = re.sub(r"\s*\n\s*(?:#|\*)?\s*", " ", path.read_text(encoding="utf-8"))
        assert not re.search(r"(?<!docs/)(?<!\()theory\.md", text), f"{path}: write docs/theory.md"
        for cited in CITED.finditer(text):
            statements = [int(number) for number in re.findall(r"P(\d+)", cited[1])]
            sections = [int(number) for number in re.findall(r"(?<![P\d])(\d+)", cited[1])]
            assert set(statements) <= STATEMENTS and set(sections) <= SECTIONS, f"{path}: {cited[0]}"
            resolved += len(statements) + len(sections)
    assert SECTIONS == set(range(9)) and STATEMENTS == set(range(1, 11))
    assert resolved >= 66, f"{resolved} references are resolved"


def test_a_reference_that_leads_nowhere_is_noticed() -> None:
    assert CITED.search("see docs/theory.md P11")
    assert not {11} <= STATEMENTS and not {9} <= SECTIONS


def test_the_readme_is_short() -> None:
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    assert len(words) <= 900, f"README.md has {len(words)} words"


def test_the_kernel_of_any_peft_model() -> None:
    """What python.md says of ``ft.testing.ntk``: (n c, n c), example-major."""
    model = get_peft_model(tiny_model("bert"), LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    batch = tiny_batch("bert")
    size = len(batch["input_ids"]) * 3
    assert ft.testing.ntk(model, batch).shape == (size, size)
