"""The demo: a real model and real texts that arrive as packages, and a ``run.yaml`` that uses them."""
