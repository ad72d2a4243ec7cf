"""MkDocs: pages that lie outside of docs/, and links that work both there and on the site.

In the sources a link is a path in the repository, so that it also works where the repository is
browsed. On the site, docs/ is the root; the pages below keep their path. A link to a file that the
site does not hold (a source file) becomes plain text there.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "kernels/README.md",
    "benchmarks/*.md",
    "benchmarks/results/*.md",
)
PICTURES = ("benchmarks/*.png",)
_LINK = re.compile(r"(?P<text>\[[^\]]*\])\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def outside(patterns: tuple[str, ...] = (*OUTSIDE, *PICTURES)) -> list[Path]:
    """The files of the repository that the site takes from outside of docs/."""
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def on_files(files: Any, config: Any) -> Any:
    """Add what lies outside of docs/."""
    for path in outside():
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn paths in the repository into paths on the site."""
    here = page.file.src_uri
    from_docs = ROOT / here not in outside(OUTSIDE)
    folder = posixpath.dirname(f"docs/{here}" if from_docs else here)

    def on_site(match: re.Match[str]) -> str:
        target = match["target"]
        if ":" in target:
            return match[0]
        place = posixpath.normpath(posixpath.join(folder, target))
        name = place.removeprefix("docs/")
        if files.get_file_from_path(name) is None:
            return match["text"][1:-1] if (ROOT / place).exists() else match[0]
        path = posixpath.relpath(name, posixpath.dirname(here) or ".")
        return f"{match['text']}({path}{match['anchor'] or ''})"

    return _LINK.sub(on_site, markdown)
