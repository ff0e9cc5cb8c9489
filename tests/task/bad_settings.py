"""Wrong run files: YAML that is malformed or too large, numbers out of bounds, keys that cannot be used together."""

from typing import Any

from .writing import REGRESSION, BadInput, run, yaml_bytes, yaml_edit

DIGITS = "9" * 5000
LAUGHS = b"a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 30)
)


def training(**keys: Any) -> Any:
    return run(training=keys)


def schedule(name: str, **keys: Any) -> Any:
    return run(training={"lr_scheduler_type": name, "lr_scheduler_kwargs": keys})


BAD_SETTINGS = [
    # YAML files
    BadInput(
        "section twice",
        yaml_edit("training:", "training: {seed: 1}\ntraining:"),
        ("run.yaml, line 18", "'training' occurs twice, in lines 17 and 18", "Keep one"),
    ),
    BadInput("key twice", yaml_edit("  r: 4", "  r: 4\n  r: 8"), ("'r' occurs twice, in lines 12 and 13",)),
    BadInput("key twice in braces", yaml_bytes(b"peft: {r: 1, r: 2}\n"), ("'r' occurs twice, in line 1",)),
    BadInput("deep list", yaml_bytes(b"model: " + b"[" * 5000 + b"]" * 5000), ("line 1", "50 deep", "flatter")),
    BadInput("deep mapping", yaml_bytes(b"model: " + b"{a: " * 5000 + b"}" * 5000), ("line 1", "50 deep", "flatter")),
    BadInput("int tag", yaml_edit("r: 4", "r: !!int abc"), ("line 12", "'abc' is not a whole number")),
    BadInput("bool tag", yaml_edit("use_cpu: true", "use_cpu: !!bool maybe"), ("'maybe' is not true or false",)),
    BadInput("timestamp tag", yaml_edit("r: 4", "r: !!timestamp 4"), ("timestamp", "Remove the tag")),
    BadInput("code tag", yaml_edit("r: 4", "r: !!python/name:os.system"), ("python/name", "Remove the tag")),
    BadInput("date as a number", yaml_edit("r: 4", "r: 2024-13-01"), ("peft.r", "'2024-13-01'", "whole number")),
    BadInput("number without end", yaml_edit("seed: 0", f"seed: {DIGITS}"), ("5,000 characters", "smaller")),
    BadInput("hexadecimal without end", yaml_edit("seed: 0", f"seed: 0x{DIGITS}"), ("5,002 characters", "smaller")),
    BadInput("billion laughs", yaml_bytes(LAUGHS), ("more than 100,000 values", "aliases", "fewer")),
    BadInput(
        "chain of aliases",
        yaml_bytes(b"a0: &a0 [1]\n" + b"".join(b"a%d: &a%d [*a%d]\n" % (i, i, i - 1) for i in range(1, 100))),
        ("50 deep", "aliases", "fewer"),
    ),
    BadInput(
        "alias of itself", yaml_bytes(b"model: &a [*a]\n"), ("line 1", "alias", "inside the value that it refers to")
    ),
    BadInput("list as a key", yaml_bytes(b"[a, b]: 1\n"), ("line 1", "as a key", "a word")),
    BadInput(
        "merge of no mapping", yaml_bytes(b"model: {<<: 3}\n"), ("line 1", "<< is used without a mapping", "*name")
    ),
    BadInput("huge yaml", yaml_bytes(b"# " + b"x" * 2**20), ("1,048,578 bytes", "at most 1,048,576 bytes")),
    BadInput("utf-16 yaml", yaml_bytes("a: 1\n".encode("utf-16-le")), ("run.yaml, line 1", "NUL", "UTF-8")),
    BadInput("bell in yaml", yaml_bytes(b"a: 1\nb: \x07\n"), ("run.yaml, line 2", r"'\x07'", "escape")),
    BadInput("two documents", yaml_bytes(b"a: 1\n---\nb: 2\n"), ("run.yaml, line 2", "another document")),
    BadInput("number as a key", yaml_bytes(b"1: 2\n"), ("run.yaml, line 1", "the key 1 is not text", "quotes")),
    BadInput("number as a peft key", run(peft={1: 2}), ("run.yaml, line", "the key 1 is not text", "quotes")),
    BadInput("octal rank", yaml_edit("r: 4", "r: 010"), ("peft.r", "'010'", "whole number")),
    BadInput("hours of epochs", yaml_edit("epochs: 2", "epochs: 1:30"), ("num_train_epochs", "'1:30'", "a number")),
    # numbers
    BadInput("endless epochs", training(num_train_epochs=1e308), ("num_train_epochs", "1e+308", "at most 1,000,000")),
    BadInput("infinite epochs", training(num_train_epochs=float("inf")), ("num_train_epochs", "inf", "a number")),
    BadInput("epochs too long to convert", training(num_train_epochs=10**99), ("num_train_epochs", "at most")),
    BadInput(
        "batch beyond 64 bits",
        training(per_device_train_batch_size=2**64),
        ("per_device_train_batch_size", "18446744073709551616", "at most 1,000,000"),
    ),
    BadInput("max_length beyond 64 bits", run(data={"max_length": 2**64}), ("data.max_length", "at most 10000000")),
    BadInput("rows beyond 64 bits", run(data={"train_samples": 2**64}), ("data.train_samples", "at most")),
    BadInput("rank beyond memory", run(peft={"r": 10**9}), ("peft.r", "1000000000", "at most 100,000")),
    BadInput("alpha beyond float", run(peft={"lora_alpha": 1e308}), ("peft.lora_alpha", "at most 1,000,000")),
    BadInput("huge rate", training(learning_rate=1e300), ("training.learning_rate", "1e+300", "at most 1,000")),
    BadInput("negative workers", training(dataloader_num_workers=-1), ("dataloader_num_workers", "-1", "at least 0")),
    BadInput("negative logging", training(logging_steps=-5), ("training.logging_steps", "-5", "at least 0")),
    BadInput("negative save limit", training(save_total_limit=-2), ("training.save_total_limit", "-2", "at least 0")),
    BadInput("count beyond 64 bits", training(eval_accumulation_steps=2**63), ("eval_accumulation_steps", "at most")),
    BadInput("rank of a pattern", run(peft={"rank_pattern": {"query": 0}}), ("rank_pattern", "at least 1", "'query'")),
    BadInput(
        "alpha of a pattern", run(peft={"alpha_pattern": {"query": "x"}}), ("alpha_pattern", "number for 'query'")
    ),
    # patterns and initialisations
    BadInput(
        "broken pattern",
        run(peft={"target_modules": ".*(query"}),
        ("peft.target_modules", "'.*(query'", "unterminated subpattern at position 2"),
    ),
    BadInput("broken exclusion", run(peft={"exclude_modules": "a**"}), ("exclude_modules", "repeat at position 2")),
    BadInput(
        "broken layers",
        run(peft={"layers_pattern": ["layer", "["], "layers_to_transform": [1]}),
        ("peft.layers_pattern", "'['", "position 0"),
    ),
    BadInput("broken rank pattern", run(peft={"rank_pattern": {"(": 2}}), ("peft.rank_pattern", "'('", "position 0")),
    BadInput(
        "unknown initialisation",
        run(peft={"init_lora_weights": "gausian"}),
        ("peft.init_lora_weights", "'gausian'", "Unknown initialization", "Write gaussian"),
    ),
    BadInput(
        "unnumbered initialisation",
        run(peft={"init_lora_weights": "pissa_niter_x"}),
        ("peft.init_lora_weights", "'pissa_niter_x'"),
    ),
    BadInput("corda", run(peft={"init_lora_weights": "corda"}), ("init_lora_weights", "'corda'", "true or gaussian")),
    BadInput("loftq", run(peft={"init_lora_weights": "loftq"}), ("run.yaml: peft", "loftq_config", "specified")),
    BadInput(
        "loftq without all keys",
        run(peft={"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}),
        ("peft.init_lora_weights", "'loftq'", "'loftq_iter' is missing", "true or gaussian"),
    ),
    BadInput("another peft_type", run(peft={"peft_type": "IA3"}), ("peft.peft_type", "'IA3'", "Write lora")),
    BadInput(
        "targets in one text",
        run(peft={"target_modules": "query, value"}),
        ("peft.target_modules", "'query, value'", "Write a list: [query, value]"),
    ),
    BadInput("all_linear", run(peft={"target_modules": "all_linear"}), ("target_modules", "Write all-linear")),
    BadInput("blank target", run(peft={"target_modules": ["query", " "]}), ("target_modules", "[query, value]")),
    BadInput("blank head", run(peft={"modules_to_save": [""]}), ("peft.modules_to_save", "['']", "names of modules")),
    BadInput(
        "rank fraction of a pattern", run(peft={"rank_pattern": {"q": 1.5}}), ("rank_pattern", "whole number for")
    ),
    # choices
    BadInput(
        "sampling", training(train_sampling_strategy="randm"), ("train_sampling_strategy", "'randm'", "Write random")
    ),
    BadInput("log level", training(log_level="loud"), ("training.log_level", "'loud'", "one of: detail")),
    BadInput("process start", training(dataloader_multiprocessing_context="thread"), ("'thread'", "fork")),
    BadInput(
        "reporter", training(report_to="nobody"), ("training.report_to", "nobody is not supported", "tensorboard")
    ),
    # optimiser and schedule
    BadInput("adam_w", training(optim="adam_w"), ("training.optim", "'adam_w'", "Write adamw_torch")),
    BadInput("adam-w", training(optim="AdamW"), ("training.optim", "'AdamW'", "Write adamw_torch")),
    BadInput(
        "optimiser argument",
        training(optim="sgd", optim_args="momentun=0.9"),
        ("training.optim_args", "sgd does not take momentun", "Remove it"),
    ),
    BadInput(
        "argument of another optimiser",
        training(optim="adamw_torch", optim_args="momentum=0.9"),
        ("training.optim_args", "adamw_torch does not take momentum"),
    ),
    BadInput(
        "optimiser argument without value",
        training(optim="sgd", optim_args="momentum"),
        ("training.optim_args", "'momentum'", "name=value"),
    ),
    BadInput(
        "optimiser argument out of bounds",
        training(optim="sgd", optim_args="momentum=-1"),
        ("training.optim_args", "'momentum=-1'", "Invalid momentum"),
    ),
    BadInput(
        "schedule without its argument",
        training(lr_scheduler_type="cosine_with_min_lr"),
        ("training.lr_scheduler_type", "min_lr or min_lr_rate", "takes num_cycles, min_lr, min_lr_rate"),
    ),
    BadInput(
        "schedule that needs an argument",
        training(lr_scheduler_type="warmup_stable_decay"),
        ("lr_scheduler_kwargs", "needs num_decay_steps", "takes num_decay_steps, num_stable_steps"),
    ),
    BadInput(
        "schedule argument",
        schedule("cosine", num_cycle=1),
        ("lr_scheduler_kwargs.num_cycle", "cosine takes num_cycles", "Write num_cycles"),
    ),
    BadInput(
        "argument of a schedule without any",
        schedule("linear", power=2.0),
        ("lr_scheduler_kwargs.power", "linear takes no arguments", "Remove it"),
    ),
    BadInput("argument that is the run's", schedule("cosine", num_training_steps=5), ("num_training_steps", "unknown")),
    BadInput(
        "rate below the schedule's last",
        run(training={"lr_scheduler_type": "polynomial", "learning_rate": 1e-8}),
        ("training.lr_scheduler_type", "smaller than initial lr", "takes lr_end, power"),
    ),
    BadInput("schedule of text", schedule("polynomial", power="two"), ("lr_scheduler_type", "'two'", "lr_end, power")),
    BadInput("falling below zero", schedule("polynomial", lr_end=-1.0), ("lr_scheduler_type", "rate of -")),
    BadInput("rising rate", schedule("cosine_with_min_lr", min_lr=1.0), ("lr_scheduler_type", "rate of 1)", "min_lr")),
    BadInput("schedule as text", run(training={"lr_scheduler_kwargs": "power"}), ("lr_scheduler_kwargs", "mapping")),
    BadInput(
        "smoothed numbers",
        run(model=REGRESSION, training={"label_smoothing_factor": 0.1}),
        ("training.label_smoothing_factor", "0.1", "regression", "Leave it out"),
    ),
    # candidates
    BadInput(
        "name of a linearised run",
        run(candidates=[{"name": "base-linearised"}, {"name": "base", "peft": {"r": 2}}]),
        ("candidates[0] (base-linearised).name", "linearised run of base", "base-linear"),
    ),
    BadInput("long name", run(candidates=[{"name": "x" * 121}]), ("candidates[0]", "121 characters", "at most 120")),
    BadInput(
        "names that differ in capitals",
        run(candidates=[{"name": "wide"}, {"name": "Wide", "peft": {"r": 2}}]),
        ("candidates[1] (Wide).name", "differs from wide in capital letters only"),
    ),
    BadInput("choice twice", run(candidates={"peft": {"r": [4, 4]}}), ("candidates", "peft.r lists 4 twice", "once")),
    BadInput(
        "rate twice",
        run(candidates={"training": {"learning_rate": ["1e-3", 0.001]}}),
        ("candidates", "learning_rate lists 0.001 twice"),
    ),
    BadInput(
        "candidate schedule",
        run(candidates=[{"name": "a", "training": {"lr_scheduler_type": "cosine_with_min_lr"}}]),
        ("candidates[0] (a).training.lr_scheduler_type", "min_lr_rate"),
    ),
    BadInput(
        "many problems",
        run(candidates=[{"name": f"c{i}", "peft": {"r": 0}} for i in range(40)]),
        ("40 problems", "(10) candidates[9]", "and 30 more", "Correct all"),
    ),
    BadInput(
        "too many candidates",
        run(candidates=[{"name": f"c{i}"} for i in range(1001)]),
        ("candidates", "1,001 candidates", "at most 1000"),
    ),
    # columns and paths
    BadInput("path of null", run(data={"train": {"path": None}}), ("data.train", "{'path': None}", "jsonl")),
    BadInput("half precision", run(model={"dtype": "fp16"}), ("model.dtype", "'fp16'", "Write float16")),
    BadInput("text is label", run(data={"text": "label"}), ("data", "'label' is both text and label", "column of the")),
    BadInput("text twice", run(data={"text": ["text", "text "]}), ("data", "same column twice", "two different")),
    BadInput("number as a column", run(data={"label": 1}), ("data.label", "found 1", "text, in quotes")),
    BadInput("nul in a path", run(data={"train": "tr\0ain.jsonl"}), ("data.train", r"'tr\x00ain.jsonl'", "NUL")),
    BadInput("address", run(data={"train": "https://a.b/t.jsonl"}), ("data.train", "https://a.b", "Download")),
    BadInput(
        "home of an unknown user",
        run(data={"eval": "~nosuchuser/e.jsonl"}),
        ("data.eval", "~nosuchuser", "no such home folder"),
    ),
    BadInput(
        "model in the home of an unknown user",
        run(model={"path": "~nosuchuser/m"}),
        ("model.path", "~nosuchuser", "no such home folder"),
    ),
    BadInput("nul in a model", run(model={"path": "mo\0del"}), ("model.path", r"'mo\x00del'", "NUL")),
    BadInput("folder that is a file", run(data={"train": "run.yaml/t.jsonl"}), ("data.train", "Not a directory")),
    BadInput("long path", run(data={"train": "d/" * 3000 + "t.jsonl"}), ("data.train", "/d/", "...", "name too long")),
]
