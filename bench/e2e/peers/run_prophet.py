"""Prophet, loaded as a user loads it: prophet_moe.load and model.generate."""

from workload import Workload, unavailable

workload = Workload(__doc__, budget="auto", slots=None, system="auto")
try:
    from forced import decode

    import prophet_ext
    import prophet_moe
except (ImportError, OSError, RuntimeError) as error:
    unavailable("prophet", error)

given = workload.given
model = prophet_moe.load(
    given.model,
    budget=given.budget,
    slots=given.slots,
    system=given.system,
    threads=given.threads,
    context=512,
)
workload.loaded()
decode(model, workload)
workload.emit("prophet", prophet_ext.__version__, report=prophet_moe.report(model))
