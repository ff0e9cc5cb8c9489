"""The names of a model's modules, and whether those that a peft config writes are among them."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from peft import LoraConfig
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers.pytorch_utils import Conv1D

from foretune.errors import InputError
from foretune.task.problems import nearest, shown

HEAD_NAMES = tuple(SEQ_CLS_HEAD_NAMES)


def adaptable(model: nn.Module) -> list[str]:
    """The last names of the modules that LoRA can adapt, without the head's, each once."""
    return _last(outside_head(model, nn.Linear, Conv1D, nn.Embedding))


def outside_head(model: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    """The names of the modules of these kinds, without the head's."""
    named = (name for name, module in model.named_modules() if isinstance(module, kinds))
    return [name for name in named if not name.startswith(HEAD_NAMES)]


def layer_numbers(names: Iterable[str]) -> set[int]:
    """The numbers of the layers that these modules are in."""
    found = (re.search(r"\.(\d+)(\.|$)", name) for name in names)
    return {int(match.group(1)) for match in found if match}


def folded(names: Iterable[str]) -> list[str]:
    """Names that differ only in a layer number as one, such as ``layer.{0-5}.attention.self.query``."""
    groups: dict[tuple[str, str], list[int]] = {}
    plain = []
    for name in names:
        match = re.search(r"(?<=\.)\d+(?=\.|$)", name)
        if match:
            groups.setdefault((name[: match.start()], name[match.end() :]), []).append(int(match.group()))
        else:
            plain.append(name)
    return plain + [f"{before}{_ranges(sorted(numbers))}{after}" for (before, after), numbers in groups.items()]


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as text, such as ``{0-5,7}``; a single number without braces."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) + "}"


class _Key(NamedTuple):
    """A key whose values are names: what is written there, what it may mean, and what to write instead."""

    key: str
    written: Iterable[str]
    names: list[str]
    means: Callable[[str, str], object]
    known: list[str]
    what: str = "module"


def check_names(model: nn.Module, config: LoraConfig, where: str) -> None:
    """See that everything a config names is there; peft passes over much that is not.

    Args:
        model: The model without adapters.
        config: What names its modules. Names mean what they mean to peft: endings, or regular expressions.
        where: How messages call the config, such as ``run.yaml: peft``.

    Raises:
        InputError: A name or pattern means nothing in the model.
    """
    modules = [name for name, _ in model.named_modules() if name]
    parameters = [name for name, _ in model.named_parameters()]
    ends = list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in parameters))
    containers = list(dict.fromkeys(re.findall(r"([^.\s]+)\.\d+\.", "\n".join(modules))))
    saved = [name for name in config.modules_to_save or () if name not in HEAD_NAMES]  # peft tries these by itself
    tokens = config.trainable_token_indices
    tables = tokens if isinstance(tokens, dict) else ()
    excluded, linear = config.exclude_modules, adaptable(model)
    whole = [excluded] if isinstance(excluded, str) else []
    layers = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    for key in (
        _Key("target_modules", _list(config.target_modules), modules, _ending, linear),
        _Key("exclude_modules", _list(excluded), modules, _ending, linear),
        _Key("exclude_modules", whole, modules, re.fullmatch, linear),
        _Key("target_parameters", _list(config.target_parameters), parameters, _ending, ends, "parameter"),
        _Key("modules_to_save", saved, modules, lambda written, name: name.endswith(written), _last(modules)),
        _Key("rank_pattern", config.rank_pattern or (), modules, _pattern, linear),
        _Key("alpha_pattern", config.alpha_pattern or (), modules, _pattern, linear),
        _Key("trainable_token_indices", tables, modules, _ending, _last(outside_head(model, nn.Embedding))),
        _Key("layers_pattern", layers or (), modules, _layers, containers, "list of layers"),
    ):
        for written in key.written:
            if not any(key.means(written, name) for name in key.names):
                found = f"no {key.what} of {type(model).__name__} is called {shown(written)}"
                raise InputError(f"{where}.{key.key}", found, nearest(written, key.known))
    _check_tokens(model, tokens, where)


def _check_tokens(model: nn.Module, tokens: dict[str, list[int]] | list[int] | None, where: str) -> None:
    """See that numbers of tokens are those of embeddings.

    Raises:
        InputError: The largest table has no such row.
    """
    lists = tokens.values() if isinstance(tokens, dict) else [tokens or ()]
    rows = max((module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)), default=0)
    wrong = [number for numbers in lists for number in numbers if not 0 <= number < rows]
    if wrong:
        fix = f"write numbers of tokens, from 0 to {rows - 1}"
        raise InputError(f"{where}.trainable_token_indices", f"found {wrong[0]}", fix)


def _ending(written: str, name: str) -> bool:
    return name == written or name.endswith(f".{written}")


def _pattern(written: str, name: str) -> object:
    return re.match(rf"(.*\.)?({written})$", name)


def _layers(written: str, name: str) -> object:
    return re.match(rf"(?:^|.*?\.){written}\.\d+\.", name)


def _list(names: object) -> list[str]:
    """Names in their order, none for a pattern."""
    return sorted(names) if isinstance(names, set | list | tuple) else []


def _last(names: Iterable[str]) -> list[str]:
    """The last parts of names, each once, without numbers."""
    return [name for name in dict.fromkeys(name.rsplit(".", 1)[-1] for name in names) if not name.isdigit()]
