"""The official OpenAI Python client, unmodified, against a running cluster.

OPENAI_BASE_URL and OPENAI_API_KEY come from `rbee env`. MODEL is the starter
model on llama.cpp, ECHO and EMBED models on the echo engine, for text and for
embeddings; any may be absent, and then its checks are not run. Prints one line a check; exits 1 at the first failure.
"""

import asyncio
import json
import os
import time
import urllib.request

import openai

client = openai.OpenAI(max_retries=0, timeout=60)
BASE = os.environ["OPENAI_BASE_URL"]


def check(name):
    def run(function):
        function()
        print(f"python ok: {name}", flush=True)

    return run


def user(text):
    return [{"role": "user", "content": text}]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 20},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                },
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
        },
    }
]


def put_together(chunks):
    """What a client makes of a stream: thoughts, text, calls and the reason it ended."""
    thoughts, text, calls, reason = "", "", [], None
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        delta = choice.delta
        thoughts += getattr(delta, "reasoning_content", None) or ""
        text += delta.content or ""
        for call in delta.tool_calls or []:
            if call.id:
                assert call.index == len(calls) and call.type == "function", call
                calls.append([call.id, call.function.name, ""])
            calls[call.index][2] += call.function.arguments or ""
        reason = choice.finish_reason or reason
    return thoughts, text, calls, reason


def of_choice(chunks, index):
    """The chunks of one choice of a stream."""
    return [c for c in chunks if c.choices and c.choices[0].index == index]


