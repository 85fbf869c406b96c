"""Clusters whose workers run on the emulated GPU (tests/cuda-emulation), and what they are asked."""
import concurrent.futures
import json
import os

import cluster
import fleet
import openai_http

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
WORKER = ["--kv-pages", 64]
PREFILL = ["--chunked-prefill-size", 128, "--max-num-seqs", 8]
GREEDY = ("short", "story", "recall-150")     # have goldens
GOLDENS = json.loads((cluster.MODEL / "golden/index.json").read_text(encoding="utf-8"))["prompts"]


def choose(arch=90):
    """Whoever is started from now on takes this one for its GPU; without it the test is skipped."""
    module = cluster.BUILD / f"tests/cuda-emulation/baton-cuda-emulated-{arch}.so"
    if not module.exists():
        cluster.skip("this build has no emulated GPU")
    os.environ["BATON_CUDA_MODULE"] = str(module)
    os.environ["BATON_EMULATED_LEAKS"] = "fail"


class Gpus(fleet.Fleet):
    """A fleet; who has not been killed has to end with 0 (`ends`): also what leaks device memory does not."""

    def __init__(self, *router_args, batch=8, ends=(0,)):
        super().__init__()
        self.router_args, self.batch, self.ends = router_args, batch, {*ends, -9}

    def __enter__(self):
        try:
            self.router("--local-prefill", "never", *self.router_args)
        except BaseException:
            self.__exit__(True, None, None)
            raise
        return self

    def begin(self, role, name, *args, device="cuda", prefix=()):
        more = PREFILL if role == "prefill" else ["--max-num-seqs", self.batch]
        return self.add(role, name, "--device", device, *WORKER, *more, *args, prefix=prefix).start()

    def pair(self, *args, device="cuda"):
        """A prefill worker and a decode rank that are ready."""
        workers = [self.begin(role, f"{role}-0", *args, device=device) for role in ("prefill", "decode")]
        self.wait_ready_all(100)
        return workers

    def __exit__(self, kind, value, trace):
        super().__exit__(kind, value, trace)
        ended = {p.name: p.child.returncode for p in self.processes.values() if p.child}
        assert kind or set(ended.values()) <= self.ends, ended


def questions():
    """(name, path, body): prompts of one token to some pages. As few tokens as will do: a step of
    the emulated GPU takes seconds."""
    greedy = {"temperature": 0, "max_tokens": 5, "ignore_eos": True}
    for name in GREEDY:
        yield name, TEXT, {"prompt": GOLDENS[name]["text"], "skip_special_tokens": False, **greedy}
    for seed in (1, 2):
        yield f"sampled {seed}", TEXT, {"prompt": [5 + seed, 6, 7, 8], "seed": seed, "temperature": 0.8,
                                        "top_p": 0.9, "max_tokens": 5, "ignore_eos": True}
    yield "stopped", CHAT, {"messages": [{"role": "user", "content": "Tell me a story."}],
                            "temperature": 0, "stop": ["ce was"], "max_tokens": 30}
    # What these want is nothing that the GPU draws.
    yield "penalised", TEXT, {"prompt": [9, 9, 8], "repetition_penalty": 1.3, "seed": 4,
                              "temperature": 0.7, "max_tokens": 5, "ignore_eos": True}
    yield "logprobs", TEXT, {"prompt": [17], "logprobs": 2, **greedy}


def ask(base, path, body):
    """What an answer is compared by: tokens, text, why it ended."""
    choice = openai_http.post(base, path, {**body, "return_token_ids": True}, 400)["choices"][0]
    text = choice["text"] if path == TEXT else choice["message"]["content"]
    return choice["token_ids"], text, choice["finish_reason"]


def answers(base, only=lambda name: True):
    """All at once, by name."""
    asked = [q for q in questions() if only(q[0])]
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        jobs = {name: pool.submit(ask, base, path, body) for name, path, body in asked}
        return {name: job.result(timeout=500) for name, job in jobs.items()}


def on_cpu(only=lambda name: True):
    """What all of this is compared with."""
    with Gpus() as f:
        f.pair(device="cpu")
        return answers(f.http, only)


def same(got, want, where):
    for name, answer in got.items():
        assert answer == want[name], f"{where}: {name}:\n got {answer}\nwant {want[name]}"
