"""Reads published benchmarks of reward models from their original files into one kind of example.

Each reader takes the rows as the benchmark's authors publish them, without a conversion step before. In some files the
right response always stands first (``chosen``, then ``rejected``). There about half of the pairs are swapped, always
the same ones, so that a judge which prefers the first place gains nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fsrm_lite.bundle.conversation import read_preference
from fsrm_lite.errors import DataFormatError
from fsrm_lite.measure.benchmark_metrics import PPE_DOMAINS, REWARDBENCH_COUNTS, RM_BENCH_DOMAINS
from fsrm_lite.measure.data_files import SourceRow, as_list, check_count, data_files, read_file
from fsrm_lite.measure.labelled import content_key, group_key
from fsrm_lite.types import Prompt


@dataclass(frozen=True, slots=True)
class Example:
    """One item of a benchmark.

    Attributes:
        id: Unique within the data.
        prompt: What the responses answer.
        responses: Two for a pair, otherwise all responses that are to be scored.
        right: Positions of the right responses; empty for a pair that its annotators call a tie.
        subset: Part of the benchmark that the example belongs to.
        group: Examples with the same prompt share a group. Confidence intervals draw a group as a whole.
    """

    id: str
    prompt: Prompt
    responses: tuple[str, ...]
    right: tuple[int, ...]
    subset: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """How to recognise and read one benchmark.

    Attributes:
        name: Its name on the command line.
        pairwise: True when its examples are pairs to be compared, False when responses are scored one by one.
        detect: From a row to whether it is of this format.
        parse: From a row to its examples.
    """

    name: str
    pairwise: bool
    detect: Callable[[Mapping[str, Any]], bool]
    parse: Callable[[SourceRow], Iterable[Example]]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The examples of a data file, and the format they were read from.

    Attributes:
        format: The format of all examples.
        examples: The items, in the order of the data.
        not_read: Files of a folder that were left out, each with the reason; see ``load_benchmark``.
    """

    format: Format
    examples: tuple[Example, ...]
    not_read: tuple[str, ...] = ()


def load_benchmark(path: Path | str, name: str = "auto") -> Benchmark:
    """Read a benchmark's file or folder.

    Folders as their authors publish them also hold other files: other people's results beside the items, or the whole
    beside its parts. Of a folder, a file is left out if no format has its columns, or if another file has all of its
    items; ``Benchmark.not_read`` says which files these are.

    Args:
        path: A JSON, JSONL, CSV, Parquet or Arrow file, or a folder of such files; see
            ``fsrm_lite.measure.data_files``.
        name: A name from ``FORMATS``, or "auto" to recognise the format by the columns of the first row.

    Returns:
        The format and the examples, in the order of the data.

    Raises:
        DataFormatError: If the format is unknown, the files have several, or a row is not of its format; the message
            names file and position.
    """
    if name != "auto" and name not in FORMATS:
        raise DataFormatError(f"format {name!r} is unknown, expected auto, {', '.join(FORMATS)}")
    if name.endswith(PAIRS):
        return in_pairs(load_benchmark(path, name.removesuffix(PAIRS)))
    files = data_files(path)
    read: dict[Path, list[Example]] = {}
    left: list[str] = []
    found: dict[str, Path] = {}
    for file in files:
        rows = read_file(file)
        try:
            form = detect_format(rows[0].data) if name == "auto" else FORMATS[name]
        except DataFormatError as error:
            if len(files) == 1:
                raise
            left.append(f"{_below(file, path)}: {error}")
            continue
        found.setdefault(form.name, file)
        parsed = [examples_of(form, row) for row in rows]
        read[file] = [example for part in parsed for example in part]
        if empty := sum(not part for part in parsed):
            left.append(f"{_below(file, path)}: {empty} of {len(rows)} rows have nothing to compare")
    if not read:
        raise DataFormatError(f"{path}: no file has items of a known format; {left[0]}")
    if len(found) > 1:
        kinds = ", ".join(f"{kind} ({_below(file, path)})" for kind, file in found.items())
        raise DataFormatError(f"{path} holds several formats: {kinds}; name one file, or pass --format")
    kept, repeated = _without_repeats(read)
    left += [f"{_below(file, path)}: all its items are in {_below(other, path)}" for file, other in repeated.items()]
    examples = [example for file in kept for example in read[file]]
    form = FORMATS[next(iter(found))]
    if not examples:
        raise DataFormatError(f"{path}: no item of the format {form.name!r} has anything to compare")
    return Benchmark(form, tuple(_numbered(examples)), tuple(left))


