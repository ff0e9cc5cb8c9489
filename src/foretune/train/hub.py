"""Pushing a trained adapter to the model hub, which may fail without losing the run."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from foretune.errors import InputError
from foretune.task import Candidate


def check_hub(candidate: Candidate, where: str) -> None:
    """See that the hub can be reached with a token, if the candidate is to be pushed there.

    Raises:
        InputError: It cannot.
    """
    if not candidate.training.get("push_to_hub"):
        return
    try:
        HfApi(token=candidate.training.get("hub_token")).whoami()
    except Exception as error:  # network, token and hub fail in many ways
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise InputError(
            f"{where}.push_to_hub",
            f"the hub cannot be used from here ({reason})",
            "log in with `hf auth login`, or leave it out and upload the adapter's folder afterwards",
        ) from error


def push_adapter(candidate: Candidate, adapter: Path, notify: Callable[[str], None]) -> None:
    """Upload an adapter's folder if the candidate asks for it; a failure is said and changes nothing else."""
    training = candidate.training
    if not training.get("push_to_hub"):
        return
    try:
        hub = HfApi(token=training.get("hub_token"))
        name = training.get("hub_model_id") or candidate.name
        repository = hub.create_repo(name, private=training.get("hub_private_repo"), exist_ok=True).repo_id
        hub.upload_folder(repo_id=repository, folder_path=adapter)
        notify(f"{adapter} was uploaded to {repository}")
    except Exception as error:  # network, token and hub fail in many ways
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        notify(f"the adapter was not uploaded ({reason}); it is complete in {adapter}: hf upload REPOSITORY {adapter}")
