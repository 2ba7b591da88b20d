"""Reading and writing weights: safetensors out, safetensors or published ``.pth`` files in.

Files of others are read as tensors and plain values only (``weights_only``), so that no code in them can run.
Published depth models are zips or folders of ``encoder.pth``, ``depth.pth``, ``pose_encoder.pth`` and
``pose.pth``; training runs of the reference leave one ``best_model.pkl`` with keys ``models.<part>.*``.
"""

import codecs
import io
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor, nn

from semivid.errors import UserError, shown

State = dict[str, Tensor]
_SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl")
_SHOWN = 4


def _numpy_scalars() -> list:
    """What a NumPy number in a checkpoint (a best score) needs: its types, under old and new module names."""
    try:
        from numpy._core.multiarray import scalar
    except ImportError:
        from numpy.core.multiarray import scalar
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (codecs.encode, "_codecs.encode"),
        np.dtype,
        *dtypes,
    ]


def _load(source: Path | io.BytesIO, safetensors: bool) -> Mapping:
    if safetensors:
        from safetensors.torch import load, load_file

        return load(source.getvalue()) if isinstance(source, io.BytesIO) else load_file(source)
    with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a pickle protocol that torch then refuses
        return torch.load(source, map_location="cpu", weights_only=True)


def _begins_like_torch(source: Path | io.BytesIO) -> bool:
    """Tell a pickle or a zip of one, which torch understood and refused, from a page that was saved as weights."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(2)
    else:
        head = source.getvalue()[:2]
    return head[:1] == pickle.PROTO or head == b"PK"


def _read(source: Path | io.BytesIO, name: str) -> State:
    try:
        content = _load(source, name.endswith(".safetensors"))
    except FileNotFoundError:
        raise UserError(f"{name}: no such file; give the path of a .safetensors or .pth file") from None
    except Exception as error:
        # torch, pickle, zipfile and safetensors each have their own; a broken file can raise nearly any.
        if isinstance(error, pickle.UnpicklingError) and _begins_like_torch(source):
            raise UserError(
                f"{name}: holds more than tensors and plain values and is not loaded for safety; "
                "export its weights as .safetensors"
            ) from error
        raise UserError(f"{name}: cannot be read as a weights file; download or export it again") from error
    for key in ("model_state", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise UserError(f"{name}: holds a {type(content).__name__}, not tensors by name; give a state dict")
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{name}: holds no tensors by name; give a state dict")
    return {key.removeprefix("module."): value for key, value in state.items()}


def read_state(path: Path | str) -> State:
    """The tensors of a ``.safetensors`` file or of a ``.pth``/``.pkl`` file, by name, on the CPU.

    A state dict nested under ``model_state``, ``state_dict`` or ``model`` is found; ``module.`` is cut off.

    Raises:
        UserError: the file is absent or broken, holds objects beyond tensors and plain values, or no tensors.
    """
    return _read(Path(path), str(path))


def describe(state: Mapping[str, Tensor]) -> str:
    """What a state dict seems to be, for error messages."""
    keys = set(state)
    parts = sorted({key.split(".")[1] for key in keys if key.startswith("models.")})
    if parts:
        return f"a whole Three Ways model ({', '.join(parts)})"
    names = {key.removeprefix("encoder.") for key in keys}
    if "conv1.weight" in names and any(name.startswith("layer1.") for name in names):
        bottleneck = any(name.startswith("layer1.0.conv3") for name in names)
        blocks = len({name.split(".")[1] for name in names if name.startswith("layer3.")})
        known = {(False, 2): "18", (False, 6): "34", (True, 6): "50", (True, 23): "101", (True, 36): "152"}
        first = next(v for k, v in state.items() if k.removeprefix("encoder.") == "conv1.weight")
        frames = f" of {first.shape[1] // 3} frames" if first.shape[1] > 3 else ""
        return f"a ResNet-{known.get((bottleneck, blocks), '?')}{frames}"
    if "features.0.weight" in names:
        layers = sum(value.ndim == 4 for key, value in state.items() if key.startswith("features."))
        norm = " with batch normalisation" if "features.1.running_mean" in names else ""
        return f"a VGG-{layers + 3}{norm}" if layers in (8, 10, 13, 16) else f"a network of {layers} convolutions"
    if {"conv_block1.0.weight", "classifier.6.bias"} <= keys:
        stride = 8 if "score_pool3.weight" in keys else 16 if "score_pool4.weight" in keys else 32
        frames = state["conv_block1.0.weight"].shape[1:2].numel() // 3
        several = f" and {frames} frames" if frames > 1 else ""
        return f"an FCN-{stride}s of {state['classifier.6.bias'].numel()} classes{several}"
    if names & {"conv_stem.weight", "_conv_stem.weight"}:
        return "an EfficientNet"
    if any(key.startswith("decoder.") for key in keys):
        return "a depth decoder"
    if any(key.startswith("net.") for key in keys):
        return "a pose decoder"
    return f"an unknown network of {len(keys)} tensors (first: {next(iter(state))})"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold an infinite value or not-a-number."""
    return [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load every tensor of `state` into `module`.

    Classifiers beside an encoder (``fc.*``) are ignored, as are absent ``num_batches_tracked`` counters.

    Args:
        module: the module to fill.
        state: tensors by the module's own key names.
        where: the file's name, for the error.

    Raises:
        UserError: keys or shapes differ; the line names the first few and what the file seems to be. Or a value is
            infinite or not a number.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own and not key.removeprefix("encoder.").startswith("fc.")]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if missing or extra or shapes:
        problems = [
            f"{title} {_some(names)}"
            for title, names in (("lacks", missing), ("has too many:", extra), ("has other shapes:", shapes))
            if names
        ]
        raise UserError(
            f"{where}: does not fit this network: {'; '.join(problems)}; it seems to be {describe(state)}, "
            f"wanted is {describe(own)} of the configured sizes"
        )
    spoilt = not_finite({key: state[key] for key in own if key in state})
    if spoilt:
        raise UserError(
            f"{where}: {len(spoilt)} of {len(own)} tensors hold values that are infinite or not a number ("
            f"{_some(spoilt)}); its training diverged or the file is damaged: take another one"
        )
    module.load_state_dict({key: state.get(key, value) for key, value in own.items()})


