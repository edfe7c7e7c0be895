"""A tiny language model with random weights, as a folder: what a pre-trained one looks like, without its size."""

from pathlib import Path

import torch
from msgspec.structs import replace
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from stream_rec.features.event_template import EventTemplate
from stream_rec.models.model_store import Model
from stream_rec.models.pretrained import load_backbone, load_tokenizer
from stream_rec.models.user_encoder import EncoderConfig, UserEncoder
from tests.tiny import CAPACITY, ITEMS, tiny_model

END = "<|end|>"
WORDS = EventTemplate("{event} {title}", limit=7)


def tiny_language_model(folder: Path) -> Path:
    """Writes it. Its words are bytes; its word vectors are as large as those of real ones, its layers two."""
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)
    LlamaModel(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.2,
        )
    ).save_pretrained(folder)
    return folder


def word_model(language: Path) -> Model:
    """The tiny model of `tests.tiny`, but over the words of the language model in the folder `language`."""
    model = tiny_model()
    config = EncoderConfig(base=str(language), dropout=0, residual_dropout=0, words=WORDS)
    base = load_backbone(str(language), None, CAPACITY * WORDS.limit)
    torch.manual_seed(0)
    encoder = UserEncoder(config, base.body, ITEMS + 1, model.features.dim, 3, base.table)
    return model._replace(
        config=replace(model.config, encoder=config, body=base.body.config.to_dict(), goal=None),
        encoder=encoder.eval(),
        tokenizer=load_tokenizer(str(language)),
    )
