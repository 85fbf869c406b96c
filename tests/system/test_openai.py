"""The unchanged `openai` package from PyPI against the HTTP API."""
import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import cluster

VENV = cluster.BUILD / "venv-openai"
PACKAGE = "openai>=1.40,<3"


def inside_venv():
    """Runs this file again with the virtual environment's Python, made where it is missing."""
    python = VENV / "bin/python"
    marker = VENV / "installed"
    if not marker.exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
        if made.returncode != 0:
            cluster.skip(f"no virtual environment: {made.stderr or made.stdout}")
        got = subprocess.run([str(python), "-m", "pip", "install", "--quiet",
                              "--disable-pip-version-check", PACKAGE], capture_output=True, text=True)
        if got.returncode != 0:
            cluster.skip(f"PyPI gives no {PACKAGE}: {got.stderr.strip().splitlines()[-1:]}")
        marker.write_text("")
    os.execv(python, [str(python), str(pathlib.Path(__file__).resolve()), "--inside"])


def chat(client):
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    text = answer.choices[0].message.content
    assert text.startswith("Once upon a time there was a playful fox named Lucy."), text
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].message.role == "assistant"
    assert answer.usage.prompt_tokens == 11
    assert answer.usage.total_tokens == 11 + answer.usage.completion_tokens

    parts, usage, finish = [], None, None
    for chunk in client.chat.completions.create(model="tiny", messages=messages, temperature=0,
                                                stream=True, stream_options={"include_usage": True}):
        if chunk.choices:
            parts.append(chunk.choices[0].delta.content or "")
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
    assert "".join(parts) == text and finish == "stop"
    assert usage == answer.usage

    one = dict(model="tiny", messages=messages, seed=5, temperature=1.0, max_tokens=30)
    first = client.chat.completions.create(**one).choices[0].message.content
    assert client.chat.completions.create(**one).choices[0].message.content == first
    several = client.chat.completions.create(**one, n=3)
    assert [c.index for c in several.choices] == [0, 1, 2]
    assert several.choices[0].message.content == first
    assert several.choices[0].finish_reason == "length"

    probs = client.chat.completions.create(model="tiny", messages=messages, temperature=0,
                                           max_tokens=4, logprobs=True, top_logprobs=2)
    content = probs.choices[0].logprobs.content
    assert len(content) == 4 and "".join(t.token for t in content) == probs.choices[0].message.content
    assert all(t.logprob <= 0 and len(t.top_logprobs) == 2 for t in content)
    assert all(t.top_logprobs[0].logprob == t.logprob for t in content), "greedy is the best"


def piece_by_piece(client, c):
    """The first token is here while who makes the others stands still."""
    ask = dict(model="tiny", prompt="Once upon a time", temperature=0, max_tokens=20)
    text, first = client.completions.create(**ask).choices[0].text, threading.Event()

    def read():
        parts = []
        for chunk in client.completions.create(**ask, stream=True):
            parts += [choice.text for choice in chunk.choices]
            if "".join(parts):
                first.set()
        return "".join(parts)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        cluster.stand_still(c.pids["prefill-0"])
        try:
            job = pool.submit(read)
            cluster.until(lambda: any(r["state"] == "prefilling" for r in c.status()["requests"]), 30,
                          "a reservation")
            cluster.stand_still(c.pids["decode-0"])
            c.kill("prefill-0", signal.SIGCONT)
            assert first.wait(60 * cluster.PATIENCE), "the answer does not come piece by piece"
        finally:
            c.kill("prefill-0", signal.SIGCONT)
            c.kill("decode-0", signal.SIGCONT)
        assert job.result() == text


def completions(client):
    text = client.completions.create(model="tiny", prompt="Once upon a time", temperature=0,
                                     max_tokens=20)
    assert text.choices[0].text.startswith(" there was a playful boy named Hugo."), text
    assert text.usage.prompt_tokens == 5 and text.usage.completion_tokens == 20
    assert text.choices[0].finish_reason == "length"
    stopped = client.completions.create(model="tiny", prompt="Once upon a time", temperature=0,
                                        max_tokens=50, stop=[" Hugo", "zebra"])
    assert stopped.choices[0].text == " there was a playful boy named", stopped
    assert stopped.choices[0].finish_reason == "stop"
    both = client.completions.create(model="tiny", prompt=["Once upon a time", "The code"],
                                     temperature=0, max_tokens=5, n=2)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text != both.choices[2].text
    ids = client.completions.create(model="tiny", prompt=[0, 500, 600], temperature=0, max_tokens=3,
                                    logprobs=2)
    assert len(ids.choices[0].logprobs.tokens) == 3
    pieces = [c.choices[0].text for c in client.completions.create(
        model="tiny", prompt="Once upon a time", temperature=0, max_tokens=20, stream=True)]
    assert "".join(pieces) == text.choices[0].text
    banned = client.completions.create(model="tiny", prompt="Once upon a time", temperature=0,
                                       max_tokens=5, logit_bias={"1": -100})
    assert banned.choices[0].text == text.choices[0].text[:len(banned.choices[0].text)]


