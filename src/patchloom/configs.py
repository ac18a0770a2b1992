"""What users write: strict, frozen models, whose mistakes are told in one sentence each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from patchloom.errors import ConfigError

__all__ = ["Strict", "parsed_as"]

_Model = TypeVar("_Model", bound=BaseModel)


class Strict(BaseModel):
    """No key that is not known, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def parsed_as(kind: type[_Model], name: str, given: Any) -> _Model | None:
    """An argument that is a model, or a mapping of its keys, or None.

    Parameters
    ----------
    kind
        The model.
    name
        Of the argument, for messages.
    given
        What the user wrote.

    Raises
    ------
    ConfigError
        One sentence a mistake, with the nearest right key.
    """
    if given is None or isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{name}= is a mapping with some of the keys {list(kind.model_fields)}, got "
            f"{type(given).__name__}"
        )
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        told = dict.fromkeys(_sentence(kind, name, item) for item in error.errors())
        raise ConfigError("; ".join(told)) from None


def _sentence(kind: type[BaseModel], name: str, item: Any) -> str:
    key = str(item["loc"][0]) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        known = [field.alias or key for key, field in kind.model_fields.items()]
        near = difflib.get_close_matches(key, known, 1)
        return f"{name} has the keys {known}, got {key!r}" + (
            f"; did you mean {near[0]!r}?" if near else ""
        )
    return f"{name}{'.' if key else ''}{key}: {item['msg']}, got {item.get('input')!r}"
