"""prophet report: result files as one HTML page."""

from __future__ import annotations

from pathlib import Path

from prophet_moe.cli import options as flag
from prophet_moe.cli import options_sim as sim_flag
from prophet_moe.cli.console import guarded, log

HELP = """Example: prophet report reference-moe.jsonl -o report.html

Draws what prophet simulate and prophet run --timeline wrote, and what analyze, score and bench --serve
print with --json: one file that opens without a network, with what to run in short, figures, and a page
for reviewers. What the results lack is named, never guessed. Needs plotly: pip install
'prophet-moe\\[report]'."""


@guarded
def report(
    results: sim_flag.ResultsFiles,
    out: sim_flag.Page = Path("report.html"),
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from prophet_moe.results_page.page import render
    from prophet_moe.results_page.sources import read_all

    page = render(read_all(results))
    out.write_text(page, encoding="utf-8")
    if not quiet:
        log().print(f"{out}: {len(page.encode()) / 2**20:.1f} MiB, opens in any browser", markup=False)