def raises(kind, **arguments):
    try:
        client.chat.completions.create(**arguments)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def real(model):
    @check("the model is listed and can be retrieved")
    def _():
        assert model in [card.id for card in client.models.list().data]
        assert client.models.retrieve(model).id == model

    @check("a chat is answered, with usage")
    def _():
        reply = client.chat.completions.create(
            model=model, messages=user("What is the capital of France? Answer in one sentence."), temperature=0, max_tokens=40
        )
        choice = reply.choices[0]
        assert "Paris" in choice.message.content, choice
        assert choice.finish_reason in ("stop", "length") and choice.message.role == "assistant"
        usage = reply.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert 0 < usage.completion_tokens <= 40

    @check("a streamed chat is the same text, in one role chunk, deltas and one end")
    def _():
        arguments = dict(
            model=model, messages=user("Count from one to five."), temperature=0, max_tokens=30
        )
        # Users of their own, so that neither finds the other's prompt computed.
        whole = client.chat.completions.create(**arguments, user="python-whole")
        chunks = list(
            client.chat.completions.create(
                **arguments,
                user="python-streamed",
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content, (text, whole)
        ends = [c.choices[0].finish_reason for c in chunks if c.choices]
        assert [e for e in ends if e] == [whole.choices[0].finish_reason] and ends[-1]
        assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
        assert len({c.id for c in chunks}) == 1 and len({c.created for c in chunks}) == 1

    @check("a text completion continues its prompt")
    def _():
        reply = client.completions.create(
            model=model, prompt="The capital of France is", max_tokens=8, temperature=0
        )
        assert "Paris" in reply.choices[0].text, reply
        streamed = client.completions.create(
            model=model, prompt="The capital of France is", max_tokens=8, temperature=0, stream=True
        )
        assert "".join(c.choices[0].text for c in streamed) == reply.choices[0].text

    @check("a seed makes a warm answer repeatable")
    def _():
        arguments = dict(model=model, messages=user("Tell me a story."), temperature=1.0, seed=7)
        texts = {
            client.chat.completions.create(**arguments, max_tokens=24).choices[0].message.content
            for _ in range(2)
        }
        assert len(texts) == 1, texts

    @check("three choices come from one prompt, whole and streamed")
    def _():
        question = user("What is the capital of France? Answer in one word.")
        arguments = dict(model=model, messages=question, max_tokens=16, n=3)
        greedy = client.chat.completions.create(**arguments, temperature=0)
        assert [choice.index for choice in greedy.choices] == [0, 1, 2]
        assert all("Paris" in choice.message.content for choice in greedy.choices), greedy
        usage = greedy.usage
        assert usage.prompt_tokens < 100 and 3 <= usage.completion_tokens <= 48, usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        stream = client.chat.completions.create(
            **arguments, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert chunks[-1].choices == [] and chunks[-1].usage.prompt_tokens == usage.prompt_tokens
        for index in range(3):
            _, text, _, reason = put_together(of_choice(chunks, index))
            assert "Paris" in text and reason == greedy.choices[index].finish_reason, text
        drawn = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=12, temperature=1.5, seed=1, n=3
        )
        assert len({choice.text for choice in drawn.choices}) == 3, drawn
        schema = {"type": "object", "additionalProperties": False, "required": ["city"],
                  "properties": {"city": {"enum": ["Paris", "Rome"]}}}
        format = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
        held = client.chat.completions.create(**{**arguments, "max_tokens": 60}, response_format=format)
        for choice in held.choices:
            assert json.loads(choice.message.content)["city"] in ("Paris", "Rome"), held

    @check("a tool that has to be called is called with arguments that fit its schema")
    def _():
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            reply = client.chat.completions.create(
                model=model,
                messages=user("How is the weather in Paris?"),
                tools=TOOLS,
                tool_choice=choice,
                max_tokens=150,
                seed=3,
            ).choices[0]
            assert reply.finish_reason == "tool_calls", reply
            (call,) = reply.message.tool_calls
            assert call.function.name == "get_weather" and call.id.startswith("call_")
            arguments = json.loads(call.function.arguments)
            assert set(arguments) == {"city", "unit"} and len(arguments["city"]) <= 20
            assert arguments["unit"] in ("celsius", "fahrenheit"), arguments

    @check("the result of a call goes back and is answered")
    def _():
        asked = dict(model=model, tools=TOOLS, temperature=0, max_tokens=60)
        messages = user("How is the weather in Paris?")
        message = client.chat.completions.create(
            **asked, messages=messages, tool_choice="required", parallel_tool_calls=False
        ).choices[0].message
        result = {
            "role": "tool",
            "tool_call_id": message.tool_calls[0].id,
            "content": "sunny, 21 degrees",
        }
        answer = client.chat.completions.create(
            **asked, messages=[*messages, message, result], tool_choice="none"
        )
        assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls

    @check("log probabilities come with the text, whole and streamed")
    def _():
        arguments = dict(
            model=model, messages=user("Name a colour."), temperature=0, max_tokens=6,
            logprobs=True, top_logprobs=2,
        )
        choice = client.chat.completions.create(**arguments).choices[0]
        content = choice.logprobs.content
        spelt = bytes(byte for token in content for byte in token.bytes).decode()
        assert spelt == choice.message.content, (spelt, choice)
        assert all(len(t.top_logprobs) == 2 and t.top_logprobs[0].token == t.token for t in content)
        assert all(token.logprob <= 0 for token in content)
        chunks = list(client.chat.completions.create(**arguments, stream=True))
        streamed = [t for c in chunks for x in c.choices if x.logprobs for t in x.logprobs.content]
        assert [t.token for t in streamed] == [t.token for t in content]
        legacy = client.completions.create(
            model=model, prompt="one two three", max_tokens=4, temperature=0, logprobs=2
        ).choices[0]
        assert "".join(legacy.logprobs.tokens) == legacy.text
        assert len(legacy.logprobs.token_logprobs) == len(legacy.logprobs.top_logprobs) == 4
        assert legacy.logprobs.text_offset[0] == 0 and legacy.logprobs.tokens[0] in legacy.logprobs.top_logprobs[0]

    @check("a JSON schema, a JSON object and a grammar are followed")
    def _():
        schema = {
            "type": "object", "additionalProperties": False, "required": ["city", "large"],
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "large": {"type": "boolean"}},
        }
        described = {"name": "place", "strict": True, "schema": schema}
        question = dict(model=model, messages=user("Where is the Eiffel tower?"), temperature=0)
        format = {"type": "json_schema", "json_schema": described}
        reply = client.chat.completions.create(**question, response_format=format, max_tokens=60)
        answer = json.loads(reply.choices[0].message.content)
        assert answer["city"] in ("Paris", "Rome") and isinstance(answer["large"], bool), answer
        reply = client.chat.completions.create(
            **question, response_format={"type": "json_object"}, max_tokens=4
        )
        assert reply.choices[0].message.content.startswith("{"), reply
        reply = client.chat.completions.create(
            **question, extra_body={"grammar": 'root ::= "in " ("Paris" | "Rome")'}
        )
        assert reply.choices[0].message.content in ("in Paris", "in Rome"), reply
        assert reply.choices[0].finish_reason == "stop"

    @check("a schema that cannot be compiled is refused with its place")
    def _():
        bad = {"type": "object", "properties": {"a": {"not": {"type": "null"}}}}
        format = {"type": "json_schema", "json_schema": {"name": "x", "schema": bad}}
        error = raises(
            openai.BadRequestError, model=model, messages=user("hi"), response_format=format
        )
        assert error.param == "response_format.json_schema.schema.properties.a", error

    @check("a bias makes or breaks a token")
    def _():
        arguments = dict(model=model, prompt="one two three", max_tokens=1, temperature=0)
        free = client.completions.create(**arguments).choices[0].text
        forced = client.completions.create(**arguments, logit_bias={"28": 100}).choices[0].text
        banned = client.completions.create(**arguments, logit_bias={"28": -100}).choices[0].text
        assert forced != free == banned, (free, forced, banned)

    @check("a prompt that does not fit is refused with the context length")
    def _():
        error = raises(
            openai.BadRequestError, model=model, messages=user("word " * 40_000), max_tokens=4
        )
        assert error.code == "context_length_exceeded", error


def echo(model):
    @check("a stop string ends the text before it, also across chunks")
    def _():
        for stream in (False, True):
            reply = client.chat.completions.create(
                model=model, messages=user("alpha beta gamma delta"), stop=["ta gam"], stream=stream
            )
            if stream:
                chunks = list(reply)
                text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
                reason = chunks[-1].choices[0].finish_reason
            else:
                text, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
            assert (text, reason) == ("alpha be", "stop"), (text, reason)

    @check("emoji and CJK arrive whole in every delta")
    def _():
        said = "bees 🐝🐝 sind 美味しい 蜂蜜 👩‍👩‍👧 ende"
        chunks = list(client.chat.completions.create(model=model, messages=user(said), stream=True))
        deltas = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert "".join(deltas).strip() == said, deltas
        assert not any("\ufffd" in delta for delta in deltas)

    @check("content may come in parts, and a developer is heard")
    def _():
        reply = client.chat.completions.create(
            model=model,
            messages=[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "one two"}]},
            ],
        )
        assert reply.choices[0].message.content.strip() == "one two", reply

    @check("a call comes in deltas that make up the whole one, and its result goes back")
    def _():
        call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern 🐝", "unit": "celsius"}}\n</tool_call>'
        said = f"[[bytes=3 text=<think>\nHm.\n</think>\n\nI look.\n{call}]]"
        request = dict(model=model, messages=user(said), tools=TOOLS)
        chunks = list(client.chat.completions.create(**request, stream=True))
        thoughts, text, calls, reason = put_together(chunks)
        assert (thoughts, text, reason) == ("Hm.", "I look.", "tool_calls"), (thoughts, text, reason)
        ((_, name, arguments),) = calls
        assert (name, json.loads(arguments)) == ("get_weather", {"city": "Bern 🐝", "unit": "celsius"})
        whole = client.chat.completions.create(**request).choices[0]
        assert whole.message.content == text and whole.message.reasoning_content == thoughts
        (call,) = whole.message.tool_calls
        assert (call.function.name, call.function.arguments) == (name, arguments)
        result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        messages = [*request["messages"], whole.message, result]
        answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS)
        assert answer.choices[0].message.content == "rain", answer
        error = raises(
            openai.BadRequestError,
            model=model,
            messages=[*request["messages"], whole.message, {**result, "tool_call_id": "other"}],
        )
        assert error.param == "messages[2].tool_call_id", error

    @check("every choice has its own role, text and end")
    def _():
        arguments = dict(model=model, messages=user("one two three"), n=3)
        whole = client.chat.completions.create(**arguments)
        assert [c.message.content for c in whole.choices] == ["one two three"] * 3, whole
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 9), whole.usage
        chunks = list(client.chat.completions.create(**arguments, stream=True))
        for index in range(3):
            mine = [chunk.choices[0] for chunk in of_choice(chunks, index)]
            assert [c.delta.role for c in mine] == ["assistant"] + [None] * (len(mine) - 1)
            assert "".join(c.delta.content or "" for c in mine) == "one two three"
            assert [c.finish_reason for c in mine if c.finish_reason] == ["stop"]
        drawn = dict(model=model, prompt="[[draw=1 tokens=24]] a b c d e f g h", n=3, best_of=3, max_tokens=50)
        together = [c.text for c in client.completions.create(**drawn, seed=5).choices]
        alone = [
            client.completions.create(**{**drawn, "n": 1, "best_of": 1}, seed=5 + index).choices[0].text
            for index in range(3)
        ]
        assert together == alone and len(set(together)) == 3, (together, alone)

    @check("max_tokens ends with length")
    def _():
        reply = client.chat.completions.create(
            model=model, messages=user("a b c d e f"), max_completion_tokens=3
        )
        assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 3

    @check("eight asynchronous streams at once are not mixed up")
    def _():
        async def one(number):
            chunks = await asynchronous.chat.completions.create(
                model=model, messages=user(f"[[tokens=40 delay_ms=5]] s{number}"), stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices])

        async def everyone():
            return await asyncio.gather(*(one(number) for number in range(8)))

        asynchronous = openai.AsyncOpenAI(max_retries=0, timeout=60)
        for number, text in enumerate(asyncio.run(everyone())):
            assert set(text.split()) == {f"s{number}"} and len(text.split()) == 40, text

    @check("a client that leaves frees its slot within 250 ms")
    def _():
        def busy():
            request = urllib.request.Request(
                BASE.removesuffix("/v1") + "/api/v1/status",
                headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
            )
            return json.load(urllib.request.urlopen(request))["requests_running"]

        stream = client.chat.completions.create(
            model=model, messages=user("[[tokens=100000 delay_ms=5]] x"), stream=True
        )
        for _, _chunk in zip(range(5), stream):
            pass
        assert busy() == 1
        stream.close()
        left = time.monotonic()
        while busy():
            assert time.monotonic() - left < 0.25, "still busy after 250 ms"


