"""The task to fine-tune for: its data, its model, its candidates, and the checks that come before any expense."""

from foretune.task.candidate import Candidate as Candidate
from foretune.task.candidate import build_candidates as build_candidates
from foretune.task.config import RunConfig as RunConfig
from foretune.task.config import load_config as load_config
from foretune.task.loading import load_run as load_run
from foretune.task.loading import load_task as load_task
from foretune.task.pooling import MeanPooledClassifier as MeanPooledClassifier
from foretune.task.task import Task as Task
