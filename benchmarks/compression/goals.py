# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: what compression was to reach, beside what its rows have reached."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from benchmarks.compression import cifar, small, tiny
from benchmarks.compression.rows import Row
from benchmarks.markdown import table

Line = tuple[str, str, str, bool]
"""A goal, the least that it asks for, what was reached, and whether that is enough."""

_POINTS = 100 * small.MAX_LOSS
_MACS, _CYCLES = 0, 1


def section(found: list[Row]) -> list[str]:
    """Return the page's section: every goal that there are rows of, met or not."""
    lines = [*_small(found), *_cifar(found), *_rivals(found), *_tiny(found)]
    cells = [
        [what, least, reached, "yes" if met else "**no**"] for what, least, reached, met in lines
    ]
    return ["## Goals", table("Goal | At least | Reached | Met", "llll", cells)] if lines else []


def _of(found: Iterable[Row], name: str, method: str) -> list[Row]:
    return [row for row in found if row.table == name and row.method == method]


def _small(found: list[Row]) -> Iterable[Line]:
    goals = {"lower kernels": 0.65, "linear approximation": 0.52, "all methods": 0.75}
    for method, least in goals.items():
        mine = _of(found, small.TABLE, method)
        within = [row.saved[_MACS] for row in mine if row.change >= -_POINTS]
        if within:
            middle = median(row.saved[_MACS] for row in mine)
            yield (
                f"small networks, {method}: median of MACs saved, held-out loss {_POINTS:g} point",
                f"{least:.0%}",
                (
                    f"{middle:.1%}; of the {len(within)} rows within it on the test split too, "
                    f"{median(within):.1%}"
                ),
                middle >= least,
            )
            ratios = sorted(row.saved[_CYCLES] / row.saved[_MACS] for row in mine)
            yield (
                f"small networks, {method}: share of the MACs saved that is saved in cycles",
                "95%",
                f"median {median(ratios):.0%}; {', '.join(f'{ratio:.0%}' for ratio in ratios)}",
                ratios[0] >= 0.95,
            )


def _cifar(found: list[Row]) -> Iterable[Line]:
    for network, kind, least in (("ResNet-56", _CYCLES, 1 - 1 / 2.6), ("VGG-16-BN", _MACS, 0.66)):
        ours = [
            row
            for row in found
            if row.table == cifar.TABLE
            and row.network == network
            and row.method.startswith("all methods")
        ]
        near = [row for row in ours if row.change >= -0.3]
        # Of those that save enough the most accurate, or else what saves most.
        for best in sorted(
            near, key=lambda row: (min(row.saved[kind], least), row.change), reverse=True
        )[:1]:
            yield (
                f"{network}: {('MACs', 'cycles')[kind]} saved at 0.3 points",
                f"{least:.1%}",
                (
                    f"{best.saved[kind]:.1%} at {best.change:+.2f} ({best.method}); "
                    f"{len(near)} of {len(ours)} rows lose no more than 0.3"
                ),
                best.saved[kind] >= least,
            )


def _rivals(found: list[Row]) -> Iterable[Line]:
    ours = cifar.ours(found)
    for cost, strictly in (("MACs", False), ("cycles", True)):
        leads: dict[str, list[float]] = {}
        settled: list[float] = []  # those of the recipe itself, and not of a variant of it
        for row in found:
            mine = ours.get((*row.origin, row.seed))
            if mine is not None and row.method.startswith("DepGraph") and row.method.endswith(cost):
                name = row.network + mine.method.removeprefix("all methods")
                name += ", uniform" * ("uniform" in row.method)
                leads.setdefault(name, []).append(100 * (mine.accuracy - row.accuracy))
                if mine.method == "all methods":
                    settled.append(leads[name][-1])
        if leads:
            least = min(settled, default=min(map(min, leads.values())))
            yield (
                f"ours less DepGraph at equal {cost}, points, each seed",
                "above 0" if strictly else "0",
                "; ".join(
                    f"{name} {', '.join(f'{lead:+.2f}' for lead in several)}"
                    for name, several in leads.items()
                ),
                least > 0 if strictly else least >= 0,
            )


def _tiny(found: list[Row]) -> Iterable[Line]:
    crops = [row for row in found if row.table == tiny.TABLE and "cropping" in row.method]
    enough = [row for row in crops if row.saved[_MACS] >= 0.488]
    for best in sorted(enough, key=lambda row: -row.change)[:1]:
        yield (
            "Tiny ImageNet, crops: points gained with 48.8% fewer MACs",
            "+0.80",
            f"{best.change:+.2f} with {best.saved[_MACS]:.1%} fewer ({best.method})",
            best.change >= 0.8,
        )
    boxes = [row.more["mean IoU"] for row in crops if "true boxes" in row.method]
    if boxes:
        yield (
            "Tiny ImageNet: the predictor's mean IoU",
            "0.62",
            ", ".join(f"{value:.3f}" for value in sorted(set(boxes))),
            min(boxes) >= 0.62,
        )
    for row in _of(found, tiny.TABLE, "cropping + shrinking + cascade, true boxes"):
        for alone in _of(found, tiny.TABLE, "cropping + shrinking, true boxes"):
            yield (
                "Tiny ImageNet, crops: mean MACs that the cascade saves besides, as accurate",
                "20%",
                f"{1 - row.macs / alone.macs:.1%}, {row.change - alone.change:+.2f} points",
                row.macs <= 0.8 * alone.macs and row.accuracy >= alone.accuracy,
            )
