"""Wrong inputs, with the words that their messages must contain: the place, the problem, and what to write instead.

The tests of the library and of the command line both run all cases.
"""

import json
from pathlib import Path

from helpers import DROP

from .bad_data import BAD_DATA
from .bad_models import BAD_MODELS
from .bad_settings import BAD_SETTINGS
from .writing import (
    REGRESSION,
    ROW,
    BadInput,
    eval_label,
    fractions,
    model_folder,
    relabel,
    run,
    set_row,
    train_bytes,
    train_rows,
    yaml_bytes,
)


def save_unrelated_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"unrelated": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})


def save_unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba_of_mine", "architectures": ["Mine"]}))


A, B = {"name": "a", "peft": {"r": 2}}, {"name": "b"}

CASES = [
    # the file itself
    BadInput("no such yaml", lambda folder: folder / "run.yaml", ("run.yaml", "no such file", "Give the path")),
    BadInput("a folder", lambda folder: folder, ("cannot be read", "Give the path")),
    BadInput("empty yaml", yaml_bytes(b""), ("run.yaml", "empty", "sections model, data")),
    BadInput("yaml list", yaml_bytes(b"- 1\n- 2\n"), ("run.yaml", "[1, 2]", "mapping")),
    BadInput("yaml syntax", yaml_bytes(b"model: {path: a\ndata: 3\n"), ("run.yaml, line 2", "not valid YAML")),
    BadInput("yaml tab", yaml_bytes(b"model:\n\tpath: a\n"), ("run.yaml, line 2", "not valid YAML")),
    BadInput("yaml not utf-8", yaml_bytes(b"model: a\ndata: \xff\n"), ("run.yaml, line 2", "UTF-8")),
    # its sections
    BadInput("missing section", run(data=DROP), ("run.yaml: data", "not given", "Add data")),
    BadInput("unknown section", run(trainning={}), ("trainning", "unknown key", "training")),
    BadInput("section is text", run(model="bert"), ("run.yaml: model", "'bert'", "mapping")),
    BadInput("unknown model key", run(model={"poling": "mean"}), ("model.poling", "unknown key", "pooling")),
    BadInput(
        "unknown task",
        run(model={"task": "ner"}),
        ("model.task", "'ner'", "Write one of: classification, regression"),
    ),
    BadInput("unknown pooling", run(model={"pooling": "max"}), ("model.pooling", "'max'", "one of: model, mean")),
    BadInput("bad gguf key", run(model={"path": {"ggml": "x"}}), ("model.path", "ggml", "{gguf: file}")),
    BadInput("unknown data key", run(data={"max_len": 8}), ("data.max_len", "unknown key", "max_length")),
    BadInput("max_length text", run(data={"max_length": "long"}), ("data.max_length", "'long'", "whole number")),
    BadInput("max_length zero", run(data={"max_length": 0}), ("data.max_length", "found 0", "at least 2")),
    BadInput("three text columns", run(data={"text": ["a", "b", "c"]}), ("data.text", "['a', 'b', 'c']", "premise")),
    BadInput(
        "hub without split",
        run(data={"train": {"hub": "glue"}}),
        ("data.train", "has no split", "split: train"),
    ),
    BadInput(
        "unreachable hub data",
        run(data={"train": {"hub": "nobody/nothing", "split": "train"}}),
        ("data.train", "cannot load nobody/nothing/train", "connection"),
    ),
    # peft
    BadInput("peft type", run(peft={"type": "ia3"}), ("peft.type", "'ia3'", "Write lora")),
    BadInput("peft unknown key", run(peft={"lora_aplha": 8}), ("peft.lora_aplha", "unknown key", "lora_alpha")),
    BadInput("peft rank key", run(peft={"rank": 8}), ("peft.rank", "unknown key", "Write r,")),
    BadInput("rank zero", run(peft={"r": 0}), ("peft.r", "found 0", "at least 1")),
    BadInput("rank fraction", run(peft={"r": 2.5}), ("peft.r", "2.5", "whole number")),
    BadInput("alpha negative", run(peft={"lora_alpha": -1}), ("peft.lora_alpha", "-1", "above 0")),
    BadInput("dropout", run(peft={"lora_dropout": 1.5}), ("peft.lora_dropout", "1.5", "from 0 to 1, without 1 itself")),
    BadInput("no targets", run(peft={"target_modules": []}), ("peft.target_modules", "[]", "[query, value]")),
    BadInput("task_type", run(peft={"task_type": "CAUSAL_LM"}), ("peft.task_type", "CAUSAL_LM", "Leave it out")),
    BadInput(
        "unmatched target",
        run(peft={"target_modules": ["query", "vlaue"]}),
        ("target_modules", "'vlaue'", "value"),
    ),
    BadInput("unmatched pattern", run(peft={"target_modules": ".*q_proj"}), ("target_modules", ".*q_proj", "query")),
    BadInput("norm target", run(peft={"target_modules": ["LayerNorm"]}), ("target_modules", "LayerNorm", "query")),
    BadInput(
        "head target",
        run(peft={"target_modules": ["classifier"]}),
        ("target_modules", "[classifier]", "query"),
    ),
    BadInput("layer", run(peft={"layers_to_transform": [1, 9]}), ("layers_to_transform", "layer 9", "from 0 to 1")),
    BadInput("only layer", run(peft={"layers_to_transform": [9]}), ("layers_to_transform", "9", "from 0 to 1")),
    BadInput(
        "layers of a pattern",
        run(peft={"target_modules": "all-linear", "layers_to_transform": [1]}),
        ("run.yaml: peft", "layers_to_transform", "target_modules"),
    ),
    # training
    BadInput("training unknown key", run(training={"lr": 1.0}), ("training.lr", "unknown key", "learning_rate")),
    BadInput("negative rate", run(training={"learning_rate": -1.0}), ("training.learning_rate", "-1.0", "above 0")),
    BadInput("rate text", run(training={"learning_rate": "fast"}), ("training.learning_rate", "'fast'", "number")),
    BadInput("rate nan", run(training={"learning_rate": float("nan")}), ("training.learning_rate", "nan", "number")),
    BadInput(
        "no epochs",
        run(training={"num_train_epochs": 0}),
        ("training.num_train_epochs", "found 0", "above 0"),
    ),
    BadInput(
        "batch size zero",
        run(training={"per_device_train_batch_size": 0}),
        ("training.per_device_train_batch_size", "found 0", "at least 1"),
    ),
    BadInput("optimiser", run(training={"optim": "adam"}), ("training.optim", "'adam'", "adamw_torch")),
    BadInput("scheduler", run(training={"lr_scheduler_type": "cosin"}), ("lr_scheduler_type", "'cosin'", "cosine")),
    BadInput("seed", run(training={"seed": -1}), ("training.seed", "-1", "from 0")),
    BadInput("bf16 text", run(training={"bf16": "yes please"}), ("training.bf16", "yes please", "true or false")),
    BadInput(
        "two problems",
        run(peft={"r": 0}, training={"seed": "x"}),
        ("2 problems", "peft.r: found 0", "training.seed: found 'x'", "Correct all"),
    ),
    # proximal and candidates
    BadInput("strength", run(proximal={"strength": -1}), ("proximal.strength", "-1", "at least 0")),
    BadInput("rule", run(proximal={"rule": "never"}), ("proximal.rule", "'never'", "one of: always, selective")),
    BadInput("near rule", run(proximal={"rule": "selctive"}), ("proximal.rule", "'selctive'", "Write selective")),
    BadInput("scope", run(proximal={"scope": "tensors"}), ("proximal.scope", "'tensors'", "Write tensor")),
    BadInput("proximal key", run(proximal={"lambda": 1.0}), ("proximal.lambda", "unknown key", "strength")),
    BadInput(
        "candidate scope",
        run(candidates=[A | {"proximal": {"scope": "layer"}}]),
        ("candidates[0] (a).proximal.scope", "'layer'", "one of: global, tensor"),
    ),
    BadInput("grid without section", run(candidates={"r": [1, 2]}), ("candidates", "{'r': [1, 2]}", "list")),
    BadInput("grid of one value", run(candidates={"peft": {"r": 4}}), ("candidates", "peft.r is 4", "choices")),
    BadInput("grid without choice", run(candidates={"peft": {"r": []}}), ("candidates", "peft.r is []", "choices")),
    BadInput(
        "huge grid",
        run(candidates={"training": {"seed": list(range(40)), "num_train_epochs": list(range(1, 27))}}),
        ("candidates", "1,040 candidates", "1000"),
    ),
    BadInput("wrong choice", run(candidates={"peft": {"r": [4, 0]}}), ("candidates[1] (r0).peft.r", "found 0", "1")),
    BadInput("nameless candidate", run(candidates=[{"peft": {}}]), ("candidates[0].name", "not given", "Add name")),
    BadInput("candidate folder", run(candidates=[{"name": "../x"}]), ("candidates[0]", "../x", "letters")),
    BadInput("same names", run(candidates=[A, B, A]), ("candidates[2] (a).name", "used twice", "own name")),
    BadInput(
        "candidate key",
        run(candidates=[B, A | {"peft": {"rr": 1}}]),
        ("candidates[1] (a).peft.rr", "unknown key"),
    ),
    BadInput(
        "candidate target",
        run(candidates=[B, A | {"peft": {"target_modules": ["keys"]}}]),
        ("candidates[1] (a).peft.target_modules", "'keys'", "key"),
    ),
    BadInput(
        "candidate strength",
        run(candidates=[A | {"proximal": {"strength": "much"}}]),
        ("candidates[0] (a).proximal.strength", "'much'", "number"),
    ),
    # data
    BadInput("missing data file", run(data={"train": "gone.jsonl"}), ("data.train", "no such file", "gone.jsonl")),
    BadInput(
        "data suffix", train_bytes(b"", "train.txt"), ("data.train", ".txt", ".jsonl, .json, .csv, .tsv, .parquet")
    ),
    BadInput("data empty", train_bytes(b"\n"), ("data.train", "no rows", "one example per row")),
    BadInput("data not utf-8", train_bytes(ROW + b'{"text": "\xe9"}\n'), ("train.jsonl, line 2", "UTF-8")),
    BadInput("malformed json", train_bytes(ROW * 2 + b'{"text": \n'), ("train.jsonl, line 3", "not valid JSON")),
    BadInput("json array", train_bytes(b"[1, 2]\n"), ("train.jsonl, line 1", "[1, 2]", "object")),
    BadInput(
        "ragged csv",
        train_bytes(b"text,label\na,1\nb,c,2\n", "t.csv"),
        ("t.csv, line 3", "3 values", "quote"),
    ),
    BadInput("csv twice", train_bytes(b"text,text\na,1\nb,0\n", "t.csv"), ("t.csv", "same name", "Rename")),
    BadInput("not parquet", train_bytes(b"PAR?", "t.parquet"), ("t.parquet", "not a parquet file")),
    BadInput("text column", run(data={"text": "sentence"}), ("data.text", "'sentence'", "text, label")),
    BadInput("label column", run(data={"label": "lable"}), ("data.label", "'lable'", "Write label")),
    BadInput("null text", train_rows(set_row(4, text=None)), ("data.text", "row 5", "missing")),
    BadInput("text number", train_rows(set_row(4, text=3)), ("data.text", "row 5", "is 3", "every row a text")),
    BadInput("null label", train_rows(set_row(2, label=None)), ("data.label", "row 3", "missing")),
    BadInput("label list", train_rows(set_row(2, label=[1])), ("data.label", "row 3", "[1]", "class name")),
    BadInput("one class", train_rows(relabel(lambda row: 1)), ("data.label", "all 12", "two classes")),
    BadInput("one row", train_bytes(ROW), ("data.train", "1 row", "at least two")),
    BadInput("fractions", train_rows(relabel(fractions)), ("data.label", "row 1", "0.25", "task: regression")),
    BadInput("unseen label", eval_label(7), ("data.label", "eval.jsonl, row 3", "'7'", "0, 1")),
    BadInput(
        "target text",
        train_rows(set_row(3, label="high"), model=REGRESSION),
        ("data.label", "row 4", "'high'", "finite"),
    ),
    BadInput(
        "target nan",
        train_rows(set_row(3, label=float("nan")), model=REGRESSION),
        ("data.label", "row 4", "nan", "finite"),
    ),
    BadInput(
        "too long",
        train_rows(set_row(0, text="good " * 60), data={"max_length": 64}),
        ("data.max_length", "62 tokens", "Write 40 or less"),
    ),
    # model
    BadInput("missing folder", run(model={"path": "./gone"}), ("model.path", "no such folder", "hub id")),
    BadInput("model is a file", run(model={"path": "./train.jsonl"}), ("model.path", "is a file", "folder")),
    BadInput(
        "missing gguf",
        run(model={"path": {"gguf": "gone.gguf"}}),
        ("model.path", "gone.gguf", "no such file"),
    ),
    BadInput("not gguf", run(model={"path": {"gguf": "train.jsonl"}}), ("model.path", "train.jsonl", "GGUF")),
    BadInput(
        "unreachable hub",
        run(model={"path": "nobody/nothing"}),
        ("model.path", "nobody/nothing", "connection"),
    ),
    BadInput(
        "no config",
        model_folder(lambda folder: (folder / "config.json").unlink()),
        ("model.path", "config.json", "folder"),
    ),
    BadInput(
        "broken config",
        model_folder(lambda folder: (folder / "config.json").write_text("{")),
        ("model.path", "config.json", "cannot be read"),
    ),
    BadInput(
        "no weights",
        model_folder(lambda folder: (folder / "model.safetensors").unlink()),
        ("model.path", "cannot load the model", "weights"),
    ),
    BadInput(
        "cut weights",
        model_folder(lambda folder: (folder / "model.safetensors").write_bytes(b"12345678")),
        ("model.path", "cannot load the model", "weights"),
    ),
    BadInput(
        "other weights", model_folder(save_unrelated_weights), ("model.path", "not in the weights file", "config.json")
    ),
    BadInput("architecture", model_folder(save_unknown_architecture), ("model.path", "mamba_of_mine", "architecture")),
    BadInput(
        "no tokenizer",
        model_folder(lambda folder: (folder / "tokenizer.json").unlink()),
        ("model.path", "tokenizer", "vocabulary", "save_pretrained"),
    ),
    BadInput(
        "attention",
        run(model={"attn_implementation": "fast"}),
        ("model.path", "cannot load the model", "sdpa or eager"),
    ),
    *BAD_SETTINGS,
    *BAD_DATA,
    *BAD_MODELS,
]
