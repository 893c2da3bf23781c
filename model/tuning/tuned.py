"""What tuning found, as training and evaluation read it: best.json of a tuning directory."""

from pathlib import Path
from typing import Any

import msgspec

from model.contract.errors import FunnelcastError
from model.fit import Settings
from model.tabular import Trees

BEST = "best.json"
OF_MODEL = ("dropout", "anonymity")  # fields of the network's config; the others are of its settings


class Tuned(msgspec.Struct, frozen=True):
    """The best of each search; None where there was none."""

    network: dict[str, Any] | None = None
    boosting: Trees | None = None


def read_tuned(folder: Path | None) -> Tuned:
    """Read what a tuning directory found; nothing for None."""
    if folder is None:
        return Tuned()
    try:
        return msgspec.json.decode((folder / BEST).read_bytes(), type=Tuned)
    except OSError:
        raise FunnelcastError(f"no {BEST} in {folder}; give the --out of a funnelcast tune") from None
    except msgspec.MsgspecError as error:
        raise FunnelcastError(f"{folder / BEST} is damaged ({error}); run funnelcast tune again") from None


def tuned_settings(tuned: Tuned, settings: Settings) -> Settings:
    """Put what was found into the settings of training."""
    return with_values(settings, (tuned.network or {}) | ({"trees": tuned.boosting} if tuned.boosting else {}))


def with_values(settings: Settings, values: dict[str, Any]) -> Settings:
    """Replace settings, those of the network's config included."""
    inner = {name: value for name, value in values.items() if name in OF_MODEL}
    outer = {name: value for name, value in values.items() if name not in OF_MODEL}
    return msgspec.structs.replace(settings, model=msgspec.structs.replace(settings.model, **inner), **outer)
