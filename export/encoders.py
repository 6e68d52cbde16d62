"""Makes a bundle of an encoder that optimum exported: an ONNX folder of sequence classification with one output.

Such models are DeBERTa-style reward models and cross-encoders. They read prompt and response as the two texts of their
tokenizer's own pair form, which becomes a template. What that template makes of the calibration texts is compared with
the tokenizer's own ids; the graph itself is taken as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer

from fsrm_lite.bundle.conversation import prompt_text
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import file_sha256
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import BundleError, ExportError, UnsupportedCheckpointError, as_ours, missing_extra
from fsrm_lite.export.checkpoints.checkpoint import read_config
from fsrm_lite.export.checkpoints.spec import load_spec, resolve_spec
from fsrm_lite.export.checkpoints.traps import refuse_foreign_tokens
from fsrm_lite.export.checkpoints.vocabulary import CONTROL, NORMAL, TOKENIZER_NAME, UNUSED, Vocabulary, read_json
from fsrm_lite.export.finish import describe, read_card, tool_versions
from fsrm_lite.export.folders import atomic_folder, check_target
from fsrm_lite.export.parity.calibration_pairs import CalibrationSet, keep_short, load_calibration
from fsrm_lite.export.stages import StageProgress
from fsrm_lite.runtimes.onnx.encoder import EncoderReader, token_types
from fsrm_lite.runtimes.onnx.graph_file import check_graph_file
from fsrm_lite.types import EncoderInput

GRAPH_PATH = "fast/model.onnx"
OPTIMUM_LINES = (
    "optimum's exporter is not installed here; run: pip install 'optimum-onnx[onnxruntime]' (it brings transformers "
    "4.57). Or, to keep transformers 5, in an environment of its own:\n"
    "python -m venv optimum && optimum/bin/pip install 'optimum-onnx[onnxruntime]'\n"
    "optimum/bin/optimum-cli export onnx --model {checkpoint} --task text-classification ONNX_FOLDER "
    "&& fsrm-lite export ONNX_FOLDER -o BUNDLE"
)
_LONGEST = 1 << 20  # transformers writes 10^30 where a tokenizer has no limit of its own


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What a spec must fit; see ``fsrm_lite.export.checkpoints.spec.ModelShape``."""

    context: int
    vocab_size: int
    sliding_window: None = None
    scalar: bool = True


def is_onnx_folder(checkpoint: str | Path) -> bool:
    """Return whether an export is asked to take a folder with an ONNX graph, and no weights of a checkpoint."""
    folder = Path(checkpoint).expanduser()
    return folder.is_dir() and any(folder.glob("*.onnx")) and not any(folder.glob("*.safetensors"))


def run_optimum(checkpoint: str | Path, folder: Path) -> Path:
    """Have optimum export a checkpoint, where it is installed.

    Args:
        checkpoint: A folder, or "org/name" on the hub.
        folder: Where the ONNX folder is made.

    Returns:
        The ONNX folder.

    Raises:
        ExportError: If optimum's exporter is not installed, with the lines that install it; or if it fails.
    """
    try:
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise ExportError(OPTIMUM_LINES.format(checkpoint=checkpoint)) from error
    with as_ours(ExportError, f"optimum could not export {checkpoint}"):
        main_export(str(checkpoint), output=folder / "onnx", task="text-classification", do_validation=False)
    return folder / "onnx"


