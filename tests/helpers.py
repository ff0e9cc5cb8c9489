"""Tiny models, batches and runs, which tests build in milliseconds, without a network."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DebertaConfig,
    DebertaForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForSequenceClassification,
    PhimoeConfig,
    PhimoeForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

KINDS = ("bert", "roberta", "distilbert", "llama", "gpt2", "vit")
MIXTURES = ("mixtral", "qwen2-moe", "phimoe")
ENCODER_DECODERS = ("t5", "bart")
BART = {"layers": 2, "attention_heads": 4, "ffn_dim": 24}
ONE_BY_ONE = ("deberta-v2", "deberta", "xlnet")  # some of their layers run on rows that do not belong to one example
VOCAB, PAD = 40, 0
DEBERTA: dict[str, Any] = {  # as in DeBERTa-v3, except for the sizes
    "relative_attention": True,
    "position_buckets": 4,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
DROP = object()  # an override that removes the key, for write_tiny_run

GOOD = ("good", "great", "superb", "lovely", "fine")
BAD = ("bad", "awful", "dull", "poor", "weak")
PLAIN = (
    "the",
    "film",
    "was",
    "a",
    "story",
    "and",
    "actors",
    "plot",
    "this",
    "very",
    "music",
    "it",
    "scene",
    "end",
)


def tiny_model(
    kind: str,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    num_labels: int = 3,
    dropout: float = 0.0,
    attn_implementation: str | None = "sdpa",
    **changes: Any,
) -> PreTrainedModel:
    """A classifier with two layers, in eval mode, with weights that are drawn from ``seed``.

    ``changes`` are further keys of the config, for BERT, DeBERTa and XLNet.
    """
    common: dict[str, Any] = {"num_labels": num_labels, "initializer_range": 0.2}
    heads: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 16,
        "intermediate_size": 24,
    }
    text: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": PAD, "max_position_embeddings": 40}
    drops: dict[str, Any] = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    shape: dict[str, Any]
    rates: dict[str, Any]
    match kind:
        case "bert":
            model_class, config = (
                BertForSequenceClassification,
                BertConfig(**common, **heads, **text, **drops, **changes),
            )
        case "roberta":
            model_class, config = (
                RobertaForSequenceClassification,
                RobertaConfig(**common, **heads, **text, **drops),
            )
        case "distilbert":
            shape = {"dim": 16, "hidden_dim": 24, "n_heads": 4, "n_layers": 2}
            rates = {"dropout": dropout, "attention_dropout": dropout, "seq_classif_dropout": dropout}
            model_class, config = (
                DistilBertForSequenceClassification,
                DistilBertConfig(**common, **text, **shape, **rates),
            )
        case "llama":
            model_class = LlamaForSequenceClassification
            config = LlamaConfig(**common, **heads, **text, num_key_value_heads=2, attention_dropout=dropout)
        case "gpt2":
            shape = {"n_embd": 16, "n_inner": 24, "n_head": 4, "n_layer": 2, "n_positions": 40}
            rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
            model_class = GPT2ForSequenceClassification
            config = GPT2Config(
                **common, vocab_size=VOCAB, pad_token_id=PAD, bos_token_id=1, eos_token_id=2, **shape, **rates
            )
        case "deberta-v2":
            model_class = DebertaV2ForSequenceClassification
            config = DebertaV2Config(**common, **heads, **text, **drops, **DEBERTA | changes)
        case "deberta":
            model_class = DebertaForSequenceClassification
            shape = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
            config = DebertaConfig(**common, **heads, **text, **drops, **shape, **changes)
        case "xlnet":
            model_class = XLNetForSequenceClassification
            shape = {"d_model": 16, "d_inner": 24, "n_head": 4, "n_layer": 2, "vocab_size": VOCAB, "pad_token_id": PAD}
            config = XLNetConfig(**common, **shape, dropout=dropout, summary_last_dropout=dropout, **changes)
        case "t5":
            model_class = T5ForSequenceClassification
            shape = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
            config = T5Config(**common, **shape, vocab_size=VOCAB, pad_token_id=PAD, dropout_rate=dropout)
        case "bart":
            model_class = BartForSequenceClassification
            shape = {"d_model": 16, "max_position_embeddings": 40, "vocab_size": VOCAB, "init_std": 0.2}
            shape |= {f"{part}_{key}": n for part in ("encoder", "decoder") for key, n in BART.items()}
            rates = {"pad_token_id": PAD, "eos_token_id": 3, "decoder_start_token_id": 3, "forced_eos_token_id": 3}
            config = BartConfig(**common, **shape, **rates, dropout=dropout)
        case "mixtral":
            model_class = MixtralForSequenceClassification
            config = MixtralConfig(**common, **heads, **text, num_key_value_heads=2, num_local_experts=4)
        case "qwen2-moe":
            model_class = Qwen2MoeForSequenceClassification
            shape = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 12, "num_experts": 4}
            config = Qwen2MoeConfig(**common, **heads, **text, **shape, num_key_value_heads=2)
        case "phimoe":
            model_class = PhimoeForSequenceClassification
            config = PhimoeConfig(**common, **heads, **text, num_key_value_heads=2, num_local_experts=4)
        case "vit":
            model_class = ViTForImageClassification
            config = ViTConfig(**common, **heads, **drops, image_size=8, patch_size=4, num_channels=3)
        case _:
            raise ValueError(f"kind {kind!r} is not one of {KINDS}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # these models have only one implementation of attention
        attention = None if kind in (*ONE_BY_ONE, "t5") else attn_implementation
        # other implementations of experts do not support double precision
        options = {"experts_implementation": "eager"} if kind in MIXTURES else {}
        model = model_class._from_config(config, attn_implementation=attention, **options)
    return model.to(dtype).eval()


def tiny_batch(
    kind: str, n: int = 4, seed: int = 1, num_labels: int = 3, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Inputs and labels for ``tiny_model(kind)``; texts have different lengths, so that most are padded."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % num_labels
    if kind == "vit":
        return {"pixel_values": torch.randn(n, 3, 8, 8, generator=generator, dtype=dtype), "labels": labels}
    lengths = [4 + (3 * i) % 7 for i in range(n)]
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(PAD + 1, VOCAB, mask.shape, generator=generator) * mask  # PAD is 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return batch | {"token_type_ids": torch.zeros_like(ids)} if kind == "bert" else batch


def tiny_tokenizer() -> BertTokenizer:
    """A WordPiece tokenizer whose vocabulary is the words of the synthetic reviews."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def tiny_rows(n: int, seed: int) -> list[dict[str, Any]]:
    """Synthetic reviews; the label is 1 if most of their opinion words are good."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        label = i % 2
        frequent, rare = (GOOD, BAD) if label else (BAD, GOOD)
        words = (
            rng.choices(PLAIN, k=rng.randint(3, 9))
            + rng.choices(frequent, k=2)
            + rng.choices(rare, k=rng.randint(0, 1))
        )
        rng.shuffle(words)
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Save a BERT without a head (32 features, 2 layers) and its tokenizer into a model folder."""
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertForSequenceClassification(config).bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_model(folder: Path, kind: str, **changes: Any) -> Path:
    """Save a model without its head (see ``tiny_model``) and the tokenizer of the synthetic reviews."""
    model = tiny_model(kind, dtype=torch.float32, **changes).base_model
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_tiny_run(folder: Path, **overrides: Any) -> Path:
    """Write model/, train.jsonl (48 rows), eval.jsonl (32 rows) and run.yaml into ``folder``.

    The keys of a section override the defaults one by one, and the value ``DROP`` removes a key or a section:
    ``write_tiny_run(tmp_path, peft={"r": 2}, proximal=DROP)``. Other values replace the default. Returns the path of
    run.yaml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_model(folder / "model")
    write_jsonl(folder / "train.jsonl", tiny_rows(48, seed=1))
    write_jsonl(folder / "eval.jsonl", tiny_rows(32, seed=2))
    run: dict[str, Any] = {
        "model": {"path": "model", "task": "classification"},
        "data": {
            "train": "train.jsonl",
            "eval": "eval.jsonl",
            "text": "text",
            "label": "label",
            "max_length": 32,
        },
        "peft": {"type": "lora", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]},
        "training": {
            "learning_rate": 1.0e-3,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "optim": "adamw_torch",
            "seed": 0,
            "use_cpu": True,
        },
    }
    for section, value in overrides.items():
        if value is DROP:
            run.pop(section, None)
        elif isinstance(value, dict) and isinstance(run.get(section), dict):
            merged = run[section] | value
            run[section] = {key: item for key, item in merged.items() if item is not DROP}
        else:
            run[section] = value
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run, sort_keys=False), encoding="utf-8")
    return path
