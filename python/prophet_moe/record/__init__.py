"""A running model -> a routing trace; arrays and other traces -> a routing trace."""

from prophet_moe.record.merge import merge_traces
from prophet_moe.record.prompts import Prompt, read_prompts, tokenise
from prophet_moe.record.recorder import record
from prophet_moe.record.shards import Order, collect
from prophet_moe.record.workers import processes

__all__ = [
    "Order",
    "Prompt",
    "collect",
    "merge_traces",
    "processes",
    "read_prompts",
    "record",
    "tokenise",
]
