"""prophet pack: a checkpoint rewritten so that each expert is one aligned run of bytes."""

from __future__ import annotations

from prophet_moe.cli import options as flag
from prophet_moe.cli.console import bytes_bar, guarded, log, print_json

HELP = """Example: prophet pack reference-moe packed-reference

Writes a copy whose experts are one aligned run each: a read needs no slack and no assembling.
Optional: every command also takes checkpoints as they were downloaded."""


@guarded
def pack(
    model: flag.Model,
    out: flag.Out,
    overwrite: flag.Overwrite = False,
    dry_run: flag.DryRun = False,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from json import dumps

    from prophet_moe import machine
    from prophet_moe import pack as pack_model
    from prophet_moe.budget import format_size
    from prophet_moe.cli.session import look_at

    info = look_at(model, quiet)
    page = machine.PAGE
    needed = info.experts_total * (-(-info.expert_bytes // page) * page) + info.dense_bytes
    free = machine.file_system(out).free
    if needed > free:
        raise ValueError(
            f"{out} needs {format_size(needed)} and its file system has {format_size(free)} free: "
            "free some space or name a folder on another disk."
        )
    if not dry_run:
        with bytes_bar(f"packing {model}", quiet) as progress:
            pack_model(model, out, overwrite=overwrite, progress=progress)
    if json:
        print_json(dumps({"model": model, "out": str(out), "bytes": needed, "written": not dry_run}))
    elif not quiet:
        done = "would write" if dry_run else "wrote"
        log().print(
            f"{done} about {format_size(needed)} to {out}; use it: prophet run {out} -p ...",
            markup=False,
            soft_wrap=True,
        )
