"""A running model -> a routing trace; arrays and other traces -> a routing trace."""

from prophet_moe.record.prompts import Prompt, read_prompts, tokenise
from prophet_moe.record.recorder import record

__all__ = ["Prompt", "read_prompts", "record", "tokenise"]
