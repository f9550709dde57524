"""YAML that a stranger wrote, read within bounds, and its references resolved: the result is plain
data.

OmegaConf, which NeMo reads a config with, follows references at any later moment: `${oc.env:HOME}`
reads the environment, `${oc.decode:...}` parses text, and any library may register more such names.
Here only references to other entries of the same text are followed, and none is left over. Pure:
imports neither torch nor NeMo.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import yaml

MAX_BYTES = 8 << 20
"""Bytes of a text; the config of a model with 16,384 pieces in four lists has 1 MiB."""

MAX_DEPTH = 32
"""Levels of nesting; configs of NeMo have eight."""

MAX_NODES = 500_000
"""Values in a text, those under an alias or a reference counted each time."""

MAX_SCALAR_CHARACTERS = 16_384
"""Of one value, before and after its references are resolved."""

MAX_CHAIN = 16
"""References that lead to references."""

MAX_MADE_CHARACTERS = 16 << 20
"""Written while references inside texts are replaced, in all texts together."""

MAX_DIRECTIVES = 8
"""Lines that begin with `%`: libyaml compares each tag that is declared with all before it."""

MAX_INTEGER = 2**63
"""Of a number, with either sign."""

INTEGER = "tag:yaml.org,2002:int"
PLAIN_TAGS = tuple(
    map("tag:yaml.org,2002:{}".format, ("str", "int", "float", "bool", "null", "map", "seq"))
)

INNERMOST = re.compile(r"\$\{([^${}]*)\}")
"""A reference that holds no other."""

RESOLVER = re.compile(r"\$\{[^${}]*:")
"""How a reference begins that is a call."""

ENTRY = re.compile(r"(\.*)([\w/+-]+(?:\.[\w/+-]+|\[[\w/+-]+\])*)", re.ASCII)
"""What is inside a reference to another entry: dots that lead upwards, then keys."""

NUMBER = re.compile(
    r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
"""OmegaConf's floats: YAML 1.1 takes `1e-5` to be text."""


class RefusedError(ValueError):
    """The text is outside the bounds, or asks for more than its own entries. Says what, and
    where."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's has no types
    """Reads what OmegaConf's own loader reads: its floats, no dates, no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        if isinstance(node, yaml.MappingNode):
            self._check_twice(node)
            self.flatten_mapping(node)  # what `<<` brings has keys too
            self._check_numbers(node)
        return super().construct_mapping(node, deep=deep)

    def _check_twice(self, node: Any) -> None:
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise RefusedError(f"has the entry {shown(key.value)} twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")

    def _check_numbers(self, node: Any) -> None:
        """Refuse keys that are large numbers: a mapping of such that hash alike takes the square of
        their time."""
        for key, _ in node.value:
            number = self.construct_object(key) if key.tag == INTEGER else 0
            if not isinstance(number, int) or abs(number) > MAX_INTEGER:
                raise RefusedError(f"has a key {shown(key.value)} that is not a name")


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+0123456789."))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in _Loader.yaml_implicit_resolvers.items()
}


def read(text: bytes, strict: Collection[str] = ()) -> dict[str, Any]:
    """Return the mapping that a text holds, as dicts, lists, text, numbers, booleans and None
    without references.

    Args:
        strict: top-level entries in which a reference to nothing is refused; in other mappings it
            is None.

    Raises:
        RefusedError: see there. yaml.YAMLError: no YAML. UnicodeDecodeError: no text.
    """
    if len(text) > MAX_BYTES:
        raise RefusedError(f"is larger than {MAX_BYTES >> 20} MiB")
    config = _built(text.decode())
    if not isinstance(config, dict):
        raise RefusedError("is not a mapping")
    resolved, resolver = {}, _Resolver(config)
    for key, value in config.items():
        lenient = isinstance(value, dict) and key not in strict
        resolved[_name(key, ())] = resolver.whole(key, lenient)
    return resolved


def _built(text: str) -> Any:
    """Return what a text holds, with its references. Raises: as `read`."""
    if len(re.findall("^%", text, re.MULTILINE)) > MAX_DIRECTIVES:
        raise RefusedError(f"has more than {MAX_DIRECTIVES} directives")
    _check_events(text)
    try:
        return yaml.load(text, Loader=_Loader)
    except (
        LookupError,
        ArithmeticError,
    ) as error:  # PyYAML's, for `!!bool maybe` and `1:1:1:...:1.5`
        raise RefusedError("has a value that is not of the type that it is given") from error


def shown(value: object) -> str:
    """Return a value as a message shows it: short, on one line, nothing that a terminal obeys."""
    text = repr(value)
    if isinstance(value, str):
        text = value
    if len(text) > 80:
        text = text[:77] + "..."
    letters = []
    for letter in text:
        if not letter.isprintable():
            letter = "?"
        letters.append(letter)
    return "".join(letters)


def dotted(where: Collection[object]) -> str:
    """Return the name of an entry, as in `encoder.layers.0`."""
    return shown(".".join(map(str, where)))


