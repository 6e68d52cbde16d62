r"""Final answers from free text, so that answers can be counted and checked without a human.

An extractor is a function that takes a text and returns its final answer in a fixed spelling, or None when the text
holds no answer. Two texts agree when their answers are equal strings. Three extractors are built in: ``numeric`` for
numbers and other mathematics, ``exact`` for short words, and ``final`` for either, but strict about where the answer
stands. Any other function can be passed in its place, on the command line as ``package.module:function``.

An answer is read as a whole or not at all: ``1/9`` is not 1, and ``(1, 7)`` is not 1 either. Plain numbers are read
here; fractions, roots, tuples, equations and everything else in LaTeX are read by math-verify and its parser (extra
``math``), so that ``\\frac{1}{2}``, ``1/2`` and ``0.5`` are the same answer. Without that library they are no answer.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from importlib import import_module
from typing import Any, TypeAlias

from fsrm_lite.errors import InputError

Extractor: TypeAlias = Callable[[str], str | None]
"""Takes a response (or a known answer) and returns its final answer in a fixed spelling; None when there is none."""

_SHORT_WORDS = 3
_LONGEST_FORMULA = 200  # characters; what is longer is no final answer, and could take a parser very long
_LONGEST_NUMBER = 50  # digits before or behind the point

_NUMBER = r"[-+\u2212]?[$\u20ac\u00a3\u00a5]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
_HASHES = re.compile(r"####\s*(.+)")  # the form of GSM8K's reference solutions
_PHRASE = re.compile(r"\banswer\s*(?:is|:|=)\s*(?:is\s*)?(.+)", re.IGNORECASE)
_BOX = re.compile(r"\\f?boxed\s*\{")
_BRACE = re.compile(r"[{}]")
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
_CLAUSE_END = re.compile(r"[.!?](?=\s|$)|[,;]\s+(?=[^\W\d])|\n|\s(?=(?:because|since|as|so|which)\s)")
_FILLER = re.compile(r"(?:(?:about|approximately|around|exactly|simply|just|only|probably|maybe|equal to)\s+)+", re.I)
_WORDS = r"[^\W\d_]{2,}(?:['\u2019./\s-]+[^\W\d_]+)*"  # words behind an answer: its unit, or what is counted
_PLAIN = re.compile(rf"({_NUMBER})(?:\s*(?:\\?%|\u00b0))?(?:\s*{_WORDS})?")
_UNIT = re.compile(rf"\s+{_WORDS}$")
_LATEX_UNIT = re.compile(
    r"(?<!\s)(?<!\\[,; ])(?!(?<=\\) )(?:\\[,; ]|\s)*\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}\s*$"
)
_CLOCK = re.compile(r"\d{1,2}:\d\d(?::\d\d)?(?:\s*[ap]\.?m\.?)?", re.IGNORECASE)
_MIXED = re.compile(r"([-+]?)(\d+)\s+(\d+/\d+|\\d?frac\s*\{\d+\}\s*\{\d+\})")
_MATHEMATICAL = re.compile(r"[\d\\^=+<>\u221a\u03c0\u221e]")
_KNOWN_WORDS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "pi", "infinity", "inf", "oo"}
_NO_UNIT = re.compile(
    r"\b(?:and|or|to|plus|minus|times|over|divided|half|halves|thirds?|quarters?|fifths?|tenths?|squared|cubed|point|"
    r"dozens?|hundreds?|thousands?|millions?|billions?|trillions?|pi|infinity|inf|oo|sqrt)\b",
    re.IGNORECASE,
)
"""Words behind a number that change what it says, so that it is not the whole answer."""

# Mathematics in unmarked text, from its first digit to its last.
_RUN = re.compile(r"(?<![-+(\[$\u2212])[-+(\[$\u2212]*\d(?:(?:[\d\s.,/:^*+()\[\]-]|(?<=\d)[eE](?=[-+]?\d))*[\d)\]%])?")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[,;]\s+(?=[^\W\d])|[=\n]")


def numeric(text: str) -> str | None:
    r"""Return the number, or other mathematics, that a text gives as its answer; None if it gives none.

    An answer is marked when it stands in ``\boxed{...}`` or behind ``####`` or ``answer is``. A box is preferred to
    ``####`` and that to ``answer is``; of several marks of one kind the last one counts. If the marked answer has no
    mathematics in it, or nothing is marked, the last number of the text is the answer. Thousands separators, a dollar
    sign, a unit and trailing zeros do not matter: ``"$1,250.00"`` and ``"1250"`` are the same answer.
    """
    marked = _marked(text)
    if marked is not None:
        clause = _clause(marked)
        if _MATHEMATICAL.search(clause):
            return _value(clause)
    whole = _after_thought(text)
    # A short text, such as a known answer, may be a formula from end to end.
    value = _value(_clause(whole)) if len(whole.split()) <= _SHORT_WORDS else None
    return value if value is not None else _last_value(whole)


def exact(text: str) -> str | None:
    """Return the marked answer (see ``numeric``), or else the last line that is not empty; None if nothing is left.

    Upper and lower case, punctuation at both ends and extra spaces do not matter.
    """
    marked = _marked(text)
    if marked is None:
        lines = [line for line in _after_thought(text).splitlines() if line.strip()]
        marked = lines[-1] if lines else ""
    return _canonical_words(marked)


def final(text: str) -> str | None:
    """Return the marked answer (see ``numeric``): its mathematics, else its words; None if nothing is marked.

    A text of at most three words counts as marked. This is stricter than the other two extractors: a text that works
    towards an answer but stops before it has none. A unit behind a number does not matter: ``"The answer is 12 pens."``
    and ``"12"`` are the same answer.
    """
    marked = _marked(text)
    if marked is None:
        marked = _after_thought(text)
        if len(marked.split()) > _SHORT_WORDS:
            return None
    clause = _clause(marked)
    words = _LATEX_UNIT.sub(r" \1", clause)
    if not _MATHEMATICAL.search(words):
        return _canonical_words(words)
    value = _value(clause)
    # Words such as "C++" only look like mathematics.
    return value if value is not None or any(c.isdigit() or c == "\\" for c in clause) else _canonical_words(clause)


def final_or_text(text: str) -> tuple[str, str]:
    """Return what a text says, for finding texts that say the same: its ``final`` answer, or itself if it has none.

    Returns:
        ("answer", the answer), or ("text", the text without white space at its ends).
    """
    answer = final(text)
    return ("text", text.strip()) if answer is None else ("answer", answer)


EXTRACTORS: dict[str, Extractor] = {"numeric": numeric, "exact": exact, "final": final}
"""The built-in extractors by name."""


def find_extractor(extractor: str | Extractor) -> Extractor:
    """Return an extractor.

    Args:
        extractor: A name from ``EXTRACTORS``, a path ``"package.module:function"``, or a function, which is returned as
            it is.

    Raises:
        InputError: If the name is unknown or the path does not lead to a function.
    """
    if callable(extractor):
        return extractor
    if extractor in EXTRACTORS:
        return EXTRACTORS[extractor]
    found = load_attribute(extractor, "extractor", f"one of {', '.join(EXTRACTORS)} or package.module:function")
    if not callable(found):
        raise InputError(f"extractor {extractor!r} is a {type(found).__name__}, expected a function from text to text")
    return found


def load_attribute(path: str, what: str, expected: str = "package.module:name") -> object:
    """Import and return the object at ``package.module:name``.

    Args:
        path: Module and name, with a colon between them.
        what: What is looked for, for the error message.
        expected: What would have been accepted, for the error message.

    Raises:
        InputError: If the path has no colon, or the module or the name does not exist.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise InputError(f"{what} {path!r} is unknown, expected {expected}")
    try:
        found: object = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{what} {path!r} cannot be imported: {error}") from error
    return found


