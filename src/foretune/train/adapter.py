"""A trained adapter, read back with the parameters that its training started from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from foretune.errors import InputError
from foretune.linear import START_FILE, Linearised, linearise, load_start
from foretune.results import read_json
from foretune.task import Candidate, Task
from foretune.train.finetune import damaged_files
from foretune.train.initialise import build_peft_model

WEIGHTS = "adapter_model.safetensors"
FOLDER_FIX = "give the folder of an adapter, such as DIR/train/NAME/adapter of foretune train"


def load_adapter(task: Task, folder: str | Path) -> Linearised:
    """The linearised model of a trained adapter at θ: its ``network`` is the fine-tuned model, θ0 the training's start.

    θ0 is read from ``start.safetensors`` in the folder. Where that is missing it is drawn again from the seed of
    ``result.json`` beside the folder, as ``foretune train`` draws it.

    Args:
        task: With the model that the adapter was trained on.
        folder: What ``foretune train`` or ``Linearised.save_pretrained`` wrote.

    Raises:
        InputError: There is no such adapter, it is of another model, or nothing says where its training started.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file() or not (folder / WEIGHTS).is_file():
        found = f"no adapter_config.json and {WEIGHTS} there" if folder.is_dir() else "no such folder"
        raise InputError(f"adapter {folder}", found, FOLDER_FIX)
    result = result_of(folder)
    if not result and not (folder / START_FILE).exists():
        raise InputError(
            f"adapter {folder}",
            f"there is neither {START_FILE} in it nor result.json beside it, so its start is not known",
            "train it with foretune train, or save it with foretune.linearise(model).save_pretrained",
        )
    damaged = damaged_files(folder, result)
    if damaged:
        found = f"{', '.join(damaged)} changed after training"
        raise InputError(f"adapter {folder}", found, "train it again, or certify a copy without result.json beside it")
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = False
        config.init_lora_weights = True  # its weights are read from the file
        model = build_peft_model(task, Candidate("adapter", config), int(result.get("seed", 42)))
        weights = load_file(folder / WEIGHTS)
    except (ValueError, TypeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"adapter {folder}", f"it does not fit this model ({reason})", _other(task)) from error
    odd = _differences(get_peft_model_state_dict(model), weights)
    if odd:
        raise InputError(f"adapter {folder}", f"it is of another model: {odd}", _other(task))
    if (folder / START_FILE).exists():
        start = load_start(model, folder)
    else:
        start = {name: x.detach().clone() for name, x in model.named_parameters() if x.requires_grad}
    set_peft_model_state_dict(model, weights)
    return linearise(model.eval(), start)


def result_of(folder: Path) -> dict[str, Any]:
    """The ``result.json`` beside an adapter's folder; empty if there is none."""
    path = folder.resolve().parent / "result.json"
    return read_json(path, "train the adapter again") if path.exists() else {}


def _differences(ours: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Where names or shapes differ, in words; empty if nowhere."""
    shapes = [{name: tuple(x.shape) for name, x in each.items()} for each in (ours, found)]
    names = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
    listed = [f"{name} is {shapes[1].get(name, 'missing')}, not {shapes[0].get(name, 'there')}" for name in names[:2]]
    return "; ".join(listed) + (f"; and {len(names) - 2} more" if len(names) > 2 else "")


def _other(task: Task) -> str:
    name = task.model.config.name_or_path or type(task.model).__name__
    return f"name the model that it was trained on in run.yaml, which now has {name}"
