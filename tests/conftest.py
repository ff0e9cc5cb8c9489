"""Offline, quiet and reproducible: what every test relies on."""

import os
import sys
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # tiny matrices: a second thread costs more than it gives
    OPENBLAS_NUM_THREADS="1",
)
sys.path.insert(0, str(Path(__file__).parent))

import datasets
import huggingface_hub.constants
import pytest
import torch
import transformers

# where a pytest plugin has imported them before the variables were set
huggingface_hub.constants.HF_HUB_OFFLINE = True
datasets.config.HF_HUB_OFFLINE = True
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--real``: the blocks of the documentation are run on the demo's model and texts (``make docs``)."""
    parser.addoption("--real", action="store_true", help="run the documentation on the demo's model and texts")
