"""A network's weights spread over processes (FSDP2), compute in bf16, and activations computed twice instead of kept.

An element of an outermost `ModuleList` of the network is a block, sharded and recomputed as one; everything
else is one group, whole from the start of a loss to the end of its backward pass.

Traps: FSDP2 looks at `requires_grad` when it prepares a group, so each stage prepares them again (`begin_stage`);
gradients that are kept back are whole, in fp32, on every process.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from wamkit.parallel import world_size
from wamkit.types import Trainable

Precision = Literal["fp32", "bf16"]


def blocks(network: nn.Module) -> list[nn.Module]:
    """The network's blocks, in order: what is sharded, and computed twice, as one."""
    found: list[nn.Module] = []
    for child in network.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found


class ShardedLoss(nn.Module):
    """A family's loss over a network whose weights are spread over all processes.

    Weights, gradients and moments are fp32 and each process holds its part. A block's weights are gathered before it is
    computed and dropped after, in the type they compute in; gradients are averaged over processes, in fp32.

    The loss as a whole is one module's forward pass, so that the weights outside the blocks are there whatever methods
    of its network the family calls, and their gradients are exchanged when the backward pass is over.

    Args:
        model: its network is sharded in place. It is on `device`, with the same weights on every process.
        device: where the processes compute.
        precision: `bf16` gathers weights in bf16 and so computes in bf16, what the network itself does in fp32 (noise
            levels, rotary tables, losses) apart. Unlike under autocast no operator is kept in fp32 by a list, and
            weights are cast once per block instead of once per operator.

    Raises:
        ValueError: the network is sharded already.
    """

    def __init__(self, model: Trainable, device: torch.device, precision: Precision = "fp32") -> None:
        super().__init__()
        if is_sharded(model.network):
            raise ValueError("expected a network that is not sharded yet; build the model afresh for another run")
        self.network = model.network
        self._loss = model.loss
        mesh = _mesh_of_all(device)
        # Inputs are not cast: families cast where they embed tokens, and keep noise levels in fp32.
        types = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if precision == "bf16" else {}
        policy = MixedPrecisionPolicy(**types, cast_forward_inputs=False)
        for block in blocks(model.network):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self, mesh=mesh, mp_policy=policy, reshard_after_forward=False)

    def begin_stage(self) -> None:
        """Take note of which parameters require gradients now."""
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.unshard()
                module.reshard()

    def exchange_gradients(self, wanted: bool) -> None:
        """Whether the coming backward pass averages gradients over processes, with those kept back until then."""
        cast(FSDPModule, self).set_requires_gradient_sync(wanted)

    def forward(self, *arguments: Any) -> Any:
        """The family's loss."""
        return self._loss(*arguments)


def _mesh_of_all(device: torch.device) -> DeviceMesh:
    """The mesh of all processes, which knows its group by name alone.

    Caches of DTensor keep meshes for as long as the process lives. One that held its group would keep the group's
    threads too, and a thread of gloo that still lets go of a tensor when the interpreter ends aborts the process
    (`terminate called without an active exception`; pytorch issue 190489).
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    getattr(mesh, "_pg_registry", {}).clear()  # a shortcut of newer versions around the look-up by name
    return mesh


def is_sharded(network: nn.Module) -> bool:
    """Whether the network's weights are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


@contextmanager
def recomputed_activations(network: nn.Module) -> Iterator[None]:
    """Within the block, the network's blocks keep their inputs alone and compute the rest again in the backward pass.

    One more forward pass of the blocks buys the memory of all activations but one block's.
    """
    chosen = blocks(network)
    for block in chosen:
        # On the instance, under the hooks that gather weights: those run once, around both passes.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in chosen:
            del block.forward


def clip_gradients(trained: Mapping[str, nn.Parameter], max_norm: float) -> float:
    """Scale the gradients to a 2-norm of at most `max_norm`, over all parameters and processes; returns the norm."""
    norm = nn.utils.clip_grad_norm_(trained.values(), max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def full_weights(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network, whole; of a sharded one on the CPU of rank 0, and empty elsewhere.

    Every process has to call it.
    """
    if not is_sharded(network):
        return network.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(network, options=options))
    # What was not divisible comes as the front of a longer storage, which files would have to hold too.
    return {
        name: tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
        for name, tensor in weights.items()
    }


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor (the same on every process) as `like` is: sharded in the same way, or just on its device."""
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor):
        return tensor.to(like.device)
    # Without a source every process cuts out its own part, and nothing is sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
