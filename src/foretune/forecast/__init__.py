"""Forecasts: simulate each candidate on the tangents, rank the candidates, and compare them with real runs."""
