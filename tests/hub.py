"""A stand-in of the hub on this machine: the routes that one commit and one snapshot need.

What a repository holds is kept as bytes, by commit, so that a test can look at it, or put hostile
files into it.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request, Response

TOKEN = "hf_secretsecretsecretsecretsecretsecr"


class Hub:
    """Repositories: name -> commits, each a dict of files; the last one is `main`."""

    def __init__(self):
        self.repositories, self.private, self.large = {}, set(), {}
        self.requests = []
        self.address = None

    def files(self, repo, revision="main"):
        commits = self.repositories[repo]
        return commits[-1] if revision == "main" else commits[self.names(repo).index(revision)]

    def names(self, repo):
        """Of the commits, 40 digits each, as git has them."""
        return [hashlib.sha1(f"{repo} {i}".encode()).hexdigest() for i in range(self.count(repo))]

    def count(self, repo):
        return len(self.repositories[repo])


def missing(what):
    return Response(status_code=404, headers={"X-Error-Code": what, "X-Error-Message": "not there"})


def make_app(hub):
    app = FastAPI()

    @app.middleware("http")
    async def only_known_users_write(request, forward):
        hub.requests.append(f"{request.method} {request.url.path}")
        writes = request.method == "POST" and "resolve" not in request.url.path
        if writes and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Response(status_code=401, headers={"X-Error-Message": "Invalid credentials"})
        return await forward(request)

    @app.post("/api/repos/create")
    async def create(request: Request):
        asked = await request.json()
        repo = f"{asked['organization']}/{asked['name']}"
        exists = repo in hub.repositories
        if not exists:
            hub.repositories[repo] = [{".gitattributes": b""}]
            if asked.get("visibility") == "private":
                hub.private.add(repo)
        body = json.dumps({"url": f"{hub.address}/{repo}", "id": repo})
        return Response(body, 409 if exists else 200, media_type="application/json")

    @app.post("/api/validate-yaml")
    async def validate(request: Request):
        await request.json()
        return {"errors": [], "warnings": []}

    @app.get("/api/models/{user}/{name}/revision/{revision}")
    async def info(user, name, revision):
        repo = f"{user}/{name}"
        if repo not in hub.repositories:
            return missing("RepoNotFound")
        if revision not in ("main", *hub.names(repo)):
            return missing("RevisionNotFound")
        sha = hub.names(repo)[-1] if revision == "main" else revision
        return {"id": repo, "sha": sha, "private": repo in hub.private}

    @app.get("/api/models/{user}/{name}/tree/{revision}")
    async def tree(user, name, revision):
        files = hub.files(f"{user}/{name}", revision)
        return [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]

    @app.post("/api/models/{user}/{name}/preupload/{revision}")
    async def modes(request: Request):
        files = (await request.json())["files"]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in files
            ]
        }

    @app.post("/{user}/{name}.git/info/lfs/objects/batch")
    async def batch(request: Request):
        objects = (await request.json())["objects"]
        for each in objects:
            each["actions"] = {"upload": {"href": f"{hub.address}/large/{each['oid']}"}}
        body = json.dumps({"transfer": "basic", "objects": objects})
        return Response(body, media_type="application/vnd.git-lfs+json")

    @app.put("/large/{oid}")
    async def put(oid, request: Request):
        data = await request.body()
        if hashlib.sha256(data).hexdigest() != oid:
            return Response(status_code=400)
        hub.large[oid] = data
        return Response()

    @app.post("/api/models/{user}/{name}/commit/{revision}")
    async def commit(user, name, request: Request):
        repo = f"{user}/{name}"
        files = dict(hub.files(repo))
        for line in (await request.body()).splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        hub.repositories[repo].append(files)
        sha = hub.names(repo)[-1]
        return {"commitUrl": f"{hub.address}/{repo}/commit/{sha}", "commitOid": sha}

    @app.api_route("/{user}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve(user, name, revision, path):
        data = hub.files(f"{user}/{name}", revision)[path]
        headers = {"X-Repo-Commit": revision, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        return Response(data, headers=headers, media_type="application/octet-stream")

    return app


@contextmanager
def running():
    """A hub at an address on loopback, until the `with` ends."""
    hub = Hub()
    server = uvicorn.Server(uvicorn.Config(make_app(hub), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    hub.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join()
