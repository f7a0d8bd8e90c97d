"""What can go wrong because of the caller, each told in one sentence that says what to do."""

import re


class SecondLensError(Exception):
    """A mistake in what was asked for; its message is one sentence and names the way out.

    The command line prints the message alone and exits with code 2. What a library says may have
    several lines; they are put into one.
    """

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"\s*\n\s*", " ", message).strip())


class UnsupportedModel(SecondLensError):
    """The model computes something that the second-order effect of the paper does not describe."""


class SecondLensWarning(UserWarning):
    """What was approximated, left out or chosen without being asked for, in one sentence.

    The command line prints it as a note.
    """
