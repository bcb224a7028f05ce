// OpenAI's client for JavaScript: node client.mjs URL MODEL TEXTS. Prints embeddings, and the error for token ids.
import OpenAI from "openai";

const [url, model, texts] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const found = await client.embeddings.create({ model, input: JSON.parse(texts) });
const refused = await client.embeddings
    .create({ model, input: [[9906, 1917, 0, 3]] })
    .then(() => null, (error) => ({ status: error.status, code: error.code, message: error.message }));
console.log(JSON.stringify({ vectors: found.data.map((each) => each.embedding), refused }));
