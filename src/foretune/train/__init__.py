"""Training: the loop that real and simulated runs share, real fine-tunes, and how linear a trained adapter is."""

from foretune.train.adapter import load_adapter as load_adapter
from foretune.train.arguments import loop_arguments as loop_arguments
from foretune.train.certify import Certificate as Certificate
from foretune.train.certify import certify as certify
from foretune.train.certify import certify_run as certify_run
from foretune.train.curve import Point as Point
from foretune.train.curve import Run as Run
from foretune.train.finetune import fine_tune as fine_tune
from foretune.train.initialise import build_peft_model as build_peft_model
from foretune.train.loop import run_trainer as run_trainer
from foretune.train.proximal import ProximalAdamW as ProximalAdamW
from foretune.train.proximal import proximal as proximal
from foretune.train.recorder import GapRecorder as GapRecorder
