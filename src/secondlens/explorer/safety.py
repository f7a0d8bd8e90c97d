"""What keeps the server safe from what is sent to it, and its pages from other pages."""

import asyncio
import io
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..data.decoding import Unreadable, decode
from ..errors import SecondLensError
from .pages import SECURITY

LARGEST_UPLOAD = 10_000_000
"""Bytes."""
MOST_PIXELS = 25_000_000
"""Of a picture that is sent: decoded, they take four bytes each, a few times over."""
LONGEST_UPLOAD = 30
"""Seconds until a picture has to be there."""
UPLOADS = 8
"""Pictures in memory at a time; one of them is decoded."""

NOBODY = "'none'"

Answer = TypeVar("Answer")


class Uploads:
    """Pictures that are sent: a few at a time, held in memory while they are used."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(UPLOADS)
        self._one = Lock()

    async def use(self, request: Request, answer: Callable[[Image.Image], Answer]) -> Answer:
        """What a function makes of the picture in the body of a request.

        Raises
        ------
        SecondLensError
            The body is too large or too slow, or holds no usable picture.
        """
        async with self._slots:
            try:
                async with asyncio.timeout(LONGEST_UPLOAD):
                    body = await _bounded(request)
            except (TimeoutError, ClientDisconnect):
                raise SecondLensError(
                    f"the picture was not there after {LONGEST_UPLOAD} s: send a smaller one"
                ) from None
            return await run_in_threadpool(self._answer, body, answer)

    def _answer(self, body: bytes, answer: Callable[[Image.Image], Answer]) -> Answer:
        with self._one:
            try:
                picture = decode(io.BytesIO(body), most_pixels=MOST_PIXELS)
            except Unreadable as error:
                raise SecondLensError(f"the picture cannot be used: {error}") from error
            return answer(picture)


async def _bounded(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_UPLOAD:
            raise SecondLensError(
                f"the picture has more than {LARGEST_UPLOAD // 10**6} MB: send a smaller one"
            )
    return bytes(body)


class Heads:
    """Answers HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, without_body)


class SecurityHeaders:
    """Adds the security headers to every response.

    Parameters
    ----------
    framed_by
        Addresses whose pages may show these in a frame.
    """

    def __init__(self, app: ASGIApp, framed_by: Sequence[str] = ()) -> None:
        self.app = app
        framing = f"frame-ancestors {' '.join(framed_by) or NOBODY}"
        headers = {
            "content-security-policy": f"{SECURITY}; {framing}",
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "permissions-policy": "camera=(), microphone=(), geolocation=()",
        }
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}  # of an application beside
                new = [pair for pair in self.headers if pair[0] not in there]
                message["headers"] = [*message["headers"], *new]
            await send(message)

        await self.app(scope, receive, add if scope["type"] == "http" else send)
