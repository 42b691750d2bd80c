"""A small Hub: the HTTP interface of huggingface.co as far as unmodified clients use it, with faults on request.

    python tests/hub_server.py FOLDER [PORT]        prints its address once it listens

Everything lies in FOLDER, so that a killed server goes on where it was. The tokens WRITER and READER
both belong to the user `me`, who is in the organisation `team`. Repositories in `closed` are private ones of others,
those in `gated` are seen but not to be read.

`POST /_faults` with a list of {"method", "path" (a regular expression), "kind", "times", ...} makes the next requests
that match go wrong; the kinds are in `Handler.break_off`. `GET /_log` gives the requests so far, `GET /_served` the
bytes that were sent of each path.
"""

import atexit
import base64
import gzip
import hashlib
import json
import math
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_" + "w" * 34, "hf_" + "r" * 34  # in the form of real ones, so that a scan may find them
ROLES = {WRITER: "write", READER: "read"}
WRITABLE = ("me", "team")
INLINE_LIMIT = 10 * 1024 * 1024  # larger or binary files go by LFS
PART_SIZE = 1024 * 1024  # from which LFS uploads come in parts
LFS_NAMES = re.compile(r"\.(safetensors|bin|parquet|gz|arrow|model|png)$")


class Store:
    """Repositories as lists of commits, each a whole map of path to blob; blobs by their SHA-256."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = threading.RLock()
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        state = folder / "state.json"
        self.repos = json.loads(state.read_text()) if state.exists() else {}

    def save(self) -> None:
        staged = self.folder / "state.json.staged"
        staged.write_text(json.dumps(self.repos))
        staged.rename(self.folder / "state.json")

    def put(self, content: bytes) -> dict:
        sha256 = hashlib.sha256(content).hexdigest()
        staged = self.folder / "blobs" / f"{sha256}.{threading.get_ident()}"
        staged.write_bytes(content)
        staged.rename(self.folder / "blobs" / sha256)
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"sha256": sha256, "size": len(content), "git": git}

    def blob(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256

    def create(self, key: str, private: bool) -> None:
        with self.lock:
            self.repos[key] = {"private": private, "commits": []}
            self.commit(key, {}, [], "initial commit")

    def commit(self, key: str, added: dict, deleted: list[str], title: str) -> str:
        with self.lock:
            commits = self.repos[key]["commits"]
            files = dict(commits[-1]["files"]) if commits else {}
            for path in deleted:
                files = {name: file for name, file in files.items() if name != path and not name.startswith(f"{path}/")}
            files |= added
            parent = commits[-1]["oid"] if commits else ""
            oid = hashlib.sha1(f"{parent}{title}{sorted(files)}{len(commits)}{time.time()}".encode()).hexdigest()
            commits.append({"oid": oid, "files": files, "title": title})
            self.save()
            return oid


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body, a second write, waits until the headers are acknowledged
    server: "Server"

    def log_message(self, *_) -> None:
        pass

    def do(self) -> None:
        url = urlsplit(self.path)
        self.path_parts, self.query = unquote(url.path), parse_qs(url.query)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = (
            self.read_chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        )
        if self.headers.get("Content-Encoding") == "gzip":
            self.body = gzip.decompress(self.body)
        self.flip = self.cut = self.lost = False
        if self.path_parts == "/_faults":
            self.server.faults = json.loads(self.body)
            return self.answer({})
        if self.path_parts in ("/_log", "/_served"):
            return self.answer(getattr(self.server, self.path_parts.removeprefix("/_")))
        if self.path_parts == "/_forget":
            self.server.log.clear()
            self.server.served.clear()
            return self.answer({})
        if self.path_parts == "/_repos":
            return self.answer(self.server.store.repos)
        if self.path_parts == "/_add":
            return self.answer({"oid": self.add(**json.loads(self.body))})
        self.server.log.append(f"{self.command} {self.path_parts}")
        if self.break_off():
            return None
        for method, pattern, action in ROUTES:
            found = re.fullmatch(pattern, self.path_parts)
            if found and method in (self.command, "ANY"):
                with self.server.store.lock:
                    return action(self, **found.groupdict())
        return self.answer({"error": f"no such page: {self.command} {self.path_parts}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do

    def add(self, key: str, private: bool, files: dict[str, str]) -> str:
        store = self.server.store
        with store.lock:
            if key not in store.repos:
                store.create(key, private)
            contents = {path: base64.b64decode(content) for path, content in files.items()}
            added = {path: store.put(each) | {"lfs": bool(LFS_NAMES.search(path))} for path, each in contents.items()}
            return store.commit(key, added, [], "added")

    def read_chunks(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def break_off(self) -> bool:
        """Lets this request go wrong if a fault waits for it; True where that is the whole answer."""
        with self.server.store.lock:
            fault = next((each for each in self.server.faults if self.is_hit(each)), None)
            if fault is None:
                return False
            if fault.get("skip", 0) > 0:
                fault["skip"] -= 1
                return False
            fault["times"] = fault.get("times", 1) - 1
        match fault["kind"]:
            case "status":
                headers = {"Retry-After": str(fault["retry_after"])} if "retry_after" in fault else {}
                self.answer({"error": "as ordered"}, fault["status"], headers)
            case "reset":
                self.reset()
            case "hang":
                time.sleep(fault["seconds"])
                self.reset()
            case "lost":  # done, but nobody hears of it
                self.lost = True
                return False
            case "cut":
                self.cut = True
                return False
            case "flip":
                self.flip = True
                return False
        return True

    def is_hit(self, fault: dict) -> bool:
        return (
            fault.get("times", 1) > 0
            and fault.get("method", self.command) == self.command
            and re.search(fault.get("path", ""), self.path_parts) is not None
        )

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def send(self, content: bytes, status: int, headers: dict[str, str], length: int | None = None) -> None:
        if self.lost:
            return self.reset()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return None
        path = self.path_parts
        self.server.served[path] = self.server.served.get(path, 0) + len(content)
        if self.flip and content:
            content = (
                content[: len(content) // 2]
                + bytes([content[len(content) // 2] ^ 1])
                + content[len(content) // 2 + 1 :]
            )
        if self.cut:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            return self.reset()
        self.wfile.write(content)
        return None

    # Who asks, and what for

    @property
    def role(self) -> str | None:
        return ROLES.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def repo(self, key: str, write: bool = False) -> dict | None:
        """The repository, or None after the answer that says why not."""
        repo = self.server.store.repos.get(key)
        owner = key.split("/")[1]
        is_hidden = repo is not None and repo["private"] and (self.role is None or owner not in WRITABLE)
        if repo is None or is_hidden:
            status = 401 if self.role is None else 404
            self.refuse(status, "RepoNotFound", "Repository not found")
            return None
        if write and (self.role != "write" or owner not in WRITABLE):
            self.answer({"error": "You don't have the rights to write here"}, 403)
            return None
        return repo

    def commit_of(self, repo: dict, revision: str) -> dict | None:
        if revision == "main":
            return repo["commits"][-1]
        found = next((commit for commit in repo["commits"] if commit["oid"].startswith(revision)), None)
        if found is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def whoami(self) -> None:
        if self.role is None:
            return self.answer({"error": "Invalid username or password."}, 401)
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.role}}
        return self.answer({"type": "user", "name": "me", "orgs": [{"name": "team"}], "auth": auth})

    def create_repo(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or "me"
        kind = asked.get("type") or "model"
        key = f"{kind}s/{owner}/{asked['name']}"
        if self.role != "write" or owner not in WRITABLE:
            return self.answer(
                {"error": f"You don't have the rights to create {key}"}, 401 if self.role is None else 403
            )
        if key in self.server.store.repos:
            return self.answer({"error": "You already created this repo", "url": key}, 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.store.create(key, bool(private))
        return self.answer({"url": f"{self.server.address}/{owner}/{asked['name']}"})

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        if (repo := self.repo(f"{kind}/{name}")) and (commit := self.commit_of(repo, revision or "main")):
            siblings = [
                {"rfilename": path, "size": file["size"], "blobId": file["git"]} | self.lfs(file)
                for path, file in sorted(commit["files"].items())
            ]
            self.answer(
                {
                    "id": name,
                    "sha": commit["oid"],
                    "private": repo["private"],
                    "siblings": siblings,
                    "lastModified": "2026-01-01T00:00:00.000Z",
                    "tags": [],
                    "downloads": 0,
                }
            )

    @staticmethod
    def lfs(file: dict) -> dict:
        return (
            {"lfs": {"oid": file["sha256"], "sha256": file["sha256"], "size": file["size"], "pointerSize": 130}}
            if file["lfs"]
            else {}
        )

    def entry(self, path: str, file: dict) -> dict:
        return {"type": "file", "path": path, "size": file["size"], "oid": file["git"], **self.lfs(file)}

    def tree(self, kind: str, name: str, revision: str, path: str | None = None) -> None:
        if not (repo := self.repo(f"{kind}/{name}")) or not (commit := self.commit_of(repo, revision)):
            return None
        path, recursive = (path or "").strip("/"), self.query.get("recursive", ["false"])[0].lower() == "true"
        inside = {p: f for p, f in sorted(commit["files"].items()) if not path or p.startswith(f"{path}/")}
        if path and not inside:
            return self.refuse(404, "EntryNotFound", f"no folder {path}")
        entries, folders = [], set()
        for each, file in inside.items():
            rest = each[len(path) + 1 if path else 0 :]
            parts = rest.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join([*([path] if path else []), *parts[:depth]])
                if folder not in folders and (recursive or depth == 1):
                    folders.add(folder)
                    entries.append({"type": "directory", "path": folder, "size": 0, "oid": "0" * 40})
            if recursive or len(parts) == 1:
                entries.append(self.entry(each, file))
        return self.answer(entries)

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        if (repo := self.repo(f"{kind}/{name}")) and (commit := self.commit_of(repo, revision)):
            if "json" in (self.headers.get("Content-Type") or ""):
                paths = json.loads(self.body)["paths"]
            else:
                paths = parse_qs(self.body.decode()).get("paths", [])
            self.answer([self.entry(path, commit["files"][path]) for path in paths if path in commit["files"]])

    def refs(self, kind: str, name: str) -> None:
        if repo := self.repo(f"{kind}/{name}"):
            head = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo["commits"][-1]["oid"]}
            self.answer({"branches": [head], "converts": [], "tags": []})

    def commits(self, kind: str, name: str, revision: str) -> None:
        if (repo := self.repo(f"{kind}/{name}")) and self.commit_of(repo, revision):
            self.answer(
                [
                    {
                        "id": each["oid"],
                        "title": each["title"],
                        "message": "",
                        "authors": [],
                        "date": "2026-01-01T00:00:00.000Z",
                    }
                    for each in reversed(repo["commits"])
                ]
            )

    def validate(self) -> None:
        self.answer({"errors": [], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        if repo := self.repo(f"{kind}/{name}", write=True):
            known = repo["commits"][-1]["files"]
            files = []
            for file in json.loads(self.body)["files"]:
                path = file["path"]
                is_large = file["size"] > INLINE_LIMIT or LFS_NAMES.search(path)
                before = known.get(path)
                oid = None if before is None else before["sha256" if before["lfs"] else "git"]
                mode = "lfs" if is_large else "regular"
                files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.answer({"files": files})

    def lfs_batch(self, kind: str | None, name: str) -> None:
        if not self.repo(f"{kind or 'models'}/{name}", write=True):
            return
        objects = []
        for each in json.loads(self.body)["objects"]:
            found = {"oid": each["oid"], "size": each["size"]}
            if not self.server.store.blob(each["oid"]).exists():
                base = f"{self.server.address}/_lfs/{each['oid']}"
                upload: dict[str, object] = {"href": base}
                if each["size"] > PART_SIZE:
                    count = math.ceil(each["size"] / PART_SIZE)
                    parts = {str(part): f"{base}/part/{part}" for part in range(1, count + 1)}
                    upload["header"] = {"chunk_size": str(PART_SIZE), **parts}
                    upload["href"] = f"{base}/complete"
                found["actions"] = {"upload": upload, "verify": {"href": f"{base}/verify"}}
            objects.append(found)
        self.answer({"transfer": "multipart", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        stored = self.server.store.put(self.body)
        self.answer({}, 200 if stored["sha256"] == oid else 422)

    def lfs_part(self, oid: str, part: str) -> None:
        path = self.server.store.folder / f"{oid}.{part}"
        path.write_bytes(self.body)
        self.send(b"", 200, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def lfs_complete(self, oid: str) -> None:
        parts = json.loads(self.body)["parts"]
        paths = [self.server.store.folder / f"{oid}.{part['partNumber']}" for part in parts]
        stored = self.server.store.put(b"".join(path.read_bytes() for path in paths))
        self.answer({}, 200 if stored["sha256"] == oid else 422)

    def lfs_verify(self, oid: str) -> None:
        self.answer({}, 200 if self.server.store.blob(oid).exists() else 404)

    def post_commit(self, kind: str, name: str, revision: str) -> None:
        if not (repo := self.repo(f"{kind}/{name}", write=True)):
            return None
        store = self.server.store
        added, deleted, title = {}, [], ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    title = value["summary"]
                    parent = value.get("parentCommit")
                    if parent is not None and parent != repo["commits"][-1]["oid"]:
                        return self.answer({"error": "A commit has happened since. Please refresh and try again."}, 412)
                case "file":
                    added[value["path"]] = store.put(base64.b64decode(value["content"])) | {"lfs": False}
                case "lfsFile":
                    blob = store.blob(value["oid"])
                    if not blob.exists():
                        return self.answer({"error": f"LFS object {value['oid']} is missing"}, 400)
                    added[value["path"]] = store.put(blob.read_bytes()) | {"lfs": True}
                case "deletedFile" | "deletedFolder":
                    deleted.append(value["path"].rstrip("/"))
        oid = store.commit(f"{kind}/{name}", added, deleted, title)
        url = f"{self.server.address}/{'' if kind == 'models' else kind + '/'}{name}/commit/{oid}"
        return self.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        repo = self.repo(f"{kind or 'models'}/{name}")
        if not repo or not (commit := self.commit_of(repo, revision)):
            return None
        if name.startswith("gated/"):
            return self.refuse(403, "GatedRepo", f"Access to {name} is restricted")
        file = commit["files"].get(path)
        if file is None:
            return self.refuse(404, "EntryNotFound", f"no file {path}")
        etag = file["sha256"] if file["lfs"] else file["git"]
        headers = {"X-Repo-Commit": commit["oid"], "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if file["lfs"]:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(file["size"])}
        content = self.server.store.blob(file["sha256"]).read_bytes()
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return self.send(content, 200, headers)
        if asked[1]:
            begin, end = int(asked[1]), int(asked[2]) if asked[2] else len(content) - 1
        else:
            begin, end = max(0, len(content) - int(asked[2])), len(content) - 1
        end = min(end, len(content) - 1)
        if begin > end:
            return self.send(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
        return self.send(content[begin : end + 1], 206, headers)


KIND = r"(?P<kind>models|datasets)"
NAME = r"(?P<name>[^/]+/[^/]+?)"
REV = r"(?P<revision>[^/]+)"
LFS = r"/_lfs/(?P<oid>[0-9a-f]{64})"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create_repo),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/{KIND}/{NAME}/preupload/{REV}", Handler.preupload),
    ("POST", rf"/api/{KIND}/{NAME}/commit/{REV}", Handler.post_commit),
    ("POST", rf"/api/{KIND}/{NAME}/paths-info/{REV}", Handler.paths_info),
    ("GET", rf"/api/{KIND}/{NAME}/tree/{REV}(?P<path>/.*)?", Handler.tree),
    ("GET", rf"/api/{KIND}/{NAME}/refs", Handler.refs),
    ("GET", rf"/api/{KIND}/{NAME}/commits/{REV}", Handler.commits),
    ("GET", rf"/api/{KIND}/{NAME}/revision/{REV}", Handler.info),
    ("GET", rf"/api/{KIND}/{NAME}", Handler.info),
    ("POST", rf"/(?:(?P<kind>datasets)/)?{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", LFS, Handler.lfs_put),
    ("PUT", rf"{LFS}/part/(?P<part>\d+)", Handler.lfs_part),
    ("POST", rf"{LFS}/complete", Handler.lfs_complete),
    ("POST", rf"{LFS}/verify", Handler.lfs_verify),
    ("ANY", rf"/(?:(?P<kind>datasets)/)?{NAME}/resolve/{REV}/(?P<path>.+)", Handler.resolve),
]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.store = Store(folder)
        self.faults: list[dict] = []
        self.log: list[str] = []
        self.served: dict[str, int] = {}  # path -> bytes

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that went away, or was sent away
            super().handle_error(request, client_address)


class RunningServer:
    """The server as a separate process, which can be killed and started again at the same address.

    The address is reserved from the beginning, though nothing listens there before `start`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        self.reserved = socket.socket()
        self.reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: so both may have it
        self.reserved.bind(("127.0.0.1", 0))
        self.port = self.reserved.getsockname()[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        if self.process is None:
            command = [sys.executable, __file__, str(self.folder / "hub"), str(self.port)]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert self.process.stdout is not None  # it is a pipe
            assert self.process.stdout.readline().strip() == self.address

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def ask(self, path: str, content: object = None) -> Any:
        """Gives the JSON of the answer, whatever it is."""
        body = None if content is None else json.dumps(content).encode()
        with urllib.request.urlopen(urllib.request.Request(self.address + path, body)) as answer:
            return json.load(answer)

    def break_next(self, *faults: dict) -> None:
        """Replaces the faults that wait."""
        self.ask("/_faults", list(faults))

    def log(self) -> list[str]:
        return self.ask("/_log")

    def served(self) -> dict[str, int]:
        return self.ask("/_served")

    def forget(self) -> None:
        self.ask("/_forget", [])

    def add(self, name: str, files: dict[str, bytes], kind: str = "datasets", private: bool = False) -> str:
        """Makes a repository, or a further commit in it; gives the commit's name."""
        contents = {path: base64.b64encode(content).decode() for path, content in files.items()}
        return self.ask("/_add", {"key": f"{kind}/{name}", "private": private, "files": contents})["oid"]

    def commits(self, name: str, kind: str = "models") -> list[dict]:
        """Oldest first: oid, title, and files as path -> {sha256, size}."""
        return self.ask("/_repos").get(f"{kind}/{name}", {"commits": []})["commits"]

    def blobs(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "hub" / "blobs").iterdir()}


@cache
def shared_server() -> RunningServer:
    """The one of this process, not yet started; it is gone, with all that it held, when the process ends."""
    running = RunningServer(Path(tempfile.mkdtemp(prefix="hub-")))
    atexit.register(shutil.rmtree, running.folder, ignore_errors=True)
    atexit.register(running.stop)
    return running


if __name__ == "__main__":
    server = Server(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(server.address, flush=True)
    server.serve_forever()
