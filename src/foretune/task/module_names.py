"""Names of a model's modules, and a check of the names in a peft config against them."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from peft import LoraConfig
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers.pytorch_utils import Conv1D

from foretune.errors import InputError
from foretune.task.problems import nearest, shown

HEAD_NAMES = tuple(SEQ_CLS_HEAD_NAMES)  # peft finds the head, the last part of a classifier, by these names


def adaptable(model: nn.Module) -> list[str]:
    """The distinct last parts of the names of modules that LoRA can adapt, linear ones first, without the head's."""
    return _last_parts([*outside_head(model, nn.Linear, Conv1D), *outside_head(model, nn.Embedding)])


def outside_head(model: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    """The names of the modules of some types, without those of the head."""
    names = (name for name, module in model.named_modules() if isinstance(module, kinds))
    return [name for name in names if not name.startswith(HEAD_NAMES)]


def layer_numbers(names: Iterable[str]) -> set[int]:
    """The numbers of the layers to which modules with these names belong."""
    matches = (re.search(r"\.(\d+)(\.|$)", name) for name in names)
    return {int(match.group(1)) for match in matches if match}


def folded(names: Iterable[str]) -> list[str]:
    """Join names that differ only in a layer number into one, such as ``layer.{0-5}.attention.self.query``."""
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
    """Write sorted numbers as text, such as ``{0-5,7}``; a single number has no braces."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) + "}"


class _NameKey(NamedTuple):
    """A key of ``LoraConfig`` whose values are names or patterns.

    Attributes:
        key: The key.
        written: The names and patterns that the config gives.
        names: The names in the model that they may match.
        matches: A function that says whether a given name or pattern matches a name of the model.
        suggestions: Names that messages suggest.
        kind: What is named, for messages.
    """

    key: str
    written: Iterable[str]
    names: list[str]
    matches: Callable[[str, str], object]
    suggestions: list[str]
    kind: str = "module"


def check_names(model: nn.Module, config: LoraConfig, where: str) -> None:
    """Check that every name in an adapter config exists in the model; peft ignores many that do not.

    Names match as they do in peft: they are endings of names, or regular expressions.

    Args:
        model: The model without adapters.
        config: The adapter config.
        where: Name of the config in messages, such as ``run.yaml: peft``.

    Raises:
        InputError: A name or pattern matches nothing in the model.
    """
    modules = [name for name, _ in model.named_modules() if name]
    parameters = [name for name, _ in model.named_parameters()]
    suffixes = list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in parameters))
    containers = list(dict.fromkeys(re.findall(r"([^.\s]+)\.\d+\.", "\n".join(modules))))
    # HEAD_NAMES need not exist: peft looks for all of them in every classifier
    saved = [name for name in config.modules_to_save or () if name not in HEAD_NAMES]
    tokens = config.trainable_token_indices
    tables = tokens if isinstance(tokens, dict) else ()
    excluded, linear = config.exclude_modules, adaptable(model)
    exclusion_pattern = [excluded] if isinstance(excluded, str) else []
    layers = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    for key in (
        _NameKey("target_modules", _sorted_names(config.target_modules), modules, _is_ending, linear),
        _NameKey("exclude_modules", _sorted_names(excluded), modules, _is_ending, linear),
        _NameKey("exclude_modules", exclusion_pattern, modules, re.fullmatch, linear),
        _NameKey(
            "target_parameters", _sorted_names(config.target_parameters), parameters, _is_ending, suffixes, "parameter"
        ),
        _NameKey("modules_to_save", saved, modules, lambda written, name: name.endswith(written), _last_parts(modules)),
        _NameKey("rank_pattern", config.rank_pattern or (), modules, _matches_pattern, linear),
        _NameKey("alpha_pattern", config.alpha_pattern or (), modules, _matches_pattern, linear),
        _NameKey(
            "trainable_token_indices", tables, modules, _is_ending, _last_parts(outside_head(model, nn.Embedding))
        ),
        _NameKey("layers_pattern", layers or (), modules, _is_layer_list, containers, "list of layers"),
    ):
        for written in key.written:
            if not any(key.matches(written, name) for name in key.names):
                problem = f"no {key.kind} of {type(model).__name__} has the name {shown(written)}"
                raise InputError(f"{where}.{key.key}", problem, nearest(written, key.suggestions))
    _check_tokens(model, tokens, where)


def _check_tokens(model: nn.Module, tokens: dict[str, list[int]] | list[int] | None, where: str) -> None:
    """Check that the numbers of trained tokens are rows of the largest embedding table.

    Raises:
        InputError: A number is not a row of the table.
    """
    lists = tokens.values() if isinstance(tokens, dict) else [tokens or ()]
    rows = max((module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)), default=0)
    invalid = [number for numbers in lists for number in numbers if not 0 <= number < rows]
    if invalid:
        fix = f"write numbers of tokens, from 0 to {rows - 1}"
        raise InputError(f"{where}.trainable_token_indices", f"found {invalid[0]}", fix)


def _is_ending(written: str, name: str) -> bool:
    return name == written or name.endswith(f".{written}")


def _matches_pattern(written: str, name: str) -> object:
    return re.match(rf"(.*\.)?({written})$", name)


def _is_layer_list(written: str, name: str) -> object:
    return re.match(rf"(?:^|.*?\.){written}\.\d+\.", name)


def _sorted_names(names: object) -> list[str]:
    """The names of a list in alphabetical order; an empty list for a pattern."""
    return sorted(names) if isinstance(names, set | list | tuple) else []


def _last_parts(names: Iterable[str]) -> list[str]:
    """The distinct last parts of dotted names, without numbers."""
    return [name for name in dict.fromkeys(name.rsplit(".", 1)[-1] for name in names) if not name.isdigit()]
