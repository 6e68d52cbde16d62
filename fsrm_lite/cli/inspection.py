"""``fsrm-lite inspect`` (what a bundle is) and ``fsrm-lite doctor`` (what this machine can do with one)."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from typing import Any

import click

from fsrm_lite import __version__
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.cli.golden import GOLDEN_TOLERANCE, largest_difference
from fsrm_lite.cli.models import model_argument
from fsrm_lite.errors import BundleError, FsrmError, JudgeUnavailableError, printable
from fsrm_lite.runtimes.onnx import kernels
from fsrm_lite.runtimes.threads import usable_cores

PACKAGES = ("numpy", "onnxruntime", "tokenizers", "huggingface-hub", "click", "llama-cpp-python")
CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "neon",
    "asimddp",
    "i8mm",
)
"""Instruction sets that speed up products of int8 or bf16 matrices on some processors."""

_ENGINE_RULE = ", by default ONNX Runtime where keys and values stay in place, else llama.cpp"


@click.command()
@model_argument
@click.option("--check", is_flag=True, help="Also hash every file (a hub model is downloaded whole).")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def inspect(model: str | None, revision: str | None, local_files_only: bool, check: bool, as_json: bool) -> None:
    """Show what MODEL is: a bundle folder or org/name; by default the embedded model."""
    bundle = Bundle.open(model, revision=revision, local_files_only=local_files_only)
    if check:
        bundle.check()
    manifest = bundle.manifest
    if as_json:
        click.echo(json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False))
        return
    card = dict(manifest.card)
    shape = card.get("architecture")
    kind = (
        f"{shape.get('model_type')}, {shape.get('parameters', 0) / 1e6:.1f} M parameters"
        if isinstance(shape, dict)
        else shape or "unknown architecture"
    )
    _say(f"{manifest.name}  ({kind}, {card.get('license', 'no licence given')})")
    _say(f"  folder      {bundle.root}")
    labels = [f"{x.text}={x.value:g} (id {x.id})" for x in manifest.labels]
    if manifest.head == "scalar":
        labels = ["none; a scalar head gives the reward, and the gate has the intuition confidence alone"]
    pair = " against ".join(f"{x.text} (id {x.id})" for x in manifest.pair_labels)
    _say(f"  labels      {', '.join([*labels, *([pair] if pair else [])])}")
    _say(f"  templates   {', '.join(manifest.templates)}")
    _say(f"  context     {manifest.limits.context} tokens, thoughts of at most {manifest.limits.thinking_tokens}")
    _say(f"  gate        {json.dumps(manifest.gate.to_dict())}")
    for role, entry in manifest.files.items():
        _say(f"  {role:<11} {entry.path}  {entry.bytes / 1e6:.2f} MB  sha256 {entry.sha256[:16]}...")
    if manifest.encoder is not None:
        _say("  runtime     ONNX Runtime, on an encoder")
    if "gguf" in card:
        _say(f"  runtime     llama.cpp{', which is the judge, too' if bundle.has('slow') else ''}")
    thinks = (card.get("parity") or {}).get("fast", {}).get("thinks")
    if thinks is not None:
        able = ["ONNX Runtime"] * thinks + ["llama.cpp"] * bundle.has("slow")
        _say(f"  judge       {' or '.join(able) or 'none'}{_ENGINE_RULE if len(able) == 2 else ''}")
    if bundle.has("judge"):
        slow = bundle.judge()
        _say(f"  judge       {slow.manifest.name}, in {slow.root}  ({', '.join(slow.manifest.templates)})")
    for section in ("parity", "gguf", "evaluation", "provenance"):
        if card.get(section):
            _say(f"  {section}")
            _show(card[section], indent=4)


@click.command()
@model_argument
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(model: str | None, revision: str | None, local_files_only: bool, as_json: bool) -> None:
    """Check this machine: versions, CPU, threads, what the judge thinks with, and a self-test of the scores.

    MODEL is a bundle folder or org/name; by default the embedded model. The self-test scores the examples recorded in
    its manifest and compares the scores with the recorded ones.
    """
    from fsrm_lite.runtimes.llama.engine import why_not

    reason = why_not()
    findings: dict[str, Any] = {
        "fsrm-lite": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu_features": _cpu_features(),
        "threads": usable_cores(),
        "compiled_operators": _kernels(),
        "llama.cpp": "available" if reason is None else reason,
        "self_test": _self_test(model, revision=revision, local_files_only=local_files_only),
    }
    if as_json:
        click.echo(json.dumps(findings, indent=2))
    else:
        _show(findings)
    if not findings["self_test"]["passed"]:
        raise click.exceptions.Exit(1)


def _kernels() -> str:
    """Return whether the fast path has its compiled operators, and if not, how to get them."""
    if kernels.library() is not None:
        return "built"
    if os.environ.get(kernels.SWITCH) == "0":
        return f"unused, {kernels.SWITCH} is 0"
    return (
        "not built, so the fast path is slower; with a C compiler: "
        "pip install --force-reinstall --no-deps --no-cache-dir fsrm-lite"
    )


def _self_test(model: str | None, *, revision: str | None, local_files_only: bool) -> dict[str, Any]:
    """Score the examples recorded in the manifest, and return how far the scores are from the recorded ones.

    The judge thinks about the first of them, where there is a judge.
    """
    from fsrm_lite.scorer import FastSlowRM

    try:
        with FastSlowRM.from_pretrained(model, revision=revision, local_files_only=local_files_only) as rm:
            golden = rm.bundle.manifest.card.get("golden", [])
            if not golden:
                return {
                    "passed": True,
                    "note": "this bundle has no golden scores; its fast file and tokenizer are intact",
                }
            worst = largest_difference(rm) or 0.0
            result: dict[str, Any] = {
                "passed": worst <= GOLDEN_TOLERANCE,
                "examples": len(golden),
                "largest_difference": round(worst, 6),
            }
            try:
                choice = rm.judge_engine
            except (BundleError, JudgeUnavailableError) as error:
                result["judge"] = f"none: {error}"
            else:
                result["judge"] = f"{choice.engine}: {choice.why}"
                if "pointwise_slow" not in rm.bundle.judge().manifest.templates:
                    return result
                thought = rm.score(golden[0]["prompt"], golden[0]["response"], judge="always", temperature=0.0)
                result["judge_wrote"] = f"{thought.tokens_generated} tokens, verdict {thought.verdict}"
            return result
    except FsrmError as error:
        return {"passed": False, "error": str(error)}


def _show(value: dict[str, Any], indent: int = 0) -> None:
    """Print nested figures, rounded, one per line. Of a long list only the length is shown: ``--json`` has the rest."""
    for name, item in value.items():
        if isinstance(item, dict) and set(item) == {"value", "low", "high"}:
            _say(f"{' ' * indent}{name:<28} {item['value']:.4g} [{item['low']:.4g}, {item['high']:.4g}]")
        elif isinstance(item, dict):
            _say(f"{' ' * indent}{name}")
            _show(item, indent + 2)
        else:
            _say(f"{' ' * indent}{name:<28} {_plain(item)}")


def _say(text: str) -> None:
    """Print a line; whatever a stranger's card holds, the terminal gets nothing to obey."""
    click.echo(printable(text))


def _plain(item: object) -> str:
    if isinstance(item, float):
        return f"{item:.4g}"
    if isinstance(item, list):
        return f"{len(item)} entries, see --json" if len(item) > 8 else ", ".join(map(str, item))
    return str(item)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_features() -> list[str]:
    """Return which of ``CPU_FLAGS`` Linux reports for this processor; none where the system does not say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            words = next((set(line.split()) for line in file if line.startswith(("flags", "Features"))), set())
    except OSError:
        return []
    return [flag for flag in CPU_FLAGS if flag in words]
