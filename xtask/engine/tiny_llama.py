"""Write a tiny Llama with random weights, a byte-level BPE tokenizer and a chat template, in several shards with an index.

Same seed, same bytes of weights. It says nothing sensible; it loads, tokenizes, batches and streams like a large one.

usage: tiny_llama.py DIR [SEED]
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# At most; the text below gives some 750, and the model has a row for each of those and no other.
VOCABULARY = 1024
CONTEXT = 4096
# About 1.2 MB of bf16 weights make several shards, so that a missing one can be told from a missing model.
SHARD = "300KB"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Fixed text, so that the vocabulary does not depend on the machine.
CORPUS = """
A fleet is a set of machines that work on one thing. Each machine may disappear: the owner of the building wants it back,
the power fails, a cable is pulled, a disk fills, a driver hangs. What remains has to notice, decide and repair, and it
has to do so without making things worse. The first rule is to keep serving. The second rule is to add before removing.
The third rule is to believe no single witness, because a witness that is silent may be dead, slow, lost or merely far away.
When a request arrives, somebody has to answer it. The answer is a stream of words, and every word depends on those before.
If the speaker falls silent in the middle of a sentence, another can go on from there, provided that it knows exactly what
was said: not roughly, not in other words, but token by token. Then the listener hears one voice and never learns of it.
What is the capital of France? The capital of France is Paris. How many legs has a spider? A spider has eight legs.
Write a short story about a robot. Once upon a time there was a robot who lived in a lighthouse and counted the ships.
user assistant system message model hello world please explain translate summarize list example number one two three four
def run(self, value): return value + 1 if value is not None else 0 for index in range(10): print(index, "ok", true, false)
{"name": "value", "items": [1, 2, 3], "nested": {"key": "text"}} https://example.org/path?query=1 2026-11-24T04:05:06Z
"""


def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS.splitlines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, END],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def model(words: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            # Wide enough that the likeliest next token depends on the whole context instead of repeating one word.
            initializer_range=0.2,
            tie_word_embeddings=False,
            bos_token_id=words.convert_tokens_to_ids(PAD),
            eos_token_id=words.convert_tokens_to_ids(END),
            pad_token_id=words.convert_tokens_to_ids(PAD),
        )
    )
    llama.generation_config.do_sample = False
    return llama.to(torch.bfloat16)


def main(directory: str, seed: int) -> None:
    words = tokenizer()
    llama = model(words, seed)
    llama.save_pretrained(directory, max_shard_size=SHARD)
    words.save_pretrained(directory)
    print(f"{llama.num_parameters()} parameters, {len(words)} tokens in the vocabulary")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 0)
