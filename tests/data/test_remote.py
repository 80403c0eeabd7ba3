"""Shards on a web server: fetched once, gone on with where they break off, and named where they cannot be had."""

from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from test_shards import jpeg, write_tar

from salmask.data import open_data
from salmask.data import remote as remote_files
from salmask.data.layouts import absolute


class Server(ThreadingHTTPServer):
    """Serves shards; of each request it sends at most `most` bytes, and then hangs up, or falls silent."""

    files: dict[str, bytes]
    most, silent = 10**9, False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = Counter[str]()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        name = self.path.lstrip("/")
        server.asked[name] += 1
        if name not in server.files:
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        content = server.files[name][start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: server.most])
        self.wfile.flush()
        if server.silent:
            server.waiting.wait(5)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from threading import Event

    for shard in range(2):
        files = []
        for n in range(3):
            files += [(f"{shard}{n}.jpg", jpeg(3 * shard + n)), (f"{shard}{n}.cls", b"1")]
        write_tar(tmp_path / f"train-{shard}.tar", files)
    monkeypatch.setenv("SALMASK_CACHE", str(tmp_path / "cache"))
    served = Server()
    served.files = {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
    served.waiting = Event()
    Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.waiting.set()
    served.shutdown()
    served.server_close()


def spec(server: Server) -> str:
    return f"wds:http://127.0.0.1:{server.server_port}/{{split}}-{{0..1}}.tar"


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_shards_of_a_server_are_those_of_a_folder_and_are_fetched_once(server: Server, tmp_path: Path) -> None:
    here = open_data(f"wds:{tmp_path}/train-{{0..1}}.tar", "train")
    for _ in range(2):
        there = open_data(spec(server), "train")
        assert there.ids == here.ids and there.targets == here.targets
        assert [there.held(n).content for n in range(6)] == [here.held(n).content for n in range(6)]
    assert server.asked == {"train-0.tar": 1, "train-1.tar": 1}
    assert absolute(spec(server)) == spec(server)
    assert open_data(f"wds:file://{tmp_path}/train-0.tar", "train").ids == here.ids[:3]


def test_a_shard_that_breaks_off_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.most = len(server.files["train-0.tar"]) // 2 + 1
    there = open_data(spec(server), "train")
    assert there.ids == open_data(f"wds:{tmp_path}/train-{{0..1}}.tar", "train").ids
    assert server.asked == {"train-0.tar": 2, "train-1.tar": 2}


@pytest.mark.parametrize("silent", [False, True])
def test_a_server_that_dies_in_the_middle_is_one_line_with_the_shard(server, tmp_path, monkeypatch, silent) -> None:
    monkeypatch.setattr(remote_files, "PATIENCE", 0.3)
    server.most, server.silent = 600, silent
    with pytest.raises(ValueError, match=r"http://127.*/train-[01].tar cannot be fetched \(.*; got \d+ bytes\)"):
        open_data(spec(server), "train")
    assert kept(tmp_path / "cache") == []


def test_a_shard_that_is_not_there_and_a_server_that_is_none(server: Server, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"val-[01].tar cannot be fetched \(HTTP Error 404"):
        open_data(spec(server), "val")
    assert max(server.asked.values()) == 1
    monkeypatch.setattr(remote_files, "TRIES", 1)
    with pytest.raises(ValueError, match=r"x.tar cannot be fetched .*[Rr]efused"):
        open_data("wds:http://127.0.0.1:9/x.tar", "train")
    with pytest.raises(ValueError, match="does not list its files"):
        open_data("wds:https://127.0.0.1/*.tar", "train")