def in_pairs(benchmark: Benchmark) -> Benchmark:
    """Return a benchmark whose responses are scored one by one as pairs of a right and a wrong response.

    It is for models that compare, and give no score to a single response. Of RM-Bench these are the 3 x 3 pairs that
    its metric is made of anyway. Of RewardBench 2 (4-way) and of RMB's lists, an item is won when the right response is
    preferred to every other one. RewardBench 2's subset Ties is left out: its metric needs scores.

    Args:
        benchmark: One that is not pairwise; whole items, because half of one has no result.

    Raises:
        DataFormatError: If nothing can be compared.
    """
    form = FORMATS[f"{benchmark.format.name}{PAIRS}"]
    able = [x for x in benchmark.examples if x.subset.lower() != "ties"]
    notes = benchmark.not_read
    if len(able) < len(benchmark.examples):
        notes += (
            f"{len(benchmark.examples) - len(able)} prompts of the subset Ties: their metric needs a score of each "
            "response, and this model only compares",
        )
    if benchmark.format.name == "rewardbench2":
        notes += (
            "the authors' way with four responses in one prompt: here an item is won by three comparisons, so that the "
            "figures are not to be compared with published ones of judges",
        )
    examples = [
        _mixed(replace(x, id=f"{x.id}:{i}-{j}", responses=(x.responses[good], x.responses[bad]), right=(0,)))
        for x in able
        for i, good in enumerate(x.right)
        for j, bad in enumerate(k for k in range(len(x.responses)) if k not in x.right)
    ]
    if not examples:
        raise DataFormatError(f"the data have nothing that could be compared in pairs; {'; '.join(notes)}")
    return Benchmark(form, tuple(examples), notes)


def examples_of(form: Format, row: SourceRow) -> list[Example]:
    """Return the examples of a row.

    Raises:
        DataFormatError: If the row is not of the format; the message names it.
    """
    try:
        return list(form.parse(row))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        if isinstance(error, DataFormatError):
            raise
        what = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise DataFormatError(f"{row.where}: not in the format {form.name!r}: {what}") from error


def _without_repeats(read: Mapping[Path, Sequence[Example]]) -> tuple[list[Path], dict[Path, Path]]:
    """Return the files to be used, and those whose items another file has as well, each with that file.

    Of two files with the same items the one is used that lies nearer to the top.
    """
    items = {file: {content_key(x.prompt, x.responses) for x in examples} for file, examples in read.items()}
    order = sorted(read, key=lambda file: (-len(items[file]), len(file.parts), str(file)))
    used: list[Path] = []
    repeated: dict[Path, Path] = {}
    for file in order:
        whole = next((other for other in used if items[file] and items[file] <= items[other]), None)
        if whole is None:
            used.append(file)
        else:
            repeated[file] = whole
    return [file for file in read if file not in repeated], {f: repeated[f] for f in read if f in repeated}


def _below(file: Path, path: Path | str) -> str:
    """Return a file's name for a message, relative to the folder that was asked for."""
    return str(file.relative_to(path)) if file.is_relative_to(path) and file != Path(path) else file.name


def detect_format(data: Mapping[str, Any]) -> Format:
    """Return the format that a row has, recognised by its columns.

    Raises:
        DataFormatError: If no format has these columns.
    """
    for form in FORMATS.values():
        if form.detect(data):
            return form
    raise DataFormatError(
        f"no known format has the columns {', '.join(sorted(data)[:12])}; pass --format, one of {', '.join(FORMATS)}"
    )


def _numbered(examples: Sequence[Example]) -> Iterable[Example]:
    """Yield the examples with unique ids: the subset, the row's id or number, and a suffix where that occurs twice."""
    seen: dict[str, int] = {}
    for number, example in enumerate(examples):
        name = "/".join(x for x in (example.subset, example.id or str(number)) if x)
        seen[name] = seen.get(name, 0) + 1
        unique = name if seen[name] == 1 else f"{name}#{seen[name]}"
        yield replace(example, id=unique, group=example.group or group_key(example.prompt))


def _mixed(example: Example) -> Example:
    """Return a pair whose right response stands first, swapped or not by a hash of its texts."""
    digest = hashlib.sha256("\0".join(example.responses).encode("utf-8", "surrogatepass")).digest()
    if digest[0] % 2 == 0:
        return example
    return replace(example, responses=example.responses[::-1], right=(1,))


