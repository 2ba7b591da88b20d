"""What several test files share: the reference's filling rule and seeded random tensors."""

import zlib

import torch


def rand(shape, seed):
    """The fixtures' ``rand(shape, seed)``: uniform [0, 1), float32, own generator."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def randn(shape, seed):
    """The fixtures' ``randn(shape, seed)``: standard normal, float32, own generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fill_value(key, tensor):
    """The value that the reference's filling rule gives the tensor called `key`."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    shape = tensor.shape
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor)
    if tensor.ndim == 0:
        return torch.full_like(tensor, 0.5)
    if key.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    if key.endswith("running_mean"):
        return 0.1 * torch.randn(shape, generator=generator)
    if tensor.ndim == 1 and key.endswith("weight"):
        return 0.5 + torch.rand(shape, generator=generator)
    if tensor.ndim == 1:
        return 0.1 * torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator) * (1 / shape[1:].numel()) ** 0.5


def fill_by_rule(module, prefix=""):
    """Fill every tensor of `module` by the rule, with ``prefix + key`` as its name; returns `module`."""
    state = {k: fill_value(prefix + k, v) for k, v in module.state_dict().items()}
    module.load_state_dict(state)
    return module
