"""Hooks of the documentation's build: generated references, and links that leave `docs/`.

Pages name a generated part by a comment, `<!-- generated: commands -->`. What pages link to outside
of `docs/`, such as a results file, becomes a page or a file of the site below `repository/`.
"""

from __future__ import annotations

import json
import posixpath
import re
from functools import partial
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "repository"
KINDS = {int: "whole number", float: "number", Path: "path"}  # of options; others: text
LINK = re.compile(r"(\]\()([^)\s#]+)([^)]*\))")


# Generated parts


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in generated parts, and point links that leave `docs/` into the site."""
    for name, generate in GENERATED.items():
        comment = f"<!-- generated: {name} -->"
        if comment in markdown:
            markdown = markdown.replace(comment, generate())
    return LINK.sub(lambda match: match[1] + _in_site(match[2], page) + match[3], markdown)


def commands() -> str:
    """Describe every command and option, as `dpmpp --help` does."""
    import typer

    from pipelines.cli import app

    return "\n".join(_command("dpmpp", typer.main.get_command(app)))


def _command(name: str, command: Any) -> list[str]:
    if hasattr(command, "commands"):
        parts = [_command(f"{name} {key}", child) for key, child in command.commands.items()]
        return [line for part in parts for line in part]
    parameters = [one for one in command.params if one.name != "help" and not one.hidden]
    words = [one.metavar or one.name.upper() for one in parameters if not _is_option(one)]
    text = [f"## {name}", "", _plain(command.help), ""]
    text += ["```text", " ".join([name, "[OPTIONS]", *words]), *_examples(command.epilog), "```"]
    rows = [_parameter(one) for one in parameters]
    if rows:
        text += ["", "| option | value | default | |", "|---|---|---|---|", *rows]
    return [*text, ""]


def _examples(epilog: str | None) -> list[str]:
    """Return the command lines at the end of a help page."""
    lines = (epilog or "").replace("\\[", "[").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("dpmpp ")]


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _parameter(parameter: Any) -> str:
    name, value, default = parameter.metavar or parameter.name.upper(), "", ""
    if _is_option(parameter):
        name = ", ".join(parameter.opts)
    if not getattr(parameter, "is_flag", False):
        kind = parameter.type_descriptor.annotation
        (kind,), repeated = get_args(kind) or (kind,), get_args(kind)
        value = KINDS.get(kind, "text") + (", repeated" if repeated else "")
        default = "" if parameter.default is None else f"`{parameter.default}`"
    if parameter.required:
        default = "required"
    if isinstance(parameter.envvar, str):
        default = f"{default} or `${parameter.envvar}`".removeprefix(" or ")
    return f"| `{_cell(name)}` | {value} | {default} | {_cell(_plain(parameter.help))} |"


def configuration() -> str:
    """Describe every key of the configuration, from its models."""
    from dpmpp_core.config.describing import describe_keys

    sections: dict[str, list[Any]] = {}
    for one in describe_keys():
        sections.setdefault(one.key.rpartition(".")[0], []).append(one)
    text = []
    for section, keys in sections.items():
        text += ["", f"## {section or 'The run'}", "", _section_doc(section), ""]
        text += ["| key | type | default | |", "|---|---|---|---|", *map(_key, keys)]
    return "\n".join(text)


def _key(one: Any) -> str:
    kind = f"{one.type}: {one.allowed}" if one.allowed else one.type
    cells = f"{_cell(kind)} | `{_cell(json.dumps(one.default))}` | {_cell(one.description)}"
    return f"| `{one.key}` | {cells} |"


def _section_doc(name: str) -> str:
    """Return the docstring of a section of the configuration."""
    from dpmpp_core.config import Config

    section: Any = Config
    for part in name.split(".") if name else []:
        section = section.model_fields[part].annotation
    return _plain(section.__doc__)


def python() -> str:
    """Name every public name of `dpmpp_core` for mkdocstrings, at the place that defines it."""
    import dpmpp_core

    objects = [getattr(dpmpp_core, name) for name in dpmpp_core.__all__]
    return "\n\n".join(f"::: {one.__module__}.{one.__qualname__}" for one in objects)


def notebook(path: Path) -> str:
    """Return a notebook's cells as Markdown."""
    cells = json.loads(path.read_text())["cells"]
    texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return "\n\n".join(f"```python\n{t}\n```" if kind == "code" else t for kind, t in texts)


def _plain(text: str | None) -> str:
    """Return a docstring or help text without the marks of terminals, paragraphs kept."""
    paragraphs = (
        re.sub(r"\[/?(bold|dim|cyan|green)\]", "", text or "").replace("\b", "").split("\n\n")
    )
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).strip()


def _cell(text: str | None) -> str:
    """Return text for a cell of a table; `][` would be a reference."""
    return " ".join((text or "").replace("|", "\\|").replace("][", "]\\[").split())


GENERATED = {"commands": commands, "configuration": configuration, "python": python} | {
    path.name: partial(notebook, path) for path in (ROOT / "docs" / "examples").glob("*.ipynb")
}


# Links that leave docs/


def on_files(files: Any, config: Any) -> Any:
    """Add what pages link to outside of `docs/`, and all that these link to."""
    from mkdocs.structure.files import File

    todo = [ROOT / "docs" / f.src_uri for f in files if f.src_uri.endswith(".md")]
    seen: set[str] = set()
    while todo:
        source = todo.pop()
        for target in _targets(source):
            if target in seen or target.startswith("docs/") or not (ROOT / target).is_file():
                continue
            seen.add(target)
            files.append(
                File.generated(config, f"{OUTSIDE}/{target}", abs_src_path=str(ROOT / target))
            )
            if target.endswith(".md"):
                todo.append(ROOT / target)
    return files


def _targets(source: Path) -> list[str]:
    """Return the links of a Markdown file as paths below the root."""
    folder = source.parent.relative_to(ROOT).as_posix()
    links = [match[2] for match in LINK.finditer(source.read_text())]
    return [posixpath.normpath(posixpath.join(folder, link)) for link in links if "://" not in link]


def _in_site(link: str, page: Any) -> str:
    """Return a link of a page as the site needs it."""
    if "://" in link:
        return link
    uri = page.file.src_uri
    source = uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else f"docs/{uri}"
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    inside = target.startswith("docs/")
    place = target.removeprefix("docs/") if inside else f"{OUTSIDE}/{target}"
    return posixpath.relpath(place, posixpath.dirname(uri) or ".")
