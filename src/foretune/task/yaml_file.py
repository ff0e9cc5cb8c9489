"""Reads a YAML file strictly: equal keys are refused, the size is limited, and errors name the line.

The result is plain data: text, numbers, true and false, null, lists and mappings.
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
DEEPEST = 50  # levels of nested lists and mappings
MOST_VALUES = 10**5  # an alias (*name) counts as all the values that it refers to
LONGEST_NUMBER = 100  # characters
TAG = "tag:yaml.org,2002:"
PLAIN = {TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
KIND_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def read_yaml(path: Path) -> Any:
    """Read the content of a YAML file.

    Args:
        path: The file.

    Returns:
        The content; None for an empty file.

    Raises:
        InputError: The file cannot be read, is not valid YAML, or is too large, before or after aliases are expanded.
    """
    text = as_text(read_file(path, str(path), "give the path of a run.yaml", LARGEST), path, str(path))
    try:
        loader = _Loader(text)
        loader.path = path
        return loader.get_single_data()
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        problem = f"it has the character {shown(chr(error.character))}, which YAML does not allow"
        raise InputError(
            f"{path}, line {line}", problem, "remove it, or write it as an escape sequence in double quotes"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        reason = ": ".join(part for part in (error.context, error.problem) if part)
        fix = "write blanks instead of tabs" if r"'\t'" in reason else "correct the YAML there"
        raise InputError(where, f"it is not valid YAML ({reason})", fix) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with further checks; PyYAML itself accepts equal keys and uses the last one."""

    path = Path()
    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if self.depth >= DEEPEST and self.check_event(yaml.events.CollectionStartEvent):
            self.refuse(
                self.peek_event(), f"lists and mappings are nested more than {DEEPEST} deep", "write them flatter"
            )
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
                problem = (
                    f"with its aliases (*name) expanded, the file has more than {MOST_VALUES:,} values, "
                    f"or is nested more than {DEEPEST} deep"
                )
                self.refuse(root, problem, "use fewer aliases")
        return root

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        kind = node.tag.removeprefix(TAG)
        if node.tag not in PLAIN:
            self.refuse(
                node,
                f"the tag {shown(node.tag)} is not allowed",
                "remove the tag: write text, numbers, lists or mappings",
            )
        if not isinstance(node, ScalarNode):
            return super().construct_object(node, deep)
        if kind in {"int", "float"} and len(node.value) > LONGEST_NUMBER:
            self.refuse(node, f"a number has {len(node.value):,} characters", "write a smaller one")
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            problem = f"{shown(node.value)} is not {KIND_NAMES.get(kind, kind)}"
            raise self.refusal(node, problem, "correct the value or its tag") from error

    def flatten_mapping(self, node: MappingNode) -> None:
        """Insert the pairs that a mapping inherits with ``<<: *name``.

        The mapping's own keys override inherited ones; of several sources, the first that has a key provides it.
        """
        inherited: dict[str, tuple[Node, Node]] = {}
        own: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            if key.tag != TAG + "merge":
                own[key.value] = (key, value)
                continue
            for source in value.value if isinstance(value, SequenceNode) else [value]:
                if not isinstance(source, MappingNode):
                    self.refuse(source, "<< is used without a mapping", "write <<: *name, where &name marks a mapping")
                self.flatten_mapping(source)
                for pair in source.value:
                    inherited.setdefault(pair[0].value, pair)
        node.value = list((inherited | own).values())

    def check_keys(self, node: MappingNode) -> None:
        """Refuse keys that are not text, and keys that occur twice in one mapping."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                self.refuse(key, "a list or a mapping is used as a key", "write a word as the key")
            if key.tag not in {TAG + "str", TAG + "merge"}:
                self.refuse(key, f"the key {key.value} is not text", "write a word as the key, or put it in quotes")
            line, name = key.start_mark.line + 1, key.value
            if name in lines:
                place = f"line {line}" if line == lines[name] else f"lines {lines[name]} and {line}"
                self.refuse(key, f"the key {shown(key.value)} occurs twice, in {place}", "keep one of them")
            lines[name] = line

    def extent(self, node: Node, extents: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
        """The number of values of a node, and its depth, with aliases expanded.

        ``extents`` keeps the results by node; None marks a node whose result is being computed.
        """
        if id(node) not in extents:
            extents[id(node)] = None
            values, depth = 1, 0
            if not isinstance(node, ScalarNode):
                depth = 1
                items = [item for pair in node.value for item in pair] if isinstance(node, MappingNode) else node.value
                for item in items:
                    more, deeper = self.extent(item, extents)
                    values, depth = values + more, max(depth, 1 + deeper)
            extents[id(node)] = values, depth
        extent = extents[id(node)]
        if extent is None:
            self.refuse(node, "an alias (*name) is inside the value that it refers to", "write the values out")
        return extent

    def refusal(self, place: Any, problem: str, fix: str) -> InputError:
        """Make the error about a node or an event of the file."""
        mark = place.start_mark
        return InputError(f"{self.path}, line {mark.line + 1}, column {mark.column + 1}", problem, fix)

    def refuse(self, place: Any, problem: str, fix: str) -> NoReturn:
        """Raise the error about a node or an event of the file."""
        raise self.refusal(place, problem, fix)


# As in YAML 1.2, dates, 1:30 and 010 stay text. YAML 1.1 reads 1:30 as 90 and 010 as 8, which a run file never means.
_Loader.yaml_implicit_resolvers = {
    first_letter: [(tag, pattern) for tag, pattern in resolvers if tag in PLAIN - {TAG + "int", TAG + "float"}]
    for first_letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(TAG + "int", re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    TAG + "float",
    re.compile(r"[-+]?([0-9][0-9_]*\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
