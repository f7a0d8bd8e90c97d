"""The explorer as a web application."""

import io
import warnings
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from pydantic import Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import SecondLensError
from ..images import Unreadable, decode
from .live import LONGEST_TEXT, Live
from .pages import PACKS, PLAIN, SECURITY, Pages, static_files
from .runs import SUFFIXES

LARGEST_UPLOAD = 10_000_000
"""Bytes."""
MOST_PIXELS = 40_000_000
TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
BIG = 2**31 - 1

Number = Annotated[int, Path(ge=0, le=BIG)]
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT, pattern=r"\S")]
At = Annotated[int | None, Query(ge=0, le=BIG, description="An image of the fit, by position.")]

HEADERS = {
    "content-security-policy": SECURITY + "; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
FOREVER = {"cache-control": "public, max-age=31536000, immutable"}
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


class NotFound(SecondLensError):
    """There is no such page."""


def make_app(pages: Pages, live: Live | None = None, beside: FastAPI | None = None) -> FastAPI:
    """The application.

    Parameters
    ----------
    pages
        What it shows.
    live
        The model, if it is there.
    beside
        The application of a second lens, served under `/beside`.
    """
    app = FastAPI(title="secondlens explorer", docs_url=None, redoc_url=None, responses=_ERRORS)
    app.add_middleware(SecurityHeaders)
    app.add_exception_handler(SecondLensError, _told)
    _add_pages(app, pages)
    _add_data(app, pages)
    _add_runs(app, pages)
    if live is not None:
        _add_live(app, live)
    if beside is not None:
        app.mount("/beside", beside)
    return app


def _add_pages(app: FastAPI, pages: Pages) -> None:
    @app.get("/", response_class=HTMLResponse)
    async def home() -> str:
        return pages.home()

    def plain(name: str) -> Callable[[], Awaitable[str]]:
        async def page() -> str:
            return pages.plain(name)

        return page

    for name in PLAIN:
        app.get(f"/{name}/", response_class=HTMLResponse, name=name)(plain(name))

    @app.get("/layer/{layer}/", response_class=HTMLResponse)
    async def layer_page(layer: Number) -> str:
        with _missing():
            return pages.layer(layer)

    @app.get("/neuron/{layer}/{neuron}/", response_class=HTMLResponse)
    async def neuron_page(request: Request, layer: Number, neuron: Number) -> str:
        with _missing():
            return pages.neuron(layer, neuron, address=str(request.base_url))


def _add_data(app: FastAPI, pages: Pages) -> None:
    atlas, found = pages.atlas, static_files()

    @app.get("/static/{name}", **_holding(*TYPES.values()))
    async def static(name: str) -> Response:
        if name not in found:
            raise NotFound("there is no such file")
        return Response(found[name], media_type=TYPES[name.rpartition(".")[2]])

    def pack(name: str) -> Callable[[], Awaitable[Response]]:
        async def answer() -> Response:
            return Response(getattr(pages, name), media_type=GZIP)

        return answer

    for name, what in PACKS.items():
        app.get(f"/data/{name}.json.gz", name=name, **_holding(GZIP))(pack(what))

    @app.get("/data/neuron/{layer}/{neuron}.json")
    async def neuron(layer: Number, neuron: Number) -> JSONResponse:
        with _missing():
            return JSONResponse(atlas.neuron(layer, neuron))

    @app.get("/data/image/{position}.json")
    async def image(position: Number) -> JSONResponse:
        with _missing():
            return JSONResponse(atlas.image(position))

    @app.get("/pictures/{position}.webp", **_holding("image/webp"))
    async def picture(position: Number) -> Response:
        with _missing():
            atlas.image(position)
        found = atlas.survey.picture(position) if atlas.survey else b""
        if not found:
            raise NotFound(f"the survey has no picture {position}")
        return Response(found, media_type="image/webp", headers=FOREVER)

    @app.get("/preview/{layer}/{neuron}.png", **_holding("image/png"))
    def preview(layer: Number, neuron: Number) -> Response:
        with _missing():
            return Response(pages.preview(layer, neuron), media_type="image/png")


def _add_runs(app: FastAPI, pages: Pages) -> None:
    pictures = pages.runs.pictures

    @app.get("/runs/pictures/{picture}", **_holding(*SUFFIXES.values()))
    def run_picture(picture: Number) -> Response:
        if picture >= len(pictures):
            raise NotFound(f"no run has a picture {picture}")
        path = pictures[picture]
        return Response(path.read_bytes(), media_type=SUFFIXES[path.suffix])


def _add_live(app: FastAPI, live: Live) -> None:
    @app.get("/live/search")
    def search(text: Text) -> JSONResponse:
        return JSONResponse(live.search(text))

    @app.get("/live/wall/{layer}/{neuron}")
    def wall(layer: Number, neuron: Number, text: Text) -> JSONResponse:
        with _missing():
            live.atlas.check(layer, neuron)
        return JSONResponse(live.wall(layer, neuron, text))

    @app.get("/live/budget/{layer}/{neuron}")
    def budget(layer: Number, neuron: Number) -> JSONResponse:
        with _missing():
            live.atlas.check(layer, neuron)
        return JSONResponse(live.budget(layer, neuron))

    @app.post("/live/image", openapi_extra=_UPLOAD)
    async def image(request: Request, at: At = None) -> JSONResponse:
        picture = await _picture(request, live, at)
        return JSONResponse(await run_in_threadpool(live.image, picture))

    @app.post("/live/segment", openapi_extra=_UPLOAD)
    async def segment(
        request: Request,
        text: Annotated[list[Text], Query(min_length=1, max_length=2)],
        at: At = None,
    ) -> JSONResponse:
        picture = await _picture(request, live, at)
        return JSONResponse(await run_in_threadpool(live.segment, picture, text))

    if live.can_attack:

        @app.post("/live/attack")
        def attack(draw: Text, mistake_for: Text) -> JSONResponse:
            return JSONResponse(live.attack(draw, mistake_for))


async def _picture(request: Request, live: Live, at: int | None) -> Image.Image:
    """The picture in a request's body, in memory only, or one of the fit."""
    if at is not None:
        with _missing():
            live.atlas.image(at)
        return await run_in_threadpool(live.picture, at)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_UPLOAD:
            raise SecondLensError(
                f"the picture has more than {LARGEST_UPLOAD // 10**6} MB: send a smaller one"
            )
    return await run_in_threadpool(_decoded, bytes(body))


def _decoded(body: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(io.BytesIO(body)).size if body else (0, 0)
        if width * height > MOST_PIXELS:
            raise Unreadable(f"it has more than {MOST_PIXELS:,} pixels")
        return decode(io.BytesIO(body))
    except Unreadable as error:
        raise SecondLensError(f"the picture cannot be used: {error}") from error
    except Exception as error:  # parsers of headers raise whatever they trip over
        raise SecondLensError("the picture cannot be used: it is in no known format") from error


class _missing:  # noqa: N801
    """Inside it, what is wrong is the address."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, SecondLensError):
            raise NotFound(str(error)) from error


async def _told(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, NotFound) else 400
    return JSONResponse({"detail": str(error)}, status_code=status)


class SecurityHeaders:
    """Adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}  # of an application beside
                new = [pair for pair in self.headers if pair[0] not in there]
                message["headers"] = [*message["headers"], *new]
            await send(message)

        await self.app(scope, receive, add if scope["type"] == "http" else send)
