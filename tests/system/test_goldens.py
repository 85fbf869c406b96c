"""Greedy text of the cluster against the goldens of the independent implementation."""
import json
import sys

import cluster
import openai_http

GOLDEN = cluster.MODEL / "golden/index.json"


def main():
    prompts = json.loads(GOLDEN.read_text(encoding="utf-8"))["prompts"]
    with cluster.Cluster(prefill_args="--layerwise-threshold 100 --chunked-prefill-size 500") as c:
        for name, golden in prompts.items():
            body = {"prompt": golden["text"], "temperature": 0, "max_tokens": 64,
                    "ignore_eos": True, "skip_special_tokens": False}
            answer = openai_http.post(c.http, "/v1/completions", body)
            text = answer["choices"][0]["text"]
            assert text == golden["continuation"], f"{name}: {text!r}"
            assert answer["usage"]["prompt_tokens"] == golden["tokens"], name
            assert answer["usage"]["completion_tokens"] == 64, name
            chunks = list(openai_http.stream(c.http, "/v1/completions", body))
            streamed = "".join(ch["choices"][0]["text"] for ch in chunks if ch["choices"])
            assert streamed == text, f"{name}: streamed {streamed!r}"
            if golden.get("answer_right"):
                assert golden["expected_answer"] in text, name
            print(f"{name}: {golden['tokens']} tokens, continuation equal", flush=True)
        c.wait_quiet()


if __name__ == "__main__":
    sys.exit(main())
