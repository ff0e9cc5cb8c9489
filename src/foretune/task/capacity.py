"""Whether the model has room for the texts: positions, tokens and token types past its tables fail deep inside it."""

from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretune.errors import InputError
from foretune.task.data import EncodedData
from foretune.task.problems import shown


def check_capacity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: EncodedData, source: str) -> None:
    """See that no text is longer than the model takes or has tokens that it has no embedding of.

    Args:
        model: The model without adapters.
        tokenizer: What the texts were encoded with; its pad token must have an embedding too.
        data: The encoded texts.
        source: The file that messages name.

    Raises:
        InputError: A text is too long, a token or token type has no embedding, or the tokenizer's own limit is none.
    """
    where, most = f"{source}: model.path", tokenizer.model_max_length
    if not isinstance(most, int | float) or most < 2:
        found = f"model_max_length in its tokenizer_config.json is {shown(most)}"
        raise InputError(where, found, "write there how many tokens the model takes, such as 512")
    longest, limit = max(data.train_stats.tokens_max, data.eval_stats.tokens_max), most_tokens(model, tokenizer)
    if longest > limit:
        found = f"an example has {longest} tokens, {type(model).__name__} takes {limit}"
        raise InputError(f"{source}: data.max_length", found, f"write {limit} or less")
    tokens, largest = _rows(model.get_input_embeddings()), _largest(data, "input_ids")
    for number, what in ((largest, "in the texts"), (int(tokenizer.pad_token_id or 0), "for padding")):
        if tokens is not None and number >= tokens:
            token = tokenizer.convert_ids_to_tokens(number)
            found = (
                f"the tokenizer gives {token!r} {what} the number {number}, the model has embeddings of {tokens} tokens"
            )
            fix = (
                "save the model's own tokenizer into its folder, or the model with more embeddings: "
                f"model.resize_token_embeddings({max(len(tokenizer), number + 1)})"
            )
            raise InputError(where, found, fix)
    kinds, largest = _rows(_named(model, "token_type_embeddings")), _largest(data, "token_type_ids")
    if kinds is not None and largest >= kinds:
        found = f"the tokenizer gives texts the token type {largest}, the model has embeddings of {kinds} types"
        raise InputError(where, found, "save the model's own tokenizer into its folder")


def most_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How long a text may be, in tokens.

    Models like RoBERTa count positions from behind that of the padding token: of 514 positions, texts have 512.
    """
    limit = int(min(tokenizer.model_max_length, 10**9))
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limit = min(limit, positions)
    table = _named(model, "position_embeddings")
    if isinstance(table, nn.Embedding) and table.padding_idx is not None:
        limit = min(limit, table.num_embeddings - table.padding_idx - 1)
    return limit


def _named(model: nn.Module, ending: str) -> nn.Module | None:
    return next((module for name, module in model.named_modules() if name.split(".")[-1] == ending), None)


def _rows(table: Any) -> int | None:
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def _largest(data: EncodedData, column: str) -> int:
    splits: tuple[Dataset, ...] = (data.train, data.eval)
    return max((max(ids) for split in splits if column in split.column_names for ids in split[column]), default=-1)
