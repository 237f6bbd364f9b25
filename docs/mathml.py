"""Equations of the site as MathML: browsers draw it by themselves, so pages load nothing for it."""

import html
import re

from latex2mathml.converter import convert

# as pymdownx.arithmatex leaves them
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def on_page_content(content: str, **_: object) -> str:
    return EQUATION.sub(_as_mathml, content)


def _as_mathml(found: re.Match[str]) -> str:
    tag, bracket, source = found.groups()
    drawn = convert(html.unescape(source), display="block" if bracket == "[" else "inline")
    return f'<{tag} class="equation">{drawn}</{tag}>'