def agrees(text: str, reference: str, extractor: Extractor) -> bool:
    """Return whether ``text`` has an answer and it equals the answer in ``reference``.

    A reference without an answer agrees with nothing.
    """
    answer = extractor(text)
    return answer is not None and answer == extractor(reference)


def _marked(text: str) -> str | None:
    """Return what the last answer mark marks; None without a mark."""
    text = _after_thought(text)
    box = _last_box(text)
    if box is not None:
        return f"${box}$"  # a formula from end to end, in which "5!" is no exclamation
    for pattern in (_HASHES, _PHRASE):
        found: list[str] = pattern.findall(text)
        if found and found[-1].strip():
            return found[-1]
    return None


def _last_box(text: str) -> str | None:
    """Return what stands in the last box that is closed and not empty; None if there is no such box.

    The text is passed once, whatever it holds: a stranger wrote it.
    """
    boxes = {mark.end() - 1 for mark in _BOX.finditer(text)}  # where the brace of each stands
    if not boxes:
        return None
    closed, still_open = list[tuple[int, int]](), list[int]()
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            still_open.append(brace.start())
        elif still_open:
            closed.append((still_open.pop(), brace.start()))
    for start, end in sorted(closed, reverse=True):
        if start in boxes and (inside := text[start + 1 : end].strip()):
            return inside
    return None


