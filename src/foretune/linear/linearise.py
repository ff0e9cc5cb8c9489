"""The linearised model: a fine-tune's first-order picture, as a module that trains, saves and loads like the model.

``f̄(x; θ) = f(x; θ0) + J0(x) (θ - θ0)`` (theory.md section 2), θ the parameters that require gradients.
"""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from foretune.errors import InputError
from foretune.linear.forward_mode import first_order, replaced, tangents
from foretune.linear.start import save_start
from foretune.tangents import centring, evaluating


class Linearised(nn.Module):
    """What :func:`linearise` adds to a model's class.

    Attributes:
        network: The true network, with which it shares modules and parameters.
        trained: Names of the parameters θ.
        start: θ0, parameter after parameter; a buffer, so that it moves and is saved with the rest.
    """

    network: nn.Module
    trained: tuple[str, ...]
    start: Float[Tensor, " p"]

    def theta(self) -> dict[str, nn.Parameter]:
        """θ by name."""
        return {name: self.network.get_parameter(name) for name in self.trained}

    def initial(self) -> dict[str, Tensor]:
        """θ0 by name, each in the type and on the device of its parameter."""
        theta = self.theta()
        values = self.start.split([parameter.numel() for parameter in theta.values()])
        return {
            name: value.view_as(parameter).to(parameter)
            for value, (name, parameter) in zip(values, theta.items(), strict=True)
        }

    def displacement(self) -> Float[Tensor, " p"]:
        """``δ = θ - θ0``, in the order of ``start``."""
        theta = torch.cat([parameter.detach().flatten() for parameter in self.theta().values()])
        return theta - self.start.to(theta)

    def jacobian(
        self, batch: Mapping[str, Tensor], *, centred: bool = False
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c p"]]:
        """``f0`` and ``J0`` for the examples of a batch; labels are left out.

        Examples go through the network one by one, with a backward pass for each output: exact whatever the parameters
        are, for the memory of the Jacobian and n small forward and n c small backward passes.

        Args:
            batch: As the model takes it; the examples are along the first axis of every tensor.
            centred: Of the centred coordinates of the outputs (:func:`foretune.tangents.centring`), one fewer.
        """
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        leaves = {name: value.clone().requires_grad_() for name, value in self.initial().items()}
        outputs, rows = [], []
        with evaluating(self.network), replaced(self.network, leaves), torch.enable_grad():
            for i in range(len(next(iter(inputs.values())))):
                (logits,) = self.network.forward(**{name: value[i : i + 1] for name, value in inputs.items()}).logits
                logits = centring(len(logits)).to(logits) @ logits if centred else logits
                gradients = (
                    torch.autograd.grad(each, list(leaves.values()), retain_graph=True, materialize_grads=True)
                    for each in logits
                )
                outputs.append(logits.detach())
                rows.append(torch.stack([torch.cat([each.flatten() for each in parts]) for parts in gradients]))
        return torch.stack(outputs), torch.stack(rows)

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, state_dict: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write θ as the original writes its weights (a peft model: its adapter), and θ0 to ``start.safetensors``.

        To go on with both: ``linearise(PeftModel.from_pretrained(base, folder, is_trainable=True),
        start=safetensors.torch.load_file(folder + "/start.safetensors"))``.
        """
        weights = dict(self.state_dict() if state_dict is None else state_dict)
        weights.pop("start", None)
        super().save_pretrained(save_directory, *args, state_dict=weights, **kwargs)  # type: ignore[misc]
        save_start(self.network, self.initial(), save_directory)

    def _get_name(self) -> str:
        return f"Linearised {super()._get_name()}"


def linearise(model: nn.Module, start: Mapping[str, Tensor] | None = None) -> Linearised:
    """The exact first-order model ``f̄(x; θ) = f(x; θ0) + J0(x) (θ - θ0)``, called, trained and saved like ``model``.

    Every tensor that the model puts out is linearised; the loss is the model's own, taken of the linearised outputs.
    Gradients go to θ, not to inputs. ``f`` is the model in eval mode, whatever the mode is set to: no dropout, LoRA's
    included, so that J0 is one matrix. Attention stays as it was chosen: values come from its own kernel, tangents from
    explicit attention, which needs memory for the t × t attention weights. A call costs about twice the model's forward
    pass and its backward pass about as much as the model's own; neither grows with the number of outputs.

    Args:
        model: A peft model or any other; θ is what requires gradients. It stays the true network and shares θ with the
            linearised one: training one moves both. Modules are shared too.
        start: θ0 by parameter name; by default the values that the parameters have now.

    Returns:
        A ``Linearised`` of the model's class, with all its attributes and methods.

    Raises:
        InputError: Nothing requires gradients, the model is linearised already, or ``start`` is of other parameters.
    """
    if isinstance(model, Linearised):
        raise InputError("model", "it is linearised already", "pass the model that it was made from")
    theta = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not theta:
        fix = "set requires_grad on the parameters to train; load adapters with is_trainable=True"
        raise InputError("model", "none of its parameters requires gradients", fix)
    start = theta if start is None else start
    shapes, found = ({name: tuple(x.shape) for name, x in each.items()} for each in (theta, start))
    if shapes != found:
        odd = sorted(name for name, _ in shapes.items() ^ found.items())
        listed = ", ".join(odd[:3]) + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
        raise InputError(
            "start",
            f"names or shapes are not those of the model's trained parameters ({listed})",
            "pass the start.safetensors that was saved with this model",
        )
    kind = type(model)

    @functools.wraps(kind.forward)
    def forward(self: Linearised, *args: Any, **kwargs: Any) -> Any:
        with evaluating(self.network), tangents():
            theta = self.theta()
            duals = {name: forward_ad.make_dual(x, theta[name] - x) for name, x in self.initial().items()}
            args, kwargs = tree_map(_constant, (args, kwargs))
            with replaced(self.network, duals):
                outputs = self.network.forward(*args, **kwargs)
            return tree_map(_linear, outputs)

    twin: Any = copy.copy(model)
    own = vars(twin)
    own.update((name, copy.copy(own[name])) for name in vars(nn.Module()))  # hooks and buffers of its own
    own.pop("forward", None)  # where accelerate has wrapped it
    own |= {"network": model, "trained": tuple(theta)}  # not registered: its modules are here already
    twin.__class__ = type(kind.__name__, (Linearised, kind), {"forward": forward})  # the name stays in saved configs
    twin.register_buffer("start", torch.cat([start[name].detach().to(x).flatten() for name, x in theta.items()]))
    return twin


def _constant(item: Any) -> Any:
    return item.detach() if isinstance(item, Tensor) else item


def _linear(output: Any) -> Any:
    if isinstance(output, Tensor) and output.dim() == 0 and forward_ad.unpack_dual(output).tangent is not None:
        raise InputError(
            "labels",
            "the model's loss is none of torch.nn.functional's common ones, so it would be linearised too",
            "leave the labels out and take the loss of the outputs",
        )
    return first_order(output)
