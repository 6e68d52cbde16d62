"""Turns the results into a table in Markdown, and the growth curves into a picture."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import judge
from benchmarks.growth import POINT_SECONDS
from benchmarks.measure import LEAST_ROUNDS, NEAR, SPINS
from benchmarks.peers import LLAMA_CPP, PEERS, ROOFLINE, RUNGS, UNSHARED
from benchmarks.workloads import BY_COUNT, BY_PROMPT, MAIN, Workload

OURS = next(iter(PEERS))
TARGETS = {"W1": (1.8, 2.2), "W2": (2.5, 7.0), "W3": (1.8, 2.0), "W4": (2.2, 7.0)}
"""How many times as long as ours the best peer is to take, and the best of those that share nothing (the usual way)."""

LLAMA_TARGET = {"W1": 2.2}
"""How many times as long as ours the best form of llama.cpp is to take."""

SHARE, MEMORY = 0.60, 1.3
"""Two more targets.

The least share of the int8 peak (see ``_share``) in W1, and the most memory in W2, as a multiple of what weights and
the prompt's keys and values take.
"""

IMPORT_S, SCORE_S, VERDICT_S = 0.030, 1.0, 0.8
"""Most seconds that ``import fsrm_lite`` may add to a bare interpreter, and that a first score and verdict may take."""


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [
        f
        for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "avx_vnni")
        if f in facts.get("flags", "").split()
    ]
    return {
        "cpu": facts.get("model name", platform.processor()),
        "flags": flags,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def table(results: dict[str, Any]) -> str:
    """Return the whole report in Markdown."""
    about = results["about"]
    setting = about["setting"]
    where = setting["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items() if version)
    parts = [
        f"{where['cpu']} ({', '.join(where['flags'])}), {setting['threads']} threads, shape {setting['shape']}, "
        f"{about['date']}; Python {where['python']}, {versions}, "
        f"{'with' if setting['compiled'] else 'without'} compiled operators",
    ]
    peak = results.get("main", {}).get("roofline")
    if peak:
        parts.append(
            f"GEMM peak through ONNX Runtime: int8 {peak['int8'] / 1e12:.2f} T, "
            f"fp32 {peak['fp32'] / 1e12:.2f} T operations per second."
        )
    parts += [_workload_table(workload, results) for workload in MAIN if workload.name in results.get("main", {})]
    parts += [_rounds_note(results), _llama_note(results)]
    if "startup" in results:
        parts.append(_startup_table(results["startup"]))
    if "growth" in results:
        parts.append(_growth_table(results["growth"]))
    if "judge" in results:
        parts.append(judge.table([row for rows in results["judge"].values() for row in rows]))
    if "stage_seconds" in results:
        seconds = results["stage_seconds"]
        each = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in seconds.items() if spent >= 1)
        parts.append(f"Time taken: {sum(seconds.values()) / 60:.1f} minutes ({each}).")
    return "\n\n".join(parts) + "\n"


def _rounds_note(results: dict[str, Any]) -> str:
    """Return a note on what was run less often, what only in part, and what not at all."""
    main = results.get("main", {})
    first, later = main.get(MAIN[0].name, {}), [main[w.name] for w in MAIN[1:] if w.name in main]
    note = (
        f"Peers take turns. Those within {NEAR:g} times of fsrm-lite, and those that a ratio is taken of "
        "(the best of all, of the usual way, which shares nothing, and in W1 of llama.cpp), "
        f"run {LEAST_ROUNDS} rounds and more while the time lasts, the others one. "
        "Peers of equal pieces run a part of them, "
        "unless they come close to the best of all or of the usual way; these run the whole. "
        "Runs beside busy neighbours do not count while there are others."
    )
    left_out = [
        name for name in PEERS if name in first and name != ROOFLINE and not any(name in rows for rows in later)
    ]
    return (
        f"{note} Left out behind W1, since another form of the same thing was faster there: {', '.join(left_out)}."
        if later and left_out
        else note
    )


def _llama_note(results: dict[str, Any]) -> str:
    """Return a note on how llama.cpp ran."""
    spin = results.get("spin")
    note = f"llama.cpp waits at barriers with the faster of GOMP_SPINCOUNT {' and '.join(SPINS)}"
    note += f": {spin['count']}, tried in W1 with {spin['tried']} and used for all of its rows." if spin else "."
    if results["about"]["llama_without_amx"]:
        note += (
            " It runs its AVX kernels, 4-bit weights interleaved for them as without AMX: "
            "the AMX kernels of builds made with GCC load a tile configuration that the compiler has optimized away, "
            "and the process dies (llama.cpp pull request 26954)."
        )
    return note


def _workload_table(workload: Workload, results: dict[str, Any]) -> str:
    """Return the table of one workload, with a line that compares ours with its targets."""
    rows = results["main"][workload.name]
    timed = {name: row for name, row in rows.items() if row.get("median_s")}
    lines = [
        f"**{workload.name}: {workload.title}**",
        "",
        "| | median s | spread | times ours | share of the int8 peak | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    ranked = sorted(rows, key=lambda name: rows[name].get("median_s") or 1e9)
    lines += [_peer_row(workload, name, rows[name], results) for name in ranked]
    lines += ["", _verdict(workload, timed)]
    if OURS in timed and workload.name == "W1" and "roofline" in results["main"]:
        share = _share(workload, timed[OURS], results)
        lines[-1] += f"; {share:.2f} of the int8 GEMM peak ({_target(share >= SHARE, SHARE)})"
    if OURS in timed and workload.name == "W2":
        allowed = results["about"]["weights_file_bytes"] + results["about"]["prefix_bytes"]
        ratio = timed[OURS]["rss_bytes"] / allowed
        known = f"{allowed / 2**20:.0f} MiB of weights file and KV"
        lines[-1] += f"; peak memory {ratio:.2f}x the {known} ({_target(ratio <= MEMORY, MEMORY)})"
    return "\n".join(lines)


def _peer_row(workload: Workload, name: str, row: dict[str, Any], results: dict[str, Any]) -> str:
    """Return one peer's line of the table of a workload."""
    if not row.get("median_s"):
        return f"| {name} | {row.get('failed')} | | | | |"
    ours = results["main"][workload.name].get(OURS, {}).get("median_s")
    share = f"{_share(workload, row, results):.2f}" if "roofline" in results["main"] else ""
    ratio = f"{row['median_s'] / ours:.2f}" if ours else ""
    note = f" (1/{row['scale']} measured, scaled)" if row["scale"] > 1 else ""
    spread = f"{row['min_s']:.2f} - {row['max_s']:.2f}, n={row['runs']}{'' if row['quiet'] else ', busy machine'}"
    return (
        f"| {name}{note} | {row['median_s']:.2f} | {spread} | {ratio} | {share} | {row['rss_bytes'] / 2**20:.0f} MiB |"
    )


