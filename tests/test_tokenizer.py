"""Specification of prompts: what a checkpoint's own files decide, and that neither they nor a question run as programs.

Each test rewrites the files of a tiny checkpoint; its end token has the id 0.
"""

import json
import shutil

import pytest
import tokenizers
from tokenizers.processors import TemplateProcessing

from docs import tiny
from support.pretrained import check_context, load_model
from support.tokenizer import ASK, Tokenizer

QUESTION = "Tom has 12 apples and eats 5. How many are left?"
CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<' + message.role + '>\\n' + message.content | trim + eos_token + '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<assistant>\\n' }}\n"
    "{%- endif %}\n"
)
HOSTILE_QUESTIONS = [
    "{{ 7*7 }} {% raw %} {# gone? #}",
    "{question} {} {0} %s {",
    "{{ ''.__class__.__mro__ }}",
]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
    folder = tiny.build(
        tmp_path_factory.mktemp("tiny"), vocab_size=300, num_attention_heads=2, num_key_value_heads=2, **sizes
    )
    assert tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(tiny.END) == 0
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": tiny.END}))  # without its chat template
    return folder


@pytest.fixture
def checkpoint(tiny_folder, tmp_path):
    """A function that makes a copy of the folder with some files replaced: a dict is written as JSON, None removes."""

    def make(files: dict | None = None):
        folder = tmp_path / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_folder, folder)
        for name, content in (files or {}).items():
            if content is None:
                (folder / name).unlink()
            else:
                text = content if isinstance(content, str) else json.dumps(content)
                (folder / name).write_text(text, encoding="utf-8")
        return folder

    return make


def with_template(template, **settings):
    """The files of a checkpoint with that chat template."""
    return {"tokenizer_config.json": {"eos_token": tiny.END, "chat_template": template} | settings}


def prompt(folder, question=QUESTION, template=None):
    """The text of a prompt, special tokens included."""
    tokenizer = Tokenizer(folder, template)
    return tokenizer.tokenizer.decode(tokenizer.encode_prompt(question), skip_special_tokens=False)


# Which prompt


def test_a_checkpoint_without_a_chat_template_gets_a_plain_prompt(checkpoint):
    """A base model has seen no roles; a question and "Answer:" is text that it can go on with."""
    text = prompt(checkpoint())
    assert text.startswith(f"Question: {QUESTION}\n") and text.endswith("\nAnswer:\n")


CHAT = "chat: {{ messages[0].content }}"


@pytest.mark.parametrize(
    "files",
    [
        with_template(CHAT),
        with_template([{"name": "tools", "template": "other"}, {"name": "default", "template": CHAT}]),
        {"chat_template.jinja": CHAT},
        with_template("other") | {"chat_template.jinja": CHAT},  # as in transformers, the file wins
    ],
)
def test_a_chat_template_is_found_wherever_checkpoints_keep_it(checkpoint, files):
    """A chat model sampled without its own format answers far below its ability, and nothing says so."""
    assert prompt(checkpoint(files)).startswith(f"chat: {QUESTION}\n")


def test_templates_of_which_none_is_the_default_are_refused_with_their_names(checkpoint):
    """As in transformers: without a template a chat model would be asked as a base model is."""
    folder = checkpoint(with_template([{"name": "tools", "template": CHAT}, {"name": "rag", "template": CHAT}]))
    with pytest.raises(ValueError, match="no chat template is called default, but tools, rag; give --prompt-template"):
        Tokenizer(folder)
    assert prompt(folder, template="Q: {question}") == f"Q: {QUESTION}"
    assert prompt(checkpoint(with_template([]))).startswith("Question: ")


@pytest.mark.parametrize("bos", ["<|end|>", {"content": "<|end|>", "lstrip": False, "special": True}])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_chat_template_sees_the_special_tokens_as_strings(checkpoint, bos, name):
    """Both files hold them, as strings or as records; a record printed into the prompt would be read as text."""
    files = {"tokenizer_config.json": {"eos_token": tiny.END}} | {name: {"bos_token": bos, "eos_token": tiny.END}}
    folder = checkpoint(files | {"chat_template.jinja": "{{ bos_token }}x{{ eos_token }}"})
    assert prompt(folder) == "<|end|>x<|end|>"
    assert Tokenizer(folder).encode_prompt(QUESTION)[0] == 0  # one token, not its letters


