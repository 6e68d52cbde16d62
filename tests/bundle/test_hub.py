"""The real huggingface_hub client against a small hub on loopback."""

import json
import os
import socket
import subprocess
import sys

import pytest
from helpers.bundle import write_bundle
from helpers.hub import COMMIT, serve

from fsrm_lite.bundle.files import Bundle
from fsrm_lite.errors import BundleError, ExportError
from fsrm_lite.export.hub import push_bundle
from fsrm_lite.runtimes.onnx.kernels import library


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    write_bundle(tmp_path / "served", slow_bytes=2_000_000)
    with serve(tmp_path / "served") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        yield server


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def no_sockets(monkeypatch):
    """A function that closes the network from now on, and returns the list of attempts to use it.

    The list is needed because the client swallows some errors.
    """
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise AssertionError("a socket was opened")

    def block():
        monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", None, raising=False)
        monkeypatch.setattr(socket, "socket", refuse)
        monkeypatch.setattr(socket, "create_connection", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        return attempts

    return block


def test_open_fetches_the_manifest_alone_and_files_when_asked(hub, cache):
    bundle = Bundle.open("org/name", cache_dir=cache)
    assert hub.files_asked() == ["fsrm.json"]
    assert bundle.manifest.name == "paper"
    assert bundle.path("tokenizer").read_bytes() == b"{}"
    bundle.path("fast")
    assert hub.files_asked() == ["fsrm.json", "tokenizer.json", "fast/model.onnx", "fast/model.onnx.data"]
    assert bundle.path("slow").stat().st_size == 2_000_000
    assert hub.files_asked()[-1] == "slow/model.gguf"
    assert bundle.path("fast").parent == bundle.root / "fast"


def test_from_pretrained_fetches_the_judge_when_the_gate_first_fires(hub, cache, no_sockets):
    pytest.importorskip("llama_cpp")
    from fsrm_lite import FastSlowRM

    hub.folder = Bundle.open().root
    options = {"revision": "main", "cache_dir": cache, "threads": 1, "judge_engine": "llama.cpp"}
    with FastSlowRM.from_pretrained("org/name", **options) as rm:
        fast = rm.score("What is 2 + 3?", "2 + 3 = 5.", judge="never")
        assert "slow/model.gguf" not in hub.files_asked()
        slow = rm.score("What is 2 + 3?", "2 + 3 = 5.", judge="always")
        assert hub.files_asked()[-1] == "slow/model.gguf"
    assert (fast.route, slow.route) == ("fast", "slow")
    attempts = no_sockets()
    with FastSlowRM.from_pretrained("org/name", local_files_only=True, **options) as rm:
        assert rm.score("What is 2 + 3?", "2 + 3 = 5.", judge="always") == slow
    assert attempts == []


@pytest.mark.skipif(library() is None, reason="the operators are not built, or switched off")
def test_a_fast_file_that_thinks_needs_no_second_file(hub, cache):
    from fsrm_lite import FastSlowRM

    hub.folder = Bundle.open().root
    with FastSlowRM.from_pretrained("org/name", cache_dir=cache, threads=1) as rm:
        assert rm.score("What is 2 + 3?", "2 + 3 = 5.", judge="always").route == "slow"
    assert "slow/model.gguf" not in hub.files_asked()


def test_cached_files_need_no_socket(hub, cache, no_sockets):
    Bundle.open("org/name", cache_dir=cache).check()
    attempts = no_sockets()
    bundle = Bundle.open("org/name", cache_dir=cache)
    bundle.check()
    assert Bundle.open("org/name", revision=COMMIT, cache_dir=cache).manifest == bundle.manifest
    assert Bundle.open("org/name", cache_dir=cache, local_files_only=True).manifest == bundle.manifest
    assert attempts == []


def test_local_files_only_never_asks_the_network(hub, cache):
    with pytest.raises(
        BundleError, match=r"fsrm\.json of org/name is not in the cache, and the network may not be used"
    ):
        Bundle.open("org/name", cache_dir=cache, local_files_only=True)
    assert hub.requests == []


def test_offline_mode_is_honoured(hub, cache, monkeypatch):
    import huggingface_hub.constants as constants

    bundle = Bundle.open("org/name", cache_dir=cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True, raising=False)
    asked = len(hub.requests)
    with pytest.raises(
        BundleError,
        match=r"slow/model\.gguf .* is not in the cache, and the network may not be used \(local_files_only or HF_HUB",
    ):
        bundle.path("slow")
    assert len(hub.requests) == asked


def test_the_offline_variable_stops_a_fresh_process(hub, cache):
    code = (
        "import sys; from fsrm_lite.bundle.files import Bundle\n"
        "try: Bundle.open('org/name', cache_dir=sys.argv[1])\n"
        "except Exception as e: print(e)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.url}
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache)], env=environment, capture_output=True, text=True, check=True
    )
    assert "not in the cache, and the network may not be used" in done.stdout
    assert hub.requests == []


def test_an_interrupted_download_is_resumed(hub, cache):
    hub.cut_after["slow/model.gguf"] = 700_000
    bundle = Bundle.open("org/name", cache_dir=cache)
    assert bundle.path("slow").stat().st_size == 2_000_000
    ranges = [wanted for verb, name, wanted in hub.requests if (verb, name) == ("GET", "slow/model.gguf")]
    assert ranges[0] is None
    assert ranges[1].startswith("bytes=")
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) >= 500_000


