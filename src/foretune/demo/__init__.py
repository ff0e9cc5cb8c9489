"""The demo: a real model and real texts from PyPI packages, and a ``run.yaml`` that uses them."""
