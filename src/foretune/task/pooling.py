"""A classifier on the mean of the token features, for sentence encoders whose own pooler is of little use."""

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

INITIALISED = "_is_hf_initialized"  # transformers' attribute that keeps post_init from drawing weights again


class MeanPooledClassifier(PreTrainedModel):
    r"""An encoder, the mean of its last hidden states over real tokens, dropout, and one linear layer.

    .. math:: f(x) = W \frac{\sum_t m_t h_t(x)}{\sum_t m_t} + b

    W and b are the weight and bias of the linear layer, :math:`h_t(x)` is the last hidden state of token t, and
    :math:`m_t` is 1 for real tokens and 0 for padding (the attention mask). The loss is that of transformers' own
    classifiers: cross-entropy, or mean squared error for a single output.

    Args:
        config: The encoder's config with ``num_labels`` set.
        encoder: The pretrained model without a pooling layer; of an encoder-decoder model only the encoder is used.
            None builds an untrained encoder from ``config``.
    """

    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # the encoder has already checked whether it supports these
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PreTrainedConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        if encoder is None:
            encoder = AutoModel.from_config(config, **pooling_option(config))
        else:
            for module in encoder.modules():
                setattr(module, INITIALISED, True)
        self.encoder = encoder_of(encoder)
        self.dropout = nn.Dropout(head_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, int(config.num_labels or 0), dtype=encoder.dtype)
        self._takes_token_types = "token_type_ids" in inspect.signature(self.encoder.forward).parameters
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Compute the logits and, if ``labels`` are given, the mean loss; peft calls it with these arguments."""
        options: dict[str, Any] = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        inputs: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        if self._takes_token_types and token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        outputs = self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **inputs,
        )
        logits = self.classifier(self.dropout(mean_over_tokens(outputs.last_hidden_state, attention_mask)))
        loss = None
        if labels is not None and self.num_labels == 1:
            loss = nn.functional.mse_loss(logits.squeeze(-1), labels.view(-1).to(logits.dtype))
        elif labels is not None:
            loss = nn.functional.cross_entropy(logits, labels.view(-1))
        output = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        return output.to_tuple() if return_dict is False else output


def mean_over_tokens(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Average ``hidden`` (examples, tokens, features) over the tokens whose mask is 1; None means all tokens."""
    if attention_mask is None:
        return hidden.mean(dim=1)
    mask = attention_mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder of an encoder-decoder model (T5, BART); any other model itself."""
    if not (
        hasattr(model, "encoder") and hasattr(model, "decoder")
    ):  # config.is_encoder_decoder is true of an encoder alone too
        return model
    encoder: PreTrainedModel = model.get_encoder()
    return encoder


def pooling_option(config: PreTrainedConfig) -> dict[str, bool]:
    """The option that keeps an encoder from building a pooler, for encoders that have this option."""
    encoder_class: Any = AutoModel._model_mapping.get(type(config), None)
    if isinstance(encoder_class, tuple):
        encoder_class = encoder_class[0]
    has_option = encoder_class is not None and "add_pooling_layer" in inspect.signature(encoder_class).parameters
    return {"add_pooling_layer": False} if has_option else {}


def head_dropout(config: PreTrainedConfig) -> float:
    """The dropout rate before the head, from the config key that transformers uses; 0 if the config has none."""
    for name in ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob"):
        rate = getattr(config, name, None)
        if rate is not None:
            return float(rate)
    return 0.0
