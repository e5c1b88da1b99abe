"""`python -m prophet_moe.cli`: the command without its script."""

from prophet_moe.cli import main

main()
