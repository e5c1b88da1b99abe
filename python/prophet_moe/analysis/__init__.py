"""How predictable is a model's routing, and what is that worth? Reads traces, writes figures.

found = analyze("routes.safetensors")
print("\\n".join(found.verdict))
"""

from prophet_moe.analysis.figures import figures
from prophet_moe.analysis.study import Analysis, Options, Step, analyze

__all__ = ["Analysis", "Options", "Step", "analyze", "figures"]
