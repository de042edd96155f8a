"""The zoo's tokenizer: byte-level BPE, small enough to ship with every model, complete enough for any ASCII prompt."""

import itertools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from zoo_build.pictures.pool import draw_pool

VOCABULARY = 768
CONTEXT = 32
"""Tokens per text, begin and end included."""
PAD, BEGIN, END = "<pad>", "<begin>", "<end>"

PROMPT_WORDS = """
a an the photo picture image drawing sketch painting close up zoomed in centered good bad blurry small big cropped of on
at with and or for from to no not over under left right ahead end start all go straight keep turn double road work
airplane automobile bird cat deer dog frog horse ship truck car bus plane boat person people animal animals wild flower
tree house building grass sky water snow ice forest beach river sea lake field street building garden crossing
shirt top trouser pullover dress coat sandal sneaker bag ankle boot hat shoe clothing type object texture
traffic sign signs speed limit passing vehicles vehicle tons prohibited entry general caution dangerous curve bumpy
slippery narrows signals pedestrians children bicycles beware limits mandatory roundabout intersection way next priority
yield stop number digit letter street satellite aerial view annual crop residential industrial highway pasture
black white red green blue yellow orange purple brown pink grey gray dark light bright colour color plain
"""
"""Words that prompts are made of; they only shape the vocabulary, no model is trained on them."""


def train_tokenizer(pictures: int = 20_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on captions of both distributions and on common prompt words.

    Digits are always tokens of their own. The end token has the highest id: open_clip's default text pooling takes
    the features where the id is largest, so padding, which follows it, never matters under the causal mask.

    Arguments:
        pictures: How many pictures' captions to train on.
        seed: Seed of those captions.
    """
    captions = draw_pool("ab", pictures, seed, pictures=False).captions
    corpus = [caption.text for caption in itertools.chain.from_iterable(captions)] + PROMPT_WORDS.split() * 20
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=[PAD, BEGIN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(corpus), trainer)
    tokenizer.add_special_tokens([END])
    ids = {token: tokenizer.token_to_id(token) for token in (BEGIN, END)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=list(ids.items())
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BEGIN, eos_token=END, model_max_length=CONTEXT
    )
