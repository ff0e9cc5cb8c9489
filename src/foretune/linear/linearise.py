"""The linearised model, as a module that is trained and saved like the model itself.

``f̄(x; θ) = f(x; θ0) + J0(x) (θ - θ0)`` (docs/theory.md section 2). θ are the parameters that require gradients, θ0
their values before training. J0 is the Jacobian: the derivative of every output in every such parameter, at θ0.
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
    """The methods that :func:`linearise` adds to a model's class.

    Attributes:
        network: The true network. The linearised model shares its modules and parameters.
        trained: The names of the parameters θ.
        start: θ0, all parameters in one vector. It is a buffer, so it moves to devices and is saved with the model.
    """

    network: nn.Module
    trained: tuple[str, ...]
    start: Float[Tensor, " p"]

    def theta(self) -> dict[str, nn.Parameter]:
        """The parameters θ by name."""
        return {name: self.network.get_parameter(name) for name in self.trained}

    def initial(self) -> dict[str, Tensor]:
        """θ0 by name. A value has the type and the device of its parameter."""
        theta = self.theta()
        values = self.start.split([parameter.numel() for parameter in theta.values()])
        return {
            name: value.view_as(parameter).to(parameter)
            for value, (name, parameter) in zip(values, theta.items(), strict=True)
        }

    def displacement(self) -> Float[Tensor, " p"]:
        """The displacement ``δ = θ - θ0``, in the order of ``start``."""
        theta = torch.cat([parameter.detach().flatten() for parameter in self.theta().values()])
        return theta - self.start.to(theta)

    def jacobian(
        self, batch: Mapping[str, Tensor], *, centred: bool = False
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c p"]]:
        """Compute the outputs ``f0`` and the Jacobian ``J0`` for the examples of a batch.

        The result is exact for any kind of parameters. Examples go through the network one by one: n forward passes and
        n c backward passes. The whole Jacobian is held in memory.

        Args:
            batch: The model's inputs. Examples are along the first axis of every tensor. Labels are ignored.
            centred: Whether to use the c - 1 centred coordinates of the outputs (:func:`foretune.tangents.centring`).
        """
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        leaves = {name: value.clone().requires_grad_() for name, value in self.initial().items()}
        outputs, rows = [], []
        with evaluating(self.network), replaced(self.network, leaves), torch.enable_grad():
            for i in range(len(next(iter(inputs.values())))):
                (logits,) = self.network.forward(**{name: value[i : i + 1] for name, value in inputs.items()}).logits
                logits = centring(len(logits)).to(logits) @ logits if centred else logits
                gradients = (
                    torch.autograd.grad(logit, list(leaves.values()), retain_graph=True, materialize_grads=True)
                    for logit in logits
                )
                outputs.append(logits.detach())
                rows.append(torch.stack([torch.cat([part.flatten() for part in parts]) for parts in gradients]))
        return torch.stack(outputs), torch.stack(rows)

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, state_dict: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Save θ in the format of the original model (for a peft model, its adapter), and θ0 to ``start.safetensors``.

        To continue later: ``linearise(PeftModel.from_pretrained(base, folder, is_trainable=True),
        start=safetensors.torch.load_file(folder + "/start.safetensors"))``.
        """
        weights = dict(self.state_dict() if state_dict is None else state_dict)
        weights.pop("start", None)
        super().save_pretrained(save_directory, *args, state_dict=weights, **kwargs)  # type: ignore[misc]
        save_start(self.network, self.initial(), save_directory)

    def _get_name(self) -> str:
        return f"Linearised {super()._get_name()}"


def linearise(model: nn.Module, start: Mapping[str, Tensor] | None = None) -> Linearised:
    """Make the exact first-order model ``f̄(x; θ) = f(x; θ0) + J0(x) (θ - θ0)`` of a model.

    It is called, trained and saved like ``model``. Every output tensor is linearised. The loss is the model's own,
    computed from the linearised outputs. Gradients flow to θ and not to the inputs. f is always the model in eval mode,
    without any dropout (LoRA's dropout included), so J0 does not change. The attention values come from the model's own
    kernel. The tangents come from explicit attention, which needs memory for the t × t attention weights. A forward
    pass costs about two forward passes of the model, and a backward pass about as much as the model's own. The cost
    does not grow with the number of outputs.

    Args:
        model: A peft model or any other model. θ are its parameters that require gradients. ``model`` stays the true
            network. It shares its modules and θ with the linearised model, so training one of them changes both.
        start: θ0 by parameter name. By default these are the current values of the parameters.

    Returns:
        A ``Linearised`` of the model's class, with all its attributes and methods.

    Raises:
        InputError: No parameter requires gradients, the model is already linearised, or the names or shapes in
            ``start`` are not those of the model's parameters.
    """
    if isinstance(model, Linearised):
        raise InputError("model", "it is already linearised", "pass the original model")
    theta = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not theta:
        fix = "set requires_grad on the parameters to train; load adapters with is_trainable=True"
        raise InputError("model", "none of its parameters requires gradients", fix)
    start = theta if start is None else start
    expected, given = ({name: tuple(x.shape) for name, x in values.items()} for values in (theta, start))
    if expected != given:
        differing = sorted(name for name, _ in expected.items() ^ given.items())
        listed = ", ".join(differing[:3]) + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")
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
    own.update((name, copy.copy(own[name])) for name in vars(nn.Module()))  # the copy gets its own hooks and buffers
    own.pop("forward", None)  # accelerate may have wrapped it
    own |= {"network": model, "trained": tuple(theta)}  # set without registering: the copy has these modules already
    twin.__class__ = type(kind.__name__, (Linearised, kind), {"forward": forward})  # saved configs hold the class name
    twin.register_buffer("start", torch.cat([start[name].detach().to(x).flatten() for name, x in theta.items()]))
    return twin


def _constant(item: Any) -> Any:
    return item.detach() if isinstance(item, Tensor) else item


def _linear(output: Any) -> Any:
    if isinstance(output, Tensor) and output.dim() == 0 and forward_ad.unpack_dual(output).tangent is not None:
        raise InputError(
            "labels",
            "the model's loss is none of the common ones of torch.nn.functional, so it would be linearised too",
            "leave the labels out and compute the loss from the outputs",
        )
    return first_order(output)