def export_encoder(
    root: Path,
    out: Path,
    *,
    spec: str | Path | Mapping[str, Any] | None = None,
    name: str | None = None,
    calibration: Path | None = None,
    card: str | Path | None = None,
    overwrite: bool = False,
    progress: StageProgress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Manifest:
    """Make a bundle of an ONNX folder, as it is.

    Args:
        root: Folder with one ``.onnx`` file, ``config.json`` and ``tokenizer.json``, as optimum writes it.
        out: Folder to create; it appears only when the whole bundle is in it.
        spec: A fragment with the template ``pointwise_fast``; by default the tokenizer's own form of a pair of texts.
        name: Name of the model; by default that of the folder.
        calibration: JSONL of pairs whose ids are compared, and from which the golden examples are taken.
        card: Markdown file whose text goes into the model card.
        overwrite: Replace the bundle at ``out``.
        progress: Called as ``progress(stage, done, total)``.
        notice: Called with each sentence about what is taken for granted.

    Returns:
        The manifest as written.

    Raises:
        UnsupportedCheckpointError: If the tokenizer's pair form is no template.
        ExportError: If a file is missing, the graph is no encoder with one output, or the ids differ.
    """
    check_target(out, overwrite=overwrite)
    text = read_card(card)
    tell = notice or (lambda sentence: None)
    report = progress or (lambda stage, done, total: None)
    graph = _graph_of(root)
    config = read_config(root)
    own = name or root.resolve().name
    with TemporaryDirectory(prefix="fsrm-encoder-") as temporary:
        folder = Path(temporary)
        tokenizer = _take_tokenizer(root, folder)
        vocabulary = _vocabulary(tokenizer)
        form, template = _pair_form(tokenizer)
        with closing(_opened(graph, len(vocabulary.tokens), form)) as reader:
            if not reader.takes_types:
                form = replace(form, separator_id=None)
        where, data = load_spec(root, _fragment(own, template) if spec is None else spec, fast_only=True)
        shape = EncoderShape(_context(root, config), len(vocabulary.tokens))
        manifest = replace(resolve_spec(where, data, shape, vocabulary, None, folder), encoder=form)
        refuse_foreign_tokens(manifest, vocabulary)
        pairs = load_calibration(calibration)
        encoder = PromptEncoder(folder / TOKENIZER_NAME, manifest)
        pairs, _ = keep_short(pairs, encoder)
        if spec is None:
            tell(f"assumed: the model reads prompt and response as its tokenizer's pair of texts, {template}")
            _compare_ids(Tokenizer.from_file(str(root / TOKENIZER_NAME)), encoder, pairs, form)
        with atomic_folder(out, overwrite=overwrite) as target:
            (target / GRAPH_PATH).parent.mkdir()
            files = {"tokenizer": TOKENIZER_NAME, "fast": GRAPH_PATH}
            copyfile(folder / TOKENIZER_NAME, target / TOKENIZER_NAME)
            report("copy", 0, 1)
            copyfile(graph, target / GRAPH_PATH)
            weights = _weights_of(graph)
            if weights is not None:
                # The graph names this file, so it keeps its name.
                copyfile(weights, target / "fast" / weights.name)
                files["fast_data"] = f"fast/{weights.name}"
            report("copy", 1, 1)
            entry = {
                **manifest.card,
                "architecture": _architecture(config, graph),
                "provenance": {"onnx_sha256": file_sha256(graph), "tools": tool_versions()},
                "onnx": {"file": graph.name, "compared": len(pairs.items) if spec is None else 0},
            }
            return describe(target, manifest, pairs, entry, files, text)


def pair_spec(root: Path) -> dict[str, Any]:
    """Return the spec with which ``export_encoder`` exports a folder: what ``--print-recipe`` prints."""
    with TemporaryDirectory(prefix="fsrm-encoder-") as temporary:
        _, template = _pair_form(_take_tokenizer(root, Path(temporary)))
    return _fragment(root.resolve().name, template)


def _fragment(name: str, template: str) -> dict[str, Any]:
    return {"name": name, "templates": {"pointwise_fast": {"text": template}}}


def _graph_of(root: Path) -> Path:
    """Return the graph of a folder: ``model.onnx``, or the only one there."""
    found = sorted(root.glob("*.onnx"))
    if (root / "model.onnx") in found:
        return root / "model.onnx"
    if len(found) != 1:
        raise ExportError(
            f"{root} has {len(found)} graphs ({', '.join(p.name for p in found)}); expected one .onnx file"
        )
    return found[0]


def _weights_of(graph: Path) -> Path | None:
    """Return the file beside a graph that holds its weights, if there is one."""
    return next((p for p in (Path(f"{graph}_data"), Path(f"{graph}.data")) if p.is_file()), None)


def _opened(graph: Path, vocab_size: int, form: EncoderInput) -> EncoderReader:
    """Return the opened graph; whatever is wrong with it is an error of the export."""
    weights = _weights_of(graph)
    try:
        check_graph_file(graph, None if weights is None else weights.name)
        return EncoderReader(graph, vocab_size, form)
    except BundleError as error:
        raise ExportError(str(error).removesuffix("; export the bundle again")) from error


def _take_tokenizer(root: Path, folder: Path) -> Tokenizer:
    """Write the tokenizer to ``folder`` as a bundle needs it, and return it.

    A unigram vocabulary has its control tokens among its pieces, so that a text which spells one would give it. There
    they get a score with which ordinary pieces always win.
    """
    data = read_json(root / TOKENIZER_NAME)
    if data is None:
        raise ExportError(
            f"{root} has no {TOKENIZER_NAME}; save the tokenizer there in the fast format (tokenizer.save_pretrained)"
        )
    if (data.get("model") or {}).get("type") == "Unigram":
        special = {t["content"] for t in data.get("added_tokens") or () if t["special"]}
        pieces = data["model"]["vocab"]
        worst = min((score for piece, score in pieces if piece not in special), default=0.0)
        data["model"]["vocab"] = [
            [piece, len(piece) * 2 * worst if piece in special else score] for piece, score in pieces
        ]
    (folder / TOKENIZER_NAME).write_text(json.dumps(data, ensure_ascii=False), "utf-8")
    with as_ours(ExportError, f"{root / TOKENIZER_NAME} is malformed"):
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_NAME))
        tokenizer.no_padding()
        tokenizer.no_truncation()
    return tokenizer


