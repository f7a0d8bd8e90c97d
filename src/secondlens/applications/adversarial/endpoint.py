"""A captioner behind an OpenAI-compatible endpoint: vLLM, Ollama, or a hosted one."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import SecondLensError
from ...naming import shown
from .captioning import PROPOSED, TEMPERATURE, TOP_P, instructions, proposed
from .selection import Pair

KEY = "OPENAI_API_KEY"
"""The environment variable that keys are read from; nothing else is looked at or written."""

LONGEST_REASON = 300
"""Characters of what a server says is wrong."""

LARGEST_REPLY = 1_000_000
"""Bytes that are read of a reply."""


class Endpoint:
    """Captions by a chat model.

    Calls that time out, are refused for their rate or fail on the server's side are repeated
    by the client library, after the delay that the server asks for.

    Parameters
    ----------
    url
        Such as "http://localhost:11434/v1".
    model
        A name that the endpoint knows.
    timeout
        Seconds for one call.
    retries
        Of each call.

    Raises
    ------
    SecondLensError
        The client library is missing.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout: float = 120.0,
        retries: int = 4,
        temperature: float = TEMPERATURE,
        top_p: float = TOP_P,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise SecondLensError(
                "an endpoint needs openai: pip install 'secondlens[attack]'"
            ) from None
        self.name, self.url, self.model = f"endpoint:{shown(model)}", url, model
        self.timeout, self.temperature, self.top_p = timeout, temperature, top_p
        # endpoints of one's own want no key, but the client does
        self._client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get(KEY) or "none",
            timeout=timeout,
            max_retries=retries,
        )

    def write(self, pair: Pair, words: Sequence[str], count: int, seed: int) -> list[str]:
        """The captions of one reply, see `ask`."""
        return self.ask(instructions(pair, words, PROPOSED * count), seed)

    def ask(self, prompt: str, seed: int) -> list[str]:
        """The texts of the list in one reply.

        Raises
        ------
        SecondLensError
            The endpoint is not there, refuses the key or the request, is too slow, breaks off, or
            answers with what is no reply of a chat model, or has no list in it.
        """
        reply = self._reply(prompt, seed)
        try:
            document = json.loads(reply)
            if reason := self._reason(document):
                raise SecondLensError(f"the endpoint {self.url} fails: {reason}")
            choice = document["choices"][0]
            said = _text(choice["message"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise SecondLensError(
                f"the endpoint {self.url} answers with something that is no chat reply: check "
                "that it is OpenAI-compatible"
            ) from None
        found = proposed(said, self.name)
        # the last one of a reply that was too long is cut off
        return found[:-1] if choice.get("finish_reason") == "length" else found

    def _reason(self, document: Any) -> str:
        """What the server says is wrong, on one line and without the key, or nothing."""
        said = document.get("error", document) if isinstance(document, dict) else None
        said = said.get("message") if isinstance(said, dict) else said
        if not isinstance(said, str):
            return ""
        key = os.environ.get(KEY)
        line = " ".join((said.replace(key, "…") if key else said).split())
        return line[:LONGEST_REASON]

    def _reply(self, prompt: str, seed: int) -> bytes:
        import openai

        messages: Any = [{"role": "user", "content": prompt}]
        try:
            # streamed as bytes, so that a reply without end is not read to its end
            with self._client.chat.completions.with_streaming_response.create(
                model=self.model,
                messages=messages,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=seed,
            ) as response:
                return self._read(response.iter_bytes())
        # messages of the library may quote the key: the server's reason alone is passed on
        except openai.APITimeoutError:
            raise SecondLensError(self._slow()) from None
        except openai.APIConnectionError:
            raise SecondLensError(
                f"the endpoint {self.url} cannot be reached: start it, then give the same command "
                "again"
            ) from None
        except openai.APIStatusError as error:
            advice = _ADVICE.get(error.status_code, "look into its log, then try again")
            # refused keys come back in part
            reason = "" if error.status_code in (401, 403) else self._reason(error.body)
            raise SecondLensError(
                f"the endpoint {self.url} answers with status {error.status_code}: {advice}"
                + (f"; it says: {reason}" if reason else "")
            ) from None
        except openai.OpenAIError as error:
            raise SecondLensError(
                f"the endpoint {self.url} fails: {type(error).__name__}"
            ) from None

    def _read(self, parts: Iterator[bytes]) -> bytes:
        reply, deadline = b"", time.monotonic() + self.timeout
        while True:
            try:
                part = next(parts, None)
            # of the HTTP library below the client's, whichever that is
            except Exception as error:
                if "Timeout" in type(error).__name__:
                    raise SecondLensError(self._slow()) from None
                raise SecondLensError(
                    f"the endpoint {self.url} breaks off in its reply: give the same command again"
                ) from None
            if part is None:
                return reply
            reply += part
            if len(reply) > LARGEST_REPLY:
                raise SecondLensError(
                    f"the endpoint {self.url} answers with more than "
                    f"{LARGEST_REPLY // 1_000_000} MB: ask another model"
                )
            if time.monotonic() > deadline:
                raise SecondLensError(self._slow())

    def _slow(self) -> str:
        return (
            f"the endpoint {self.url} gives no whole answer in {self.timeout:g} s: ask for fewer "
            "captions, or a faster model"
        )


def _text(message: dict[str, Any]) -> str:
    """What a message says: a text or parts with one each; if nothing, what the model has reasoned.

    Raises
    ------
    TypeError
        It says something else.
    """
    for name in ("content", "reasoning_content", "reasoning"):
        said = message.get(name)
        if isinstance(said, list):
            said = "".join(part.get("text") or "" for part in said)
        if not isinstance(said, str | None):
            raise TypeError
        if said:
            return said
    return ""


_ADVICE = {
    400: "it does not take this request",
    401: f"set {KEY} in the environment",
    403: f"{KEY} in the environment is not allowed to use it",
    404: "check the address and the model's name",
    429: "it limits the rate of calls, so wait, then give the same command again",
}


def endpoint(chosen: str, *, model: str | None, timeout: float, **_: Any) -> Endpoint:
    """The members "http" and "https" of `captioners`.

    Raises
    ------
    SecondLensError
        No model is named, or the client library is missing.
    """
    if model is None:
        raise SecondLensError(f"name the model that {chosen} shall use with --captioner-model")
    return Endpoint(chosen, model, timeout=timeout)
