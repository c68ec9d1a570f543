"""What a model of text does, in TensorBoard: words it fills in, and how its tokens mix.

Shapes: T tokens of a sentence, H heads, N tokens of a batch without padding, M hidden ones.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import cast

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertSelfAttention

from kernels.chain import chain_matrix
from lit_models.callbacks.cadence import is_due
from lit_models.layers.chain_mixer import ChainMixer
from lit_models.layers.sentences import Sentences
from lit_models.module import LitModule
from lit_models.text.bert import ConvolvedSelfAttention
from lit_models.text.encoder import TextEncoder
from lit_models.text.tasks import IGNORED, TextBatch
from lit_models.trainer import board_of, data_of

MIXERS = (ChainMixer, BertSelfAttention, ConvolvedSelfAttention)


class TextPictures(Callback):
    """Shows the first sentences of the validation data, by the weights that are validated.

    `token_mixing`, of the first and the last layer: |L| of Chimera, or the attention of BERT, the
    mean over heads; the two stand beside each other where TensorBoard shows both runs. `filled_in`,
    where words are hidden: each with the likeliest guess and its probability.

    The data module has `words`, the text of every token, and hides the same words every time.

    Args:
        every_n_epochs: validation epochs between two drawings; the first and the last are drawn.
        sentences: number of sentences in which words are filled in.
        tokens: a sentence is cut behind these where its matrices are drawn.
    """

    def __init__(self, every_n_epochs: int = 5, sentences: int = 4, tokens: int = 40):
        self.every_n_epochs, self.sentences, self.tokens = every_n_epochs, sentences, tokens

    @rank_zero_only
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Averaged weights are in place now; when the epoch ends, they are taken away before this
        # callback's turn.
        if not is_due(trainer, self.every_n_epochs):
            return
        module, data = cast(LitModule, pl_module), data_of(trainer)
        loaders = data.val_dataloader()
        batch = next(iter(loaders[0] if isinstance(loaders, list) else loaders))
        batch = module.transfer_batch_to_device(batch, module.device, 0)
        words, board = data.words, board_of(trainer)
        matrices = mixing_matrices(cast(TextEncoder, module.net.encoder), batch, self.tokens)
        if matrices:
            shown = [words[i] for i in first_sentence(batch, self.tokens)[0].tolist()]
            board.add_figure("token_mixing", draw_mixing(matrices, shown), trainer.global_step)
        if "labels" in batch:
            lines = filled_in(batch, module(batch), words)[: self.sentences]
            board.add_text("filled_in", "\n\n".join(lines), trainer.global_step)


def first_sentence(batch: TextBatch, most: int) -> tuple[Tensor, Tensor]:
    """Tokens and token types of a batch's first sentence, at most so many."""
    sentences = Sentences.of(batch["tokens"], batch.get("lengths"), batch.get("ptr"))
    size = min(most, sentences.sizes[0])
    return batch["tokens"][0, :size], batch["token_types"][0, :size]


def mixing_matrices(encoder: TextEncoder, batch: TextBatch, most: int) -> dict[str, Tensor]:
    """[T, T] of the first and the last layer that mixes by L or attention, for one sentence."""
    layers = {name: m for name, m in encoder.named_modules() if isinstance(m, MIXERS)}
    seen: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, inputs: tuple) -> None:
        seen[name] = inputs[0]

    hooks = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in layers.items()]
    tokens, types = (x.unsqueeze(0) for x in first_sentence(batch, most))
    sentence = Sentences((tokens.shape[1],))
    try:
        encoder(tokens, types, torch.tensor(sentence.sizes))
    finally:
        for hook in hooks:
            hook.remove()
    ends = list(layers)[:: len(layers) - 1 or 1]
    return {n: mixing_matrix(layers[n], seen[n], sentence).float().cpu() for n in ends}


@torch.no_grad()
def mixing_matrix(
    layer: nn.Module, x: Float[Tensor, "*one T W"], sentence: Sentences
) -> Float[Tensor, "T T"]:
    """How much of token j reaches token i, the mean over heads: |L| of both ways, or attention."""
    x = x.reshape(-1, x.shape[-1])
    if isinstance(layer, ChainMixer):
        there, back = (chain.log_weight.exp() for chain in layer.operands(x, sentence))
        left_to_right = chain_matrix(there.mT.contiguous())
        right_to_left = chain_matrix(back.flip(0).mT.contiguous()).flip(-2, -1)
        return (left_to_right.abs() + right_to_left.abs()).mean(dim=0)
    if isinstance(layer, ConvolvedSelfAttention):
        query, key = layer.queries_and_keys(x, sentence)
        heads = layer.heads
    else:
        attention = cast(BertSelfAttention, layer)
        query, key, heads = attention.query(x), attention.key(x), attention.num_attention_heads
    query, key = (y.unflatten(-1, (heads, -1)).transpose(0, 1) for y in (query, key))
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=0)


def draw_mixing(matrices: dict[str, Tensor], words: Sequence[str]) -> Figure:
    """Each layer's matrix on a logarithmic scale, the sentence along both sides."""
    figure = Figure(figsize=(7 * len(matrices), 6), layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(matrix.clamp(min=1e-4).log10(), interpolation="nearest")
        figure.colorbar(image, ax=axes, shrink=0.8)
        axes.set_xticks(range(len(words)), words, rotation=90, fontsize=7)
        axes.set_yticks(range(len(words)), words, fontsize=7)
        axes.set(title=f"log₁₀ |mixing|, {name}", xlabel="from token j", ylabel="to token i")
    return figure


def filled_in(batch: TextBatch, logits: Float[Tensor, "M V"], words: Sequence[str]) -> list[str]:
    """Every sentence in Markdown; a hidden word is `true → guess probability`, bold if right."""
    sentences = Sentences.of(batch["tokens"], batch.get("lengths"), batch.get("ptr"))
    packed = "ptr" in batch
    tokens, labels = (
        (batch[name][0] if packed else sentences.unpad(batch[name])).tolist()
        for name in ("tokens", "labels")
    )
    best = logits.float().softmax(dim=-1).max(dim=-1)
    guesses = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    shown = []
    for token, label in zip(tokens, labels, strict=True):
        if label == IGNORED:
            shown.append(words[token])
            continue
        guess, probability = next(guesses)
        marks = "**" if guess == label else ""
        told = f"{words[label]} → {words[guess]} {probability:.2f}"
        shown.append(f"{marks}[{told}]{marks}")
    firsts = [*sentences.firsts, len(shown)]
    lines = [" ".join(shown[a:b]) for a, b in itertools.pairwise(firsts)]
    return [line.replace(" ##", "") for line in lines]