def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Return the vocabulary as a spec needs it: texts, and which of them are control tokens."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    texts = {i: text for text, i in ids.items()}
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(max(texts) + 1)]
    types = [CONTROL if i in special else NORMAL if i in texts else UNUSED for i in range(len(tokens))]
    return Vocabulary(tokens, types, [], "")


def _pair_form(tokenizer: Tokenizer) -> tuple[EncoderInput, str]:
    """Return how the tokenizer writes a pair of texts: as an encoder's input, and as a template.

    Raises:
        UnsupportedCheckpointError: If it writes them in another order, or marks the second one otherwise than from a
            separator on.
    """
    pair = tokenizer.encode("x", "x")
    parts: list[str] = []
    for token, sequence in zip(pair.tokens, pair.sequence_ids, strict=True):
        part = token if sequence is None else ("{prompt}", "{response}")[sequence]
        if sequence is None or part not in parts:
            parts.append(part)
    if [p for p in parts if p in ("{prompt}", "{response}")] != ["{prompt}", "{response}"]:
        raise UnsupportedCheckpointError(f"the tokenizer writes a pair of texts as {' '.join(pair.tokens)}")
    known = (tokenizer.token_to_id(text) for text in ("[PAD]", "<pad>"))
    pad = next((token for token in known if token is not None), 0)
    separator = None
    if any(pair.type_ids):
        separator = pair.ids[pair.type_ids.index(1) - 1]
        import numpy as np

        if token_types(np.array(pair.ids, np.int64), separator).tolist() != pair.type_ids:
            raise UnsupportedCheckpointError(
                f"the tokenizer gives the tokens {' '.join(pair.tokens)} the types {pair.type_ids}; "
                "expected 0 up to a separator, and 1 behind it"
            )
    return EncoderInput(pad, separator), "".join(parts)


def _context(root: Path, config: Mapping[str, Any]) -> int:
    """Return how many tokens the model reads: the tokenizer's limit, else the number of positions."""
    named = (read_json(root / "tokenizer_config.json") or {}).get("model_max_length")
    positions = config.get("max_position_embeddings")
    limits = [int(n) for n in (named, positions) if isinstance(n, int | float) and 16 <= n <= _LONGEST]
    if not limits:
        raise ExportError(
            f"{root} does not say how long a text may be (model_max_length in tokenizer_config.json, "
            "max_position_embeddings in config.json)"
        )
    return min(limits)


def _compare_ids(own: Tokenizer, encoder: PromptEncoder, pairs: CalibrationSet, form: EncoderInput) -> None:
    """Refuse a template that makes other ids, or types, of prompts and responses than the tokenizer itself."""
    import numpy as np

    own.no_padding()
    own.no_truncation()
    for prompt, response in pairs.items:
        expected = own.encode(prompt_text(prompt), response)
        ids = encoder.pointwise_fast(prompt, response)
        types = token_types(np.array(ids, np.int64), form.separator_id).tolist()
        if ids != expected.ids or (form.separator_id is not None and types != expected.type_ids):
            raise UnsupportedCheckpointError(
                f"the tokenizer makes other ids of the response {response[:40]!r} than its pair form as a template; "
                "give a template with --spec"
            )


def _architecture(config: Mapping[str, Any], graph: Path) -> dict[str, Any]:
    """Return what the card says about the model's shape."""
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("onnx", "export", error) from error
    tensors = onnx.load(str(graph), load_external_data=False).graph.initializer
    return {
        "model_type": config.get("model_type"),
        "hidden_size": config.get("hidden_size"),
        "layers": config.get("num_hidden_layers"),
        "parameters": sum(prod(tensor.dims) for tensor in tensors),
    }
