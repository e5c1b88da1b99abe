"""transformers' models with their experts out of memory: the only place that imports transformers."""

from prophet_moe.models.inspect import ModelInfo, inspect
from prophet_moe.models.load import load
from prophet_moe.models.offload import Offload, close, offload_of, report

__all__ = ["ModelInfo", "Offload", "close", "inspect", "load", "offload_of", "report"]
