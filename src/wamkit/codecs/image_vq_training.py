"""Fitting a VQ-GAN to frames by gradient descent on the squared error: seconds on a CPU at `VQConfig.tiny()`.

The first part of the steps trains the autoencoder alone; then the codebook is drawn from what the encoder gives, and
the rest trains all three. No adversary and no perceptual loss: the published weights come from a larger recipe.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from wamkit.codecs.base import require_frames, to_unit_range
from wamkit.codecs.image_vq_config import VQConfig
from wamkit.codecs.image_vq_network import VQNetwork, initialized

_COMMITMENT = 0.25  # pull of the encoder towards its codes, beside the full pull of the codes towards the encoder
_LEARNING_RATE = 1e-3
_ALONE = 0.4  # share of the steps without codes
_REVIVAL_STEPS = 10  # a code that no vector of so many batches chose is dead
_DRAWN_FRAMES = 256  # frames that the first codebook is drawn from


def fit_network(
    frames: UInt8[Tensor, "n h w c"],
    *,
    config: VQConfig,
    generator: torch.Generator,
    steps: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> VQNetwork:
    """A network trained from random weights; arguments and errors as `VQImageTokenizer.fit`."""
    require_frames(frames, spatial=config.spatial)
    if not len(frames) or steps < 1 or batch_size < 1 or not config.has_decoder:
        raise ValueError(
            f"VQ-GAN: a fit takes frames, steps and a batch_size of 1 or more each, and a config with a decoder; got "
            f"{len(frames)} frames, steps={steps}, batch_size={batch_size}, has_decoder={config.has_decoder}"
        )
    network = initialized(config, generator).to(frames.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.95))
    first_coded = int(_ALONE * steps)
    revival = CodeRevival(network, generator)
    for step in range(steps):
        if step == first_coded:
            revival.replace_all(_vectors(network, frames, batch_size, generator))
        rows = torch.randint(len(frames), (batch_size,), generator=generator).to(frames.device)
        images = to_unit_range(frames[rows])
        vectors = network.encode(images)
        if step < first_coded:
            loss = F.mse_loss(network.decode(vectors), images)
        else:
            codes = network.codes(vectors.detach())
            loss = _coded_loss(network, images, vectors, codes)
            revival.observe(vectors.detach(), codes)
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1.0 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        revival.revive_dead()
        if progress is not None:
            progress(step + 1, steps)
    return network


class CodeRevival:
    """Keeps the codebook where the encoder's vectors are.

    Args:
        network: its codebook is written to.
        generator: draws the vectors that become codes; on the CPU.
    """

    def __init__(self, network: VQNetwork, generator: torch.Generator) -> None:
        self._codebook = network.quantize.embedding.weight
        self._generator = generator
        self._unused = torch.zeros(len(self._codebook), dtype=torch.int64, device=self._codebook.device)
        self._recent: list[Float[Tensor, "m d"]] = []

    def replace_all(self, vectors: Float[Tensor, "m d"]) -> None:
        """The whole codebook from `vectors`; each gives its share of the codes if there are fewer of them."""
        order = torch.randperm(len(vectors), generator=self._generator).to(vectors.device)
        rows = order.repeat(-(-len(self._codebook) // len(order)))[: len(self._codebook)]
        self._codebook.data.copy_(vectors[rows])

    def observe(self, vectors: Float[Tensor, "n d y x"], codes: Int[Tensor, "n y x"]) -> None:
        """Note which codes one batch chose."""
        self._unused += 1
        self._unused[codes.flatten()] = 0
        self._recent.append(rearrange(vectors, "n d y x -> (n y x) d"))

    def revive_dead(self) -> None:
        """Every few batches, the codes that were unused for longest take the place of vectors just seen, one each."""
        if len(self._recent) < _REVIVAL_STEPS:
            return
        vectors, self._recent = torch.cat(self._recent), []
        oldest = self._unused.argsort(descending=True, stable=True)[: len(vectors)]
        dead = oldest[self._unused[oldest] >= _REVIVAL_STEPS]
        chosen = torch.randperm(len(vectors), generator=self._generator)[: len(dead)].to(vectors.device)
        self._codebook.data[dead] = vectors[chosen]
        self._unused[dead] = 0


def _coded_loss(
    network: VQNetwork, images: Float[Tensor, "n 3 h w"], vectors: Float[Tensor, "n d y x"], codes: Int[Tensor, "n y x"]
) -> Float[Tensor, ""]:
    entries = network.entries(codes)
    straight = vectors + (entries - vectors).detach()  # the decoder sees codes, the encoder its gradient
    pull = F.mse_loss(entries, vectors.detach()) + _COMMITMENT * F.mse_loss(vectors, entries.detach())
    return F.mse_loss(network.decode(straight), images) + pull


@torch.no_grad()
def _vectors(
    network: VQNetwork, frames: UInt8[Tensor, "n h w c"], batch_size: int, generator: torch.Generator
) -> Float[Tensor, "m d"]:
    rows = torch.randperm(len(frames), generator=generator)[:_DRAWN_FRAMES].to(frames.device)
    parts = [network.encode(to_unit_range(frames[some])) for some in rows.split(batch_size)]
    return rearrange(torch.cat(parts), "n d y x -> (n y x) d")