def embeddings(model):
    def distance(a, b):
        assert len(a) == len(b), (len(a), len(b))
        return max(abs(x - y) for x, y in zip(a, b))

    @check("embeddings come in order, the same as base64 and as numbers")
    def _():
        texts = ["bees make honey", "the sky is blue", "bees make wax"]
        # The client asks for base64 when nobody says, and decodes it.
        packed = client.embeddings.create(model=model, input=texts)
        plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
        assert [data.index for data in packed.data] == [0, 1, 2] and packed.object == "list"
        for a, b in zip(packed.data, plain.data):
            assert distance(a.embedding, b.embedding) < 1e-6
            assert abs(sum(x * x for x in a.embedding) - 1) < 1e-5, "its length is not 1"
        one = client.embeddings.create(model=model, input=texts[1])
        assert distance(one.data[0].embedding, plain.data[1].embedding) < 1e-6
        assert packed.usage.prompt_tokens == packed.usage.total_tokens == 10, packed.usage

    @check("tokens can be embedded, and embeddings be cut")
    def _():
        lists = client.embeddings.create(model=model, input=[[1, 2, 3], [4]])
        single = client.embeddings.create(model=model, input=[1, 2, 3])
        assert distance(lists.data[0].embedding, single.data[0].embedding) < 1e-6
        assert len(client.embeddings.create(model=model, input="a", dimensions=16).data[0].embedding) == 16

    @check("2,048 inputs are one request, 2,049 are refused")
    def _():
        reply = client.embeddings.create(model=model, input=[f"text {n}" for n in range(2048)])
        assert [data.index for data in reply.data] == list(range(2048))
        try:
            client.embeddings.create(model=model, input=["a"] * 2049)
        except openai.BadRequestError as error:
            assert (error.code, error.param) == ("validation_failed", "input"), error
        else:
            raise AssertionError("2,049 inputs were taken")

    @check("an embedding model does not chat, and says so")
    def _():
        error = raises(openai.BadRequestError, model=model, messages=user("hi"))
        assert (error.code, error.param) == ("unsupported_parameter", "model"), error


