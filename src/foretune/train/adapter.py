"""Load a trained adapter, with the parameters that its training started from."""

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
from foretune.task.problems import error_text
from foretune.train.finetune import damaged_files
from foretune.train.initialise import build_peft_model

WEIGHTS = "adapter_model.safetensors"
FOLDER_FIX = "give the folder of an adapter, such as DIR/train/NAME/adapter of foretune train"


def load_adapter(task: Task, folder: str | Path) -> Linearised:
    """Load a trained adapter as a linearised model.

    The ``network`` of the result is the fine-tuned model with the trained parameters θ. The model is linearised at θ0,
    where the training started. θ0 is read from ``start.safetensors`` in the folder. If that file is missing, θ0 is
    drawn again from the seed in ``result.json`` beside the folder, as ``foretune train`` draws it.

    Args:
        task: The task, with the model that the adapter was trained on.
        folder: The folder that ``foretune train`` or ``Linearised.save_pretrained`` wrote.

    Returns:
        The linearised model.

    Raises:
        InputError: There is no such adapter, it belongs to another model, or the start of its training is not known.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file() or not (folder / WEIGHTS).is_file():
        problem = f"no adapter_config.json and {WEIGHTS} there" if folder.is_dir() else "no such folder"
        raise InputError(f"adapter {folder}", problem, FOLDER_FIX)
    result = result_of(folder)
    if not result and not (folder / START_FILE).exists():
        raise InputError(
            f"adapter {folder}",
            f"there is neither {START_FILE} in it nor result.json beside it, so its start is not known",
            "train it with foretune train, or save it with foretune.linearise(model).save_pretrained",
        )
    damaged = damaged_files(folder, result)
    if damaged:
        problem = f"{', '.join(damaged)} changed after training"
        raise InputError(
            f"adapter {folder}", problem, "train it again, or certify a copy without result.json beside it"
        )
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = False
        config.init_lora_weights = True  # the weights are read from the file below
        model = build_peft_model(task, Candidate("adapter", config), int(result.get("seed", 42)))
        weights = load_file(folder / WEIGHTS)
    except (ValueError, TypeError, OSError, SafetensorError) as error:
        reason = error_text(error)
        raise InputError(f"adapter {folder}", f"it does not fit this model ({reason})", _other(task)) from error
    differences = _differences(get_peft_model_state_dict(model), weights)
    if differences:
        raise InputError(f"adapter {folder}", f"it belongs to another model: {differences}", _other(task))
    if (folder / START_FILE).exists():
        start = load_start(model, folder)
    else:
        start = {name: x.detach().clone() for name, x in model.named_parameters() if x.requires_grad}
    set_peft_model_state_dict(model, weights)
    return linearise(model.eval(), start)


def result_of(folder: Path) -> dict[str, Any]:
    """Return the content of ``result.json`` beside an adapter's folder; empty if there is no such file."""
    path = folder.resolve().parent / "result.json"
    return read_json(path, "train the adapter again") if path.exists() else {}


def _differences(expected: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str:
    """Describe the tensors whose names or shapes differ; empty if there are none."""
    wanted, present = ({name: tuple(x.shape) for name, x in tensors.items()} for tensors in (expected, saved))
    names = sorted({name for name, _ in wanted.items() ^ present.items()})
    listed = [f"{name} is {present.get(name, 'missing')}, not {wanted.get(name, 'there')}" for name in names[:2]]
    return "; ".join(listed) + (f"; and {len(names) - 2} more" if len(names) > 2 else "")


def _other(task: Task) -> str:
    """What to do about an adapter of another model."""
    name = task.model.config.name_or_path or type(task.model).__name__
    return f"name the model that it was trained on in run.yaml, which now has {name}"
