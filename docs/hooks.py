"""What the site needs beside mkdocs.yml: the pages of results/, links that leave docs/, and docstrings as Markdown.

On GitHub and on the disk every link is relative to its file. The site has docs/ at its root and results/ beside it, so
links are written anew from where they lead. A link to what is in neither folder is an error.
"""

import posixpath
import re
from pathlib import Path

from griffe import Class, Extension, Function, Module
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {".gz", ".jpg", ".json", ".jsonl", ".md", ".png", ".py", ".xz"}

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)((?:#[^)\s]*)?)(?=\))")
_FETCHED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?(?:src|href)="(https?:[^"]*)\"""")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what stands in results/."""
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in SHOWN and path.is_file():
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page, but not what looks like one in code."""
    if (source := page.file.abs_src_path) is None:
        return markdown

    def moved(link: re.Match[str]) -> str:
        return _on_the_site(link[1], Path(source), page.file.src_uri) + link[2]

    parts = _CODE.split(markdown)
    return "".join(part if k % 2 else _LINK.sub(moved, part) for k, part in enumerate(parts))


def _on_the_site(target: str, source: Path, uri: str) -> str:
    """Return where a link of the file `source`, which has the address `uri`, leads on the site."""
    path = (source.parent / target).resolve()
    path = path / "README.md" if path.is_dir() else path
    inside = path.relative_to(ROOT)
    if not path.exists() or inside.parts[0] not in ("docs", "results"):
        raise PluginError(f"{source}: {target} leads to no page of the site, which has docs/ and results/ alone")
    shown = inside.relative_to("docs") if inside.parts[0] == "docs" else inside
    return posixpath.relpath(shown.as_posix(), posixpath.dirname(uri) or ".")


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse what a reader's browser would fetch from elsewhere: scripts, styles, pictures."""
    if (fetched := _FETCHED.search(output)) is not None:
        raise PluginError(f"{page.file.src_uri} fetches {fetched[1]}: the site stands by itself")
    return output


class Docstrings(Extension):
    """The library's docstrings as Markdown: a line that begins with the name of an argument becomes an item.

    Docstrings say `images: (N, C, H, W) in [0, 1]. seed: of what draws`, one or several arguments a line.
    """

    def on_package(self, *, pkg: Module, **_: object) -> None:
        """Rewrite the docstrings of a package, all the way down."""
        for one in pkg.modules.values():
            self.on_package(pkg=one)
        for one in pkg.classes.values():
            if not one.is_alias:
                self._rewrite(one, [*one.members, *_arguments(one.functions.get("__init__"))])
                for method in one.functions.values():
                    self._rewrite(method, _arguments(method))
        for one in pkg.functions.values():
            if not one.is_alias:
                self._rewrite(one, _arguments(one))

    def _rewrite(self, what: Class | Function, names: list[str]) -> None:
        if what.docstring is not None:
            what.docstring.value = itemised(what.docstring.value, names)


def _arguments(function: Function | None) -> list[str]:
    return [] if function is None else [one.name for one in function.parameters]


def itemised(text: str, names: list[str]) -> str:
    """Return a docstring in which every argument that is explained is an item of a list.

    An item goes on over indented lines, and over others until its sentence ends.
    """
    if not names:
        return text
    known = "|".join(sorted((re.escape(name) for name in names), key=len, reverse=True))
    begins = re.compile(rf"((?:(?:{known})(?:, | and )?)+)((?: \([^)\n]*\))?(?:,[^:.\n]*)?):(?: |$)")
    text = re.sub(rf"(?:(?<=\.)|;) (?=(?:{known})(?:, (?:{known}))*:\s)", "\n", text)
    text = re.sub(r"(?<=\.) (?=Raises |Errors: )", "\n", text)
    lines: list[str] = []
    in_item = False
    for line in text.splitlines():
        named = begins.match(line)
        goes_on = line.startswith("    ") or not lines or not lines[-1].endswith(".")
        if named is not None:
            lines += [] if in_item else [""]
            lines.append(f"- `{named[1]}`{named[2]}: {line[named.end() :]}".rstrip())
        elif in_item and line.strip() and goes_on:
            lines[-1] = f"{lines[-1]} {line.strip()}"
        else:
            lines += ["", line] if in_item else [line]
        in_item = named is not None or (in_item and bool(line.strip()) and goes_on)
    return "\n".join(lines)
