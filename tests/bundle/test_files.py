import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers.bundle import plain_manifest, write_bundle

from fsrm_lite.bundle.files import Bundle, read_manifest, write_manifest
from fsrm_lite.errors import BundleError


@pytest.fixture
def folder(tmp_path):
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder, change):
    data = json.loads((folder / "fsrm.json").read_text())
    change(data)
    (folder / "fsrm.json").write_text(json.dumps(data))


def test_open_reads_back_what_write_manifest_wrote(folder):
    bundle = Bundle.open(folder)
    assert bundle.manifest == read_manifest(folder)
    assert bundle.manifest.labels == plain_manifest().labels
    assert bundle.path("slow") == folder / "slow/model.gguf"
    assert bundle.has("fast_data")
    assert not bundle.has("critic")
    bundle.check()


def test_open_accepts_a_string_and_a_relative_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert Bundle.open("bundle").path("tokenizer").read_bytes() == b"{}"


@pytest.mark.parametrize("role", ["tokenizer", "fast", "slow"])
def test_path_refuses_a_missing_file(folder, role):
    path = Bundle.open(folder).path(role)
    path.unlink()
    with pytest.raises(BundleError, match=f"{path.name} is missing"):
        Bundle.open(folder).path(role)


def test_path_refuses_a_truncated_file_with_both_sizes(folder):
    path = folder / "slow/model.gguf"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"model.gguf has 299999 bytes, fsrm.json says 300000"):
        Bundle.open(folder, verify=False).path("slow")


def test_path_refuses_an_altered_file_with_both_hashes(folder):
    expected = read_manifest(folder).files["fast_data"].sha256
    path = folder / "fast/model.onnx.data"
    path.write_bytes(b"W" + path.read_bytes()[1:])
    # The graph's own file is unchanged. What was changed is the file of weights, which ONNX Runtime opens by itself.
    with pytest.raises(
        BundleError, match=f"model.onnx.data was altered: sha256 [0-9a-f]{{64}}, fsrm.json says {expected}"
    ):
        Bundle.open(folder).path("fast")
    assert Bundle.open(folder, verify=False).path("fast").is_file()


def test_path_of_an_unknown_role_lists_the_known(folder):
    with pytest.raises(BundleError, match="no 'critic' file; it has tokenizer, fast, fast_data, slow"):
        Bundle.open(folder).path("critic")


def test_path_checks_each_file_once(folder, monkeypatch):
    bundle = Bundle.open(folder)
    bundle.path("slow")
    monkeypatch.setattr("fsrm_lite.bundle.files.file_sha256", lambda path: pytest.fail("hashed twice"))
    assert bundle.path("slow") == folder / "slow/model.gguf"


def test_open_refuses_an_unknown_format_version(folder):
    edit(folder, lambda data: data.update(format_version=99))
    with pytest.raises(BundleError, match=r"fsrm.json: fsrm.json has format_version 99, this package reads 1"):
        Bundle.open(folder)


@pytest.mark.parametrize("bad", ["../secret", "/etc/passwd", "a/../../b", "C:\\x", ""])
def test_open_refuses_files_outside_the_folder(folder, bad):
    edit(folder, lambda data: data["files"]["slow"].update(path=bad))
    with pytest.raises(BundleError, match="not a plain path inside the bundle"):
        Bundle.open(folder)


def test_open_refuses_what_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"has no fsrm.json"):
        Bundle.open(tmp_path)
    (tmp_path / "fsrm.json").write_text("{")
    with pytest.raises(BundleError, match=r"cannot read .*fsrm.json"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="is a file; expected the folder"):
        Bundle.open(tmp_path / "fsrm.json")
    with pytest.raises(BundleError, match="there is no folder"):
        Bundle.open("no-such-thing")
    with pytest.raises(BundleError, match="there is no folder"):
        Bundle.open(tmp_path / "org" / "name")


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are files on POSIX systems only")
@pytest.mark.parametrize("name", ["fsrm.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["pipe", "endless device", "circle", "folder"])
def test_what_is_no_file_is_neither_waited_for_nor_read_without_end(folder, name, kind):
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "endless device" else name)
    with pytest.raises(BundleError, match=name):
        Bundle.open(folder).check()


def test_a_manifest_that_is_too_long_is_not_taken_into_memory(folder):
    with (folder / "fsrm.json").open("r+b") as file:
        file.truncate(1 << 40)  # a file of holes
    with pytest.raises(BundleError, match=f"has {1 << 40} bytes, expected at most"):
        Bundle.open(folder)


@pytest.mark.parametrize("odd", ["a/" * 5000 + "b", "x" * 300, "a\0b"])
def test_names_that_no_system_takes_are_our_error(folder, odd):
    data = json.loads((folder / "fsrm.json").read_text())
    data["files"]["tokenizer"]["path"] = odd
    (folder / "fsrm.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"cannot be looked for|is missing"):
        Bundle.open(folder).path("tokenizer")


def test_write_manifest_keeps_the_entries_of_files_that_did_not_change(folder, monkeypatch):
    listed = read_manifest(folder)
    monkeypatch.setattr("fsrm_lite.bundle.files.file_sha256", lambda path: pytest.fail(f"hashed {path} again"))
    written = write_manifest(folder, replace(listed, card={"license": "mit"}))
    assert written == read_manifest(folder)
    assert (written.files, written.card) == (listed.files, {"license": "mit"})


def test_write_manifest_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BundleError, match="there is no such file"):
        write_manifest(tmp_path, plain_manifest(), {"tokenizer": "tokenizer.json"})
    assert not (tmp_path / "fsrm.json").exists()


def test_a_local_bundle_does_not_import_the_hub_client(folder):
    code = (
        "import sys; from fsrm_lite.bundle.files import Bundle; Bundle.open(sys.argv[1]).check(); "
        "print([m for m in ('huggingface_hub', 'httpx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
