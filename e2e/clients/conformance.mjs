// The official OpenAI Node client, unmodified, against a running cluster.
// Environment as in conformance.py. Run with the folder of the client's node_modules as NODE_CLIENT.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(process.env.NODE_CLIENT + "/");
const OpenAI = require("openai").default;
const client = new OpenAI({ maxRetries: 0, timeout: 60_000 });

const user = (content) => [{ role: "user", content }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 }, days: { type: "integer", minimum: 1, maximum: 7 } },
  required: ["city", "days"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", description: "Tells the weather.", parameters } }];
const check = async (name, run) => {
  await run();
  console.log(`node ok: ${name}`);
};
const collect = async (stream) => {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
};
const ofChoice = (chunks, index) => chunks.filter((chunk) => chunk.choices[0]?.index === index);
const text = (chunks) => chunks.flatMap((c) => c.choices).map((c) => c.delta.content ?? "").join("");
const rejected = async (kind, request) => {
  const error = await client.chat.completions.create(request).then(
    () => assert.fail(`${kind.name} was not thrown`),
    (error) => error,
  );
  assert(error instanceof kind, `${error}`);
  return error;
};

async function real(model) {
  await check("the model is listed and can be retrieved", async () => {
    const ids = (await client.models.list()).data.map((card) => card.id);
    assert(ids.includes(model));
    assert.equal((await client.models.retrieve(model)).id, model);
  });
  await check("chat, whole and streamed, is the same text", async () => {
    const request = { model, messages: user("What is the capital of France? Answer in one sentence."), temperature: 0, max_tokens: 30 };
    // Users of their own, so that neither finds the other's prompt computed.
    const whole = await client.chat.completions.create({ ...request, user: "node-whole" });
    assert.match(whole.choices[0].message.content, /Paris/);
    const options = { user: "node-streamed", stream: true, stream_options: { include_usage: true } };
    const chunks = await collect(await client.chat.completions.create({ ...request, ...options }));
    assert.equal(text(chunks), whole.choices[0].message.content);
    assert.deepEqual(chunks.at(-1).usage, whole.usage);
    assert.equal(chunks.at(-2).choices[0].finish_reason, whole.choices[0].finish_reason);
  });
  await check("a text completion continues its prompt", async () => {
    const request = { model, prompt: "The capital of France is", max_tokens: 8, temperature: 0 };
    assert.match((await client.completions.create(request)).choices[0].text, /Paris/);
  });
  await check("three choices come from one prompt, whole and streamed", async () => {
    const messages = user("What is the capital of France? Answer in one word.");
    const request = { model, messages, temperature: 0, max_tokens: 16, n: 3 };
    const whole = await client.chat.completions.create(request);
    assert.deepEqual(whole.choices.map((choice) => choice.index), [0, 1, 2]);
    const options = { stream: true, stream_options: { include_usage: true } };
    const chunks = await collect(await client.chat.completions.create({ ...request, ...options }));
    for (const { index, message, finish_reason } of whole.choices) {
      assert.match(message.content, /Paris/);
      const mine = ofChoice(chunks, index);
      assert.match(text(mine), /Paris/);
      assert.equal(mine.at(-1).choices[0].finish_reason, finish_reason);
    }
    assert.equal(chunks.at(-1).usage.prompt_tokens, whole.usage.prompt_tokens);
    // The client's own helper puts the choices of a stream together.
    const final = await client.chat.completions.stream(request).finalChatCompletion();
    assert(final.choices.every((choice) => /Paris/.test(choice.message.content)), `${final.choices}`);
  });
  await check("a tool that has to be called is called with arguments that fit its schema", async () => {
    const request = { model, messages: user("Weather in Rome?"), tools, tool_choice: "required", max_tokens: 150, seed: 5 };
    const { message, finish_reason } = (await client.chat.completions.create(request)).choices[0];
    assert.equal(finish_reason, "tool_calls");
    const given = JSON.parse(message.tool_calls[0].function.arguments);
    assert.deepEqual(Object.keys(given).sort(), ["city", "days"]);
    assert(Number.isInteger(given.days) && given.days >= 1 && given.days <= 7, `${given.days}`);
  });
  await check("log probabilities and a JSON schema", async () => {
    const request = { model, messages: user("Where is the Eiffel tower?"), temperature: 0, max_tokens: 40 };
    const { choices: [told] } = await client.chat.completions.create({ ...request, logprobs: true, top_logprobs: 1 });
    assert.equal(told.logprobs.content.map((token) => token.token).join(""), told.message.content);
    assert(told.logprobs.content.every((token) => token.top_logprobs[0].logprob === token.logprob));
    const schema = {
      type: "object", additionalProperties: false, required: ["city"],
      properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
    };
    const format = (schema) => ({ type: "json_schema", json_schema: { name: "place", strict: true, schema } });
    const { choices: [held] } = await client.chat.completions.create({ ...request, response_format: format(schema) });
    assert(["Paris", "Rome"].includes(JSON.parse(held.message.content).city), held.message.content);
    const bad = format({ type: "array", items: { uniqueItems: true } });
    const error = await rejected(OpenAI.BadRequestError, { ...request, response_format: bad });
    assert.equal(error.param, "response_format.json_schema.schema.items");
  });
  await check("a prompt that does not fit is refused", async () => {
    const messages = user("word ".repeat(40_000));
    const error = await rejected(OpenAI.BadRequestError, { model, messages, max_tokens: 4 });
    assert.equal(error.code, "context_length_exceeded");
  });
}

async function echo(model) {
  await check("stop strings and whole characters in a stream", async () => {
    const said = "bees 🐝🐝 美味しい 蜂蜜 STOP never";
    const chunks = await collect(
      await client.chat.completions.create({ model, messages: user(said), stop: " STOP", stream: true }),
    );
    assert.equal(text(chunks), "bees 🐝🐝 美味しい 蜂蜜");
    assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  });
  await check("every choice has its own role, text and end", async () => {
    const request = { model, messages: user("one two three"), n: 3 };
    const whole = await client.chat.completions.create(request);
    assert.deepEqual(whole.choices.map((choice) => choice.message.content), Array(3).fill("one two three"));
    assert.equal(whole.usage.prompt_tokens, 3);
    assert.equal(whole.usage.completion_tokens, 9);
    const chunks = await collect(await client.chat.completions.create({ ...request, stream: true }));
    for (const index of [0, 1, 2]) {
      const mine = ofChoice(chunks, index);
      assert.equal(mine[0].choices[0].delta.role, "assistant");
      assert.equal(text(mine), "one two three");
      assert.deepEqual(mine.map((chunk) => chunk.choices[0].finish_reason).filter(Boolean), ["stop"]);
    }
  });
  await check("the client's own loop calls a tool and gets its answer", async () => {
    const call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>';
    const asked = [];
    const runner = client.chat.completions.runTools({
      model,
      stream: true,
      messages: user(`[[bytes=5 text=${call}]]`),
      tools: [{
        type: "function",
        function: {
          name: "get_weather", description: "Tells the weather.", parameters, parse: JSON.parse,
          function: ({ city, days }) => (asked.push([city, days]), "sunny for now"),
        },
      }],
    });
    assert.equal(await runner.finalContent(), "sunny for now");
    assert.deepEqual(asked, [["Rome", 2]]);
  });
  await check("an aborted stream leaves the cluster usable", async () => {
    const stream = await client.chat.completions.create({
      model, messages: user("[[tokens=100000 delay_ms=5]] x"), stream: true,
    });
    for await (const _ of stream) break;
    stream.controller.abort();
    const reply = await client.chat.completions.create({ model, messages: user("one two") });
    assert.equal(reply.choices[0].message.content.trim(), "one two");
  });
}

async function embeddings(model) {
  await check("embeddings, as base64 and as numbers, and cut", async () => {
    const input = ["bees make honey", "the sky is blue"];
    const packed = await client.embeddings.create({ model, input });
    const plain = await client.embeddings.create({ model, input, encoding_format: "float" });
    assert.deepEqual(packed.data.map((data) => data.index), [0, 1]);
    for (const [at, data] of packed.data.entries()) {
      const other = plain.data[at].embedding;
      assert.equal(data.embedding.length, other.length);
      data.embedding.forEach((number, place) => assert(Math.abs(number - other[place]) < 1e-6));
    }
    const cut = await client.embeddings.create({ model, input: "a", dimensions: 8 });
    assert.equal(cut.data[0].embedding.length, 8);
    const refused = client.embeddings.create({ model, input: "a", dimensions: 4 });
    await assert.rejects(refused, OpenAI.BadRequestError);
  });
}

async function errors(model) {
  await check("error classes: 401, 404, 400", async () => {
    const stranger = new OpenAI({ apiKey: "wrong", maxRetries: 0 });
    await assert.rejects(() => stranger.models.list(), OpenAI.AuthenticationError);
    const missing = await rejected(OpenAI.NotFoundError, { model: "no-such-model", messages: user("hi") });
    assert.equal(missing.code, "model_not_found");
    const unsupported = await rejected(OpenAI.BadRequestError, { model, messages: user("hi"), store: true });
    assert.deepEqual([unsupported.code, unsupported.param], ["unsupported_parameter", "store"]);
  });
}

if (process.env.MODEL) {
  await real(process.env.MODEL);
  await errors(process.env.MODEL);
}
if (process.env.EMBED) await embeddings(process.env.EMBED);
if (process.env.ECHO) {
  await echo(process.env.ECHO);
  await errors(process.env.ECHO);
}
