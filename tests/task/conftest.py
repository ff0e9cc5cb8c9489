"""No network, one thread: the tests of this folder wait for nobody."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import huggingface_hub.constants
import torch
import transformers

huggingface_hub.constants.HF_HUB_OFFLINE = True  # where another folder's tests have already imported it
datasets.config.HF_HUB_OFFLINE = True
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
