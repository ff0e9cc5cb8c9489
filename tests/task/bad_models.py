"""Models and tokenizers that cannot be used, in general or for the texts of the run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import tiny_rows, tiny_tokenizer, write_jsonl, write_model, write_tiny_run
from transformers import BertTokenizer

from .writing import BadInput, model_folder, set_row, train_rows


def more_tokens(folder: Path, word: str) -> None:
    """Give a word the number after the last embedding; a word that no text has becomes the padding token."""
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


def edited(name: str, **changes: Any) -> Callable[[Path], Path]:
    """The default run, with changed values in a JSON file of the model's folder."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content | changes), encoding="utf-8")

    return model_folder(change)


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    """The default run, with other content in a file of the model's folder."""
    return model_folder(lambda folder: (folder / name).write_bytes(content))


def save_adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "mine/base"})
    )


def save_invalid_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n"
CONFIG_JSON = ("model.path", "config.json", "orrect config.json")

BAD_MODELS = [
    # config.json
    BadInput("config is a list", written("config.json", b"[1]"), (*CONFIG_JSON, "contains [1]", "mapping")),
    BadInput("config is null", written("config.json", b"null"), (*CONFIG_JSON, "contains None", "mapping")),
    BadInput("config is empty", written("config.json", b"{}"), ("model.path", "cannot load the config", "model_type")),
    BadInput(
        "config size text", edited("config.json", hidden_size="big"), ("model.path", "hidden_size", CONFIG_JSON[2])
    ),
    BadInput("config size 0", edited("config.json", hidden_size=0), (*CONFIG_JSON, "does not describe a model")),
    BadInput(
        "config heads",
        edited("config.json", num_attention_heads=5),
        (*CONFIG_JSON, "does not describe a model", "(32)", "heads (5)"),
    ),
    BadInput("config activation", edited("config.json", hidden_act="gellu"), (*CONFIG_JSON, "there is no 'gellu'")),
    BadInput("config dtype", edited("config.json", dtype="float31"), ("model.path", "'float31'", CONFIG_JSON[2])),
    BadInput("config labels", edited("config.json", id2label=["a", "b"]), ("cannot load the config", CONFIG_JSON[2])),
    BadInput("config padding", edited("config.json", pad_token_id=99), (*CONFIG_JSON, "does not describe a model")),
    BadInput(
        "config of more layers",
        edited("config.json", num_hidden_layers=3),
        ("16 of the 53 tensors", "bert.encoder.layer.2", "and 12 more", "weights files"),
    ),
    BadInput(
        "config of another size",
        edited("config.json", vocab_size=50),
        ("other sizes than config.json", "word_embeddings.weight (29, 32) instead of (50, 32)", "together"),
    ),
    BadInput(
        "config of images",
        edited("config.json", model_type="vit"),
        ("cannot load the model", "ViTConfig", "AutoModelForSequenceClassification supports, or set pooling: mean"),
    ),
    BadInput(
        "config with code",
        edited("config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        ("model.path", "custom code", "Set trust_remote_code: true"),
    ),
    BadInput(
        "config quantised",
        edited("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        ("model.path", "pip install", "Install the packages that it names"),
    ),
    # other files
    BadInput("adapter", model_folder(save_adapter_beside), ("contains an adapter", "(mine/base)", "merge_and_unload")),
    BadInput(
        "weights in LFS",
        written("model.safetensors", POINTER),
        ("model.safetensors is a Git LFS pointer", "git lfs pull"),
    ),
    BadInput(
        "tokenizer in LFS", written("tokenizer.json", POINTER), ("tokenizer.json is a Git LFS pointer", "git lfs pull")
    ),
    BadInput("weights no pickle", model_folder(save_invalid_pickle), ("pytorch_model.bin is not a file of weights",)),
    BadInput("half a tokenizer", written("tokenizer.json", b'{"model": {'), ("tokenizer.json cannot be read", "again")),
    BadInput("empty tokenizer", written("tokenizer.json", b"{}"), ("cannot load the tokenizer", "save_pretrained")),
    BadInput(
        "tokenizer config", written("tokenizer_config.json", b"[]"), ("tokenizer_config.json contains []", "again")
    ),
    BadInput(
        "padding side",
        edited("tokenizer_config.json", padding_side="middle"),
        ("cannot load the tokenizer", "'right' and 'left'", "middle"),
    ),
    BadInput(
        "tokenizer's length text",
        edited("tokenizer_config.json", model_max_length="long"),
        ("model_max_length in its tokenizer_config.json is 'long'", "such as 512"),
    ),
    BadInput(
        "tokenizer's length zero",
        edited("tokenizer_config.json", model_max_length=0),
        ("model_max_length in its tokenizer_config.json is 0", "such as 512"),
    ),
    # texts that do not fit the model
    BadInput(
        "too long for positions that start after the padding token",
        roberta_with_a_long_text,
        ("data.max_length", "40 tokens", "Write 39 or less"),
    ),
    BadInput(
        "token without embedding",
        model_folder(lambda folder: more_tokens(folder, "good")),
        ("model.path", "'good'", "largest token number of the model is 28", "tokenizer", "resize_token_embeddings"),
    ),
    BadInput(
        "padding without embedding",
        model_folder(lambda folder: more_tokens(folder, "<pad>")),
        ("model.path", "'<pad>' for padding", "largest token number of the model is 28", "resize_token_embeddings(30)"),
    ),
    BadInput(
        "token type without embedding",
        pairs_for_a_model_of_one_token_type,
        ("model.path", "token type 1", "largest token type of the model is 0", "own tokenizer"),
    ),
]
