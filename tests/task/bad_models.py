"""Models and tokenizers that cannot be used, or not with the texts."""

from pathlib import Path

from helpers import tiny_rows, tiny_tokenizer, write_jsonl, write_model, write_tiny_run
from transformers import BertTokenizer

from .writing import BadInput, model_folder, set_row, train_rows


def more_tokens(folder: Path, word: str) -> None:
    """Give a word, or the padding token if it is none of the texts', a number past the model's embeddings."""
    tokenizer = tiny_tokenizer()
    tokens = [f"{token}-old" if token == word else token for token in tokenizer.get_vocab()]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate([*tokens, word])})
    if word not in tiny_tokenizer().get_vocab():
        tokenizer.pad_token = word
    tokenizer.save_pretrained(folder)


def roberta_with_a_long_text(folder: Path) -> Path:
    path = train_rows(set_row(0, text="good " * 60), data={"max_length": 40})(folder)
    write_model(folder / "model", "roberta")
    return path


def pairs_for_a_model_of_one_token_type(folder: Path) -> Path:
    path = write_tiny_run(folder, data={"text": ["text", "other"]})
    for name in ("train.jsonl", "eval.jsonl"):
        write_jsonl(folder / name, [row | {"other": "a film"} for row in tiny_rows(12, seed=1)])
    write_model(folder / "model", "bert", type_vocab_size=1)
    return path


BAD_MODELS = [
    # texts that a model has no room for
    BadInput(
        "too long for positions counted from the padding token's",
        roberta_with_a_long_text,
        ("data.max_length", "40 tokens", "Write 39 or less"),
    ),
    BadInput(
        "token without embedding",
        model_folder(lambda folder: more_tokens(folder, "good")),
        ("model.path", "'good'", "embeddings of 29 tokens", "tokenizer", "resize_token_embeddings"),
    ),
    BadInput(
        "padding without embedding",
        model_folder(lambda folder: more_tokens(folder, "<pad>")),
        ("model.path", "'<pad>' for padding", "embeddings of 29 tokens", "resize_token_embeddings(30)"),
    ),
    BadInput(
        "token type without embedding",
        pairs_for_a_model_of_one_token_type,
        ("model.path", "token type 1", "embeddings of 1 types", "own tokenizer"),
    ),
]
