"""Push a trained adapter to the model hub; a failure does not lose the run."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from foretune.errors import InputError
from foretune.task import Candidate
from foretune.task.problems import error_text


def check_hub(candidate: Candidate, where: str) -> None:
    """Check that the hub can be reached with a token, if the candidate asks for a push.

    Args:
        candidate: The candidate.
        where: Name of its training section in messages.

    Raises:
        InputError: The hub cannot be reached, or there is no valid token.
    """
    if not candidate.training.get("push_to_hub"):
        return
    try:
        HfApi(token=candidate.training.get("hub_token")).whoami()
    except Exception as error:  # the errors of network, token and hub have many types
        reason = error_text(error, 200)
        raise InputError(
            f"{where}.push_to_hub",
            f"the hub cannot be used from here ({reason})",
            "log in with `hf auth login`, or leave it out and upload the adapter's folder afterwards",
        ) from error


def push_adapter(candidate: Candidate, adapter: Path, notify: Callable[[str], None]) -> None:
    """Upload an adapter's folder if the candidate asks for it.

    Args:
        candidate: The candidate.
        adapter: The folder.
        notify: Called with a sentence about the upload or its failure. A failure has no other effect.
    """
    training = candidate.training
    if not training.get("push_to_hub"):
        return
    try:
        hub = HfApi(token=training.get("hub_token"))
        name = training.get("hub_model_id") or candidate.name
        repository = hub.create_repo(name, private=training.get("hub_private_repo"), exist_ok=True).repo_id
        hub.upload_folder(repo_id=repository, folder_path=adapter)
        notify(f"{adapter} was uploaded to {repository}")
    except Exception as error:  # the errors of network, token and hub have many types
        reason = error_text(error, 200)
        notify(
            f"the adapter was not uploaded ({reason}); it is complete in {adapter}, so upload it yourself: "
            f"hf upload REPOSITORY {adapter}"
        )
