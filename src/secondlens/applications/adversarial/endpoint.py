"""A captioner behind an OpenAI-compatible endpoint: vLLM, Ollama, or a hosted one."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import SecondLensError
from ...naming import shown
from .captioning import PROPOSED, instructions, listed
from .selection import Pair

KEY = "OPENAI_API_KEY"
"""The environment variable that keys are read from; nothing else is looked at or written."""

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
        temperature: float = 0.6,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise SecondLensError(
                "an endpoint needs openai: pip install 'secondlens[attack]'"
            ) from None
        self.name, self.url, self.model = f"endpoint:{shown(model)}", url, model
        self.timeout, self.temperature = timeout, temperature
        # endpoints of one's own want no key, but the client does
        self._client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get(KEY) or "none",
            timeout=timeout,
            max_retries=retries,
        )

    def write(self, pair: Pair, words: Sequence[str], count: int, seed: int) -> list[str]:
        """The captions of one reply; none if the model refuses.

        Raises
        ------
        SecondLensError
            The endpoint is not there, refuses the key, is too slow, breaks off, or answers with
            what is no reply of a chat model.
        """
        reply = self._reply(instructions(pair, words, PROPOSED * count), seed)
        try:
            said = json.loads(reply)["choices"][0]["message"].get("content") or ""
            if not isinstance(said, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise SecondLensError(
                f"the endpoint {self.url} answers with something that is no chat reply: check "
                "that it is OpenAI-compatible"
            ) from None
        return listed(said)

    def _reply(self, prompt: str, seed: int) -> bytes:
        import openai

        messages: Any = [{"role": "user", "content": prompt}]
        try:
            # streamed as bytes, so that a reply without end is not read to its end
            with self._client.chat.completions.with_streaming_response.create(
                model=self.model, messages=messages, temperature=self.temperature, seed=seed
            ) as response:
                return self._read(response.iter_bytes())
        # messages of the library may quote the key or the reply: none is passed on
        except openai.APITimeoutError:
            raise SecondLensError(self._slow()) from None
        except openai.APIConnectionError:
            raise SecondLensError(
                f"the endpoint {self.url} cannot be reached: start it, then give the same command "
                "again"
            ) from None
        except openai.APIStatusError as error:
            raise SecondLensError(
                f"the endpoint {self.url} answers with status {error.status_code}: "
                f"{_ADVICE.get(error.status_code, 'look into its log, then try again')}"
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


_ADVICE = {
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
