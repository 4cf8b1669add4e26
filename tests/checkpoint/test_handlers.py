"""Addresses of weights, against a real web server on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from detectron2.utils.file_io import PathManager

from piip.checkpoint.download import cached_path
from piip.checkpoint.handlers import resolve
from piip.checkpoint.weights import read_weights
from piip.errors import CheckpointError, DownloadError
from tests.checkpoint.test_weights import shard

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """Serves ``files`` (path -> status, headers, body) and counts the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.requests: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, path: str, body: bytes = CONTENT, status: int = 200, **headers: str) -> str:
        """Adds a file; header names with underscores for dashes. Returns its address."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.files[path] = (status, {"Content-Length": str(len(body)), **headers}, body)
        return self.url + path

    def put_on_hub(self, repo: str, filename: str, body: bytes = CONTENT, sha256: str = SHA256) -> None:
        """Adds a file the way the hub shows it."""
        for revision in ("main", COMMIT):
            headers = {"X_Repo_Commit": COMMIT, "ETag": f'"{sha256}"', "Accept_Ranges": "bytes"}
            self.put(f"/{repo}/resolve/{revision}/{filename}", body, **headers)
        listing = json.dumps([{"type": "file", "path": filename, "size": len(body), "oid": sha256[:40]}]).encode()
        self.put(f"/api/models/{repo}/tree/main", listing, Content_Type="application/json")


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.requests[f"{self.command} {path}"] += 1
        missing = (404, {"Content-Length": "0", "X-Error-Code": "EntryNotFound"}, b"")
        status, headers, body = self.server.files.get(self.path, self.server.files.get(path, missing))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """Keeps the user's caches out of sight."""
    monkeypatch.setenv("PIIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def files_in(folder: Path) -> list[str]:
    """Names of the complete-looking files below a folder; lock files are harmless."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_url_is_downloaded_once(server, tmp_path):
    url = server.put("/weights/a.pth")
    path = resolve(url)
    assert Path(path).read_bytes() == CONTENT
    assert resolve(url) == path
    assert server.requests["GET /weights/a.pth"] == 1
    assert files_in(tmp_path / "cache") == ["a.pth"]


def test_simultaneous_requests_download_once(server):
    url = server.put("/a.pth")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(resolve(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert server.requests["GET /a.pth"] == 1


def test_another_query_is_another_file(server):
    server.put("/get?id=1", b"one")
    server.put("/get?id=2", b"two")
    assert Path(resolve(f"{server.url}/get?id=1")).read_bytes() == b"one"
    assert Path(resolve(f"{server.url}/get?id=2")).read_bytes() == b"two"


def test_truncated_transfer_leaves_nothing_behind(server, tmp_path):
    url = server.put("/a.pth", CONTENT[:1000], Content_Length=str(len(CONTENT)))
    with pytest.raises(DownloadError, match=rf"broke off after 1000 of {len(CONTENT)} bytes"):
        resolve(url)
    assert files_in(tmp_path / "cache") == []
    server.put("/a.pth")
    assert Path(resolve(url)).read_bytes() == CONTENT


def test_hash_in_the_name_is_checked(server, tmp_path):
    assert resolve(server.put(f"/net-{SHA256[:8]}.pth"))
    with pytest.raises(DownloadError, match=f"starts with {SHA256[:8]}, not with 0badc0de"):
        resolve(server.put("/net-0badc0de.pth"))
    assert files_in(tmp_path / "cache") == [f"net-{SHA256[:8]}.pth"]


def test_date_in_the_name_is_no_hash(server):
    assert resolve(server.put("/net-20240131.pth"))


def test_hash_in_the_header_is_checked(server):
    good = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    bad = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    assert resolve(server.put("/good.pth", Repr_Digest=f"sha-256=:{good}:"))
    with pytest.raises(DownloadError, match="SHA-256"):
        resolve(server.put("/bad.pth", Repr_Digest=f"sha-256=:{bad}:"))


def test_web_page_instead_of_a_file(server):
    with pytest.raises(DownloadError, match="web page"):
        resolve(server.put("/a.pth", b"<html>sign in</html>", Content_Type="text/html; charset=utf-8"))


@pytest.mark.parametrize(("status", "words"), [(404, "404"), (503, "503")])
def test_server_error_is_told(server, status, words):
    with pytest.raises(DownloadError, match=words):
        resolve(server.put("/a.pth", b"", status=status))


def test_offline_names_url_cause_and_remedy(tmp_path, monkeypatch):
    hub = tmp_path / "cache" / "huggingface.co"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but not listening
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        for uri, url, place in [
            (f"{endpoint}/a.pth", f"{endpoint}/a.pth", cached_path(f"{endpoint}/a.pth")),
            (
                "piip://detection/a.pth",
                f"{endpoint}/OpenGVLab/PIIP/resolve/main/detection/a.pth",
                hub / "OpenGVLab/PIIP/detection/a.pth",
            ),
            (
                "timm://deit_tiny_patch16_224.fb_in1k",
                f"{endpoint}/timm/deit_tiny_patch16_224.fb_in1k/resolve/main/model.safetensors",
                hub / "timm/deit_tiny_patch16_224.fb_in1k/model.safetensors",
            ),
        ]:
            with pytest.raises(DownloadError) as caught:
                resolve(uri)
            message = str(caught.value)
            assert uri in message
            assert url in message
            assert "refused" in message
            assert str(place) in message
            assert "\n" not in message
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(CONTENT)
            assert resolve(uri) == str(place)  # the remedy works


@pytest.mark.parametrize(
    ("uri", "repo", "filename"),
    [
        ("piip://detection/mask_rcnn.pth", "OpenGVLab/PIIP", "detection/mask_rcnn.pth"),
        ("piip://detection/mask_rcnn", "OpenGVLab/PIIP", "detection/mask_rcnn.pth"),
        ("lsnet://lsnet_t", "jameslahm/lsnet", "lsnet_t.pth"),
        ("lsnet://lsnet_t.pth", "jameslahm/lsnet", "lsnet_t.pth"),
        ("timm://deit_tiny_patch16_224.fb_in1k", "timm/deit_tiny_patch16_224.fb_in1k", "model.safetensors"),
        ("timm://deit_tiny_patch16_224", "timm/deit_tiny_patch16_224.fb_in1k", "model.safetensors"),
        ("timm://deit_tiny_patch16_224.fb_in1k", "timm/deit_tiny_patch16_224.fb_in1k", "pytorch_model.bin"),
    ],
)
def test_schemes_lead_to_their_repositories(server, tmp_path, uri, repo, filename):
    server.put_on_hub(repo, filename)
    path = resolve(uri)
    assert path == str(tmp_path / "cache" / "huggingface.co" / repo / filename)
    assert Path(path).read_bytes() == CONTENT
    before = sum(server.requests.values())
    assert resolve(uri) == path
    assert sum(server.requests.values()) == before


def test_files_that_timm_has_downloaded_are_taken(server, tmp_path):
    repository = tmp_path / "hub" / "models--timm--deit_tiny_patch16_224.fb_in1k"
    file = repository / "snapshots" / COMMIT / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert resolve("timm://deit_tiny_patch16_224.fb_in1k") == str(file)
    assert not server.requests


def test_plain_copy_of_the_hub_serves(server):
    server.put("/jameslahm/lsnet/resolve/main/lsnet_s.pth")
    assert Path(resolve("lsnet://lsnet_s")).read_bytes() == CONTENT


def test_corrupt_file_from_the_hub_is_refused(server):
    server.put_on_hub("jameslahm/lsnet", "lsnet_t.pth", body=CONTENT[::-1])
    with pytest.raises(DownloadError, match="SHA-256"):
        resolve("lsnet://lsnet_t")
    server.put_on_hub("jameslahm/lsnet", "lsnet_t.pth")
    assert Path(resolve("lsnet://lsnet_t")).read_bytes() == CONTENT


def test_unknown_released_file_names_the_nearest(server):
    server.put_on_hub("OpenGVLab/PIIP", "detection/mask_rcnn_tsb.pth")
    with pytest.raises(DownloadError, match=r"no such file.*Did you mean 'detection/mask_rcnn_tsb\.pth'"):
        resolve("piip://detection/mask_rcnn_tsbl.pth")


def test_unknown_timm_tag_names_the_nearest():
    with pytest.raises(CheckpointError, match=r"Did you mean 'deit_tiny_patch16_224\.fb_in1k'"):
        resolve("timm://deit_tiny_patch16_224.fb_in22k")


def test_detectron2_knows_the_schemes(server):
    server.put_on_hub("jameslahm/lsnet", "lsnet_t.pth")
    assert Path(PathManager.get_local_path("lsnet://lsnet_t")).read_bytes() == CONTENT
    with PathManager.open("lsnet://lsnet_t", "rb") as f:
        assert f.read() == CONTENT
    assert PathManager.isfile("lsnet://lsnet_t")


def test_detectron2_checkpointer_loads_an_address(server):
    from detectron2.checkpoint import DetectionCheckpointer

    trained, fresh = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    path = cached_path(f"{server.url}/x").parent / "w.pth"
    path.parent.mkdir(parents=True)
    torch.save({"model": trained.state_dict()}, path)
    body = path.read_bytes()
    server.put_on_hub("jameslahm/lsnet", "lsnet_t.pth", body, hashlib.sha256(body).hexdigest())
    DetectionCheckpointer(fresh).load("lsnet://lsnet_t.pth")
    assert torch.equal(fresh.weight, trained.weight)


@pytest.mark.parametrize("scheme", ["http", "piip"])
def test_checkpoints_in_several_remote_files(server, tmp_path, scheme):
    index = shard(tmp_path, {"a": torch.ones(2), "b": torch.zeros(2)}, parts=2)
    for path in tmp_path.iterdir():
        if path.is_file():
            body = path.read_bytes()
            server.put(f"/large/{path.name}", body)
            server.put_on_hub("OpenGVLab/PIIP", f"large/{path.name}", body, hashlib.sha256(body).hexdigest())
    folder = f"{server.url}/large" if scheme == "http" else "piip://large"
    assert sorted(read_weights(f"{folder}/{index.name}")) == ["a", "b"]


def test_local_paths(tmp_path, monkeypatch):
    (tmp_path / "model_final.pth").write_bytes(b"x")
    assert resolve(tmp_path / "model_final.pth") == str(tmp_path / "model_final.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/model_final.pth") == str(tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match=r"does not exist.*Did you mean 'model_final\.pth'"):
        resolve(tmp_path / "model_finl.pth")
    with pytest.raises(CheckpointError, match="nor does its folder"):
        resolve(tmp_path / "no" / "model.pth")
    with pytest.raises(CheckpointError, match=r"is a folder; name one of its files: model_final\.pth"):
        resolve(tmp_path)


@pytest.mark.parametrize("uri", ["s3://bucket/a.pth", "pip://detection/a.pth"])
def test_unknown_scheme(uri):
    with pytest.raises(CheckpointError, match=r"known are piip://"):
        resolve(uri)


@pytest.mark.parametrize("uri", ["piip://../../a.pth", "http://127.0.0.1/", "http://127.0.0.1/a/../../b.pth"])
def test_addresses_stay_inside_the_cache(uri):
    with pytest.raises(DownloadError, match="not the address of a file"):
        resolve(uri)
