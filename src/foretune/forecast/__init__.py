"""Forecasts: the fine-tune simulated on its tangents, candidates ranked, and compared with the truth."""