def errors(client, openai):
    messages = [{"role": "user", "content": "x"}]
    for wrong, kind, word in [
            (dict(model="nothing"), openai.NotFoundError, "nothing"),
            (dict(max_tokens=-1), openai.BadRequestError, "max_tokens"),
            (dict(max_tokens=10 ** 6), openai.BadRequestError, "max_tokens"),
            (dict(temperature=-1), openai.BadRequestError, "temperature"),
            (dict(top_p=2), openai.BadRequestError, "top_p"),
            (dict(n=0), openai.BadRequestError, "n"),
            (dict(messages=[]), openai.BadRequestError, "messages"),
            (dict(messages=[{"role": "king", "content": "x"}]), openai.BadRequestError, "role")]:
        try:
            client.chat.completions.create(**{"model": "tiny", "messages": messages, **wrong})
        except kind as error:
            assert word in error.body["message"], (wrong, error.body)
            assert error.body["type"], error.body
        else:
            raise AssertionError(f"{wrong} was taken")
    try:
        client.completions.create(model="tiny", prompt="x", echo=True)
    except openai.BadRequestError as error:
        assert "echo" in error.body["message"]
    else:
        raise AssertionError("echo was taken")


def names_and_pieces(client):
    """Request ids, and several choices with logprobs in one stream."""
    ask = dict(model="tiny", messages=[{"role": "user", "content": "Tell me a story."}], seed=3,
               temperature=0.8, max_tokens=12, n=2, logprobs=True)
    whole = client.chat.completions.create(**ask, extra_headers={"X-Request-Id": "story-1"})
    assert whole._request_id == "story-1", whole._request_id
    other = client.completions.create(model="tiny", prompt="x", max_tokens=1)
    assert len(other._request_id) == 32, other._request_id
    texts, tokens = {0: "", 1: ""}, {0: [], 1: []}
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert tokens[choice.index] == choice.logprobs.content


def gives_up(client, c, openai):
    """While nothing can come, as the decode worker stands still."""
    cluster.stand_still(c.pids["decode-0"])
    try:
        client.with_options(timeout=openai.Timeout(120, read=0.2)).completions.create(
            model="tiny", prompt="Once upon a time", max_tokens=5000, extra_body={"ignore_eos": True})
        raise AssertionError("an answer of nobody")
    except openai.APITimeoutError:
        pass
    finally:
        c.kill("decode-0", signal.SIGCONT)
    c.wait_quiet()


def keys_and_limits(openai):
    """401, and 429 whose Retry-After the client waits for."""
    with tempfile.TemporaryDirectory(prefix="baton-test-") as directory:
        keys = pathlib.Path(directory, "keys.json")
        keys.write_text(json.dumps({"tenants": [
            {"name": "one", "keys": ["sk-test-openai-1"], "requests_per_minute": 2}]}))
        with cluster.Cluster(served_model_name="tiny", router_args=f"--api-keys {keys}") as c:
            def client(key):
                return openai.OpenAI(base_url=c.http + "/v1", api_key=key, max_retries=1)
            try:
                client("sk-of-nobody").completions.create(model="tiny", prompt="x", max_tokens=1)
            except openai.AuthenticationError as error:
                assert error.status_code == 401 and error.body["message"], error.body
            else:
                raise AssertionError("a wrong key was taken")
            one, begin = client("sk-test-openai-1"), time.monotonic()
            assert one.completions.create(model="tiny", prompt="x", max_tokens=1).choices
            waits, sleep = [], time.sleep
            time.sleep = waits.append
            try:
                for _ in range(5):
                    one.completions.create(model="tiny", prompt="x", max_tokens=1)
            except openai.RateLimitError as error:
                after = float(error.response.headers["Retry-After"])
                assert 0 < after <= 60 and error.request_id, error.response.headers
                # It waited as an answer said, one request in 30 s: by itself it never waits for more than 8 s.
                assert len(waits) == 1 and waits[0] > 29 - (time.monotonic() - begin), (waits, after)
            else:
                raise AssertionError("more than its share was taken")
            finally:
                time.sleep = sleep


def leave_early(client, c):
    """A client that stops reading in the middle frees everything."""
    stream = client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=5000,
                                       stream=True, extra_body={"ignore_eos": True})
    for _, chunk in zip(range(5), stream):
        assert chunk.choices
    stream.close()
    c.wait_quiet()


def main():
    import openai
    # Whoever stands still for a while is not silent yet: it is still given requests.
    with cluster.Cluster(served_model_name="tiny", router_args="--heartbeat 5000") as c:
        client = openai.OpenAI(base_url=c.http + "/v1", api_key="none", max_retries=0)
        models = list(client.models.list())
        assert [m.id for m in models] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"
        chat(client)
        piece_by_piece(client, c)
        completions(client)
        errors(client, openai)
        names_and_pieces(client)
        leave_early(client, c)
        gives_up(client, c, openai)
    keys_and_limits(openai)
    print(f"openai {openai.__version__}: chat, completions, streams, errors, keys, limits")


if __name__ == "__main__":
    if "--inside" not in sys.argv:
        inside_venv()
    sys.exit(main())
