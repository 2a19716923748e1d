"""Names that a label may have."""

import pytest

from laennec.corpora.labels import label_set
from laennec.errors import InputError


@pytest.mark.parametrize(
    "name",
    ["device", "audio", "abnormal", "corpus", "source_path", "cycles", "fold", "split_official", "fold_device_out"],
)
def test_a_label_that_is_a_column_has_no_name_of_another_column(name: str) -> None:
    with pytest.raises(InputError, match=f"label '{name}' has the name of a column"):
        label_set([(name,), (name, "snore")], (), None)
    assert label_set([(name,), ("snore",)], (), None).columns.keys() == {"label"}  # one class a row: no such column
