"""Runs of earlier versions: what they called things, and what they did not write down."""

from collections.abc import Mapping
from typing import Any

from ...naming import shown

OLD_NAMES: Mapping[str, str] = {
    "shots": "samples",
    "writer": "captioner",
    "drawer": "image_generator",
    "check": "judge",
}
"""What version 0.1 called keys of its files and options of `attack`, which are read until 0.3."""


def new_names(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document of a run, or options, with today's keys; those of its settings as well."""
    found = {OLD_NAMES[key]: value for key, value in document.items() if key in OLD_NAMES}
    found |= {key: value for key, value in document.items() if key not in OLD_NAMES}
    if isinstance(found.get("settings"), dict):
        found["settings"] = new_names(found["settings"])
    return found


def without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run with names as they are written today: those of older runs may be paths."""
    return {
        key: shown(value) if isinstance(value, str) else value for key, value in settings.items()
    }


def with_old_names(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report with the keys of version 0.1 beside today's, for programs that read those."""
    settings = report["settings"]
    old = {key: settings[name] for key, name in OLD_NAMES.items() if name in settings}
    return {**report, "settings": {**settings, **old}, "shots": report["samples"]}


NEWER = frozenset(
    {
        *("class_names", "class_texts", "lens_description", "activation_function"),
        *("too_close_threshold", "image_generator_dtype", "judge_weights"),
    }
)
"""Settings that earlier versions did not write down: runs of those go on without them."""
