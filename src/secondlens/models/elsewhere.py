"""Names that another library has: a model is then said to be that library's, and how to name it."""

import open_clip
import timm


def elsewhere(name: str, library: str) -> str:
    """The end of a message that `library` has no model of that name: which one has it, or nothing.

    Parameters
    ----------
    name
        Without what stands before a colon.
    library
        "open_clip", "timm" or "transformers", whose own names do not count.
    """
    if library != "open_clip" and name.replace("/", "-") in open_clip.list_models():
        return f": it is a model of open_clip, so name it {name} alone"
    if library != "timm" and timm.is_model(name.partition(".")[0]):
        return f": it is a model of timm, so name it timm:{name}"
    return ""
