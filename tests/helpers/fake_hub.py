"""A Hugging Face Hub on loopback: repositories in memory, to fetch and to put up."""

import base64
import functools
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """`server.repositories` holds `{name: {file: bytes}}`; `server.asked` what was."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value, status=200, **headers):
        body = json.dumps(value).encode()
        self._answer(status, body, Content_Type="application/json", **headers)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).removeprefix("/")
        api = path.startswith("api/models/")
        owner, name, *rest = path.removeprefix("api/models/").split("/")
        files = self.server.repositories.get(f"{owner}/{name}")
        if files is None:
            self._json({"error": "none"}, 404, X_Error_Code="RepoNotFound")
        elif rest[1:2] not in ([], ["main"], [SHA]):
            self._json({"error": "none"}, 404, X_Error_Code="RevisionNotFound")
        elif api and rest[:1] == ["tree"]:
            self._json([self._entry(x, files[x]) for x in files])
        elif api:
            siblings = [{"rfilename": x} for x in files]
            self._json({"id": f"{owner}/{name}", "sha": SHA, "siblings": siblings})
        else:
            file = "/".join(rest[2:])
            if self.command == "GET":
                self.server.asked.append(file)
            etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
            self._answer(200, files[file], ETag=etag, X_Repo_Commit=SHA)

    def _entry(self, path, content):
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": path, "size": len(content), "oid": oid}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            told = json.loads(body)
            name = "/".join(filter(None, (told.get("organization"), told["name"])))
            self.server.repositories.setdefault(name, {})
            return self._json({"url": f"{self.server.address}/{name}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        owner, name, kind, *_ = path.removeprefix("/api/models/").split("/")
        if kind == "preupload":
            files = [x["path"] for x in json.loads(body)["files"]]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self._json({"files": [{"path": x, **mode} for x in files]})
        from huggingface_hub import constants

        for line in body.splitlines():
            one = json.loads(line)
            if one["key"] == "file":
                content = base64.b64decode(one["value"]["content"])
                files = self.server.repositories[f"{owner}/{name}"]
                files[one["value"]["path"]] = content
        return self._json(
            {
                # The client takes this address apart by the endpoint that it knows.
                "commitUrl": f"{constants.ENDPOINT}/{owner}/{name}/commit/{SHA}",
                "commitOid": SHA,
            }
        )


@contextmanager
def fake_hub(monkeypatch, cache):
    """Let `huggingface_hub` speak to such a server; yield it.

    Args:
        monkeypatch: of the test.
        cache: folder of what is fetched.
    """
    import huggingface_hub

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    server.repositories, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    server.address = f"http://localhost:{server.server_address[1]}"
    client = functools.partial(
        huggingface_hub.HfApi, endpoint=server.address, token="none"
    )
    monkeypatch.setattr(huggingface_hub, "HfApi", client)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
