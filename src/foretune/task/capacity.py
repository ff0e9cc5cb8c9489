"""Checks whether the model has an embedding for every position, token and token type of the texts.

Without this check, a number past the end of an embedding table causes an error deep inside the model.
"""

from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretune.errors import InputError
from foretune.task.data import EncodedData
from foretune.task.problems import shown


def check_capacity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: EncodedData, source: str) -> None:
    """Check that the model can take all texts.

    Token types distinguish the first and the second text of a pair.

    Args:
        model: The model without adapters.
        tokenizer: The tokenizer of the texts; its padding token must have an embedding too.
        data: The tokenised texts.
        source: Name of the run file in messages.

    Raises:
        InputError: A text is too long, a token or token type has no embedding, or the tokenizer's own limit is not a
            valid number.
    """
    where, own_limit = f"{source}: model.path", tokenizer.model_max_length
    if not isinstance(own_limit, int | float) or own_limit < 2:
        problem = f"model_max_length in its tokenizer_config.json is {shown(own_limit)}"
        raise InputError(where, problem, "write there how many tokens the model can take, such as 512")
    longest, limit = max(data.train_stats.tokens_max, data.eval_stats.tokens_max), most_tokens(model, tokenizer)
    if longest > limit:
        problem = f"an example has {longest} tokens, but {type(model).__name__} takes at most {limit}"
        raise InputError(f"{source}: data.max_length", problem, f"write {limit} or less")
    tokens, largest = _num_rows(model.get_input_embeddings()), _largest(data, "input_ids")
    for number, use in ((largest, "in the texts"), (int(tokenizer.pad_token_id or 0), "for padding")):
        if tokens is not None and number >= tokens:
            token = tokenizer.convert_ids_to_tokens(number)
            problem = (
                f"{token!r} {use} has the number {number} in the tokenizer, "
                f"but the largest token number of the model is {tokens - 1}"
            )
            fix = (
                "save the model's own tokenizer into its folder, or give the model more embeddings with "
                f"model.resize_token_embeddings({max(len(tokenizer), number + 1)}) and save it"
            )
            raise InputError(where, problem, fix)
    token_types, largest = _num_rows(_module_called(model, "token_type_embeddings")), _largest(data, "token_type_ids")
    if token_types is not None and largest >= token_types:
        problem = (
            f"the tokenizer gives texts the token type {largest}, "
            f"but the largest token type of the model is {token_types - 1}"
        )
        raise InputError(where, problem, "save the model's own tokenizer into its folder")


def most_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest number of tokens that a text may have.

    Models like RoBERTa number positions from the one after the padding token's number. RoBERTa has 514 positions, of
    which texts can use 512.

    Args:
        model: The model.
        tokenizer: Its tokenizer.

    Returns:
        The smallest of the limits that tokenizer, config and position embeddings give.
    """
    limit = int(min(tokenizer.model_max_length, 10**9))
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limit = min(limit, positions)
    table = _module_called(model, "position_embeddings")
    if isinstance(table, nn.Embedding) and table.padding_idx is not None:
        limit = min(limit, table.num_embeddings - table.padding_idx - 1)
    return limit


def _module_called(model: nn.Module, last_name: str) -> nn.Module | None:
    return next((module for name, module in model.named_modules() if name.split(".")[-1] == last_name), None)


def _num_rows(table: Any) -> int | None:
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def _largest(data: EncodedData, column: str) -> int:
    """The largest number in a column of both splits; -1 if neither has the column."""
    splits: tuple[Dataset, ...] = (data.train, data.eval)
    return max((max(ids) for split in splits if column in split.column_names for ids in split[column]), default=-1)
