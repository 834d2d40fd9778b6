"""List every code that a finding may have: how grave it is, what it means, what to do about it, and who met it before.

`docs/diagnosis.md` shows this list.
"""

from typing import Literal, NamedTuple, TypeAlias

Severity: TypeAlias = Literal["error", "warning", "note"]

_GITHUB = "https://github.com"
_GRAVES = "https://www.cs.toronto.edu/~graves/icml_2006.pdf"


class Entry(NamedTuple):
    """Describe one code."""

    severity: Severity
    """error: the loss raises, is inf or NaN, or is the loss of something else. warning: very probably not what was
    meant. note: true, and no fault."""
    meaning: str
    remedy: str
    source: str
    """A public thread or paper about it, where one is known."""


GROUPS: dict[str, dict[str, Entry]] = {
    "Arguments and shapes": {
        "unreadable": Entry(
            "error",
            "An argument is not an array of numbers of a legal rank.",
            "Pass scores (T, N, C) of a floating-point type, targets (N, S) and lengths (N,) of an integer type.",
            f"{_GITHUB}/robmsmt/KerasDeepSpeech/issues/5",
        ),
        "wrong-dtype": Entry(
            "error",
            "An argument has a type that the loss refuses. Its values were read as the type that it should have.",
            "Convert it: scores to a floating-point type, targets and lengths to an integer type.",
            f"{_GITHUB}/tensorflow/tensorflow/issues/22096",
        ),
        "ragged-targets": Entry(
            "error",
            "The targets are lists of different lengths.",
            "Pad them to one length with anything, or pass all labels end to end in one dimension.",
            f"{_GITHUB}/pytorch/pytorch/pull/38391",
        ),
        "empty-batch": Entry(
            "error",
            "The scores have no frames, no sequences or no classes. The mean of no losses is NaN.",
            "Leave such a batch out.",
            "",
        ),
        "swapped-axes": Entry(
            "error",
            "Frames and sequences are swapped: (N, T, C) was passed as (T, N, C), or the reverse.",
            "Turn batch_first round, or transpose the first two axes of the scores.",
            f"{_GITHUB}/kilianyp/R3DCNN-tensorflow/issues/3",
        ),
        "shape-mismatch": Entry(
            "error",
            "Scores, targets and lengths are not of the same number of sequences.",
            "Pass one target, one input length and one target length for each sequence.",
            f"{_GITHUB}/Sierkinhane/CRNN_Chinese_Characters_Rec/issues/304",
        ),
        "targets-total": Entry(
            "error",
            "One-dimensional targets are all labels end to end, but their number is not the sum of the target lengths.",
            "Remove the padding before you join the targets, or pass padded targets as (N, S).",
            f"{_GITHUB}/SeanNaren/warp-ctc/pull/50",
        ),
        "class-names": Entry(
            "warning",
            "There are not as many names of classes as there are classes. Often the blank was forgotten in one of "
            "both.",
            "Give every class a name, the blank included.",
            f"{_GITHUB}/kwon-evan/LPRNet/pull/10",
        ),
    },
    "Lengths": {
        "infeasible": Entry(
            "error",
            "A target needs more frames than there are: one for each label, and one between two equal labels. "
            "The loss is inf.",
            "Subsample less, leave such sequences out, or count their loss as zero with zero_infinity=True.",
            f"{_GITHUB}/k2-fsa/icefall/issues/135",
        ),
        "tight": Entry(
            "warning",
            "A target has fewer than 1.2 frames for each frame that it needs: the model has hardly a choice where "
            "to put the labels, and a little more subsampling or cropping makes the loss inf.",
            "Subsample less, or split repeated and long texts into fewer labels (larger word pieces).",
            f"{_GITHUB}/k2-fsa/icefall/pull/1713",
        ),
        "input-length-range": Entry(
            "error",
            "An input length is negative, or greater than the number of frames.",
            "Compute input lengths as the model computes its frames, with the same rounding, after any subsampling.",
            f"{_GITHUB}/openspeech-team/openspeech/issues/76",
        ),
        "lengths-before-subsampling": Entry(
            "error",
            "The input lengths count samples, or frames before the model's subsampling.",
            "Divide them as the model does, by the formula for the lengths of its convolutions.",
            f"{_GITHUB}/thu-spmi/CAT/issues/22",
        ),
        "lengths-swapped": Entry(
            "error",
            "Input lengths and target lengths are swapped: every target would have more labels than frames, and the "
            "other way round all of them fit. With zero_infinity=True such a loss is 0.",
            "Pass the frames first and the labels second, as PyTorch does. Keras's ctc_loss and tf.nn.ctc_loss take "
            "them the other way round.",
            "",
        ),
        "lengths-are-masks": Entry(
            "error",
            "A mask was passed as lengths. Row sums were used instead.",
            "Pass the sum of each row of the mask (of its complement, where 1 marks padding, as optax has it).",
            f"{_GITHUB}/huggingface/transformers/pull/10145",
        ),
        "lengths-are-fractions": Entry(
            "error",
            "The lengths are fractions of the longest one. They were multiplied by it.",
            "Multiply them by the length of the axis and round.",
            f"{_GITHUB}/speechbrain/speechbrain/issues/496",
        ),
        "padded-frames-counted": Entry(
            "warning",
            "Every input length is T, though the ends of some sequences are the same in several, or do not change: "
            "they are padding. The model is made to spell its labels there too.",
            "Pass the lengths without padding.",
            f"{_GITHUB}/clementfarabet/lua---nnx/pull/61",
        ),
        "lengths-too-short": Entry(
            "warning",
            "Beyond the input lengths the best paths go on to spell the targets: the lengths leave out frames that "
            "belong to the sequences.",
            "Divide lengths by the model's subsampling once, and not again where they were computed.",
            "",
        ),
        "target-length-range": Entry(
            "error",
            "A target length is negative, or greater than the width of the targets.",
            "Count the labels of each target, without padding.",
            f"{_GITHUB}/FangShancheng/ABINet/issues/65",
        ),
        "empty-target": Entry(
            "note",
            "A target has no labels. Its loss is that of blanks alone.",
            "Check that the text was not lost, for instance because none of its characters is in the vocabulary.",
            f"{_GITHUB}/meijieru/crnn.pytorch/issues/235",
        ),
    },
    "Blank and labels": {
        "blank-range": Entry(
            "error",
            "The blank is not one of the classes. A negative one was counted from the end.",
            "Pass the index of the blank, within [0, C). The last class is C - 1.",
            f"{_GITHUB}/pytorch/pytorch/pull/10112",
        ),
        "label-is-blank": Entry(
            "error",
            "A target contains the blank. The loss puts blanks between labels itself.",
            "Give the blank an index of its own, and pass it as blank.",
            f"{_GITHUB}/espnet/espnet/issues/700",
        ),
        "label-range": Entry(
            "error",
            "A label is not one of the classes.",
            "Build the last layer and the targets from the same vocabulary, the blank included.",
            f"{_GITHUB}/pytorch/pytorch/pull/174988",
        ),
        "targets-zero-based": Entry(
            "error",
            "Labels count from 0, where the blank is.",
            "Add 1 to every label, or make the blank the last class: blank=C - 1.",
            f"{_GITHUB}/apache/mxnet/pull/7727",
        ),
        "targets-one-based": Entry(
            "error",
            "Labels count from 1, so that the highest is the blank, or no class at all.",
            "Subtract 1 from every label, or make the blank class 0: blank=0, with one more class if need be.",
            f"{_GITHUB}/Holmeyoung/crnn-pytorch/issues/34",
        ),
        "padding-counted": Entry(
            "error",
            "The padding at the end of targets is counted as labels.",
            "Let target_lengths count the labels without padding.",
            f"{_GITHUB}/Megvii-CSG/MegReader/issues/1",
        ),
        "wrong-blank": Entry(
            "warning",
            "Another class behaves like the blank: it is the best in most frames, no target has it, and without it the "
            "best paths are much nearer to the targets. The blank is the best in hardly any frame.",
            "Pass the index of the blank that the model was trained with.",
            f"{_GITHUB}/SeanNaren/deepspeech.pytorch/pull/603",
        ),
        "targets-shuffled": Entry(
            "warning",
            "The best paths spell the targets of other rows, and not their own.",
            "Put inputs, lengths and targets into the same order: look where one of them is sorted or shuffled alone.",
            "",
        ),
        "classes-unseen": Entry(
            "note",
            "No target has these classes, although there are at least 20 labels for each class of the model.",
            "Check that vocabulary and targets belong together. Classes that never occur only learn to be improbable.",
            "",
        ),
    },
    "Numbers": {
        "nan": Entry(
            "error",
            "Scores within the input length are NaN. If the target uses them, so is the loss; from logits it always "
            "is.",
            "Look for the first NaN: in the features, after a division by a standard deviation of zero, or in the "
            "weights after a step that was too large. Clip gradients and warm up the learning rate.",
            f"{_GITHUB}/GitYCC/crnn-pytorch/issues/7",
        ),
        "positive-infinity": Entry(
            "error",
            "Scores within the input length are +inf.",
            "Look where the model overflows. Compute the last layer and log_softmax in float32.",
            f"{_GITHUB}/speechbrain/speechbrain/issues/1803",
        ),
        "non-finite-padding": Entry(
            "note",
            "Padded frames hold NaN or infinities. This library ignores them, others do not: optax and Keras give NaN.",
            "Nothing here. For other libraries, replace them by zeros.",
            "",
        ),
        "masked-target": Entry(
            "error",
            "There are frames enough, but every path that spells the target has probability zero or next to it, "
            "because classes that it needs are masked.",
            "Do not mask classes that the target uses. Use log_softmax instead of the logarithm of softmax.",
            f"{_GITHUB}/baidu-research/warp-ctc/issues/23",
        ),
        "half-overflow": Entry(
            "error",
            "Half-precision scores have reached the largest number of their type.",
            "Compute the last layer and log_softmax in float32, outside of autocast.",
            f"{_GITHUB}/speechbrain/speechbrain/issues/1803",
        ),
        "half-underflow": Entry(
            "warning",
            "Probabilities have become zero in half precision: some of a class's scores are -inf and others are not.",
            "Use log_softmax instead of the logarithm of softmax, in float32.",
            f"{_GITHUB}/NVIDIA/apex/issues/379",
        ),
        "clamped": Entry(
            "warning",
            "Many scores are the logarithm of a small constant: something was added to the probabilities or "
            "they were clipped. Where it dominates, the gradient vanishes, and a wrong model cannot learn.",
            "Use log_softmax of the logits instead of log(softmax + constant).",
            f"{_GITHUB}/NVIDIA/apex/issues/379",
        ),
        "vanishing-gradient": Entry(
            "note",
            "The model gives every target a probability that is 1 in float32. The gradient with respect to logits "
            "is at most 1 minus it: nothing is learned from this batch.",
            "Nothing, if the batch was learned by heart. If it was not, look whether the targets reach the model's "
            "input.",
            _GRAVES,
        ),
    },
    "Normalization": {
        "probabilities": Entry(
            "error",
            "The scores are probabilities: within [0, 1], with the sum 1 over the classes. The loss takes their "
            "logarithms.",
            "Pass log_softmax of the logits to ctc_loss, or the logits to ctc_loss_with_logits.",
            f"{_GITHUB}/SeanNaren/deepspeech.pytorch/issues/488",
        ),
        "logits": Entry(
            "warning",
            "The probabilities of a frame do not add up to 1: the scores are logits. The loss of such scores can be "
            "negative, and adding a constant to all of them changes it.",
            "Pass them to ctc_loss_with_logits (and from_logits=True here), or take log_softmax over the classes "
            "first. Scores that are not normalized on purpose, such as those with label priors, are no fault.",
            f"{_GITHUB}/SeanNaren/deepspeech.pytorch/issues/488",
        ),
        "wrong-axis": Entry(
            "error",
            "The probabilities add up to 1 over another axis than that of the classes.",
            "Take log_softmax over the axis of the classes, and pass the classes last.",
            f"{_GITHUB}/s-omranpour/Pytorch-Speech-Recognition/issues/4",
        ),
        "double-softmax": Entry(
            "warning",
            "The scores are the log_softmax of probabilities: softmax was taken before. No class can be more than e "
            "times as probable as another, so that training stands still at a high loss.",
            "Remove the softmax from the model.",
            f"{_GITHUB}/SeanNaren/deepspeech.pytorch/issues/194",
        ),
    },
    "The state of a training": {
        "constant-output": Entry(
            "warning",
            "The scores are the same in every frame of every sequence: the output does not depend on the input.",
            "Expected only of a last layer of zeros before the first step. Otherwise look for inputs that are all "
            "zero, units that died (lower the learning rate), or a normalization over the wrong axis.",
            "",
        ),
        "uniform": Entry(
            "note",
            "The loss is that of a model that gives every class the same probability: nothing has been learned yet.",
            "Expected in the first steps. If it stays, overfit one batch; raise the learning rate; check that the loss "
            "reaches the weights.",
            f"{_GITHUB}/apache/mxnet/pull/2326",
        ),
        "all-blank": Entry(
            "note",
            "The blank is the best class nearly everywhere, and the best paths spell next to nothing. Every CTC "
            "model is here first: to say blank is the cheapest it can do before it knows where the labels are.",
            "Early in training, wait. If it stays: overfit one batch; warm up and then raise the learning rate; clip "
            "gradients; begin with short sequences; check labels and lengths against the inputs.",
            "https://arxiv.org/abs/2105.14849",
        ),
        "one-class": Entry(
            "note",
            "One label is the best class nearly everywhere, whatever the input.",
            "Expected of a model that is not trained yet. If it stays, lower the learning rate, and check the "
            "input's scale and that the blank is the class that the model was trained with.",
            "",
        ),
        "confident-wrong": Entry(
            "warning",
            "The model is sure of what it says, and its loss is much higher than that of a model that knows nothing.",
            "Check that inputs and targets belong together (shuffled alike, the same vocabulary, the same blank). "
            "If they do, the training has diverged: lower the learning rate and clip gradients.",
            f"{_GITHUB}/athena-team/athena/issues/287",
        ),
    },
}

CODES: dict[str, Entry] = {code: entry for group in GROUPS.values() for code, entry in group.items()}
