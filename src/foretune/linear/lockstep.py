"""Trains several tangent models in lockstep, so that the examples' rows are read once for all of them."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from foretune.linear.along import along_tangents
from foretune.linear.tangent_model import TangentModel
from foretune.linear.unwalked import Unwalked
from foretune.linear.weights import change_norms


class Lockstep(Unwalked):
    """Tangent models with the same tangents as one module, whose loss is the sum of the members' losses.

    A member gets only the gradients of its own loss. It also draws the same random numbers as when it is trained alone,
    provided that all members draw equally many numbers from torch's generator. This is so if all members have dropout
    in their adapters, or none has.

    Args:
        members: The models.

    Attributes:
        models: The members.
        losses: The loss of every member on the last batch (k).
    """

    def __init__(self, members: Sequence[TangentModel]) -> None:
        super().__init__()
        self.members, self.models = nn.ModuleList(members), list(members)
        self.config, self.accepts_loss_kwargs = members[0].config, members[0].accepts_loss_kwargs
        self.losses: Float[Tensor, " k"] = torch.zeros(len(members))
        self.know_parameters()

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """Yield only the modules that compute something, see :meth:`TangentModel.modules`."""
        yield self
        for member in self.models:
            yield from member.modules()

    def train(self, mode: bool = True) -> "Lockstep":
        """Set the training mode of all members."""
        self.training = mode
        for member in self.models:
            member.train(mode)
        return self

    def measure(self) -> None:
        """Compute and store ``changes()`` of all members at once. The values hold until the weights change."""
        for member, norms in zip(self.models, change_norms([model.weights() for model in self.models]), strict=True):
            member.known = norms

    def forget(self) -> None:
        """Delete the values that ``measure`` stored. Call it before the weights change."""
        for member in self.models:
            member.known = None

    def forward(self, index: Int[Tensor, " b"], labels: Tensor, **_: object) -> SequenceClassifierOutput:
        """The sum of the members' losses on the examples with these indices."""
        first, weights = self.models[0], [member.weights() for member in self.models]
        changes = along_tangents(first.tangents, index, weights, first.dtype).unbind(2)
        losses: list[Tensor] = []
        before = torch.get_rng_state()
        for member, change in zip(self.models, changes, strict=True):
            torch.set_rng_state(before)
            loss = member.moved(index, member.grown(change), labels).loss
            assert loss is not None
            losses.append(loss)
        self.losses = torch.stack([loss.detach() for loss in losses])
        return SequenceClassifierOutput(loss=torch.stack(losses).sum())