def _pairs(row: SourceRow) -> Iterable[Example]:
    """Yield the pair of a row in the project's own form, or in RewardBench's."""
    data = row.data
    subset, name = str(data.get("subset") or ""), str(data.get("id") if data.get("id") is not None else "")
    if "chosen" in data:
        cells = {key: _cell(data.get(key), row.where) for key in ("prompt", "chosen", "rejected")}
        for key in ("chosen", "rejected"):
            if cells[key] is None:
                raise KeyError(key)
            cells[key] = cells[key] if isinstance(cells[key], list) else _text(cells[key])
        pair = read_preference(cells)
        yield _mixed(Example(name, pair.prompt, (pair.chosen, pair.rejected), (0,), subset))
        return
    keys = ("response_a", "response_b") if "response_a" in data else ("response_A", "response_B")
    yield Example(
        name,
        data["prompt"],
        (_text(data[keys[0]]), _text(data[keys[1]])),
        (_side(data.get("label", data.get("winner"))),),
        subset,
    )


def _rewardbench2(row: SourceRow) -> Iterable[Example]:
    """Yield one prompt of RewardBench 2 with its right and wrong responses."""
    data = row.data
    chosen, rejected = (as_list(data[k], row.where) for k in ("chosen", "rejected"))
    for column, count, what in (
        ("num_correct", len(chosen), "right responses"),
        ("num_incorrect", len(rejected), "wrong responses"),
        ("total_completions", len(chosen) + len(rejected), "responses"),
    ):
        check_count(data, column, count, what, row.where)
    name, subset = str(data["id"]), str(data["subset"])
    # In the subset Ties, "ref:7" and "tied:7" are two versions of one prompt, and so belong to one group.
    group = f"ties-{name.split(':')[1]}" if subset.lower() == "ties" else ""
    yield Example(
        name, data["prompt"], tuple(map(_text, (*chosen, *rejected))), tuple(range(len(chosen))), subset, group
    )


def _rm_bench(row: SourceRow) -> Iterable[Example]:
    """Yield one prompt of RM-Bench; its domain stands in the row or, in the authors' files of one domain, in the name.

    There the files are called ``chat_filtered.json``, ``safety-refuse_filtered.json`` and so on.
    """
    data = row.data
    chosen, rejected = (as_list(data[k], row.where) for k in ("chosen", "rejected"))
    if len(chosen) != 3 or len(rejected) != 3:
        raise DataFormatError(
            f"{row.where}: {len(chosen)} chosen and {len(rejected)} rejected responses, expected 3 styles of each"
        )
    domain = str(data.get("domain") or row.source.removesuffix("_filtered"))
    if not domain.startswith(RM_BENCH_DOMAINS):
        raise DataFormatError(
            f"{row.where}: the domain is {domain!r}, expected one that begins with {', '.join(RM_BENCH_DOMAINS)}; "
            "add a column 'domain', or name the file after it, such as chat.json"
        )
    yield Example(str(data.get("id", "")), data["prompt"], tuple(map(_text, (*chosen, *rejected))), (0, 1, 2), domain)


def _judgebench(row: SourceRow) -> Iterable[Example]:
    """Yield one pair of JudgeBench; its subset is the category of the question, and the model that answered it."""
    data = row.data
    source = str(data.get("source", ""))
    subset = next((name for start, name in _JUDGEBENCH_CATEGORIES.items() if source.startswith(start)), source)
    if data.get("response_model"):
        subset = f"{subset}, {data['response_model']}"
    yield Example(
        str(data["pair_id"]),
        data["question"],
        (_text(data["response_A"]), _text(data["response_B"])),
        (_side(data["label"]),),
        subset,
    )


def _rmb(row: SourceRow) -> Iterable[Example]:
    """Yield one pair of RMB; its subset is the scenario, such as "Helpfulness/Code/Data Management"."""
    data = row.data
    responses = (_text(data["chosen"]["answer"]), _text(data["reject"]["answer"]))
    yield _mixed(Example(str(data["pair_uid"]), _rmb_prompt(data), responses, (0,), _rmb_subset(data)))


def _rmb_bon(row: SourceRow) -> Iterable[Example]:
    """Yield one prompt of RMB's best-of-N set: the best response, then the others."""
    data = row.data
    responses = [_text(x["answer"]) for x in (data["bon_best"], *as_list(data["loser_list"], row.where))]
    if len(responses) < 2:
        raise DataFormatError(f"{row.where}: 'loser_list' is empty, expected at least one response")
    yield Example(str(data["bon_uid"]), _rmb_prompt(data), tuple(responses), (0,), _rmb_subset(data))


