"""Files of class maps: what they say, read without running anything, and their text.

class_map.json has a line for every class and every excluded value:

    {"classes": [{"value": 0, "name": "sky", "colour": [0, 216, 252]}, ...],
     "excluded": [{"value": 11, "why": "void"}, ...],
     "ignore_index": 255}

A table in a .py file is one dictionary; an empty name excludes:

    CMAP = {0: ("sky", (0, 216, 252)), 11: ("", (0, 0, 0))}

A classes.txt has a name per line, with or without the value in front ("255 object").
"""

import ast
import json
import re

from minisegnet.datasets.files import read_text
from minisegnet.errors import UserError

ABOUT = ("the values in the masks and the classes they stand for, in the order of their ids 0, "
         "1, 2, ...; pixels of excluded values are ignored")
_KEYS = ("classes", "excluded", "ignore_index", "about")


def read_json(path):
    """Return the content of a class_map.json; UserError if it is not JSON."""
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_no_key_twice)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); correct it") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _no_key_twice(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"the key {twice!r} occurs twice in one record; take one out")
    return found


def fields_of(content):
    """Return the arguments of `ClassMap` in the content of a class_map.json.

    Raises UserError if it has another shape.
    """
    if not isinstance(content, dict) or "classes" not in content:
        raise UserError('a class map is {"classes": [...], "excluded": [...], "ignore_index": '
                        '255}; at least "classes" must be there')
    for key in content:
        if key not in _KEYS:
            raise UserError(f"{key!r} is not a part of a class map; the parts are "
                            f"{', '.join(_KEYS)}")
    classes = _records(content, "classes", "name")
    excluded = _records(content, "excluded", "why")
    with_colour = [record for record in classes if "colour" in record]
    if with_colour and len(with_colour) < len(classes):
        raise UserError(f"{len(with_colour)} of {len(classes)} classes have a colour; give one to "
                        f"all or none")
    values = [_value(record) for record in excluded]
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"the value {value} is excluded twice; take one out")
    return {
        "names": [record["name"] for record in classes],
        "values": [record["value"] for record in classes],
        "palette": [record["colour"] for record in classes] if with_colour else None,
        "excluded": dict(zip(values, (record["why"] for record in excluded))),
        "excluded_colours": {value: record["colour"] for value, record
                             in zip(values, excluded) if "colour" in record},
        **{key: content[key] for key in ("ignore_index",) if key in content},
    }


def _value(record):
    """Return the value of a record such that a dictionary can have it as a key."""
    value = record["value"]
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return _hashable(value)


def _hashable(value):
    return str(value) if isinstance(value, (list, dict)) else value


def _records(content, key, text):
    """Return the list `key` of `content`, each with a value, a `text` and perhaps a colour."""
    records = content.get(key, [])
    if not isinstance(records, list):
        raise UserError(f"{key!r} is a list of records, one per value, not {_shown(records)}")
    for record in records:
        if not isinstance(record, dict) or not {"value", text} <= set(record) \
                or set(record) - {"value", text, "colour"}:
            raise UserError(f"{_shown(record)} in {key!r} is no record with \"value\", "
                            f"\"{text}\" and, if wanted, \"colour\"")
        if not isinstance(record[text], str):
            raise UserError(f"{_shown(record)} in {key!r}: \"{text}\" is a text in quotes")
    return records


def _shown(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 80 else text[:77] + "..."


def json_text(content):
    """Return the text of a class_map.json: one line for a class or an excluded value."""

    def lines(records):
        rows = [f"  {json.dumps(record, ensure_ascii=False)}" for record in records]
        return "[\n" + ",\n".join(rows) + "\n ]" if rows else "[]"

    return (f'{{\n "about": {json.dumps(ABOUT)},\n "classes": {lines(content["classes"])},\n'
            f' "excluded": {lines(content["excluded"])},\n'
            f' "ignore_index": {content["ignore_index"]}\n}}\n')


def read_table(path):
    """Return the table in a .py file as the content of a class_map.json. Nothing is run.

    Raises UserError if the file holds anything but one dictionary {value: (name, colour)}.
    """
    table = _only_dictionary(path)
    classes, excluded = [], []
    for key_node, entry_node in zip(table.keys, table.values):
        try:
            key, entry = ast.literal_eval(key_node), ast.literal_eval(entry_node)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}, line {entry_node.lineno}: only numbers, texts and tuples "
                            f"are read, nothing is computed; write them out") from error
        if not (isinstance(entry, (tuple, list)) and len(entry) == 2
                and isinstance(entry[0], str)):
            raise UserError(f"{path}, line {entry_node.lineno}: {entry!r} is not (name, colour), "
                            f'such as ("road", (128, 64, 128)) or ("road", None)')
        record = {"value": list(key) if isinstance(key, tuple) else key}
        name = entry[0].strip()
        record |= {"name": name} if name else {"why": "unnamed"}
        if entry[1] is not None:
            record["colour"] = entry[1]
        (classes if name else excluded).append(record)
    return {"classes": classes, "excluded": excluded}


def _only_dictionary(path):
    """Return the syntax tree of the dictionary that the .py file holds."""
    try:
        body = ast.parse(read_text(path)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        line = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
        raise UserError(f"{path}{line} is not Python ({getattr(error, 'msg', error)}); correct "
                        f"it") from error
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]  # the text that explains the file
    table = getattr(body[0], "value", None) if len(body) == 1 else None
    if not isinstance(table, ast.Dict) or None in table.keys:
        found = f"line {body[1].lineno} goes on" if len(body) > 1 else "it holds none"
        raise UserError(f"{path} must be one table, CMAP = {{0: (\"road\", (128, 64, 128)), "
                        f"...}}, and {found}; it is read, not run, so write out what it computes")
    return table


def table_text(content):
    """Return the content of a class_map.json as the text of a .py table."""
    lines = ['"""Value in the masks: (name, colour). One without a name is ignored."""', "",
             "CMAP = {"]
    for record in (*content["classes"], *content["excluded"]):
        value, colour = (tuple(v) if isinstance(v, list) else v
                         for v in (record["value"], record.get("colour")))
        why = " ".join(record.get("why", "").split())
        lines.append(f"    {value}: ({record.get('name', '')!r}, {colour}),"
                     + (f"  # {why}" if why else ""))
    return "\n".join([*lines, "}", ""])


def read_names(path):
    """Return the names in a classes.txt and their mask values (default 0, 1, 2, ...)."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line]
    if not 2 <= len(lines) <= 255:
        raise UserError(f"{path} names {len(lines)} classes; write 2 to 255, one a line")
    if len(set(lines)) < len(lines):
        raise UserError(f"{path} names a class twice; give each its own name")
    numbered = [re.fullmatch(r"(\d+)\s+(.+)", line) for line in lines]
    if not any(numbered):
        return lines, list(range(len(lines)))
    if not all(numbered):
        raise UserError(f"{path} gives mask values for some classes only; give all or none")
    values = [int(match[1]) for match in numbered]
    if max(values) > 255 or len(set(values)) < len(values):
        raise UserError(f"{path} repeats a mask value or has one above 255; correct it")
    return [match[2] for match in numbered], values
