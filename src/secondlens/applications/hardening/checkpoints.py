"""A trained model on the disk: what `harden.json` and the card beside it say."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...naming import shown_model
from ...storage.files import save_json, save_text
from ..editing.checkpoints import Saved, card
from ..editing.outcomes import Outcome
from .resistance import Resistance
from .training import Hardened


def document(
    hardened: Hardened,
    resistances: Sequence[Resistance],
    outcomes: Sequence[Outcome],
    saved: Mapping[str, Saved],
    refused: Mapping[str, str],
) -> dict[str, Any]:
    """What `harden.json` holds."""
    return {
        "model": shown_model(hardened.before),
        "weights_hash": hardened.before_hash,
        "hardened_weights_hash": hardened.clip.weights_hash,
        "training": asdict(hardened.training),
        "attacks": hardened.attacks,
        "usual": hardened.usual,
        "losses": hardened.losses,
        "resistances": [asdict(each) for each in resistances],
        "outcomes": [asdict(each) for each in outcomes],
        "saved": [asdict(each) for each in saved.values()],
        "refused": dict(refused),
    }


def save_card(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `harden.json`, and the card `README.md` that says the same in words."""
    save_json(folder / "harden.json", dict(content))
    text = card("secondlens.applications.hardening", "harden-card.md", content)
    save_text(folder / "README.md", text)
