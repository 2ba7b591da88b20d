"""Reading and writing weights: safetensors out, safetensors or published ``.pth`` files in.

Files of others are read as tensors and plain values only (``weights_only``), so that no code in them can run.
Published depth models are zips or folders of ``encoder.pth``, ``depth.pth``, ``pose_encoder.pth`` and
``pose.pth``; training runs of the reference leave one ``best_model.pkl`` with keys ``models.<part>.*``, and the
published multi-task model is a folder with such a file, ``best_model_without_opt.pkl``, beside its ``cfg.yml``.
"""

import codecs
import io
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from semivid.errors import UserError, shown

State = dict[str, Tensor]
_SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl")
_WHOLE = ("best_model_without_opt.pkl", "best_model.pkl")
_SHOWN = 4


class Content(NamedTuple):
    """What a weights file holds: tensors by name, and what else lies beside them (epoch, optimiser, ...)."""

    state: State
    besides: dict[str, Any]


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


def _read(source: Path | io.BytesIO, name: str) -> Content:
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
    besides = {}
    for key in ("model_state", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            besides = {str(other): value for other, value in content.items() if other != key}
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise UserError(f"{name}: holds a {type(content).__name__}, not tensors by name; give a state dict")
    state = {key: value for key, value in content.items() if isinstance(key, str) and _is_weight(value)}
    if not state:
        raise UserError(f"{name}: holds no tensors by name; give a state dict")
    besides |= {str(key): value for key, value in content.items() if key not in state}
    return Content({key.removeprefix("module."): value for key, value in state.items()}, besides)


def _is_weight(value: Any) -> bool:
    """Tell a tensor with values of its own from the other kinds that a file may hold."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided
    return plain and not value.is_quantized and not value.is_meta


def read_state(path: Path | str) -> State:
    """The tensors of a ``.safetensors`` file or of a ``.pth``/``.pkl`` file, by name, on the CPU.

    A state dict nested under ``model_state``, ``state_dict`` or ``model`` is found; ``module.`` is cut off.

    Raises:
        UserError: the file is absent or broken, holds objects beyond tensors and plain values, or no tensors.
    """
    return _read(Path(path), str(path)).state


def describe(state: Mapping[str, Tensor]) -> str:
    """What a state dict seems to be, for error messages."""
    keys = set(state)
    parts = split_parts(state)
    if any(key.startswith("models.") for key in keys):
        return f"a whole Three Ways model ({', '.join(sorted(parts))})"
    if parts:
        return f"a whole network ({', '.join(f'{name}: {describe(part)}' for name, part in parts.items())})"
    if "seg_final_head.0.bias" in keys:
        return f"a multi-task decoder of {state['seg_final_head.0.bias'].numel()} classes"
    if any(key.startswith("unet_dec.") for key in keys):
        classes = next((state[key].numel() for key in ("head.5.bias", "head.2.bias") if key in keys), "unknown")
        return f"a segmentation decoder of {classes} classes"
    if trunk := trunk_name(state):
        if "final.6.weight" in keys and "bot_aspp.weight" in keys:
            return f"a DeepLabV3+ with trunk {trunk} of {state['final.6.weight'].shape[:1].numel()} classes"
        if "conv1.weight" not in keys:
            return f"an ImageNet network that fits trunk {trunk}"
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
        first = next(v for k, v in state.items() if k.removeprefix("encoder.").removeprefix("_") == "conv_stem.weight")
        frames = first.shape[1:2].numel() // 3
        return f"an EfficientNet{f' of {frames} frames' if frames > 1 else ''}"
    if any(key.startswith("decoder.") for key in keys):
        return "a depth decoder"
    if any(key.startswith("net.") for key in keys):
        return "a pose decoder"
    return f"an unknown network of {len(keys)} tensors (first: {next(iter(state))})"


def trunk_name(state: Mapping[str, Tensor]) -> str | None:
    """The trunk of a DeepLabV3+, or of one that a classification network can become, as that network's options call it.

    Told by names alone: None for ResNets below 50 layers and for networks that are no trunk of a DeepLabV3+.
    """
    names = {key.removeprefix("backbone.") for key in state}
    blocks = {tuple(name.split(".")[:2]) for name in names if name.startswith(("mod", "layer"))}

    def count(stage: str) -> int:
        return sum(first == stage for first, _ in blocks)

    if "mod1.conv1.weight" in names:
        return "wide_resnet38" if [count(f"mod{n}") for n in range(2, 8)] == [3, 3, 6, 3, 1, 1] else None
    layers = {6: "50", 23: "101"}.get(count("layer3"))
    if not layers or "layer1.0.conv3.weight" not in names:
        return None
    if {"layer0.conv1.weight", "layer1.0.se_module.fc1.weight"} <= names:
        return f"seresnext{layers}"
    return f"resnet{layers}" if names & {"conv1.weight", "layer0.0.weight"} else None


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


@contextmanager
def _files(source: Path) -> Iterator[dict[str, Callable[[], tuple[str, Content]]]]:
    """What reads each weights file of a folder or zip, or a single file, by its name; it returns (where, content)."""
    if source.is_dir():
        yield {
            path.name: lambda path=path: (str(path), _read(path, str(path)))
            for path in sorted(source.iterdir())
            if path.suffix in _SUFFIXES and path.is_file()
        }
    elif source.suffix == ".zip" and source.exists():
        try:
            archive = zipfile.ZipFile(source)
        except zipfile.BadZipFile:
            raise UserError(f"{source}: is not a complete zip file; download it again") from None
        with archive:
            # Nothing is unpacked to disk, but a file made to write elsewhere is not to be trusted with anything.
            outside = [shown(entry) for entry in archive.namelist() if _leads_outside(entry)]
            if outside:
                raise UserError(
                    f"{source}: names files outside of itself ({_some(outside)}), which an honest archive does not; "
                    "do not use it"
                )

            def unpack(entry: str) -> tuple[str, Content]:
                try:
                    data = archive.read(entry)
                except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                    raise UserError(f"{source}: {entry} cannot be unpacked ({error}); download it again") from None
                return f"{source}:{entry}", _read(io.BytesIO(data), entry)

            files = {
                PurePosixPath(entry).name: lambda entry=entry: unpack(entry)
                for entry in archive.namelist()
                if PurePosixPath(entry).suffix in _SUFFIXES
            }
            # torch's own files are zips too, by whatever name they go.
            yield _single(source) if "data.pkl" in files else files
    else:
        yield _single(source)


def _single(source: Path) -> dict[str, Callable[[], tuple[str, Content]]]:
    return {source.name: lambda: (str(source), _read(source, str(source)))}


def read_contents(source: Path | str) -> dict[str, Content]:
    """Every weights file of a folder or zip, or the one file itself, by its name.

    Raises:
        UserError: the source is absent or broken or holds no weights file; or a file of it as in :func:`read_state`.
    """
    source = Path(source)
    with _files(source) as files:
        if not files:
            wanted = ", ".join(_SUFFIXES)
            raise UserError(f"{source}: holds no weights file ({wanted}); give a folder, zip or file with weights")
        return {name: read()[1] for name, read in files.items()}


def split_parts(state: Mapping[str, Tensor]) -> dict[str, State]:
    """The parts of a whole model, by name and each with the part's own keys; empty for any other state dict.

    Whole models are the reference's (keys ``models.<part>.*``) and those that this project saves
    (``encoder.encoder.*`` and so on; their pose network's two parts lie under ``pose_net``).
    """
    if any(key.startswith("models.") for key in state):
        keys = {key: key.removeprefix("models.") for key in state if key.startswith("models.")}
    elif any(key.startswith("encoder.encoder.") for key in state):
        keys = {key: key.removeprefix("pose_net.") for key in state}
    else:
        return {}
    parts: dict[str, State] = {}
    for key, short in keys.items():
        part, _, own = short.partition(".")
        parts.setdefault(part, {})[own] = state[key]
    return parts


def read_parts(source: Path | str, names: Collection[str]) -> Iterator[tuple[str, str, State]]:
    """(part, file name for messages, tensors) of each named part.

    Args:
        source: as in :func:`load_parts`.
        names: parts wanted; others are ignored.

    Raises:
        UserError: a part is absent, or a file cannot be read.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give a folder or zip of encoder, depth, ...")
    with _files(source) as files:
        single = source.name in files and not source.is_dir()
        whole = source.name if single else next((name for name in _WHOLE if name in files), None)
        # Who splits a model by hand leaves the whole one beside its parts.
        split = any(name + suffix in files for name in names for suffix in _SUFFIXES)
        if whole is None or (split and not single):
            for name in names:
                where, content = files[_pick(files, name, source)]()
                yield name, where, content.state
            return
        where, content = files[whole]()
        parts = split_parts(content.state)
        for name in names:
            if name not in parts:
                found = describe(content.state)
                raise UserError(f"{where}: holds no part {name!r} (keys models.{name}.*); it seems to be {found}")
            yield name, where, parts[name]


def _leads_outside(entry: str) -> bool:
    path = entry.replace("\\", "/")
    return path.startswith("/") or path[1:2] == ":" or ".." in path.split("/")


def _pick(files: Collection[str], name: str, source: Path) -> str:
    for suffix in _SUFFIXES:
        if name + suffix in files:
            return name + suffix
    advice = (
        "; a model that was trained with a frozen encoder (phase 1) is saved without it: take that of phase 2"
        if name == "encoder" and any(file.startswith("depth.") for file in files)
        else ""
    )
    found = _some(sorted(files)) or "no weights file at all"
    raise UserError(f"{source}: holds no {name}.safetensors or {name}.pth; it holds {found}{advice}")


def load_parts(parts: Mapping[str, nn.Module], source: Path | str) -> None:
    """Fill parts of a network from published or own files.

    Args:
        parts: module by part name (``encoder``, ``depth``, ``pose_encoder``, ``pose``, ``segmentation``,
            ``mtl_decoder``).
        source: a folder or zip of ``<part>.safetensors`` or ``<part>.pth``, or one file of a whole model (see
            :func:`split_parts`), or a folder or zip with one called ``best_model_without_opt.pkl`` or
            ``best_model.pkl``; parts that are not asked for are ignored.

    Raises:
        UserError: a part is absent, does not fit exactly, or a file cannot be read.
    """
    for name, where, state in read_parts(source, list(parts)):
        load_strictly(parts[name], state, where)
