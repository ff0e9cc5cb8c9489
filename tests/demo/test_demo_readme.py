import re
from pathlib import Path

import yaml

from foretune.demo import run
from foretune.task import load_config

README = Path(__file__).parents[2] / "README.md"


def test_the_run_in_the_readme_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    path = tmp_path / "run.yaml"
    path.write_text(block, encoding="utf-8")
    assert len(load_config(path).candidates) == 4


def test_the_readme_and_the_demo_describe_the_same_run() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    readme, demo = yaml.safe_load(block), yaml.safe_load(run._RUN.format(model="model"))
    assert (readme["peft"], readme["training"]) == (demo["peft"], demo["training"])
