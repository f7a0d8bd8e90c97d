"""A captioner that runs here: any chat model of transformers."""

from collections.abc import Sequence
from typing import Any

import jinja2
import torch

from ...errors import SecondLensError
from ...models.strangers import UNLOADABLE, check_model, no_code_runs
from ...naming import shown_place
from .captioning import PROPOSED, TEMPERATURE, TOP_P, instructions, proposed
from .selection import Pair


class ChatModel:
    """Captions by a local chat model, sampled with the paper's settings.

    Parameters
    ----------
    model
        Folder or hub name of a causal language model with a chat template.
    tokens
        Longest reply.

    Raises
    ------
    SecondLensError
        transformers is missing, there is no such model, it has no chat template, or it names code
        to run.
    """

    def __init__(self, model: str, *, device: str = "cpu", tokens: int = 1024) -> None:
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise SecondLensError(
                "a local chat model needs transformers: pip install 'secondlens[attack]'"
            ) from None
        try:
            check_model(model)
            with no_code_runs():
                self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
                network = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)
            self._model = network.to(device).eval()
        except UNLOADABLE as error:
            raise SecondLensError(
                f"{model} is no chat model that can be loaded: name a folder or a hub name"
            ) from error
        if self._tokenizer.chat_template is None:
            raise SecondLensError(
                f"{model} has no chat template: take a model that was tuned to follow instructions"
            )
        self.name, self.tokens = f"chat:{shown_place(model)}", tokens

    @torch.no_grad()
    def write(self, pair: Pair, words: Sequence[str], count: int, seed: int) -> list[str]:
        """The captions of one reply, see `ask`."""
        return self.ask(instructions(pair, words, PROPOSED * count), seed)

    def ask(self, prompt: str, seed: int) -> list[str]:
        """The texts of the list in one reply; the same ones for the same seed.

        Raises
        ------
        SecondLensError
            The chat template fails, or reaches for what a template may not; or there is no list in
            the reply.
        """
        asked = [{"role": "user", "content": prompt}]
        try:
            inputs = self._tokenizer.apply_chat_template(
                asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self._model.device)
        except (jinja2.TemplateError, *UNLOADABLE) as error:
            reason = str(error).strip().split("\n")[0]
            raise SecondLensError(f"the chat template of {self.name} fails: {reason}") from error
        place = self._model.device
        # those of all devices would be started by default, with a warning where there are several
        drawing = [] if place.type == "cpu" else [place]
        with torch.random.fork_rng(drawing, device_type=place.type):
            torch.manual_seed(seed)
            reply = self._model.generate(
                **inputs,
                max_new_tokens=self.tokens,
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
            )
        start = inputs["input_ids"].shape[1]
        said = self._tokenizer.decode(reply[0, start:], skip_special_tokens=True)
        return proposed(said, self.name)


def chat(chosen: str, *, device: str, **_: Any) -> ChatModel:
    """The member "chat" of `captioners`, such as "chat:folder/of/a/model".

    Raises
    ------
    SecondLensError
        No model is named, or what `ChatModel` raises.
    """
    model = chosen.partition(":")[2]
    if not model:
        raise SecondLensError("chat names no model: give its hub name or folder, as chat:MODEL")
    return ChatModel(model, device=device)