def errors(model):
    @check("a wrong key is an AuthenticationError")
    def _():
        stranger = openai.OpenAI(api_key="wrong", max_retries=0)
        try:
            stranger.models.list()
        except openai.AuthenticationError as error:
            assert error.code == "unauthorized", error
        else:
            raise AssertionError("a wrong key was let in")

    @check("an unknown model is a NotFoundError")
    def _():
        error = raises(openai.NotFoundError, model="no-such-model", messages=user("hi"))
        assert error.code == "model_not_found" and error.type == "not_found_error", error

    @check("what is not supported is a BadRequestError that names it")
    def _():
        error = raises(openai.BadRequestError, model=model, messages=user("hi"), store=True)
        assert (error.code, error.param) == ("unsupported_parameter", "store"), error
        error = raises(openai.BadRequestError, model=model, messages=user("hi"), n=17)
        assert (error.code, error.param) == ("validation_failed", "n"), error
        error = raises(openai.BadRequestError, model=model, messages=user("hi"), temperature=9)
        assert (error.code, error.param) == ("validation_failed", "temperature"), error
        assert error.response.headers["x-request-id"]


if real_model := os.environ.get("MODEL"):
    real(real_model)
    errors(real_model)
if embed_model := os.environ.get("EMBED"):
    embeddings(embed_model)
if echo_model := os.environ.get("ECHO"):
    echo(echo_model)
    errors(echo_model)