def _share(workload: Workload, row: dict[str, Any], results: dict[str, Any]) -> float:
    """Return how much of the int8 peak a peer reaches.

    Counted are the operations in linear maps, for the tokens that have to be read, in the median time.
    """
    return float(
        2 * results["about"]["linear_weights"] * workload.tokens / row["median_s"] / results["main"]["roofline"]["int8"]
    )


def _target(met: bool, target: float) -> str:
    return f"target {target:g}: {'met' if met else 'missed'}"


def _verdict(workload: Workload, timed: dict[str, Any]) -> str:
    """Return our ratios, each with its target."""
    if OURS not in timed:
        return ""
    ours = timed[OURS]["median_s"]
    peers = {n: r["median_s"] for n, r in timed.items() if not n.startswith("fsrm-lite")}
    usual = {n: s for n, s in peers.items() if n in UNSHARED}
    llama = {n: s for n, s in peers.items() if n in LLAMA_CPP}
    asked = [("best peer", peers, TARGETS[workload.name][0]), ("usual way", usual, TARGETS[workload.name][1])]
    if workload.name in LLAMA_TARGET:
        asked.append(("best of llama.cpp", llama, LLAMA_TARGET[workload.name]))
    found = []
    for what, group, target in asked:
        if group:
            name = min(group, key=lambda n: group[n])
            ratio = group[name] / ours
            found.append(f"{ratio:.2f}x the {what} ({name}; {_target(ratio >= target, target)})")
    if peers and RUNGS in timed:
        ratio = min(peers.values()) / timed[RUNGS]["median_s"]
        found.append(f"{ratio:.2f}x the best peer with the precisions that a real model needed")
    return "; ".join(found)


