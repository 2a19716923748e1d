"""Untrusted text is shown literally: no links, no HTML, no broken tables."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from laennec.rendering import Markdown, code, escaped, fenced, plain, render_template, table
from markdown_page import Page


@settings(deadline=None)
@given(st.text(max_size=60))
@example("0\x85\x1b\x850")
def test_escaped_text_is_shown_literally(text):
    page = Page(escaped(text))
    assert page.text.strip() == " ".join(plain(text).split()) and set(page.tags) <= {"p"}


@settings(deadline=None)
@given(st.text(max_size=40))
def test_names_in_code_stay_one_cell_of_a_table(text):
    page = Page(table(("one", "two"), [(code(text), escaped(text))]))
    assert page.tags.count("td") == 2 and set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}


@settings(deadline=None)
@given(st.text(alphabet="`~ab\n", max_size=40))
def test_a_fenced_block_cannot_be_left(text):
    page = Page(fenced(text, "bash") + "\n\nafter")
    assert page.tags == ["pre", "code", "p"] and page.text.strip().endswith("after")


def test_templates_are_escaped_by_their_kind():
    html = render_template("app_problem.html", name="<b>", reason="a & b")
    assert "&lt;b&gt;" in html and "a &amp; b" in html
    assert escaped(Markdown("*x*")) == "*x*" and escaped("*x*") == r"\*x\*"
