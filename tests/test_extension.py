"""Dotted names of own classes in recipes and commands."""

import sys

import pytest

from laennec.errors import InputError
from laennec.extension import is_dotted_name, load_object


def test_a_name_is_found_in_the_folder_that_is_given(tmp_path):
    (tmp_path / "my_own_code.py").write_text("class Mine:\n    pass\n")
    assert load_object("my_own_code:Mine", "here", [tmp_path]).__name__ == "Mine"
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no colon", "write package.module:Name"),
        ("module:two names", "write package.module:Name"),
        ("absent_module_of_mine:Name", "cannot import absent_module_of_mine"),
        ("json:Absent", "json has no Absent"),
    ],
)
def test_a_name_that_cannot_be_found_is_one_line(name, said):
    with pytest.raises(InputError, match=r"recipe\.yaml: loss") as caught:
        load_object(name, "recipe.yaml: loss")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1\ny = (", r"my_broken_code\.py, line 2: SyntaxError: '\(' was never closed; correct the module"),
        ("x = 1\n\nx.absent", r"my_broken_code\.py, line 3: AttributeError: .*; correct the module"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line_with_its_place(tmp_path, code, said):
    (tmp_path / "my_broken_code.py").write_text(code)
    with pytest.raises(InputError, match=rf"recipe\.yaml: loss: my_broken_code:Mine: .*{said}"):
        load_object("my_broken_code:Mine", "recipe.yaml: loss", [tmp_path])


def test_a_path_or_a_plain_name_is_no_dotted_name():
    assert is_dotted_name("a.b:C") and not any(map(is_dotted_name, ("icbhi2017", "C:/data", "a:b:c", 3)))
