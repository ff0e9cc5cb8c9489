from pathlib import Path

import pytest
import torch
from helpers import ENCODER_DECODERS, tiny_batch, tiny_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, PreTrainedModel, Trainer, TrainingArguments

from foretune.task import MeanPooledClassifier
from foretune.task.pooling import head_dropout


def classifier(kind: str, num_labels: int = 3) -> MeanPooledClassifier:
    model = tiny_model(kind, num_labels=num_labels).base_model
    assert isinstance(model, PreTrainedModel)
    torch.manual_seed(5)
    return MeanPooledClassifier(model.config, model).eval()


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama", *ENCODER_DECODERS])
def test_logits_are_the_head_applied_to_the_mean_over_real_tokens(kind: str) -> None:
    model, batch = classifier(kind), tiny_batch(kind)
    output = model(**batch)
    for row, mask in enumerate(batch["attention_mask"]):
        alone = {key: value[row : row + 1, : int(mask.sum())] for key, value in batch.items() if value.ndim == 2}
        hidden = model.encoder(**alone).last_hidden_state
        torch.testing.assert_close(output.logits[row], model.classifier(hidden.mean(dim=1))[0], rtol=1e-10, atol=1e-12)
    expected = nn.functional.cross_entropy(output.logits, batch["labels"])
    torch.testing.assert_close(output.loss, expected)


def test_the_loss_of_regression_is_the_mean_squared_error() -> None:
    model, batch = classifier("bert", num_labels=1), tiny_batch("bert")
    batch["labels"] = torch.tensor([0.5, -1.0, 2.0, 0.0])
    output = model(**batch)
    torch.testing.assert_close(output.loss, ((output.logits[:, 0] - batch["labels"]) ** 2).mean())


def test_the_seed_decides_the_head_and_the_encoder_is_unchanged() -> None:
    one, two, plain = classifier("bert"), classifier("bert"), tiny_model("bert").base_model
    assert torch.equal(one.classifier.weight, two.classifier.weight)
    assert one.classifier.bias.abs().max() == 0 < one.classifier.weight.std() < 0.4  # initializer_range is 0.2
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, one.encoder.state_dict()[name])


@pytest.mark.parametrize("targets", ["all-linear", ["query"]])
def test_peft_adapts_the_encoder_and_trains_the_head(targets: str | list[str]) -> None:
    adapted = get_peft_model(classifier("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=targets))
    assert adapted.targeted_module_names and all(name.startswith("encoder.") for name in adapted.targeted_module_names)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad and "lora_" not in name]
    assert [name.split(".modules_to_save")[0].split(".")[-1] for name in trained] == ["classifier"] * 2
    assert adapted(**tiny_batch("bert")).logits.shape == (4, 3)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    model, batch = classifier("bert"), tiny_batch("bert")
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    before = float(adapted(**batch).loss)
    rows = [{key: value[i].tolist() for key, value in batch.items()} for i in range(4)]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=8,
        learning_rate=0.05,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    Trainer(adapted, arguments, train_dataset=rows).train()
    assert float(adapted.eval()(**batch).loss) < before


def test_encoder_decoder_models_are_used_without_the_decoder() -> None:
    for kind in ENCODER_DECODERS:
        assert not any("decoder" in name for name, _ in classifier(kind).named_modules())


@pytest.mark.parametrize("kind", ["bert", *ENCODER_DECODERS])
def test_a_saved_model_can_be_loaded(kind: str, tmp_path: Path) -> None:
    model = classifier(kind).float()
    model.save_pretrained(tmp_path)
    again = MeanPooledClassifier.from_pretrained(tmp_path, config=AutoConfig.from_pretrained(tmp_path))
    for name, tensor in model.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_dropout_rate_comes_from_the_config() -> None:
    assert head_dropout(tiny_model("bert", dropout=0.3).config) == pytest.approx(0.3)
    assert head_dropout(tiny_model("distilbert", dropout=0.3).config) == pytest.approx(0.3)
    assert head_dropout(tiny_model("llama", dropout=0.3).config) == pytest.approx(0)
