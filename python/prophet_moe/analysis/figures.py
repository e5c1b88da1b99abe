"""Series ready to be drawn, from the JSON of an analysis: what the HTML report shows."""

from __future__ import annotations

from typing import Any

from .dependence import FORMS


def figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Charts of an analysis as `Analysis.to_dict` or the JSON of `prophet analyze` gives it.

    Each is {"name", "title", "kind", "x", "y", ...}: kind "lines" or "bars" has "series", a list of {"name",
    "x", "y"} and where measured "low", "high" (95 %); kind "heat" has "rows", "columns" and "values"
    [rows][columns]. "x" and "y" are axis titles with units.
    """
    charts = [_popularity(found), *_reuse(found)]
    for key, unit in (("cross_layer", "layers"), ("cross_token", "tokens")):
        if found[key]:
            charts += [_decay(found[key], key, unit), _by_layer(found[key], key, unit)]
    if found["domains"] is not None:
        charts.append(
            {
                "name": "drift_domains",
                "title": "How far popularity moves between domains",
                "kind": "heat",
                "x": "domain",
                "y": "domain",
                "unit": "bits (Jensen-Shannon)",
                "rows": found["domains"]["domains"],
                "columns": found["domains"]["domains"],
                "values": found["domains"]["matrix"],
            }
        )
    if found["context"] is not None:
        charts.append(_context(found["context"]))
    return charts


def _popularity(found: dict[str, Any]) -> dict[str, Any]:
    layers = found["popularity"]
    ranks = list(range(1, found["experts_per_layer"] + 1))
    series = [
        {"name": f"layer {i}", "x": ranks, "y": sorted(layer["shares"], reverse=True)}
        for i, layer in enumerate(layers)
    ]
    return {"name": "popularity", "title": "Popularity of experts", "kind": "lines", "log": "y",
            "x": "rank within the layer", "y": "share of uses", "series": series}  # fmt: skip


def _reuse(found: dict[str, Any]) -> list[dict[str, Any]]:
    curves, charts = found["reuse"], []
    for name, title, axis, keys in (
        ("reuse", "Misses by size of one pool", "slots", ("fixed", "lru", "clairvoyant")),
        ("reuse_per_layer", "Misses by size of a pool per layer", "slots per layer",
         ("lru_per_layer", "clairvoyant_per_layer")),
    ):  # fmt: skip
        first = found["top_k"]
        series = [
            {
                "name": key.removesuffix("_per_layer"),
                "x": list(range(first, len(curves[key]))),
                "y": curves[key][first:],
            }
            for key in keys
        ]
        charts.append(
            {"name": name, "title": title, "kind": "lines", "x": axis, "y": "miss rate", "series": series}
        )
    return charts


def _decay(steps: list[dict[str, Any]], key: str, unit: str) -> dict[str, Any]:
    series = []
    for form in FORMS:
        measured = [step["forms"][form] for step in steps]
        one: dict[str, Any] = {
            "name": form.replace("_", " "),
            "x": [step["distance"] for step in steps],
            "y": [m["of_entropy"] for m in measured],
        }
        if all(m["of_entropy_interval"] is not None for m in measured):
            one["low"], one["high"] = map(
                list, zip(*(m["of_entropy_interval"] for m in measured), strict=True)
            )
        series.append(one)
    return {"name": f"{key}_decay", "title": f"Information by distance, {unit} ahead", "kind": "lines",
            "x": f"{unit} ahead", "y": "share of the target's entropy", "series": series}  # fmt: skip


def _by_layer(steps: list[dict[str, Any]], key: str, unit: str) -> dict[str, Any]:
    series = [
        {
            "name": f"{step['distance']} {unit} ahead",
            "x": step["source_layers"],
            "y": step["by_layer"]["dominant"],
        }
        for step in steps
    ]
    return {"name": f"{key}_by_layer", "title": "Information by layer, dominant expert", "kind": "lines",
            "x": "source layer", "y": "share of the target's entropy", "series": series}  # fmt: skip


def _context(context: dict[str, Any]) -> dict[str, Any]:
    names = [f"{first}-{last - 1}" for first, last in context["windows"]]
    series = [
        {"name": key.replace("_", " "), "x": names, "y": context[key]}
        for key in ("from_first", "from_before", "by_chance")
    ]
    return {"name": "drift_context", "title": "How far popularity moves along the context", "kind": "bars",
            "x": "position", "y": "bits (Jensen-Shannon)", "series": series}  # fmt: skip
