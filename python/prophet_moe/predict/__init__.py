"""Forecasts of routing: learn them from a trace, calibrate, score, export."""
