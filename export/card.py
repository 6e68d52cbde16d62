"""The model card of a bundle, and the parity table that the card and the terminal both show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.export.parity.calibration_pairs import MIN_PAIRS

_DIFFERENCE, _SHARE = "{:.2g}", "{:.2%}"
NEAR_TIES_ASIDE = ", near ties aside"

_ROWS = (
    ("label logit, largest difference", "max_delta_logit", _DIFFERENCE, "delta_logit"),
    ("label logit, mean difference", "mean_delta_logit", _DIFFERENCE, None),
    ("score, largest difference", "max_delta_score", _DIFFERENCE, "delta_score"),
    ("score, mean difference", "mean_delta_score", _DIFFERENCE, None),
    (
        "difference of two rewards, largest error as a share of their spread",
        "max_delta_margin",
        _DIFFERENCE,
        "delta_margin",
    ),
    ("label mass of the checkpoint, median", "label_mass", _DIFFERENCE, "label_mass"),
    ("difference of two responses, mean error (noise)", "noise", _DIFFERENCE, None),
    (f"pairwise decisions alike{NEAR_TIES_ASIDE}", "decisions_alike", _SHARE, "decisions"),
    ("pairwise decisions alike, all", "all_decisions_alike", _SHARE, None),
    (f"gate routes alike{NEAR_TIES_ASIDE}", "routes_alike", _SHARE, "routes"),
    ("rank correlation", "rank_correlation", "{:.5f}", None),
    (f"greedy verdicts alike{NEAR_TIES_ASIDE}", "verdicts_alike", _SHARE, "verdicts"),
    ("chains that part at a near tie (not counted above)", "parted_at_ties", "{:d}", None),
    ("thoughts alike, every token", "thoughts_alike", _SHARE, None),
    ("thoughts that the checkpoint ends by the declared close within this length", "thoughts_ended", _SHARE, None),
    ("chains where the checkpoint goes on to a choice behind close and prefix", "choices_follow", _SHARE, None),
    ("where the other thoughts part, in tokens (median)", "parted_at", "{:.0f}", None),
    (f"verdicts alike behind the same thought{NEAR_TIES_ASIDE}", "given_thought_alike", _SHARE, "verdicts"),
    ("verdicts alike behind the same thought, all", "all_given_thought_alike", _SHARE, None),
    ("verdicts that are near ties in the checkpoint", "near_tie_verdicts", "{:d}", None),
    ("verdict probability behind the same thought, largest difference", "max_delta_p", _DIFFERENCE, None),
    ("difference of two choices, mean error (noise)", "verdict_noise", _DIFFERENCE, None),
    ("the judge may think with it", "thinks", "{}", None),
)
"""Title, key in the manifest, form, and the tolerance it must meet in the files that have it."""


def parity_table(parity: Mapping[str, Any]) -> str:
    """Return ``card["parity"]`` of a manifest as a Markdown table, one column per file, with the tolerances."""
    columns = [kind for kind in ("fast", "slow") if parity.get(kind)]
    lines = [
        "| against the checkpoint in float32 | "
        + " | ".join(f"{kind} ({parity[kind]['precision']})" for kind in columns)
        + " |",
        "|---|" + "---:|" * len(columns),
    ]
    # Reports of before near ties were told apart count all pairs.
    all_pairs = any("clear_pairs" not in parity[kind] for kind in columns)
    for title, key, form, bound in _ROWS:
        if all_pairs:
            title = title.removesuffix(NEAR_TIES_ASIDE)
        cells = [_cell(parity[kind], key, form, bound) for kind in columns]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    fast = parity.get("fast") or {}
    if len(fast.get("rungs", {})) > 1:
        rungs = ", ".join(f"{count} {rung}" for rung, count in fast["rungs"].items() if count)
        lines.append(
            f"| MatMuls by precision, and their cost | {rungs}; {fast['cost']:.2f} x |" + " |" * (len(columns) - 1)
        )
    slow = parity.get("slow") or {}
    if slow.get("matrices"):
        lines.append(
            "| matrices by type |"
            + " |" * (len(columns) - 1)
            + f" {', '.join(f'{n} {kind}' for kind, n in slow['matrices'].items())} |"
        )
    if slow.get("smoothed"):
        lines.append("| outlier channels scaled away |" + " |" * (len(columns) - 1) + " yes |")
    return "\n".join(lines)


def _cell(figures: Mapping[str, Any], key: str, form: str, bound: str | None) -> str:
    if figures.get(key) is None:
        return ""
    if isinstance(figures[key], bool):
        return "yes" if figures[key] else "no, out of tolerance"
    allowed = figures.get("tolerance", {}).get(bound)
    if allowed is None:
        return form.format(figures[key])
    lower = bound == "label_mass"  # the other differences have an upper bound
    bound_text = f"at least {100 * allowed:g}%" if form == _SHARE else f"at {'least' if lower else 'most'} {allowed:g}"
    return f"{form.format(figures[key])} ({bound_text})"


def parity_summary(parity: Mapping[str, Any]) -> str:
    """Return one sentence: on what the parity was measured, and whether it was within tolerance."""
    data = parity["calibration"]
    text = f"Measured on {data['items']} responses in {data['pairs']} pairs ({data['source']})"
    few = data["pairs"] < MIN_PAIRS
    if few:
        text += f", fewer than the {MIN_PAIRS} that the tolerances are meant for"
    thoughts = next((parity[kind] for kind in ("fast", "slow") if (parity.get(kind) or {}).get("chains")), None)
    if thoughts:
        text += "," if few else ""
        text += f" and {thoughts['chains']} chains of thought of at most {thoughts['thinking_tokens']} tokens"
    fast = parity["fast"]
    near_ties = fast["pairs"] - fast.get("clear_pairs", fast["pairs"])  # an older report does not tell
    if near_ties:
        text += (
            f"; {near_ties} pairs are near ties: in the checkpoint itself, their two scores are closer than the"
            " tolerance lets two scores move"
        )
    if parity["passed"]:
        return text + "; within tolerance."
    return text + "; OUT OF TOLERANCE, written by force: " + "; ".join(parity["violations"]) + "."


def checks_summary(card: Mapping[str, Any]) -> str:
    """Return as sentences what a model was checked for that was taken as it is: a GGUF file, or an encoder."""
    if "onnx" in card:
        text = f"The scores are those of {card['onnx']['file']} itself, so there is no other file to compare with."
        count = card["onnx"]["compared"]
        return text + (f" The template gives the tokenizer's own ids of {count} pairs of texts." if count else "")
    gguf = card["gguf"]
    text = f"The scores are those of {gguf['file']} itself, so there is no other file to compare with."
    if gguf["label_mass"] is not None:
        text += (
            f" Its labels have {gguf['label_mass']:.2g} of the first token's probability in the median of "
            f"{gguf['texts']} texts ({gguf['calibration']})."
        )
    text += f" tokenizer.json was {gguf['tokenizer']}, and agrees with the file's tokens."
    return text + "".join(f" Written by force: {line}." for line in gguf["violations"])


_USE = """from fsrm_lite import FastSlowRM