def test_the_users_template_replaces_the_checkpoints(checkpoint):
    """An experiment with another prompt must not be wrapped in the chat format as well."""
    folder = checkpoint(with_template(CHAT))
    assert prompt(folder, template="Q: {question} {{as}} {it} is\n") == f"Q: {QUESTION} {{{{as}}}} {{it}} is\n"
    with pytest.raises(ValueError, match="no {question}"):
        Tokenizer(folder, "Q: {queston}")


@pytest.mark.parametrize("files", [{}, with_template(CHATML)])
def test_every_prompt_asks_for_the_marker(checkpoint, files):
    """The reward reads nothing but a marked answer: a model that was not told would be paid for guessing the form."""
    assert '"#### "' in prompt(checkpoint(files))


def test_the_beginning_of_a_sequence_is_marked_once(checkpoint):
    """A chat template writes the token itself, a plain prompt has it from tokenizer.json: twice is a known trap."""
    folder = checkpoint()
    with_bos = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    with_bos.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=[(tiny.END, 0)])
    with_bos.save(str(folder / "tokenizer.json"))
    assert Tokenizer(folder).encode_prompt(QUESTION).count(0) == 1
    (folder / "chat_template.jinja").write_text("{{ eos_token }}" + CHAT)
    assert Tokenizer(folder).encode_prompt(QUESTION).count(0) == 1
    assert Tokenizer(folder).encode_completion("8").count(0) == 1  # the end, and no beginning in the middle


def test_truncation_and_padding_in_tokenizer_json_are_off(checkpoint):
    """Checkpoints are published with their training's settings: a prompt would be cut or padded in silence."""
    folder = checkpoint()
    whole = Tokenizer(folder).encode_prompt(QUESTION)
    settings = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings.enable_truncation(4)
    settings.enable_padding(length=200)
    settings.save(str(folder / "tokenizer.json"))
    assert Tokenizer(folder).encode_prompt(QUESTION) == whole


def test_the_ids_of_a_chat_prompt_equal_transformers(checkpoint):
    """The reference that a checkpoint was trained with: white space, roles and special tokens, to the token."""
    transformers = pytest.importorskip("transformers")
    folder = checkpoint(with_template(CHATML, tokenizer_class="PreTrainedTokenizerFast"))
    tokenizer = Tokenizer(folder)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    for question in (QUESTION, "  Ünïcode 25% of $1,200\n\n", *HOSTILE_QUESTIONS):
        ids = tokenizer.encode_prompt(question)
        messages = [{"role": "user", "content": f"{question}\n{ASK}"}]
        assert reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids


# Nothing runs


@pytest.mark.parametrize("question", HOSTILE_QUESTIONS)
@pytest.mark.parametrize(
    "files, template",
    [({}, None), ({}, "Q: {question}"), (with_template(CHAT), None), (with_template(CHATML), None)],
)
def test_a_question_is_text_and_never_evaluated(checkpoint, question, files, template):
    """Data sets are downloaded, and questions about sets or code are full of braces."""
    assert question in prompt(checkpoint(files), question, template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages.clear() }}",
        "{{ raise_exception('only the roles user and assistant') }}",
        "{{ absent.attribute }}",
        ("{{ 1 + 'a' }}"),
        ("{{ 1 / 0 }}"),
        ("{{ range(10**9) | list }}"),
    ],
)
def test_a_chat_template_that_fails_or_leaves_its_sandbox_is_an_error_naming_the_folder(checkpoint, template):
    """It is a program by a stranger, run on the machine of whoever tries the checkpoint."""
    folder = checkpoint(with_template(template))
    with pytest.raises(ValueError) as error:
        Tokenizer(folder).encode_prompt(QUESTION)
    assert str(folder) in str(error.value)


def test_a_chat_template_with_a_syntax_error_is_refused_on_loading(checkpoint):
    """Before the weights are read, which takes longer."""
    folder = checkpoint({"chat_template.jinja": "{% if messages %}"})
    with pytest.raises(ValueError) as error:
        Tokenizer(folder)
    assert str(folder) in str(error.value)


# The end, and the way back


