"""Settings in a state dict: loading into a module of other settings raises.

Tensors are half of a function; the other half are settings, such as a Lipschitz constant. The
record travels as the extra state of a module, JSON in a tensor of bytes, so that code which expects
tensors (``weights_only``, safetensors, a loop over a state dict) works as before.
"""

import json
import math
import warnings
from dataclasses import fields, is_dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

# The number of the format of a record. Another format needs another number.
FORMAT = 1
# The end of the key under which torch saves an extra state.
SUFFIX = "_extra_state"
# Metadata of a strategy's field that only starts a learned parameter, and so is not compared.
START_ONLY = {"start_only": True}

NO_RECORD = (
    "The state dict holds no settings, such as lipschitz and norm, to compare with those of the "
    "flow: it comes from an older version, or its entries of bytes were dropped or averaged. The "
    "tensors are loaded as they are. Make sure that the flow was built with the settings of the "
    "saved flow, and save the state dict again."
)
UNSAVED = (
    "The state dict comes from an older version, which did not save every setting. Make sure that "
    "the flow was built with the settings of the saved flow, and save the state dict again."
)
REMEDY = (
    "Build the flow with the saved settings. To load the tensors all the same, drop the keys that "
    f"end in '{SUFFIX}' from the state dict."
)

Plain = float | str | bool | None


class HasSettings:
    """An object with settings that change its function."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that change the function, beside tensors and shapes.

        A value is a number, a string, None, a strategy, a module, a class, or a sequence of such. A
        subclass adds its own: ``{**super().settings(), "power": self.power}``.
        """
        return {"kind": type(self).__name__}


class SavedSettings(HasSettings, nn.Module):
    """A module whose state dict holds its settings; loading other settings raises.

    The error is torch's ``RuntimeError`` of ``load_state_dict``, which lists wrong shapes beside
    the settings. A state dict without settings loads with a warning. A subclass with a
    ``get_extra_state`` of its own saves and compares by itself.
    """

    @property
    def needs_record(self) -> bool:
        """True if the settings may differ where the tensors of a state dict fit."""
        return True

    def get_extra_state(self) -> Tensor:
        """Return the settings as JSON in a tensor of bytes."""
        record = {"format": FORMAT, "settings": flatten(self.settings())}
        # Unlike torch.tensor, frombuffer stays on the CPU under any default device.
        return torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # torch gives the prefix and the list of errors to this method only.
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if type(self).get_extra_state is not SavedSettings.get_extra_state:
            return
        key = prefix + SUFFIX
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        record = _read(state_dict[key]) if key in state_dict else None
        if record is None:
            names = {*self._parameters, *self._buffers, *self._modules}
            if self.needs_record and any(_first(k, prefix) in names for k in state_dict):
                warnings.warn(NO_RECORD, stacklevel=1)
            return
        where = f"{prefix[:-1]} ({type(self).__name__})" if prefix else type(self).__name__
        if record["format"] != FORMAT:
            error_msgs.append(
                f"Expected the settings of {where} in format {FORMAT}; got format "
                f"{record['format']}, of another version of pyro-iresnet. Install the version that "
                f"saved the state dict. {REMEDY}"
            )
            return
        found, unsaved = compare(record["settings"], flatten(self.settings()))
        if found:
            # The remedy is the same for all modules.
            remedy = "" if any(REMEDY in m for m in error_msgs) else f" {REMEDY}"
            listed = "; ".join(found)
            error_msgs.append(f"Other settings in {where}: {listed}.{remedy}")
        if unsaved:
            warnings.warn(f"{UNSAVED} Not compared: {', '.join(unsaved)}.", stacklevel=1)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Plain]:
    """Return settings in plain types; the settings of a strategy stand behind its name and a dot.

    Example:
        >>> from pyro_iresnet.norms import Gram
        >>> flatten({"lipschitz": 0.9, "norm": Gram(squarings=5)})
        {'lipschitz': 0.9, 'norm': 'Gram', 'norm.squarings': 5}
    """
    flat: dict[str, Plain] = {}
    for name, value in settings.items():
        head, own = _plain(value)
        flat[prefix + name] = head
        flat.update(flatten(own, f"{prefix}{name}."))
    return flat


def alike(values: list[Any]) -> list[Any]:
    """Return the first of values that have the same settings; else the values."""
    flat = [flatten({"": value}) for value in values]
    return values[:1] if all(one == flat[0] for one in flat) else values


def compare(saved: dict[str, Any], here: dict[str, Plain]) -> tuple[list[str], list[str]]:
    """Return a phrase for each setting that differs, and the settings that were not saved.

    The settings inside a strategy count only if the strategy is the same, and those of one kind of
    module only if the kind is the same.
    """
    found: dict[str, str] = {}
    unsaved: list[str] = []
    for name in {**here, **saved}:
        outer = [name[:i] for i, letter in enumerate(name) if letter == "."]
        if any(o in found for o in outer):
            continue
        if name in saved and name in here:
            if not _equal(saved[name], here[name]):
                found[name] = f"{saved[name]} in the state dict and {here[name]} here"
        elif "kind" not in found:
            if name in saved:
                found[name] = f"{saved[name]} in the state dict and absent here"
            else:
                unsaved.append(name)
    return [f"{name} is {values}" for name, values in found.items()], unsaved


def _equal(a: object, b: object) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        # The last digit of a power depends on the machine.
        return math.isclose(a, b, rel_tol=1e-12)
    return a == b


def _plain(value: Any) -> tuple[Plain, dict[str, Any]]:
    """Return a value or the name of its class, and the settings of its own."""
    if value is None or isinstance(value, bool):
        return value, {}
    if isinstance(value, str):
        return str(value), {}
    if isinstance(value, Real):
        # 1 and 1.0 are the same setting.
        number = float(value)
        return int(number) if number.is_integer() else number, {}
    if isinstance(value, list | tuple):
        pairs = [_plain(v) for v in value]
        if len(pairs) == 1:
            return pairs[0]
        own = {f"{i}.{name}": v for i, (_, each) in enumerate(pairs) for name, v in each.items()}
        return ", ".join(str(head) for head, _ in pairs) or "none", own
    if isinstance(value, HasSettings):
        own = dict(value.settings())
        return str(own.pop("kind", type(value).__name__)), own
    if is_dataclass(value) and not isinstance(value, type):
        compared = [f.name for f in fields(value) if not f.metadata.get("start_only")]
        return type(value).__name__, {name: getattr(value, name) for name in compared}
    # Classes and functions by name, since a repr may hold an address.
    return str(getattr(value, "__name__", type(value).__name__)), {}


def _read(value: object) -> dict[str, Any] | None:
    """Return the record that a tensor of any dtype holds, or None."""
    if not isinstance(value, Tensor):
        return None
    try:
        whole = value.double().round() if value.is_floating_point() else value
        record = json.loads(bytes(map(int, whole.flatten().tolist())))
    except (ValueError, OverflowError, RuntimeError):
        return None
    if not isinstance(record, dict) or "format" not in record:
        return None
    readable = record["format"] != FORMAT or isinstance(record.get("settings"), dict)
    return record if readable else None


def _first(key: str, prefix: str) -> str | None:
    """Return the name in a key that follows a prefix."""
    return key[len(prefix) :].split(".", 1)[0] if key.startswith(prefix) else None
