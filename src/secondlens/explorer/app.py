"""The explorer as a web application, and what it answers where nothing is."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import SecondLensError
from . import page_kinds
from .live import LONGEST_TEXT, Live
from .pages import PACKS, Pages, preview, static_files
from .runs import SUFFIXES
from .safety import (
    Busy,
    Heads,
    HostGuard,
    SameOrigin,
    SecurityHeaders,
    ShutdownReply,
    Uploads,
    WorkQueue,
)

FILES = ("/data/", "/live/", "/static/", "/pictures/", "/preview/", "/runs/pictures/")
"""Addresses that scripts and pages ask for; all others are those of pages."""
NOWHERE = "this address leads nowhere"


class NotFound(SecondLensError):
    """There is no such page."""


def add_errors(app: FastAPI, pages: Pages) -> None:
    """Let an application tell errors as pages in the look of the others, or as JSON."""

    async def told(request: Request, error: Exception) -> Response:
        if isinstance(error, Busy):
            return JSONResponse({"detail": str(error)}, 503, {"retry-after": "2"})
        return _wrong(pages, request, 404 if isinstance(error, NotFound) else 400, str(error))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=400)  # nobody is there to read it

    async def of_another_form(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        if _is_page(request):
            return _wrong(pages, request, 404, NOWHERE)
        return await request_validation_exception_handler(request, error)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404 and _is_page(request):
            return _wrong(pages, request, 404, NOWHERE)
        return await http_exception_handler(request, error)

    app.add_exception_handler(SecondLensError, told)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(RequestValidationError, of_another_form)
    app.add_exception_handler(HTTPException, refused)


def _wrong(pages: Pages, request: Request, status: int, about: str) -> Response:
    if not _is_page(request):
        return JSONResponse({"detail": about}, status)
    root = "../" * (_place(request).count("/") - 1) or "./"
    return HTMLResponse(pages.missing(about, root), status)


def _is_page(request: Request) -> bool:
    return not _place(request).startswith(FILES)


def _place(request: Request) -> str:
    """The address within this application, which another one may have mounted."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
BIG = 2**31 - 1

Number = Annotated[int, Path(ge=0, le=BIG)]
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT, pattern=r"\S")]
Chosen = Annotated[int, Query(ge=0, le=BIG)]
Patch = Annotated[int | None, Query(ge=0, le=BIG, description="Row by row; without, the row.")]
At = Annotated[int | None, Query(ge=0, le=BIG, description="An image of the fit, by position.")]

