"""State-space layers that read an image's patches as one sequence, row by row, both ways.

What vision Mamba models do (Zhu et al., "Vision Mamba", arXiv:2401.09417), with the mixer of
`lit_models.text.chimera`. Shapes as in `lit_models.images.encoder`; N = R · K patches.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from kernels.chain import DecayingChain
from kernels.chain.peers import mamba_module
from lit_models.images.encoder import MixerEncoder
from lit_models.layers.chain_mixer import ChainMixer
from lit_models.layers.sentences import Sentences

MAMBA_CHUNK = 64  # patches that its kernels work on at once


class MambaScanMixer(ChainMixer):
    """`ChainMixer` whose chains are walked by mamba-ssm's own Triton kernels.

    Raises:
        ValueError: called with what is not on a GPU.
    """

    def mix(
        self, v: Float[Tensor, "N H P"], chains: Sequence[DecayingChain], sizes: tuple[int, ...]
    ) -> Float[Tensor, "N H P"]:
        if not v.is_cuda:
            raise ValueError(
                "mamba-ssm's kernels need a GPU: take image_encoder@model.net.encoder=scan, which "
                "gives the same."
            )
        scan = mamba_module("ops.triton.ssd_combined").mamba_chunk_scan_combined
        y = v * self.D.unsqueeze(-1)
        for chain in chains:
            along = (x.unflatten(0, (len(sizes), -1)) for x in (v, chain.scale, chain.B, chain.C))
            v_BTHP, delta, B, C = (x.flip(1) if chain.reverse else x for x in along)
            rate = -self.log_decay.exp()
            mixed = scan(v_BTHP, delta, rate, B.unsqueeze(2), C.unsqueeze(2), MAMBA_CHUNK)
            y = y + (mixed.flip(1) if chain.reverse else mixed).flatten(0, 1)
        return y


class PatchScan(nn.Module):
    """A mixer of sentences on the sentence that an image's rows are, one behind the other.

    Args: as `ChainMixer`.
    """

    of_sentences: ClassVar[type[ChainMixer]] = ChainMixer

    def __init__(self, width: int, state: int = 64, **options: Any):
        super().__init__()
        self.mixer = self.of_sentences(width, state, **options)

    def forward(self, x: Float[Tensor, "B R K D"]) -> Float[Tensor, "B R K D"]:
        images, rows, columns, _ = x.shape
        return self.mixer(x.flatten(0, 2), Sentences((rows * columns,) * images)).view_as(x)


class MambaPatchScan(PatchScan):
    """The same by mamba-ssm, which has to be installed and needs a GPU."""

    of_sentences: ClassVar[type[ChainMixer]] = MambaScanMixer


class ScanImage(MixerEncoder):
    """Layers of `PatchScan`."""

    mixer: ClassVar[type[nn.Module]] = PatchScan


class MambaScanImage(MixerEncoder):
    """Layers of `MambaPatchScan`."""

    mixer: ClassVar[type[nn.Module]] = MambaPatchScan