def _startup_table(rows: dict[str, Any]) -> str:
    """Return the table of how long new processes take."""
    lines = ["**Start-up, whole processes**", "", "| | median s | over `import numpy` |", "|---|---|---|"]
    numpy_s = rows["import numpy"]["median_s"]
    for name, row in rows.items():
        if row["median_s"] is None:
            lines.append(f"| {name} | {row['failed']} | |")
        else:
            lines.append(f"| {name} | {row['median_s']:.3f} | {row['median_s'] / numpy_s:.2f} |")
    times = {name: row["median_s"] for name, row in rows.items()}
    if all(times.values()):
        added = times["import fsrm_lite"] - times["bare interpreter"]
        first, verdict = times["first score"], times["first verdict"]
        lines += [
            "",
            f"`import fsrm_lite` adds {1000 * added:.0f} ms ({_target(added <= IMPORT_S, 1000 * IMPORT_S)}); "
            f"the first score takes {first:.2f} s ({_target(first <= SCORE_S, SCORE_S)}), "
            f"the first verdict {verdict:.2f} s ({_target(verdict <= VERDICT_S, VERDICT_S)})",
        ]
    return "\n".join(lines)


_GROWTH_NOTE = (
    "peers that share nothing: from a part of the candidates, scaled; "
    f"no point where one run would take over {POINT_SECONDS:.0f} s"
)


def _growth_table(growth: dict[str, Any]) -> str:
    """Return the tables of seconds against candidates and against the length of the prompt."""
    lines = [f"**Growth: seconds, and the slope of a straight line** ({_GROWTH_NOTE})"]
    for title, workloads, x in _growth_axes():
        lines += [
            "",
            f"| {title} | " + " | ".join(str(x(w)) for w in workloads) + " | ms per unit |",
            "|---" * (len(workloads) + 2) + "|",
        ]
        for peer, points in growth.items():
            cells = [f"{points[w.name]:.2f}" if points.get(w.name) else "" for w in workloads]
            lines.append(f"| {peer} | " + " | ".join(cells) + f" | {_slope(points, workloads, x)} |")
    return "\n".join(lines)


def _growth_axes() -> list[tuple[str, tuple[Workload, ...], Any]]:
    return [("candidates", BY_COUNT, lambda w: w.count), ("tokens of the prompt", BY_PROMPT, lambda w: w.prompt)]


def _slope(points: dict[str, float], workloads: tuple[Workload, ...], x: Any) -> str:  # noqa: ANN401 - a key function
    known = [(x(w), points[w.name]) for w in workloads if points.get(w.name)]
    return f"{1000 * np.polyfit([at for at, _ in known], [s for _, s in known], 1)[0]:.2f}" if len(known) > 1 else ""


def plot_growth(growth: dict[str, Any], path: Path) -> None:
    """Draw time against candidates and against prompt length, one line per peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, (title, workloads, x) in zip(axes, _growth_axes(), strict=True):
        for peer, points in growth.items():
            known = [(x(w), points[w.name]) for w in workloads if points.get(w.name)]
            if known:
                axis.plot(*zip(*known, strict=True), marker="o", label=peer)
        axis.set(xlabel=title, ylabel="seconds", xscale="log", yscale="log")
        ticks = [x(w) for w in workloads]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.supxlabel(_GROWTH_NOTE, fontsize="x-small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