rm = FastSlowRM.from_pretrained("path/to/this/folder")
{call}"""


def model_card(manifest: Manifest, text: str | None = None) -> str:
    """Return the README.md of a bundle.

    Args:
        manifest: Complete but for its files.
        text: What the trainer says about the model, Markdown; put under the heading instead of the one sentence that is
            there without it.
    """
    card = manifest.card
    architecture = card["architecture"]
    labels = ", ".join(f"`{label.text}` = {label.value:g} (token {label.id})" for label in manifest.labels)
    if manifest.pair_labels:
        labels += ("; " if labels else "") + " against ".join(
            f"`{x.text}` (token {x.id})" for x in manifest.pair_labels
        )
    gate = ", ".join(
        f"{key} {value:.4g}" if type(value) is float else f"{key} {value}"
        for key, value in manifest.gate.to_dict().items()
    )
    example = (card.get("golden") or [{"prompt": "What is 2 + 3?", "response": "2 + 3 = 5."}])[0]
    prompt, response = json.dumps(example["prompt"]), json.dumps(example.get("response", "5"))
    call = f"result = rm.score({prompt}, {response})\nprint(result.score, result.route)"
    if "pointwise_fast" not in manifest.templates:
        call = f'result = rm.compare({prompt}, {response}, "4")\nprint(result.winner, result.route)'
    use = _USE.format(call=call)
    parity = card.get("parity") or {}
    parts = "an ONNX scorer"
    if "gguf" in card:
        parts = "a GGUF file, as it came, and the gate"
    elif "onnx" in card:
        parts = "an encoder with one output, as optimum wrote it, and the gate"
    elif parity.get("slow"):
        parts = "an ONNX scorer, a GGUF judge and the gate between them"
    elif parity["fast"].get("thinks"):
        parts = "an ONNX graph that scores and thinks, and the gate between the two"
    sections = [
        f"---\nlicense: {str(card.get('license', 'unknown')).lower()}\nlibrary_name: fsrm-lite\ntags: "
        "[reward-model, onnx, gguf]\n---",
        f"# {manifest.name}",
        text.strip() if text else f"A fast/slow reward model, exported by fsrm-lite: {parts}.",
        "## Use",
        f"```python\n{use}\n```",
        "## What it is",
        f"- Base: {architecture['model_type']}, {architecture['parameters']:,} parameters, "
        f"{architecture['layers']} layers of {architecture['hidden_size']}\n"
        f"- Labels of the first token: {labels or 'none; a scalar head gives the reward'}\n"
        f"- Templates: {', '.join(manifest.templates)}\n"
        f"- Context: {manifest.limits.context} tokens, thoughts of at most {manifest.limits.thinking_tokens}\n"
        f"- Gate: {gate}" + (f"\n- Judge: {card['judge']['name']}, in `judge/`" if "judge" in card else ""),
        *(["## Checks", checks_summary(card)] if "gguf" in card or "onnx" in card else []),
        *(["## Parity with the checkpoint", parity_table(parity), parity_summary(parity)] if parity else []),
    ]
    return "\n\n".join(sections) + "\n"
