"""Build the model that training starts from: the head that a seed draws, then peft's adapters of that seed."""

import warnings

from peft import PeftModel, get_peft_model, initialize_lora_eva_weights
from torch.utils.data import DataLoader
from transformers import set_seed

from foretune.errors import InputError
from foretune.task import Candidate, Task
from foretune.task.problems import error_text


def build_peft_model(task: Task, candidate: Candidate, seed: int) -> PeftModel:
    """Build the model that training starts from: this seed's head, then this seed's adapters.

    Adapters that peft initialises from data (``init_lora_weights: eva``) are initialised from the training examples.

    Args:
        task: The task, whose base model is used.
        candidate: The candidate with the adapters.
        seed: The seed that draws head and adapters.

    Returns:
        The model with adapters.

    Raises:
        InputError: peft cannot initialise the adapters.
    """
    set_seed(seed)
    model = task.build_model(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            adapted = get_peft_model(model, candidate.peft_config())
            if candidate.peft.init_lora_weights == "eva":
                _initialise_eva(adapted, task, candidate)
        except (ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = error_text(error, 300)
            raise InputError(
                f"candidate {candidate.name!r}: peft",
                f"peft cannot initialise these adapters ({reason})",
                "write init_lora_weights: true, or change the keys it names",
            ) from error
    return adapted


def _initialise_eva(model: PeftModel, task: Task, candidate: Candidate) -> None:
    """Initialise adapters from the inputs of their layers (EVA, arXiv:2410.07170), on the training examples."""
    size = candidate.training_arguments("unused").per_device_train_batch_size

    def collate(rows: list[dict[str, object]]) -> dict[str, object]:
        return {name: value for name, value in task.collator(rows).items() if name != "labels"}

    batches = DataLoader(task.train, batch_size=size, shuffle=True, collate_fn=collate)
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)


def check_initialisation(candidate: Candidate, where: str) -> None:
    """Check that peft can initialise the adapters without a separate step before.

    Without that step peft silently falls back to the default initialisation.

    Args:
        candidate: The candidate.
        where: Name of its peft section in messages.

    Raises:
        InputError: The initialisation needs a separate step.
    """
    if candidate.peft.init_lora_weights == "lora_ga":
        problem = "it is 'lora_ga', which needs gradients of the model first (peft's preprocess_loraga)"
        raise InputError(f"{where}.init_lora_weights", problem, "write true, gaussian or eva")