def _after_thought(text: str) -> str:
    """Return the text without its thought (all up to ``</think>``): a number in the thought is not the answer."""
    return _THOUGHT.sub("", text)


def _clause(text: str) -> str:
    """Return the beginning of a marked answer up to where an explanation follows, without what surrounds a formula."""
    text = text.strip()
    formula = len(text) > 1 and text[0] == text[-1] == "$"
    excess = {"(": 0, "[": 0, "{": 0}  # of opening brackets over closing ones, up to ``passed``
    passed = 0
    for end in () if formula else _CLAUSE_END.finditer(text):
        piece = text[passed : end.start()]
        excess = {a: excess[a] + piece.count(a) - piece.count(b) for a, b in ("()", "[]", "{}")}
        passed = end.start()
        if passed > 0 and max(excess.values()) <= 0:
            text = text[:passed]
            break
    text = text.replace("\\$", "$").replace("\\(", "").replace("\\)", "").replace("\\!", "").replace("\\left", "")
    text = text.replace("\\right", "").strip(" *`_\"'").lstrip(":=").strip().removesuffix(".")
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1]
    return _FILLER.sub("", text.strip(), count=1).strip()


def _value(clause: str) -> str | None:
    """Return the whole mathematics of a marked answer in a fixed spelling; None if it cannot be read as a whole."""
    unit = _LATEX_UNIT.search(clause)
    body = clause[: unit.start()].strip() if unit else clause
    if not body and unit:  # all of it stands in \text{...}
        return _value(unit[1].strip())
    leading = re.match(r"\\(?:text|mathrm)\s*\{[^{}\d]*\}\s*", body)
    body = body[leading.end() :] if leading else body
    plain = _PLAIN.fullmatch(body)
    if plain and not _NO_UNIT.search(body):
        return _canonical_number(plain[1])
    if _CLOCK.fullmatch(body):
        return "".join(body.lower().replace(".", "").split())
    if len(body) > _LONGEST_FORMULA:
        return None
    return _mathematics(body if _NO_UNIT.search(body) else _UNIT.sub("", body))


def _last_value(text: str) -> str | None:
    """Return the last number, or other mathematics, of a text without a mark; None if it cannot be read as a whole."""
    pieces = [piece for piece in _SENTENCE_END.split(text) if any(c.isdigit() for c in piece)]
    if not pieces:
        return None
    runs = list(_RUN.finditer(pieces[-1]))
    if not runs:
        return None
    run = runs[-1]
    before, behind = pieces[-1][: run.start()].rstrip(), pieces[-1][run.end() :]
    joined = before.endswith(("+", "-", "*", "/", "^", "_", "(", "[", "{", "\\"))
    if joined or re.match(r"[\^_\\{/*]|[^\W\d_](?!\w)", behind) or _NO_UNIT.match(behind.lstrip()):
        return None  # a part of something that is more than numbers
    return _value(run.group().strip())