@pytest.mark.parametrize(
    "eos_token, generation, config, expected",
    [
        (tiny.END, {"eos_token_id": [5, 0, 7]}, {"eos_token_id": 9}, [0, 5, 7, 9]),
        ({"content": tiny.END}, {"eos_token_id": 5}, {}, [0, 5]),
        (None, {"eos_token_id": 5}, {"eos_token_id": [5, 6]}, [5, 6]),
        (None, {}, {"eos_token_id": 3}, [3]),
    ],
)
def test_every_end_token_of_the_three_files_ends_and_the_tokenizers_own_is_taught(
    checkpoint, eos_token, generation, config, expected
):
    """A chat model ends its turns with one token and its texts with another, and which file names which varies."""
    files = {"tokenizer_config.json": {"eos_token": eos_token}}
    tokenizer = Tokenizer(checkpoint(files | {"generation_config.json": generation, "config.json": config}))
    assert tokenizer.eos_ids == expected
    assert tokenizer.encode_completion("8")[-1] == tokenizer.eos_id == expected[0]


def test_a_checkpoint_without_any_end_token_is_an_error(checkpoint):
    """No completion would ever end, and every reward be 0."""
    folder = checkpoint({"tokenizer_config.json": None, "config.json": {}})
    with pytest.raises(ValueError, match="no end token") as error:
        Tokenizer(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("text", ["12 + 345 = 357 #### 357", " two  spaces\n\n\ttab", "½ · naïve – 数学 🙂", ""])
def test_decoding_gives_back_what_was_encoded_without_special_tokens(checkpoint, text):
    """The reward reads decoded text: a lost space joins two numbers, an end token in it spoils the last one."""
    tokenizer = Tokenizer(checkpoint())
    ids = tokenizer.encode_completion(text)
    assert ids[-1] == tokenizer.eos_id and tokenizer.decode(ids) == text


@pytest.mark.parametrize("silent", ["special", "unknown"])
def test_a_token_without_a_text_leaves_a_space(checkpoint, silent):
    """4<s>2 is not 42: a policy would be paid for a number that it did not write."""
    tokenizer = Tokenizer(checkpoint())
    four, two = (tokenizer.encode_completion(digit)[0] for digit in "42")
    between = tokenizer.eos_id if silent == "special" else tokenizer.vocab_size + 5
    assert tokenizer.decode([four, between, two]) == "4 2" == tokenizer.decode([four, between, between, two])
    assert tokenizer.decode([between, four, two, between]) == "42" and tokenizer.decode([between]) == ""


def test_a_question_with_the_text_of_a_special_token_is_said_to_be_read_with_it(tiny_folder, recwarn):
    """An end token in a question ends the user's turn."""
    model, tokenizer = load_model(tiny_folder, "float32", "cpu")
    check_context(model, tokenizer, ["Two and two?", "Is 1 < 2 and 3 > 2?"], 8)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=rf"1 of 2 questions hold the text of a special token .*: 'Two{tiny.END[:3]}"):
        check_context(model, tokenizer, ["Two and two?", f"Two{tiny.END} and two?"], 8)


# The files


def test_a_saved_tokenizer_gives_the_same_ids(checkpoint, tmp_path):
    """A checkpoint that a run leaves is evaluated from its own folder, without the one it came from."""
    files = with_template("other", bos_token=tiny.END) | {"chat_template.jinja": CHATML}
    files |= {"tokenizer.model": "sentencepiece"}
    tokenizer = Tokenizer(checkpoint(files | {"generation_config.json": {"eos_token_id": [4, 0]}}))
    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    shutil.rmtree(tmp_path / "checkpoint")
    copy = Tokenizer(tmp_path / "copy")
    assert copy.encode_prompt(QUESTION) == tokenizer.encode_prompt(QUESTION)
    assert copy.encode_completion("7") == tokenizer.encode_completion("7")
    assert copy.eos_ids == tokenizer.eos_ids
    assert (tmp_path / "copy/tokenizer.model").read_text() == "sentencepiece", "converters want it"


@pytest.mark.parametrize(
    "name, content",
    [
        ("tokenizer.json", None),
        ("tokenizer.json", '{"version": "1.0", "mod'),
        ("tokenizer_config.json", '{"eos_token": '),
        ("generation_config.json", "not JSON"),
        ("tokenizer_config.json", "[]"),
        ("generation_config.json", "[]"),
    ],
)
def test_a_missing_or_broken_file_is_named(checkpoint, name, content):
    """A download that stopped half-way is common; the message should say what to fetch again."""
    folder = checkpoint({name: content})
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        Tokenizer(folder)
    assert str(folder / name) in str(error.value)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"eos_token": "<|im_end|>"}, "does not know '<|im_end|>'"),
        ({"added_tokens_decoder": {"7": {"content": "<|new|>"}}}, "does not know '<|new|>'"),
        ({"added_tokens_decoder": {"7": {"content": tiny.END}}}, f"has as 0 and not as 7 '{tiny.END}'"),
        ({"added_tokens_decoder": {"0": {"content": tiny.END}}}, None),
    ],
)
def test_a_token_that_tokenizer_json_does_not_know_is_named(checkpoint, recwarn, settings, said):
    """It is older than the files beside it: the token would be split into letters, or never end a completion."""
    Tokenizer(checkpoint({"tokenizer_config.json": {"eos_token": tiny.END} | settings}))
    assert [said in str(warning.message) for warning in recwarn.list] == ([True] if said else [])


