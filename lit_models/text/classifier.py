"""Classification or regression of sentences and pairs of them, by an encoder trained before.

A batch is {"tokens", "token_types": [B, T], "lengths": [B], …}, or packed, see `TextEncoder`, and
whatever its task wants. Shapes: B sentences, W width.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_models.module import LitModule, Optimisation, UnfitDataError
from lit_models.text.encoder import TextEncoder, initialise_as_bert
from lit_models.text.masked_lm import encode
from lit_models.text.tasks import SentenceTask, TextBatch


class TextClassifier(nn.Module):
    """Encoder, BERT's pooler on every sentence's first token, linear: a batch to [B, outputs].

    Args:
        encoder: of any architecture.
        outputs: columns of the prediction.
        dropout: probability, before the last linear layer.
    """

    def __init__(self, encoder: TextEncoder, outputs: int, dropout: float = 0.1):
        super().__init__()
        self.encoder = encoder
        width = encoder.width
        self.pooler = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout))
        self.out = nn.Linear(width, outputs)
        initialise_as_bert(self.pooler, width)
        initialise_as_bert(self.out, width)

    def forward(self, batch: TextBatch) -> Float[Tensor, "B outputs"]:
        features = encode(self.encoder, batch)
        first = features[0, batch["ptr"][:-1]] if "ptr" in batch else features[:, 0]
        return self.out(self.pooler(first))


class LitTextClassifier(LitModule):
    """Fine-tunes an encoder of text on a task about whole sentences or pairs.

    Args:
        task: what is predicted, its loss and its metrics.
        net: encoder and classifier.
        optimisation: optimiser and schedule.
        pretrained: a run's folder, or a checkpoint, of this encoder in `MaskedLM` or in a
            `TextClassifier` of another task, whose pooler is taken too; None for none.

    Raises:
        ValueError: the network has another number of outputs than the task.
        UnfitDataError: before training, `pretrained` is not there or of another encoder.
    """

    def __init__(
        self,
        task: SentenceTask,
        net: TextClassifier,
        optimisation: Optimisation,
        *,
        pretrained: str | None = None,
        compile: bool = False,
    ):
        outputs = net.out.out_features
        if outputs != task.num_outputs:
            raise ValueError(
                f"The task asks for {task.num_outputs} outputs, the network has {outputs}: set "
                f"model.net.outputs={task.num_outputs}."
            )
        super().__init__(task, net, optimisation, compile=compile)
        self.pretrained = pretrained

    def setup(self, stage: str) -> None:
        # Not when the model is made: a finished run needs no other to be used. Where a run is
        # resumed, its own weights come after these.
        if stage == "fit" and self.pretrained is not None:
            self._adopt(Path(self.pretrained))
        super().setup(stage)

    def _adopt(self, path: Path) -> None:
        path = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
        if not path.is_file():
            raise UnfitDataError(
                f"There is no checkpoint {path}: set model.pretrained to the folder of a finished "
                "run, or to null to train from nothing."
            )
        saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        kept = ("net.encoder.", "net.pooler.")
        taken = {name: value for name, value in saved.items() if name.startswith(kept)}
        mine = {name: value.shape for name, value in self.state_dict().items()}
        wanted = {name for name in mine if name.startswith("net.encoder.")}
        unlike = [n for n, value in taken.items() if mine.get(n) != value.shape]
        unlike += sorted(wanted - taken.keys())
        if unlike:
            raise UnfitDataError(
                f"The checkpoint {path} is of another encoder, {unlike[0]} differs: set "
                "model.net.encoder as it was in that run."
            )
        self.load_state_dict(taken, strict=False)
