"""Reading a YAML file strictly: every key once, no text that unfolds without end, and every fault with its line.

Only plain data is made of it: text, numbers, true and false, null, lists, mappings.
"""

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from foretune.errors import InputError
from foretune.task.files import as_text, read_file
from foretune.task.problems import shown

LARGEST = 2**20  # bytes
DEEPEST = 50  # lists and mappings within one another
MOST_VALUES = 10**5  # an alias (*name) counts as all values that it stands for
LONGEST_NUMBER = 100  # characters
TAG = "tag:yaml.org,2002:"
PLAIN = {TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def read_yaml(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        InputError: It cannot be read, is not valid YAML, or is too large once its aliases are written out.
    """
    text = as_text(read_file(path, str(path), "give the path of a run.yaml", LARGEST), path, str(path))
    try:
        loader = _Loader(text)
        loader.path = path
        return loader.get_single_data()
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        found = f"the character {shown(chr(error.character))}, which YAML does not allow"
        raise InputError(
            f"{path}, line {line}", found, "remove it, or write it as an escape in double quotes"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        reason = ": ".join(part for part in (error.context, error.problem) if part)
        fix = "write blanks instead of tabs" if r"'\t'" in reason else "correct the YAML there"
        raise InputError(where, f"not valid YAML ({reason})", fix) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which takes the last of equal keys, with the checks that it does not make."""

    path = Path()
    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if self.depth >= DEEPEST and self.check_event(yaml.events.CollectionStartEvent):
            self.refuse(self.peek_event(), f"lists and mappings more than {DEEPEST} deep", "write it flatter")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, MappingNode):
            self.check_keys(node)
        return node

    def compose_document(self) -> Node | None:
        root = super().compose_document()
        if root is not None:
            values, depth = self.extent(root, {})
            if values > MOST_VALUES or depth > DEEPEST:
                found = f"more than {MOST_VALUES:,} values, or {DEEPEST} deep, with aliases (*name) written out"
                self.refuse(root, found, "write fewer")
        return root

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        kind = node.tag.removeprefix(TAG)
        if node.tag not in PLAIN:
            self.refuse(node, f"the tag {shown(node.tag)}", "remove the tag: write text, numbers, lists or mappings")
        if not isinstance(node, ScalarNode):
            return super().construct_object(node, deep)
        if kind in {"int", "float"} and len(node.value) > LONGEST_NUMBER:
            self.refuse(node, f"a number of {len(node.value):,} characters", "write a smaller one")
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            found = f"{shown(node.value)} is not {WORDS.get(kind, kind)}"
            raise self.refusal(node, found, "correct the value or its tag") from error

    def flatten_mapping(self, node: MappingNode) -> None:
        """Put the pairs in that a mapping takes over (``<<: *name``): its own win, then those of the first named."""
        inherited: dict[str, tuple[Node, Node]] = {}
        own: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            if key.tag != TAG + "merge":
                own[key.value] = (key, value)
                continue
            for source in value.value if isinstance(value, SequenceNode) else [value]:
                if not isinstance(source, MappingNode):
                    self.refuse(source, "<< without a mapping", "write <<: *name, where &name marks a mapping")
                self.flatten_mapping(source)
                for pair in source.value:
                    inherited.setdefault(pair[0].value, pair)
        node.value = list((inherited | own).values())

    def check_keys(self, node: MappingNode) -> None:
        """Refuse keys that are not text, and those that stand twice in one mapping."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                self.refuse(key, "a list or a mapping as a key", "write a word as the key")
            if key.tag not in {TAG + "str", TAG + "merge"}:
                self.refuse(key, f"the key {key.value} is not text", "write a word as the key, or put it in quotes")
            line, name = key.start_mark.line + 1, key.value
            if name in lines:
                lines_said = f"line {line}" if line == lines[name] else f"lines {lines[name]} and {line}"
                self.refuse(key, f"the key {shown(key.value)} stands twice, in {lines_said}", "keep one of them")
            lines[name] = line

    def extent(self, node: Node, seen: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
        """How many values a node is, and how deep, once its aliases are written out."""
        if id(node) not in seen:
            seen[id(node)] = None
            values, depth = 1, 0
            if not isinstance(node, ScalarNode):
                depth = 1
                items = [item for pair in node.value for item in pair] if isinstance(node, MappingNode) else node.value
                for item in items:
                    more, deeper = self.extent(item, seen)
                    values, depth = values + more, max(depth, 1 + deeper)
            seen[id(node)] = values, depth
        found = seen[id(node)]
        if found is None:
            self.refuse(node, "an alias (*name) within what it stands for", "write the values out")
        return found

    def refusal(self, place: Any, found: str, fix: str) -> InputError:
        """The error about a node or an event of the file."""
        mark = place.start_mark
        return InputError(f"{self.path}, line {mark.line + 1}, column {mark.column + 1}", found, fix)

    def refuse(self, place: Any, found: str, fix: str) -> NoReturn:
        """Raise the error about a node or an event of the file."""
        raise self.refusal(place, found, fix)


# Dates, 1:30 for 90 and 010 for 8 are text, as in YAML 1.2: they are something else where they stand in a run file.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in PLAIN - {TAG + "int", TAG + "float"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(TAG + "int", re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    TAG + "float",
    re.compile(r"[-+]?([0-9][0-9_]*\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
