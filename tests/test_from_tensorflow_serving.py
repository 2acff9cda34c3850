"""What `docs/from-tensorflow-serving.md` shows is run against an endpoint of ours."""

import re
from pathlib import Path

import pytest

import quorate as q
from quorate.server.serving import Endpoint
from quorate.simulations import datasets

TEXT = (Path(__file__).parents[1] / "docs" / "from-tensorflow-serving.md").read_text(encoding="utf-8")
(CLIENT,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    digits = datasets.digits().partition("iid", clients=10, seed=0)
    plan = q.Plan(
        task=q.Task(q.models.softmax(64, 10)), rounds=q.Rounds(count=1, cohort=10, sampling="fixed")
    )
    registry = tmp_path_factory.mktemp("serving") / "registry"
    q.run(plan, fleet=q.Simulation(digits), watch=lambda report: None).publish(registry, "digits")
    with Endpoint(registry, port=0) as serving:
        yield serving


@pytest.fixture
def client(endpoint):
    """The page's client, run against the endpoint."""
    code, replaced = re.subn(r'"http://localhost:8501', f'"{endpoint.url}', CLIENT)
    assert replaced == 1
    found: dict = {}
    exec(compile(code, "docs/from-tensorflow-serving.md", "exec"), found)
    return found


def test_the_client_of_the_page_gets_its_answers(client):
    assert client["status"] == {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    assert client["inputs"]["inputs"]["dtype"] == "DT_FLOAT"
    assert [len(row) for row in client["rows"]] == [10, 10]
    assert client["columns"] == client["rows"]
    assert client["named"]["predictions"] == client["numbered"]["predictions"] == client["rows"][:1]
    assert client["failed"].status_code == 404
    assert client["failed"].json()["error"].startswith("Servable not found for request: ")


def test_what_the_page_says_is_missing_is_refused_as_it_says(client):
    import httpx

    assert httpx.post(f"{client['url']}:classify", json={"examples": [{}]}).status_code == 501
    assert httpx.post(f"{client['url']}:regress", json={"examples": [{}]}).status_code == 501
    assert httpx.get(f"{client['url']}:predict").status_code == 405