def _mathematics(text: str) -> str | None:
    """Return what math-verify reads in a formula, in a fixed spelling; None if there is something else in it."""
    mixed = _MIXED.fullmatch(text.strip())
    if mixed:  # 3 1/2, which a parser would take for a product
        text = f"{mixed[1]}({mixed[2]}+{mixed[3]})"
    if _is_unreadable(text):
        return None
    library = _library()
    if library is None:
        return None
    parse, settings = library
    try:
        found = parse(f"${text}$", extraction_config=settings, fallback_mode="no_fallback", parsing_timeout=None)
        return _canonical_formula(found[0]) if found else None
    except Exception:  # a parser and a computer algebra system, given anything: whatever they raise, it was not read
        return None


def _is_unreadable(text: str) -> bool:
    """Return whether a text has more in it than a formula, or a formula that would take very long to work out."""
    words = re.sub(r"\\[a-zA-Z]+", " ", text)
    return bool(
        len(text) > _LONGEST_FORMULA
        or not text.strip()
        or {w.lower() for w in re.findall(r"[^\W\d_]{2,}", words)} - _KNOWN_WORDS
        or re.search(r"\\(?:text|mathrm|textbf|mbox)|\d\s+\d|\d:|:\d|\$|\d{60}", text)
        or re.search(r"(?:\^|\*\*)\s*\{?\s*[-+(]*\d{4}|(?:\^|\*\*)[^,;=]*(?:\^|\*\*)|\d{3}\s*!|!\s*!", text)
    )


def _canonical_formula(formula: Any) -> str | None:  # noqa: ANN401 - any object of sympy
    """Return a formula in a fixed spelling, which equal formulas share: a number as ``_canonical_number`` writes it."""
    value = formula.doit() if hasattr(formula, "doit") else formula
    if getattr(value, "is_Relational", False) and type(value).__name__ == "Equality" and value.lhs.is_Symbol:
        value = value.rhs  # "x = 5" answers with 5
    if getattr(value, "is_Rational", False):
        p, q = int(value.p), int(value.q)
        decimal = q
        for prime in (2, 5):
            while decimal % prime == 0:
                decimal //= prime
        if decimal == 1 and q < 10**12 and abs(p) < 10**24:
            return _canonical_number(str(Decimal(p) / Decimal(q)))
        return f"{p}/{q}"
    if getattr(value, "is_Boolean", False) and not getattr(value, "is_Relational", False):
        return None  # "6 + 3 = 9" is true, which answers nothing
    if not hasattr(value, "free_symbols") or str(value) in ("zoo", "nan", "True", "False"):
        return None
    return str(value.expand() if hasattr(value, "expand") else value)


@lru_cache(maxsize=1)
def _library() -> tuple[Callable[..., list[Any]], list[Any]] | None:
    """Return math-verify's parser and its settings; None, after one warning, where it is not installed."""
    try:
        from math_verify import LatexExtractionConfig, parse
    except ImportError:
        warnings.warn(
            "answers that are more than a plain number, such as 1/3, count as none without math-verify; "
            "run: pip install 'fsrm-lite[math]'",
            stacklevel=2,
        )
        return None
    # It would say of every formula that there is no time limit. One needs the main thread; here what could take long is
    # refused before.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return parse, [LatexExtractionConfig()]


def _canonical_words(text: str) -> str | None:
    return " ".join(text.split()).casefold().strip(" .,;:!?\"'`*$()[]") or None


def _canonical_number(text: str) -> str | None:
    try:
        value = Decimal(re.sub(r"[,$\u20ac\u00a3\u00a5]", "", text).replace("\u2212", "-"))
        # "f" never writes an exponent; a number too large to be written out is no answer.
        return format(value.normalize() + 0, "f") if abs(value.adjusted()) < _LONGEST_NUMBER else None
    except InvalidOperation:
        return None
