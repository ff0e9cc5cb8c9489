"""Real training, and the one loop that real and simulated runs share."""

from foretune.train.finetune import build_peft_model as build_peft_model
from foretune.train.finetune import fine_tune as fine_tune
from foretune.train.loop import Point as Point
from foretune.train.loop import Run as Run
from foretune.train.loop import loop_arguments as loop_arguments
from foretune.train.loop import run_trainer as run_trainer
from foretune.train.proximal import ProximalAdamW as ProximalAdamW
from foretune.train.proximal import proximal as proximal
