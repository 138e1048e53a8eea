"""A bundle published on the hub, which here is a small server on loopback."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tiger_jax.errors import InputError
from tiger_jax.recommending.hub import fetch_bundle

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def hub(bundle, name="someone/soaps"):
    """Serves a folder as the hub does a model's files; yields what it was asked for."""
    files = {
        path.relative_to(bundle).as_posix(): path.read_bytes()
        for path in bundle.rglob("*")
        if path.is_file()
    }
    files[".gitattributes"] = b"*.safetensors filter=lfs"
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.partition("?")[0]
            asked.append(path)
            status, headers, body = 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
            if path.startswith(f"/api/models/{name}/tree/"):
                rows = [_row(path, content) for path, content in files.items()]
                status, headers, body = 200, {}, json.dumps(rows).encode()
            elif path.startswith(f"/api/models/{name}"):
                siblings = [{"rfilename": file} for file in files]
                known = {"id": name, "sha": COMMIT, "siblings": siblings}
                status, headers, body = 200, {}, json.dumps(known).encode()
            elif path.startswith(f"/{name}/resolve/"):
                body = files[path.split("/", 5)[5]]
                etag = hashlib.sha256(body).hexdigest()
                status = 200
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            self.send_response(status)
            for key, value in {**headers, "Content-Length": len(body)}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _row(path, content):
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}


def load(addresses, endpoint, cache, **variables):
    """Loads bundles in a process of its own: the hub's client reads its variables."""
    code = f"""if True:
        from tiger_jax import Recommender
        from tiger_jax.errors import InputError
        for address in {addresses!r}:
            try:
                recommender = Recommender.load(address)
                print(recommender.recommend(["item-1"], k=3).items[0].item_id)
            except InputError as error:
                print("refused:", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "JAX_PLATFORMS": "cpu",
            **variables,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-len(addresses) :]


def test_a_published_bundle_answers_as_the_folder_does(folder, recommender, tmp_path):
    pytest.importorskip("huggingface_hub")
    expected = recommender.recommend(["item-1"], k=3).items[0].item_id
    with hub(folder) as (endpoint, asked):
        both = ["hf://someone/soaps", "hf://someone/else"]
        found, missing = load(both, endpoint, tmp_path)
        assert not any("gitattributes" in path for path in asked)
    assert found == expected
    assert missing.startswith("refused: hf://someone/else can't be fetched (")
    # Without a network, what was fetched before.
    offline = load(["hf://someone/soaps"], endpoint, tmp_path, HF_HUB_OFFLINE="1")
    assert offline == [expected]


@pytest.mark.parametrize(
    "address", ["hf://soaps", "https://someone/soaps", "hf://a/b/c", "hf://a/b@"]
)
def test_other_addresses_are_refused(address):
    with pytest.raises(InputError, match="is no address of a bundle"):
        fetch_bundle(address)


def test_folders_are_folders():
    assert fetch_bundle("runs/hf/bundle").as_posix() == "runs/hf/bundle"
