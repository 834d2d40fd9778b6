"""A Wav2Vec2 of Hugging Face with the bridge."""

# %%
# `Wav2Vec2ForCTC` computes its loss with PyTorch's. Here the model gives logits, and the bridge the loss, within
# the `Trainer`. The model is small and its weights are random; the recordings are digits in artificial voices
# (`examples/_voices.py`), so that nothing is downloaded. With pretrained weights nothing but the model changes.
#
# Run it with `python examples/tutorial_huggingface.py`; `--fast` takes a few seconds and learns little.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from _errors import count_errors
from _tutorials import arguments, need
from _voices import voice

transformers = need("transformers")
need("accelerate")

import bridge  # noqa: E402
import jaxctc  # noqa: E402

options = arguments(__doc__, steps=600, flags=("bf16", "compile"))
torch.manual_seed(0)

# %%
# ## The data
#
# Strings of two to four digits. Class 0 is the blank, which Hugging Face calls `pad_token_id`, and digit d is
# class d + 1. Labels are padded with -100, as its data collators do.

BLANK, PADDING = 0, -100


def utterances(voices: list, count: int, rng: np.random.Generator) -> list[dict]:
    made = []
    for _ in range(count):
        takes, digits = voices[rng.integers(len(voices))], rng.integers(10, size=rng.integers(2, 5))
        samples = np.concatenate([takes[d][rng.integers(len(takes[d]))] for d in digits])
        samples = samples / samples.std() + 0.05 * rng.standard_normal(len(samples))
        made.append({"input_values": samples.astype(np.float32), "labels": digits + 1})
    return made


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Pad a batch, and say what is padding."""
    samples = [torch.from_numpy(row["input_values"]) for row in rows]
    labels = [torch.from_numpy(row["labels"]) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_values": pad(samples, batch_first=True),
        "attention_mask": pad([torch.ones(len(x), dtype=torch.long) for x in samples], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=PADDING),
    }


rng = np.random.default_rng(0)
training = utterances([voice(seed) for seed in range(2 if options.fast else 6)], 16 if options.fast else 600, rng)
test = utterances([voice(100)], 8 if options.fast else 64, rng)

# %%
# ## The model

model = transformers.Wav2Vec2ForCTC(
    transformers.Wav2Vec2Config(
        vocab_size=11,
        pad_token_id=BLANK,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        conv_dim=(32, 64, 64, 64),
        conv_kernel=(10, 8, 4, 4),
        conv_stride=(5, 4, 4, 4),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        mask_time_prob=0.0,
        layerdrop=0.0,
    )
)

# %%
# ## The loss
#
# `Trainer` asks `compute_loss`. The labels are taken out, so that the model computes no loss of its own. The
# lengths of the logits come from the attention mask, through the strides of the feature encoder. Lengths go to
# the bridge on the host.


class Trainer(transformers.Trainer):
    """Train with the loss of the bridge."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        frames = self.model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(1))
        loss = bridge.ctc_loss_with_logits(
            outputs.logits,  # (N, T, C), of any precision: the loss is float32
            labels.clamp(min=0),
            frames.cpu(),
            (labels != PADDING).sum(1).cpu(),
            blank=BLANK,
            zero_infinity=True,
            batch_first=True,
        )
        return (loss, outputs) if return_outputs else loss


# %%
# ## Training
#
# `--bf16` trains in mixed precision, and `--compile` compiles the model. The loss stays float32 in both.

settings = transformers.TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    max_steps=options.steps,
    per_device_train_batch_size=8,
    learning_rate=2e-3,
    warmup_steps=options.steps // 10,
    remove_unused_columns=False,
    logging_steps=max(options.steps // 30, 1),
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    bf16=options.bf16,
    torch_compile=options.compile,
    disable_tqdm=True,
)
trainer = Trainer(model=model, args=settings, train_dataset=training, data_collator=collate)
trainer.train()
history = [(row["step"], float(row["loss"])) for row in trainer.state.log_history if "loss" in row]

# %%
# ## The error rate on an unheard voice

model.eval()
found = []
with torch.no_grad():
    batch = collate(test)
    logits = model(batch["input_values"], batch["attention_mask"]).logits
frames = model._get_feat_extract_output_lengths(batch["attention_mask"].sum(1))
decoded = bridge.greedy_decode(logits.log_softmax(2), frames, blank=BLANK, batch_first=True)
found = [row[:length].tolist() for row, length in zip(decoded.labels, decoded.lengths, strict=True)]
errors = count_errors(found, [row["labels"].tolist() for row in test])
print(f"label error rate on a voice that was not in the training: {errors}")

# %%
# ## The picture


def draw(path: Path) -> None:
    n = int(np.argmax([len(row["labels"]) for row in test]))
    length, target = int(frames[n]), torch.from_numpy(test[n]["labels"])
    log_probs = logits[n, :length].log_softmax(1)
    aligned = bridge.forced_align(log_probs[:, None], target[None], [length], [len(target)], blank=BLANK)
    spans = jaxctc.merge_tokens(aligned.labels[0].numpy(), aligned.scores[0].numpy(), blank=BLANK)
    names = ["blank", *map(str, range(10))]
    figure = plt.figure(figsize=(9, 7), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 2])
    axes = above.subplots()
    axes.semilogy(*zip(*history, strict=True), color="#1b1f3b")
    axes.set(xlabel="step", ylabel="loss a label, nats", title=f"label error rate {errors.rate:.1%}")
    jaxctc.plot_alignment(log_probs.numpy(), spans, blank=BLANK, label_names=names, figure=below)
    figure.savefig(path, dpi=110)
    plt.close(figure)


draw(options.picture)
print(f"picture: {options.picture}")

# %%
# ![The training; an utterance, with scores and spans](huggingface.png)