def test_a_failed_download_leaves_nothing_behind_that_would_be_taken_for_the_file(hub, cache, monkeypatch):
    bundle = Bundle.open("org/name", cache_dir=cache)
    content = (hub.folder / "slow/model.gguf").read_bytes()
    monkeypatch.setattr(
        "huggingface_hub.file_download.http_get",
        lambda *args, **kwargs: (_ for _ in ()).throw(ConnectionError("cable pulled")),
    )
    with pytest.raises(
        BundleError, match=r"cannot download slow/model\.gguf of org/name .*ConnectionError: cable pulled"
    ):
        bundle.path("slow")
    monkeypatch.undo()
    assert not list(cache.rglob("*.incomplete"))
    assert not any(p.stat().st_size == len(content) for p in cache.rglob("*") if p.is_file())


def test_an_altered_file_is_refused(hub, cache):
    bundle = Bundle.open("org/name", cache_dir=cache)
    served = hub.folder / "slow/model.gguf"
    served.write_bytes(b"!" + served.read_bytes()[1:])
    with pytest.raises(
        BundleError, match=r"model\.gguf was altered: sha256 [0-9a-f]{64}, fsrm\.json says [0-9a-f]{64}; delete it"
    ):
        bundle.path("slow")


def test_a_poisoned_cache_is_noticed(hub, cache):
    path = Bundle.open("org/name", cache_dir=cache).path("slow").resolve()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        BundleError, match=r"has 1000 bytes, fsrm\.json says 2000000; delete it, then copy or download it again"
    ):
        Bundle.open("org/name", cache_dir=cache).path("slow")


def test_files_come_from_the_commit_of_the_manifest_even_if_the_branch_moves(hub, cache):
    bundle = Bundle.open("org/name", cache_dir=cache)
    hub.commit = "d00d" * 10
    with pytest.raises(BundleError, match=f"org/name on the hub has no revision '{COMMIT}'"):
        bundle.path("slow")


def test_unknown_names_revisions_and_repositories_without_manifest_are_clear(hub, cache):
    with pytest.raises(BundleError, match=r"there is no model org/other on the hub .*, and no folder org/other here"):
        Bundle.open("org/other", cache_dir=cache)
    with pytest.raises(BundleError, match="org/name on the hub has no revision 'v9'"):
        Bundle.open("org/name", revision="v9", cache_dir=cache)
    (hub.folder / "fsrm.json").unlink()
    with pytest.raises(BundleError, match=r"org/name on the hub has no file fsrm\.json; it is not an fsrm-lite bundle"):
        Bundle.open("org/name", cache_dir=cache)


def test_a_private_repository_opens_with_its_token(hub, cache):
    hub.tokens = {"hf_secret"}
    with pytest.raises(BundleError, match="pass token="):
        Bundle.open("org/name", cache_dir=cache, token=False)
    assert Bundle.open("org/name", cache_dir=cache, token="hf_secret").path("tokenizer").is_file()


def test_an_unreachable_hub_is_one_line(hub, cache, monkeypatch):
    import huggingface_hub.constants as constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(
        BundleError, match=r"fsrm\.json of org/name is not in the cache, and the hub cannot be reached"
    ) as caught:
        Bundle.open("org/name", cache_dir=cache)
    assert "\n" not in str(caught.value)
    assert waits == []  # it is told at once; the client alone would ask again for half a minute


def test_the_default_cache_is_huggingface_hubs_own(hub, tmp_path):
    code = (
        "from fsrm_lite.bundle.files import Bundle; import json; "
        "print(json.dumps(str(Bundle.open('org/name').path('tokenizer'))))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    path = json.loads(done.stdout)
    assert path.startswith(str(tmp_path / "home" / "hub" / "models--org--name" / "snapshots" / COMMIT))


def test_push_uploads_a_whole_bundle_in_one_commit(hub, tmp_path):
    hub.tokens = {"hf_write"}
    address = push_bundle(hub.folder, "org/name", token="hf_write")
    assert address.endswith(f"/org/name/commit/{COMMIT}")
    assert hub.uploaded.keys() >= {
        "fsrm.json",
        "tokenizer.json",
        "fast/model.onnx",
        "fast/model.onnx.data",
        "slow/model.gguf",
    }
    assert all(content == (hub.folder / path).read_bytes() for path, content in hub.uploaded.items())
    assert sum(path.endswith("/commit/main") for path in hub.files_asked("POST")) == 1


def test_push_refuses_a_bundle_that_is_not_whole_before_asking_the_hub(hub):
    (hub.folder / "slow/model.gguf").unlink()
    with pytest.raises(BundleError, match=r"model\.gguf is missing"):
        push_bundle(hub.folder, "org/name", token="hf_write")
    assert hub.requests == []


def test_push_without_permission_is_one_line(hub):
    with pytest.raises(ExportError, match=r"cannot push .* to org/name: ") as caught:
        push_bundle(hub.folder, "org/name", token="hf_wrong")
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match="expected 'org/name'"):
        push_bundle(hub.folder, "name")
