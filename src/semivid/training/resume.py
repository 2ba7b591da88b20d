"""Files to resume a run from: any nest of dicts, lists, tensors and plain values as safetensors, without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from semivid.errors import UserError
from semivid.pipeline.artifacts import replacing


def _flatten(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A JSON-able copy of `value` in which each tensor is replaced by {"tensor": its name in `tensors`}."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        # Keys may be integers (optimiser state), which JSON cannot keep: pairs instead of an object.
        return {"dict": [[k, _flatten(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_flatten(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    return {"value": value}


def _restore(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {k: _restore(v, tensors) for k, v in value}
    if kind == "list":
        return [_restore(v, tensors) for v in value]
    return value


def save_resume(path: Path, state: dict) -> None:
    """Write `state` (nested dicts and lists of tensors and JSON values) to `path`, flushed and renamed."""
    tensors: dict[str, torch.Tensor] = {}
    tree = _flatten(state, "", tensors)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"tree": json.dumps(tree)})


def load_resume(path: Path) -> dict:
    """Read what `save_resume` wrote. Raises UserError for a file that is damaged or of another kind."""
    try:
        with safe_open(path, framework="pt") as file:
            tree = json.loads(file.metadata()["tree"])
            return _restore(tree, {k: file.get_tensor(k) for k in file.keys()})  # noqa: SIM118
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error}); delete it to start afresh") from None
    except Exception as error:  # safetensors raises its own type, which it does not export everywhere
        raise UserError(f"{path}: damaged checkpoint ({error}); delete it to start afresh") from None
