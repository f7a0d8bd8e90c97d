"""What keeps the server safe from what is sent to it, and its pages from other pages."""

import asyncio
import io
import ipaddress
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse
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
LONGEST_PAUSE = 5
"""Seconds between two parts of a picture."""
UPLOADS = 8
"""Pictures in memory at a time; one of them is decoded."""
QUEUE = 32
"""Requests that wait for one kind of work; more are sent away at once."""
LOOK = 0.25
"""Seconds between two looks whether one who waits is still there."""

NOBODY = "'none'"

Answer = TypeVar("Answer")


class Busy(SecondLensError):
    """Too many wait already; later, there may be room."""


class WorkQueue:
    """Costly work: a few pieces at a time, a short queue, and no work for those who have gone.

    A thread is taken only by what is worked on, so that what is quick finds one.

    Parameters
    ----------
    places
        Pieces at a time.
    """

    def __init__(self, places: int = 1) -> None:
        self._places = asyncio.Semaphore(places)
        self._waiting = 0

    async def do(self, request: Request, work: Callable[[], Answer]) -> Answer:
        """What a function gives, called in a thread when it is this request's turn.

        Raises
        ------
        Busy
            The queue is full.
        ClientDisconnect
            The client hung up before its turn.
        """
        async with self.turn(request):
            return await run_in_threadpool(work)

    @asynccontextmanager
    async def turn(self, request: Request | None) -> AsyncIterator[None]:
        """A place, for as long as the `async with` lasts; raises as `do`.

        Without the request, nobody looks whether its client is still there: where a body was not
        read yet, looking would lose a part of it.
        """
        if self._places.locked():
            if self._waiting >= QUEUE:
                raise Busy("too many wait for the model already: try again in a moment")
            self._waiting += 1
            try:
                await self._wait(request)
            finally:
                self._waiting -= 1
        else:
            await self._places.acquire()
        try:
            yield
        finally:
            self._places.release()

    async def _wait(self, request: Request | None) -> None:
        place = asyncio.ensure_future(self._places.acquire())
        try:
            while not place.done():
                await asyncio.wait({place}, timeout=LOOK)
                if request and not place.done() and await request.is_disconnected():
                    raise ClientDisconnect
        except BaseException:
            if not place.cancel() and not place.cancelled():
                self._places.release()
            raise


class Uploads:
    """Pictures that are sent: a few at a time, held in memory while they are used.

    Parameters
    ----------
    queue
        Where they are decoded and used.
    """

    def __init__(self, queue: WorkQueue | None = None) -> None:
        self._slots = WorkQueue(UPLOADS)
        self._queue = queue or WorkQueue()

    async def use(self, request: Request, answer: Callable[[Image.Image], Answer]) -> Answer:
        """What a function makes of the picture in the body of a request.

        Raises
        ------
        SecondLensError
            The body is too large or too slow, or holds no usable picture.
        Busy, ClientDisconnect
            As `WorkQueue.do`.
        """
        async with self._slots.turn(None):
            try:
                async with asyncio.timeout(LONGEST_UPLOAD):
                    body = await _bounded(request)
            except TimeoutError:
                raise SecondLensError(
                    f"the picture was not there after {LONGEST_UPLOAD} s, or paused for more than "
                    f"{LONGEST_PAUSE} s: send a smaller one"
                ) from None
            return await self._queue.do(request, lambda: _answered(body, answer))


def _answered(body: bytes, answer: Callable[[Image.Image], Answer]) -> Answer:
    try:
        picture = decode(io.BytesIO(body), most_pixels=MOST_PIXELS)
    except Unreadable as error:
        raise SecondLensError(f"the picture cannot be used: {error}") from error
    return answer(picture)


async def _bounded(request: Request) -> bytes:
    body = bytearray()
    parts = aiter(request.stream())
    while True:
        async with asyncio.timeout(LONGEST_PAUSE):
            part = await anext(parts, None)
        if part is None:
            return bytes(body)
        body += part
        if len(body) > LARGEST_UPLOAD:
            raise SecondLensError(
                f"the picture has more than {LARGEST_UPLOAD // 10**6} MB: send a smaller one"
            )


LOOPBACK = ("localhost", "127.0.0.0/8", "::1/128")
"""Every way to say this machine."""
LITERAL = ("localhost", "0.0.0.0/0", "::/0")
"""Addresses in numbers, which no page elsewhere can make its own as it can a name."""


def _split(address: str) -> SplitResult:
    return urlsplit(address if "//" in address else f"//{address}")


def served_names(listening: str, address: str) -> tuple[str, ...]:
    """The hosts that a server answers to.

    Parameters
    ----------
    listening
        The address that it listens on, in numbers.
    address
        Where visitors find it; without it, one that listens to other machines too answers to any
        name.
    """
    name = _split(address).hostname
    named = () if name is None else (name,)
    if ipaddress.ip_address(listening.partition("%")[0]).is_loopback:
        return (*LOOPBACK, *named)
    return (*LITERAL, *named) if named else ("*",)


class HostGuard:
    """Answers to some names only: a page elsewhere may point a name of its own at this machine.

    Parameters
    ----------
    hosts
        Names, networks such as "127.0.0.0/8", or "*" for all.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app, self.all = app, "*" in hosts
        self.networks = [ipaddress.ip_network(each) for each in hosts if "/" in each]
        self.names = {each.lower() for each in hosts if "/" not in each}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan" or self.all or self._knows(scope):
            await self.app(scope, receive, send)
        else:
            refusal = PlainTextResponse("this server does not answer to that name", 400)
            await refusal(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = _given(scope, b"host")
        try:
            parts = urlsplit(f"//{given}")
            name, port = (parts.hostname or "").removesuffix("."), parts.port
        except ValueError:
            return False
        # what else stands in it, such as a user's name, is no host
        if given.lower().removesuffix(f":{port}").strip("[]").removesuffix(".") != name:
            return False
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self.networks) or name in self.names


SAFE = ("GET", "HEAD", "OPTIONS")
ASKED_HERE = ("same-origin", "none")
"""What browsers say of requests by pages of this server, and by their users."""


class SameOrigin:
    """Refuses requests that a page of another site makes a visitor's browser send.

    All that works for whoever asks: addresses under a `live/`, and every method but those that only
    read. Programs that are no browsers send neither header, and pass.

    Parameters
    ----------
    address
        Where visitors find this server, if a proxy tells it another name than theirs.
    """

    def __init__(self, app: ASGIApp, address: str = "") -> None:
        self.app, self.name = app, _split(address).netloc.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan" or not self._works(scope) or self._is_own(scope):
            await self.app(scope, receive, send)
        else:
            about = "a page of another site asks for this: open the explorer itself"
            await JSONResponse({"detail": about}, 403)(scope, receive, send)

    def _works(self, scope: Scope) -> bool:
        return scope.get("method") not in SAFE or "live" in scope["path"].split("/")

    def _is_own(self, scope: Scope) -> bool:
        if site := _given(scope, b"sec-fetch-site"):
            return site in ASKED_HERE
        origin = _given(scope, b"origin")
        hosts = {_given(scope, b"host").lower(), self.name} - {""}
        return not origin or urlsplit(origin).netloc.lower() in hosts


def _given(scope: Scope, name: bytes) -> str:
    """What a header says; several of one name say nothing that can be trusted."""
    found = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return ", ".join(found)


class ShutdownReply:
    """Answers those whose work is cut short because the server ends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except asyncio.CancelledError:
            if scope["type"] != "http" or begun:
                raise
            await JSONResponse({"detail": "the server ends"}, 503)(scope, receive, send)


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
