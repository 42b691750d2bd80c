"""The tasks a config can name, each with the model that learns it."""

from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.tasks.sequence_to_sequence import SequenceToSequence


@dataclass(frozen=True)
class Entry:
    task: type[SequenceToSequence]
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]


TASKS = {
    "sequence_to_sequence": Entry(
        SequenceToSequence, Seq2SeqTransformerConfig, Seq2SeqTransformerForConditionalGeneration
    ),
}
