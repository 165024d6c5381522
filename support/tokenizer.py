"""From a question to the tokens that a checkpoint expects, and from tokens back to text.

Everything particular to a checkpoint comes from its folder: tokenizer.json, the special tokens and the chat template of
tokenizer_config.json or chat_template.jinja, and the end tokens, of tokenizer_config.json, generation_config.json and
config.json. A chat template is a program of the checkpoint's author; jinja2 renders it in a sandbox that reaches
nothing outside the template.
"""

import json
import warnings
from datetime import datetime
from itertools import groupby
from pathlib import Path

import tokenizers
from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

ASK = 'Solve it step by step and finish with "#### " and the answer alone.'
PLAIN = "Question: {question}\n" + ASK + "\nAnswer:\n"  # where there is no chat template
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",  # for converters to other formats; not read
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


class Generation(Extension):
    """{% generation %}…{% endgeneration %}, which training templates put around what a model writes: its body."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


class Tokenizer:
    """A checkpoint's tokenizer with its prompt format.

    folder: of the checkpoint.  template: the user's own prompt with {question} in it, in place of the chat template;
        taken as it is, so it has to ask for the marker.
    now: the date that a chat template may ask for; a resumed run sets it to the one that it began with.
    eos_ids: all tokens that end a completion; eos_id: the one that supervised completions end with.
    Raises FileNotFoundError or ValueError that names the file.
    """

    def __init__(self, folder: str | Path, template: str | None = None):
        self.folder, self.now = Path(folder), datetime.now()
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; transformers makes it of the others, if they are there: "
                f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
            )
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more particular
            raise ValueError(f"{path}: not a tokenizer ({error})") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.special_ids = {i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        if template is not None and "{question}" not in template:
            raise ValueError(f"the prompt template {template!r} has no {{question}}")
        self.template = template

        self.files = {name: (self.folder / name).read_bytes() for name in FILES if (self.folder / name).is_file()}
        settings = self._read("special_tokens_map.json") | self._read("tokenizer_config.json")
        self.special_tokens = self._special_tokens(settings)
        self.tells_date = False  # whether the chat template asks for `now`
        self.chat_template = self._chat_template(settings) if template is None else None
        self.eos_ids = self._ways_to_end()
        self.eos_id = self.eos_ids[0]
        self._warn_of_unknown_tokens(settings)

    def _read(self, name: str) -> dict:
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{path}: no JSON ({error})") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object, got {str(content)[:80]}")
        return content

    def _special_tokens(self, settings: dict) -> dict[str, str]:
        tokens = {}
        for key in (f"{name}_token" for name in "bos eos unk pad sep cls mask".split()):
            token = settings.get(key)
            if isinstance(token, dict):
                token = token.get("content")
            if not isinstance(token, str | None):
                raise ValueError(f"{self.folder / 'tokenizer_config.json'}: {key} is {token!r}; expected a text")
            if token:
                tokens[key] = token
        return tokens

    def _warn_of_unknown_tokens(self, settings: dict) -> None:
        """A tokenizer.json that is older than the files beside it splits their tokens into letters."""
        named = {token: None for key, token in self.special_tokens.items() if key in ("bos_token", "eos_token")}
        added = settings.get("added_tokens_decoder")
        for number, token in added.items() if isinstance(added, dict) else ():
            named[token.get("content") if isinstance(token, dict) else token] = int(number)
        for token, number in named.items():
            found = self.tokenizer.token_to_id(str(token))
            if found is None or number not in (None, found):
                said = "does not know" if found is None else f"has as {found} and not as {number}"
                warnings.warn(f"{self.folder}: tokenizer.json {said} {token!r} of tokenizer_config.json", stacklevel=1)
        size = self.vocab_size  # which goes over the whole vocabulary
        if beyond := [i for i in self.eos_ids if i >= size]:
            warnings.warn(f"{self.folder}: no token has the number of the end token {beyond[0]}", stacklevel=1)

    def _chat_template(self, settings: dict):
        source, place = settings.get("chat_template"), self.folder / "tokenizer_config.json"
        if "chat_template.jinja" in self.files:
            source, place = (
                self.files["chat_template.jinja"].decode("utf-8", "replace"),
                self.folder / "chat_template.jinja",
            )
        if isinstance(source, list):  # several, by name
            templates = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
            if templates and "default" not in templates:
                names = ", ".join(map(str, templates))
                raise ValueError(f"{place}: no chat template is called default, but {names}; give --prompt-template")
            source = templates.get("default")
        if not source:
            return None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
        )
        environment.filters["tojson"] = _to_json
        self.tells_date = "strftime_now" in str(source)
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: self.now.strftime(form)}
        try:
            return environment.from_string(source)
        except (TemplateError, TypeError, AttributeError) as error:  # the latter for what is no text
            raise ValueError(f"{place}: the chat template is broken ({error})") from None

    def _ways_to_end(self) -> list[int]:
        """The eos_token of tokenizer_config.json first, then eos_token_id of generation_config.json and config.json."""
        ids = [self.tokenizer.token_to_id(self.special_tokens.get("eos_token", ""))]
        for name in ("generation_config.json", "config.json"):
            listed = self._read(name).get("eos_token_id")
            ids += listed if isinstance(listed, list) else [listed]
        ids = list(dict.fromkeys(i for i in ids if i is not None))
        if not ids:
            raise ValueError(f"{self.folder}: no end token; set eos_token in tokenizer_config.json")
        if not all(isinstance(i, int) for i in ids):
            raise ValueError(f"{self.folder}: eos_token_id is {ids}; expected token ids, whole numbers")
        return ids

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; there may be gaps below it."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode_prompt(self, question: str) -> list[int]:
        if self.chat_template is None:
            text = (self.template or PLAIN).replace("{question}", question)
            ids = self.tokenizer.encode(text).ids  # with the tokens that tokenizer.json puts around a text
            if ids[-1:] and ids[-1] in self.eos_ids:  # nothing would be left to say
                warnings.warn(
                    f"{self.folder}: the tokenizer ends each prompt with an end token; left out", stacklevel=1
                )
                ids = ids[:-1]
            return self._begun_once(ids)
        messages = [{"role": "user", "content": f"{question}\n{ASK}"}]
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            text = self.chat_template.render(**given, **self.special_tokens)
        except Exception as error:  # a template is a program, and fails as programs do
            raise ValueError(f"{self.folder}: the chat template failed ({error}); give --prompt-template") from None
        return self._begun_once(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _begun_once(self, ids: list[int]) -> list[int]:
        bos = self.special_tokens.get("bos_token", "")
        if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.token_to_id(bos):
            warnings.warn(f"{self.folder}: each prompt begins with {bos} twice; see the template", stacklevel=1)
        return ids

    def encode_completion(self, text: str) -> list[int]:
        """What a model is to answer, with the end token."""
        return [*self.tokenizer.encode(text, add_special_tokens=False).ids, self.eos_id]

    def decode(self, ids: list[int]) -> str:
        """The text of a completion. A token without a text (a special one, an id of no token) leaves a space, so that
        no two numbers grow together."""
        parts = groupby(ids, key=lambda i: i in self.special_ids or self.tokenizer.id_to_token(i) is None)
        return " ".join(self.tokenizer.decode(list(part)) for silent, part in parts if not silent)

    def save(self, folder: str | Path) -> None:
        """Writes the files that it was read from, for a checkpoint to be whole."""
        for name, content in self.files.items():
            (Path(folder) / name).write_bytes(content)


def _refuse(message: str = ""):
    raise TemplateError(message)


def _to_json(value, ensure_ascii: bool = False, **options) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