def save_state(module: nn.Module, path: Path | str) -> None:
    """Write the module's tensors as a ``.safetensors`` file, on the CPU and in plain memory layout."""
    from safetensors.torch import save_file

    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    save_file(state, str(path))


def save_parts(parts: Mapping[str, nn.Module], folder: Path | str) -> list[Path]:
    """Write each part as ``<folder>/<name>.safetensors``; returns the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.safetensors" for name in parts]
    for module, path in zip(parts.values(), paths, strict=True):
        save_state(module, path)
    return paths


def _part_states(source: Path, names: list[str]) -> Iterator[tuple[str, str, State]]:
    """(part, file name, tensors) of each named part in a folder, a zip or a whole model's file."""
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give a folder or zip of encoder, depth, ...")
    if source.is_dir():
        files = {path.name: path for path in sorted(source.iterdir())}
        for name in names:
            path = _pick(files, name, source)
            yield name, str(path), read_state(path)
    elif source.suffix == ".zip":
        try:
            archive = zipfile.ZipFile(source)
        except zipfile.BadZipFile:
            raise UserError(f"{source}: is not a complete zip file; download it again") from None
        with archive:
            files = {PurePosixPath(entry).name: entry for entry in archive.namelist()}
            # Nothing is unpacked to disk, but a file made to write elsewhere is not to be trusted with anything.
            outside = [shown(entry) for entry in archive.namelist() if _leads_outside(entry)]
            if outside:
                raise UserError(
                    f"{source}: names files outside of itself ({_some(outside)}), which an honest archive does not; "
                    "do not use it"
                )
            for name in names:
                entry = _pick(files, name, source)
                try:
                    content = archive.read(entry)
                except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                    raise UserError(f"{source}: {entry} cannot be unpacked ({error}); download it again") from None
                yield name, f"{source}:{entry}", _read(io.BytesIO(content), entry)
    else:
        state = read_state(source)
        for name in names:
            prefix = f"models.{name}."
            part = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
            if not part:
                raise UserError(f"{source}: holds no part {name!r} (keys {prefix}*); it seems to be {describe(state)}")
            yield name, str(source), part


def _leads_outside(entry: str) -> bool:
    path = entry.replace("\\", "/")
    return path.startswith("/") or path[1:2] == ":" or ".." in path.split("/")


def _pick(files: Mapping[str, Path | str], name: str, source: Path):
    for suffix in _SUFFIXES:
        if name + suffix in files:
            return files[name + suffix]
    raise UserError(
        f"{source}: holds no {name}.safetensors or {name}.pth; it holds {_some(sorted(files)) or 'nothing'}"
    )


def load_parts(parts: Mapping[str, nn.Module], source: Path | str) -> None:
    """Fill parts of a network from published or own files.

    Args:
        parts: module by part name (``encoder``, ``depth``, ``pose_encoder``, ``pose``, ``segmentation``).
        source: a folder or zip of ``<part>.safetensors`` or ``<part>.pth``, or one file of a whole model with
            keys ``models.<part>.*`` (``best_model.pkl``); parts that are not asked for are ignored.

    Raises:
        UserError: a part is absent, does not fit exactly, or a file cannot be read.
    """
    for name, where, state in _part_states(Path(source), list(parts)):
        load_strictly(parts[name], state, where)