def _rmb_prompt(data: Mapping[str, Any]) -> Prompt:
    """Return the conversation without the language that RMB notes beside each message."""
    return [{"role": m["role"], "content": m["content"]} for m in data["conversation_input"]]


def _rmb_subset(data: Mapping[str, Any]) -> str:
    return str(data.get("category_path") or "").partition("/")[2]


def _ppe_preference(row: SourceRow) -> Iterable[Example]:
    """Yield one pair of PPE's human preferences. A tie of the voter is left out, as in the authors' accuracy."""
    data = row.data
    winner = str(data["winner"])
    if winner.startswith("tie"):
        return
    if winner not in _PPE_WINNERS:
        raise DataFormatError(f"{row.where}: 'winner' is {winner!r}, expected model_a, model_b or tie")
    responses = (_text(data["response_1"]), _text(data["response_2"]))
    prompt = _cell(data["prompt"], row.where)
    yield Example(str(data["question_id"]), prompt, responses, (_PPE_WINNERS.index(winner),))


def _ppe_correctness(row: SourceRow) -> Iterable[Example]:
    """Yield the pairs of a right and a wrong response that PPE's authors drew from the samples for one prompt."""
    data = row.data
    scores = as_list(data["scores"], row.where)
    domain = _ppe_domain(row)
    for number, pair in enumerate(as_list(data["sampled_conflict_pairs"], row.where)):
        first, second = (int(position) for position in pair)
        if not 0 <= min(first, second) <= max(first, second) < len(scores) or scores[first] == scores[second]:
            raise DataFormatError(
                f"{row.where}: the pair {list(pair)} is none of a right and a wrong response; there are {len(scores)}"
            )
        responses = tuple(_text(data[f"response_{position + 1}"]) for position in (first, second))
        right = 0 if scores[first] > scores[second] else 1
        yield Example(f"{data['question_id']}-{number}", data["prompt"], responses, (right,), domain)


def _ppe_domain(row: SourceRow) -> str:
    """Return which of PPE's five sets a row is of: by its column ``domain``, or by the name of its file or folder."""
    folders = list(row.file.absolute().parents)[:3]
    names = [str(row.data.get("domain") or ""), row.source, *(folder.name for folder in folders)]
    for name in names:
        plain = re.sub("[^a-z]", "", name.lower())
        found = next((domain for domain in PPE_DOMAINS if re.sub("[^a-z]", "", domain.lower()) in plain), None)
        if found is not None:
            return found
    raise DataFormatError(
        f"{row.where}: it is not said which set this is; add a column 'domain' with one of {', '.join(PPE_DOMAINS)}, "
        "or name the file or its folder after it, such as PPE-GPQA-Best-of-K"
    )


def _llmbar(row: SourceRow) -> Iterable[Example]:
    data = row.data
    label = int(data["label"])
    if label not in (1, 2):
        raise DataFormatError(f"{row.where}: 'label' is {label}, expected 1 or 2")
    yield Example("", data["input"], (_text(data["output_1"]), _text(data["output_2"])), (label - 1,), row.source)


def _pandalm(row: SourceRow) -> Iterable[Example]:
    """Yield one pair of PandaLM's test set, labelled by the majority of its three annotators."""
    data = row.data
    votes = [int(data[f"annotator{i}"]) for i in (1, 2, 3)]
    majority = max(votes, key=votes.count)  # where all three differ, the first one's vote, as in the authors' script
    subset = "tie" if majority == 0 else "unanimous" if votes.count(majority) == 3 else "majority"
    prompt = data["instruction"] + (f"\n\n{data['input']}" if data.get("input") else "")
    responses = (_text(data["response1"]), _text(data["response2"]))
    yield Example(str(data["idx"]), prompt, responses, (majority - 1,) if majority else (), subset)


def _gsm8k_solutions(row: SourceRow) -> Iterable[Example]:
    """Yield every pair of a right and a wrong solution of one GSM8K question."""
    data = row.data
    solutions = model_solutions(data)
    right = [(n, text) for n, text, correct in solutions if correct]
    wrong = [(n, text) for n, text, correct in solutions if not correct]
    for good, better in right:
        for bad, worse in wrong:
            yield _mixed(Example(f"{row.where.split()[-1]}-{good}-{bad}", data["question"], (better, worse), (0,)))