def _check_events(text: str) -> None:
    """Go through a text without building anything: the loader's recursion ends a process that is
    led 100,000 deep."""
    sizes: dict[str, int] = {}  # nodes under each anchor
    count, opened = 0, list[tuple[str | None, int]]()
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise RefusedError(f"has an alias {shown(event.anchor)} to what is not complete")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            _check_node(event)
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, count - 1))
            elif event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = count - before
        if len(opened) > MAX_DEPTH:
            raise RefusedError(f"is nested more than {MAX_DEPTH} levels deep")
        if count > MAX_NODES:
            raise RefusedError(f"has more than {MAX_NODES} values")


def _check_node(event: Any) -> None:
    tag = getattr(event, "tag", None)
    if tag and tag not in PLAIN_TAGS and tag != "!":
        raise RefusedError(f"has a value of the type {shown(tag)}, which is not plain data")
    if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_SCALAR_CHARACTERS:
        raise RefusedError(f"has a value longer than {MAX_SCALAR_CHARACTERS} characters")


class _Resolver:
    """Follows the references of one text; what they make is bounded for all its entries
    together."""

    def __init__(self, root: dict[Any, Any]) -> None:
        self._root, self._lenient = root, False
        self._left, self._characters = MAX_NODES, MAX_MADE_CHARACTERS

    def whole(self, key: Any, lenient: bool) -> Any:
        """Return an entry of the root without references; `lenient` makes those to nothing None."""
        self._lenient = lenient
        return self._plain(self._root[key], (key,), 0)

    def _count(self, where: tuple[Any, ...]) -> None:
        self._left -= 1
        if self._left < 0:
            raise RefusedError(
                f"has references in {dotted(where[:1])} that make more than {MAX_NODES} values"
            )

    def _plain(self, value: Any, where: tuple[Any, ...], chain: int) -> Any:
        self._count(where)
        if len(where) > MAX_DEPTH:
            raise RefusedError(f"is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            return {
                _name(key, where): self._plain(one, (*where, key), chain)
                for key, one in value.items()
            }
        if isinstance(value, list):
            return [self._plain(one, (*where, index), chain) for index, one in enumerate(value)]
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise RefusedError(f"has a number in {dotted(where)} that has more than 64 bits")
        return (
            self._text(value, where, chain) if isinstance(value, str) and "${" in value else value
        )

    def _text(self, text: str, where: tuple[Any, ...], chain: int) -> Any:
        """Return a text with its references replaced, or what it refers to where it is one
        reference alone."""
        if "\\${" in text:
            raise RefusedError(f"has the escaped reference {shown(text)} in {dotted(where)}")
        while "${" in text:
            self._count(where)
            if RESOLVER.search(text):
                raise RefusedError(
                    f"has {shown(text)} in {dotted(where)}, which is not an entry of its own"
                )
            found = INNERMOST.search(text)
            if found is None or len(text) > MAX_SCALAR_CHARACTERS:
                raise RefusedError(
                    f"has the reference {shown(text)} in {dotted(where)}, which cannot be resolved"
                )
            value = self._referred(found, where, chain + 1)
            if found.group() == text:
                return value
            if isinstance(value, dict | list):
                raise RefusedError(
                    f"has the reference {found.group()} in {dotted(where)}, which is not text"
                )
            text = f"{text[: found.start()]}{value}{text[found.end() :]}"
            self._characters -= len(text)
            if self._characters < 0:
                most = f"{MAX_MADE_CHARACTERS >> 20} million characters"
                raise RefusedError(
                    f"has references in {dotted(where[:1])} that make more than {most}"
                )
        return text

    def _referred(self, found: re.Match[str], where: tuple[Any, ...], chain: int) -> Any:
        """Return the value of the entry that a reference names."""
        match = ENTRY.fullmatch(found[1].strip())
        if match is None:
            raise RefusedError(
                f"has the reference {shown(found.group())} in {dotted(where)}, which cannot be resolved"
            )
        if chain > MAX_CHAIN:
            raise RefusedError(f"has references in {dotted(where)} that lead in a circle")
        start = where[: -len(match[1])] if match[1] else ()
        try:
            return self._follow((*start, *re.split(r"[.\[\]]+", match[2].rstrip("]"))), chain)
        except (KeyError, IndexError, ValueError) as error:
            if isinstance(error, RefusedError):
                raise
            if self._lenient:
                return None
            what = f"has the reference {shown(found.group())} in {dotted(where)}, which leads to nothing"
            raise RefusedError(what) from error

    def _follow(self, keys: tuple[Any, ...], chain: int) -> Any:
        value: Any = self._root
        for index, key in enumerate(keys):
            if isinstance(value, str) and "${" in value:  # a reference on the way
                value = self._plain(value, keys[:index], chain)
            value = _item(value, key)
        return self._plain(value, keys, chain)


def _name(key: Any, where: tuple[Any, ...]) -> Any:
    """Return a key that is a text without a reference, or a number. Raises RefusedError: any
    other."""
    number = isinstance(key, int | float) and abs(key) <= MAX_INTEGER
    if not number and (not isinstance(key, str) or "${" in key):
        raise RefusedError(f"has a key in {dotted(where) or 'its root'} that is not a name")
    return key


def _item(container: Any, key: Any) -> Any:
    """Return an item of a mapping or a list. Raises: KeyError, IndexError, ValueError."""
    if isinstance(container, list):
        return container[int(key)]
    if not isinstance(container, dict):
        raise KeyError(key)
    return container[key]
