"""Requests as a baseline holds them: nothing that is asked otherwise looks the same."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from capcheck.baseline import shortened

TEXT = st.text(st.characters(), max_size=100)  # half surrogate pairs too
REQUESTS = st.dictionaries(
    st.sampled_from(["kind", "prompt", "stop", "max_tokens", "continuations"]),
    st.one_of(TEXT, st.integers(), st.lists(TEXT, max_size=4)),
)


@given(REQUESTS, REQUESTS)
def test_equal_where_requests_are(first, second):
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (shortened(first) == shortened(second)) is same


@given(REQUESTS)
def test_what_is_short_stands_there(request):
    found = shortened(request)
    assert found.keys() == request.keys()
    assert json.loads(json.dumps(found)) == found
    for name, value in found.items():
        assert len(json.dumps(value)) <= 64
        assert value == request[name] or value.startswith("sha256:")


def test_a_tuple_is_asked_as_a_list():
    assert shortened({"stop": ("a", "b")}) == shortened({"stop": ["a", "b"]})