def test_an_end_token_beyond_the_vocabulary_is_named(checkpoint):
    with pytest.warns(UserWarning, match="no token has the number of the end token 999999"):
        Tokenizer(checkpoint({"generation_config.json": {"eos_token_id": 999999}}))


def test_a_tokenizer_in_another_format_is_refused_with_the_line_that_makes_this_one(checkpoint):
    """tokenizer.model alone is common for older models."""
    folder = checkpoint({"tokenizer.json": None, "tokenizer.model": "sentencepiece"})
    with pytest.raises(FileNotFoundError, match=rf"AutoTokenizer.from_pretrained\('{folder}'\).save_pretrained"):
        Tokenizer(folder)


def test_the_marks_of_a_training_template_are_no_error(checkpoint):
    """{% generation %} is in the published training templates of Llama, Qwen and R1's distillates."""
    marked = "{% for m in messages %}{% generation %}<{{ m.role }}>{{ m.content }}{% endgeneration %}{% endfor %}"
    plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert prompt(checkpoint(with_template(marked))) == prompt(checkpoint(with_template(plain)))


def test_a_template_that_is_replaced_is_not_read(checkpoint):
    """--prompt-template is the way out of a broken one."""
    folder = checkpoint(with_template("{% broken"))
    assert prompt(folder, template="Q: {question}") == f"Q: {QUESTION}"
    with pytest.raises(ValueError, match="template is broken"):
        Tokenizer(folder)


def test_the_date_is_one_for_a_run_and_known_to_be_told(checkpoint):
    """At midnight the prompts would change; a resumed run sets it to the day on which it began."""
    tokenizer = Tokenizer(
        checkpoint(with_template("{{ strftime_now('%d %B %Y %H:%M:%S.%f') }} {{ messages[0].content }}"))
    )
    assert tokenizer.tells_date and tokenizer.encode_prompt(QUESTION) == tokenizer.encode_prompt(QUESTION)
    assert not Tokenizer(checkpoint(with_template("{{ messages[0].content }}"))).tells_date


def with_processor(folder, **pieces):
    """tokenizer.json puts tokens around every text, as those of many base models do."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(special_tokens=[(tiny.END, 0)], **pieces)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_an_end_token_that_a_tokenizer_appends_to_a_prompt_is_left_out_and_said(checkpoint):
    """After it a model begins another text."""
    folder = with_processor(checkpoint({}), single=f"$A {tiny.END}")
    with pytest.warns(UserWarning, match="ends each prompt with an end token; left out"):
        ids = Tokenizer(folder).encode_prompt(QUESTION)
    assert ids[-1] != 0 and ids == Tokenizer(checkpoint({})).encode_prompt(QUESTION)


def test_a_beginning_that_comes_twice_is_said(checkpoint):
    """<s><s>: once from the template, and once from tokenizer.json."""
    settings = {"tokenizer_config.json": {"eos_token": tiny.END, "bos_token": tiny.END}}
    folder = with_processor(checkpoint(settings), single=f"{tiny.END} $A")
    with pytest.warns(UserWarning, match="begins with .* twice"):
        Tokenizer(folder, tiny.END + "{question}").encode_prompt(QUESTION)
    with pytest.warns(UserWarning, match="begins with .* twice"):
        Tokenizer(
            checkpoint(with_template("{{ bos_token * 2 }}{{ messages[0].content }}", bos_token=tiny.END))
        ).encode_prompt("")


def test_the_highest_id_counts_and_not_how_many_there_are(checkpoint):
    """A token that was moved to a higher id leaves a gap; its row of the embedding has to be there."""
    folder = checkpoint({})
    raw = json.loads((folder / "tokenizer.json").read_text())
    last = max(raw["model"]["vocab"], key=raw["model"]["vocab"].get)
    raw["model"]["vocab"][last] = 400
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    assert Tokenizer(folder).vocab_size == 401
    with pytest.raises(ValueError, match="the tokenizer has 401 tokens, the model only"):
        load_model(folder, "float32", "cpu")