def model_solutions(data: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Return the models' solutions in a row of GSM8K's published ones: (model, solution, whether it is right) each.

    A row that is none of these has no solutions.
    """
    return [
        (name, _CALCULATION.sub("", value["solution"]), bool(value["is_correct"]))
        for name, value in data.items()
        if "question" in data and isinstance(value, dict) and {"solution", "is_correct"} <= set(value)
    ]


def _cell(value: Any, where: str) -> Any:  # noqa: ANN401 - a text or a list of messages
    """Return a conversation that stands as text in a CSV cell as the list of its messages, anything else as it is."""
    return as_list(value, where) if is_conversation_cell(value) else value


def is_conversation_cell(value: object) -> bool:
    """Return whether a value is a list of chat messages that was printed as text, as in a CSV file."""
    return isinstance(value, str) and _CONVERSATION_CELL.match(value) is not None


def _text(value: object) -> str:
    """Return a response as text; six of PandaLM's are no texts, because a spreadsheet made the boolean True of them."""
    if isinstance(value, str | bool | int | float):
        return str(value)
    if value is None:
        return ""
    raise TypeError(f"a response is a {type(value).__name__}, expected text")


def _side(label: object) -> int:
    sides: dict[object, int] = {0: 0, "0": 0, "a": 0, "A": 0, "A>B": 0, 1: 1, "1": 1, "b": 1, "B": 1, "B>A": 1}
    if isinstance(label, bool) or label not in sides:
        raise ValueError(f'\'label\' is {label!r}, expected 0 or 1, "a" or "b", "A>B" or "B>A"')
    return sides[label]


def _is_list(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: all(name in row for name in names)


_PPE_WINNERS = ("model_a", "model_b")

PAIRS = "-pairs"
"""What follows a benchmark's name where its items are compared in pairs; see ``in_pairs``."""

_CONVERSATION_CELL = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content)['"]\s*:""")
"""How a list of chat messages begins where it was printed into a CSV cell."""

_CALCULATION = re.compile(r"<<[^>]*>>")
"""Calculator annotations such as ``<<3+4=7>>`` in GSM8K's solutions; removed, because nobody answers like that."""

_JUDGEBENCH_CATEGORIES = {
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Mathematics",
    "livecodebench": "Coding",
}

# Formats are tried in this order. One whose columns rows of other formats have as well comes after those.
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("pandalm", True, _has("annotator1", "response1", "response2"), _pandalm),
        Format("rmb", True, _has("pair_uid", "conversation_input", "chosen", "reject"), _rmb),
        Format("rmb-bon", False, _has("bon_uid", "conversation_input", "bon_best", "loser_list"), _rmb_bon),
        Format(
            "ppe-preference", True, _has("question_id", "prompt", "response_1", "response_2", "winner"), _ppe_preference
        ),
        Format(
            "ppe-correctness", True, _has("question_id", "prompt", "scores", "sampled_conflict_pairs"), _ppe_correctness
        ),
        Format("llmbar", True, _has("input", "output_1", "output_2", "label"), _llmbar),
        Format("judgebench", True, _has("pair_id", "question", "response_A", "response_B", "label"), _judgebench),
        Format(
            "gsm8k-solutions",
            True,
            lambda r: "question" in r and any(isinstance(v, dict) and "is_correct" in v for v in r.values()),
            _gsm8k_solutions,
        ),
        Format(
            "rewardbench2",
            False,
            lambda r: _has("id", "subset", "num_correct")(r) and _is_list(r.get("chosen")),
            _rewardbench2,
        ),
        Format(
            "rm-bench", False, lambda r: _is_list(r.get("chosen")) and len(_strings(r.get("chosen"))) == 3, _rm_bench
        ),
        Format(
            "rewardbench",
            True,
            lambda r: _has("chosen", "rejected")(r) and str(r.get("subset")) in REWARDBENCH_COUNTS,
            _pairs,
        ),
        Format(
            "pairs",
            True,
            lambda r: _has("chosen", "rejected")(r) or _has("prompt", "response_a", "response_b")(r),
            _pairs,
        ),
    )
}


# Benchmarks of single responses, as pairs for models that only compare. No file is of these forms itself.
FORMATS |= {
    f"{name}{PAIRS}": replace(FORMATS[name], name=f"{name}{PAIRS}", pairwise=True, detect=lambda row: False)
    for name in ("rm-bench", "rewardbench2", "rmb-bon")
}


def _strings(value: object) -> list[str]:
    try:
        return [x for x in as_list(value, "") if isinstance(x, str)]
    except DataFormatError:
        return []
