"""llama.cpp's own server (llama-cpp-python's, OpenAI-compatible) on a loopback port, in a child process.

``python tests/helpers.server.py MODEL.gguf`` is that child: it prints its address and serves until it is ended.
"""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The documented chat template of the embedded model's family, as GGUF files carry it."""


def with_chat_template(source: Path, target: Path, template: str = CHATML) -> Path:
    """Copy a GGUF, adding the metadata that says how to chat with it."""
    import gguf
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, arch=reader.fields["general.architecture"].contents())
    copy_with_new_metadata(
        reader, writer, {"tokenizer.chat_template": MetadataDetails(gguf.GGUFValueType.STRING, template)}, []
    )
    return target


@contextlib.contextmanager
def llama_server(model: Path) -> Iterator[str]:
    """Start the server; the address of its ``/v1``."""
    with subprocess.Popen(
        [sys.executable, __file__, str(model)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        try:
            yield child.stdout.readline().strip()
        finally:
            child.terminate()


def main(model: str) -> None:
    """Serve a model on a free port of the loopback address."""
    from fsrm_lite.runtimes.llama.engine import load_llama

    llama = load_llama()
    if b"AMX_INT8 = 1" in llama.llama_print_system_info():
        _keep_amx_off(llama)
    import uvicorn
    from llama_cpp.server.app import create_app
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    listener = socket.create_server(("127.0.0.1", 0))
    settings = ModelSettings(model=model, n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    app = create_app(server_settings=ServerSettings(), model_settings=[settings])
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}/v1\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


def _keep_amx_off(llama) -> None:
    """Turn off llama.cpp's AMX kernels, in which builds made with GCC crash; the server has no option for that.

    ``fsrm_lite.runtimes.llama.engine`` says more about it.
    """
    default = llama.llama_model_default_params

    def without_amx():
        params = default()
        params.use_extra_bufts = False
        return params

    for module in (llama, llama.llama_cpp):
        module.llama_model_default_params = without_amx


if __name__ == "__main__":
    main(sys.argv[1])
