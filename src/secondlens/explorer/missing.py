"""What answers where nothing is, or where what was sent is wrong: pages for people, else JSON."""

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from ..errors import SecondLensError
from .pages import Pages

FILES = ("/data/", "/live/", "/static/", "/pictures/", "/preview/", "/runs/pictures/")
"""Addresses that scripts and pages ask for; all others are those of pages."""
NOWHERE = "this address leads nowhere"


class NotFound(SecondLensError):
    """There is no such page."""


def add_errors(app: FastAPI, pages: Pages) -> None:
    """Let an application tell errors as pages in the look of the others, or as JSON."""

    async def told(request: Request, error: Exception) -> Response:
        return _wrong(pages, request, 404 if isinstance(error, NotFound) else 400, str(error))

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