GZIP = "application/gzip"
_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
    for code, text in ((400, "Bad input"), (404, "Not found"), (422, "Not of the right form"))
}
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _holding(*types: str) -> dict[str, Any]:
    """What a route that gives no JSON says of itself."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in types}
    return {"response_class": Response, "responses": {200: {"content": content}}}


_PAGE: dict[str, Any] = {
    "response_class": HTMLResponse,
    "responses": {
        code: {"description": text, "content": {"text/html": {"schema": {"type": "string"}}}}
        for code, text in ((404, "Not found"), (422, "Never: what is of another form is not found"))
    },
}
_JSON: dict[str, Any] = {
    "response_class": Response,
    "responses": {200: {"content": {"application/json": {"schema": {"type": "object"}}}}},
}


def make_app(
    pages: Pages,
    live: Live | None = None,
    beside: FastAPI | None = None,
    *,
    hosts: Sequence[str] = ("*",),
    address: str = "",
    framed_by: Sequence[str] = (),
) -> FastAPI:
    """The application. What all visitors share is made now, so that none of them waits for it.

    Parameters
    ----------
    pages
        What it shows.
    live
        The model, if it is there.
    beside
        The application of a second lens, served under `/beside`.
    hosts
        Names and networks that it answers to, as `HostGuard` takes them.
    address
        Where visitors find it, if a proxy stands before it.
    framed_by
        Addresses whose pages may show these in a frame.
    """
    app = FastAPI(title="secondlens explorer", docs_url=None, redoc_url=None, responses=_ERRORS)
    app.add_middleware(SameOrigin, address=address)
    app.add_middleware(HostGuard, hosts=hosts)
    app.add_middleware(SecurityHeaders, framed_by=framed_by)
    app.add_middleware(Heads)
    app.add_middleware(ShutdownReply)
    add_errors(app, pages)
    _add_pages(app, pages)
    _add_files(app, pages)
    _add_data(app, pages)
    if live is not None:
        _add_live(app, live)
    if beside is not None:
        app.mount("/beside", beside)
    return app


def _add_pages(app: FastAPI, pages: Pages) -> None:
    def constant(text: str) -> Callable[[], Awaitable[HTMLResponse]]:
        async def page() -> HTMLResponse:
            return HTMLResponse(text)

        return page

    app.get("/", name="home", **_PAGE)(constant(pages.home()))
    for name in page_kinds.names:
        page = constant(pages.plain(name))
        app.get(f"/{name}/", name=name, **_PAGE)(page)

    @app.get("/layer/{layer}/", **_PAGE)
    async def layer_page(layer: Number) -> HTMLResponse:
        with _missing():
            return HTMLResponse(pages.layer(layer))

    @app.get("/neuron/{layer}/{neuron}/", **_PAGE)
    async def neuron_page(request: Request, layer: Number, neuron: Number) -> HTMLResponse:
        with _missing():
            return HTMLResponse(pages.neuron(layer, neuron, address=str(request.base_url)))


def _add_files(app: FastAPI, pages: Pages) -> None:
    atlas, found, runs = pages.atlas, static_files(), pages.runs
    drawing = WorkQueue()

    @app.get("/static/{name}", **_holding(*TYPES.values()))
    async def static(request: Request, name: str) -> Response:
        if name not in found:
            raise NotFound("there is no such file")
        return _kept(request, found[name], TYPES[name.rpartition(".")[2]])

    def constant(content: bytes) -> Callable[[Request], Awaitable[Response]]:
        async def pack(request: Request) -> Response:
            return _kept(request, content, GZIP)

        return pack

    for name, what in PACKS.items():
        pack = constant(getattr(pages, what))
        app.get(f"/data/{name}.json.gz", name=name, **_holding(GZIP))(pack)

    @app.get("/pictures/{position}.webp", **_holding("image/webp"))
    async def picture(request: Request, position: Number) -> Response:
        with _missing():
            atlas.image(position)
        content = atlas.survey.picture(position) if atlas.survey else b""
        if not content:
            raise NotFound(f"the survey has no picture {position}")
        return _kept(request, content, "image/webp")

    @app.get("/preview/{layer}/{neuron}.png", **_holding("image/png"))
    async def link_preview(request: Request, layer: Number, neuron: Number) -> Response:
        with _missing():
            atlas.check(layer, neuron)
        drawn = await drawing.do(request, lambda: preview(atlas, layer, neuron))
        return Response(drawn, media_type="image/png")

    @app.get("/runs/pictures/{picture}", **_holding(*SUFFIXES.values()))
    def run_picture(request: Request, picture: Number) -> Response:
        if picture >= len(runs.pictures):
            raise NotFound(f"no run has a picture {picture}")
        if (found := runs.picture(picture)) is None:
            raise NotFound(f"the picture {picture} of a run is gone, or is not a picture")
        content, suffix = found
        return _kept(request, content, SUFFIXES[suffix])


def _add_data(app: FastAPI, pages: Pages) -> None:
    @app.get("/data/neuron/{layer}/{neuron}.json", **_JSON)
    async def neuron(layer: Number, neuron: Number) -> Response:
        with _missing():
            return _json(pages.profiles.of(layer, neuron))

    @app.get("/data/image/{position}.json", **_JSON)
    async def image(position: Number) -> Response:
        with _missing():
            return _json(pages.atlas.image(position))


def _add_live(app: FastAPI, live: Live) -> None:
    queue = WorkQueue()
    uploads = Uploads(queue)

    async def worked(request: Request, work: Callable[[], Any]) -> Response:
        return _json(await queue.do(request, work))

    async def answered(
        request: Request, at: int | None, answer: Callable[[Image.Image], Any]
    ) -> Response:
        """About a picture of the fit, or the one in the request's body."""
        if at is None:
            return _json(await uploads.use(request, answer))
        with _missing():
            live.atlas.image(at)
        return await worked(request, lambda: answer(live.picture(at)))

    @app.get("/live/search", **_JSON)
    async def search(request: Request, text: Text) -> Response:
        return await worked(request, lambda: live.search(text))

    @app.get("/live/wall/{layer}/{neuron}", **_JSON)
    async def wall(request: Request, layer: Number, neuron: Number, text: Text) -> Response:
        with _missing():
            live.atlas.check(layer, neuron)
        return await worked(request, lambda: live.wall(layer, neuron, text))

    @app.get("/live/budget/{layer}/{neuron}", **_JSON)
    async def budget(request: Request, layer: Number, neuron: Number) -> Response:
        with _missing():
            live.atlas.check(layer, neuron)
        return await worked(request, lambda: live.budget(layer, neuron))

    @app.post("/live/image", openapi_extra=_UPLOAD, **_JSON)
    async def image(request: Request, at: At = None) -> Response:
        return await answered(request, at, live.image)

    @app.post("/live/attention", openapi_extra=_UPLOAD, **_JSON)
    async def attention(
        request: Request,
        layer: Chosen,
        head: Chosen,
        patch: Patch = None,
        contrast: bool = True,
        at: At = None,
    ) -> Response:
        def divided(picture: Image.Image) -> dict[str, Any]:
            return live.attention(picture, layer, head, patch, contrast=contrast)

        return await answered(request, at, divided)

    @app.post("/live/segment", openapi_extra=_UPLOAD, **_JSON)
    async def segment(
        request: Request,
        text: Annotated[list[Text], Query(min_length=1, max_length=2)],
        at: At = None,
    ) -> Response:
        return await answered(request, at, lambda picture: live.segment(picture, text))

    if live.classes:

        @app.post("/live/attack", **_JSON)
        async def attack(request: Request, draw: Text, mistake_for: Text) -> Response:
            return await worked(request, lambda: live.attack(draw, mistake_for))


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def _kept(request: Request, content: bytes, kind: str) -> Response:
    """A file that browsers keep but ask about: another lens may be shown at the same address."""
    tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)


class _missing:  # noqa: N801
    """Inside it, what is wrong is the address."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, SecondLensError):
            raise NotFound(str(error)) from error
